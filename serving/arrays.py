"""Arrays and strings in files: what snapshots are made of.

Strings are stored as their UTF-8 bytes and the ends of each, so that a snapshot holds nothing but arrays.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from driftline.configs.errors import SnapshotError

Array = NDArray[Any]

DTYPES = {
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"), "I8": np.dtype("i1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
}  # fmt: skip
"""What an array in a snapshot may hold, by the names of the safetensors format."""
_LARGE = 1 << 16


def pack_strings(name: str, values: Iterable[str]) -> dict[str, Array]:
    """A column of strings as two arrays that a part can hold: UTF-8 bytes and [n + 1] int64 ends."""
    encoded = [value.encode() for value in values]
    ends = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(value) for value in encoded], out=ends[1:])
    return {f"{name}.utf8": np.frombuffer(b"".join(encoded), np.uint8), f"{name}.ends": ends}


def unpack_strings(arrays: Mapping[str, Array], name: str) -> list[str]:
    """The column that `pack_strings` wrote; [] if there is none of this name."""
    if f"{name}.ends" not in arrays:
        return []
    data, ends = arrays[f"{name}.utf8"].tobytes(), arrays[f"{name}.ends"].tolist()
    return [data[start:end].decode() for start, end in itertools.pairwise(ends)]


class Labels:
    """Packs a column of which each row is a set of names: every name once, every row the codes of its names."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._rows: dict[tuple[str, ...], bytes] = {}

    def row(self, names: Iterable[str]) -> bytes:
        """The codes of a row; names that were never seen get the next ones."""
        key = tuple(names)
        row = self._rows.get(key)
        if row is None:
            codes = [self._codes.setdefault(name, len(self._codes)) for name in dict.fromkeys(key) if name]
            row = self._rows[key] = np.array(codes, "<i4").tobytes()
        return row

    def pack(self, name: str, rows: Sequence[bytes]) -> dict[str, Array]:
        """The column's arrays: codes of all rows, [n + 1] int64 ends, and the names by code."""
        ends = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)) // 4, out=ends[1:])
        codes = np.frombuffer(b"".join(rows), "<i4")
        return {f"{name}.codes": codes, f"{name}.ends": ends, **pack_strings(f"{name}.names", self._codes)}


def item_part(
    ids: Sequence[str],
    titles: Sequence[str] = (),
    domains: Sequence[str] = (),
    available: Sequence[bool] = (),
    *,
    categories: Sequence[Sequence[str]] = (),
    brands: Sequence[str] = (),
    prices: Sequence[float] = (),
) -> dict[str, Array]:
    """The part "items".

    Args:
        ids: in order of their dense indices.
        titles, domains, brands: of equal length, "" = none; or empty.
        available: False = may not be recommended; empty = all may.
        categories: names of each; or empty.
        prices: NaN = none; or empty.

    Raises:
        SnapshotError: the columns differ in length.
    """
    n = len(ids)
    columns = {"id": ids, "title": titles or [""] * n, "domain": domains or [""] * n}
    labels: dict[str, Sequence[Sequence[str]]] = {
        "category": categories or [()] * n,
        "brand": [[brand] for brand in brands] or [()] * n,
    }
    flags = np.array(available if len(available) else [True] * n, np.bool_)
    priced = np.array(prices if len(prices) else [np.nan] * n, np.float32)
    for name, column in {"available": flags, "price": priced, **columns, **labels}.items():
        if len(column) != n:
            raise SnapshotError(f"item column {name!r} has {len(column)} rows, expected {n}.")
    packed = {key: array for name, column in columns.items() for key, array in pack_strings(name, column).items()}
    for name, rows in labels.items():
        one = Labels()
        packed |= one.pack(name, [one.row(row) for row in rows])
    return {**packed, "available": flags, "price": priced}


def write_arrays(file: Path, arrays: Mapping[str, Array], room: bool = False) -> None:
    """Writes a safetensors file: 8 bytes of header length, a JSON header, the data; widest items first, so aligned.

    Args:
        file: made, or written anew; the caller syncs it.
        arrays: contiguous ones of DTYPES.
        room: with empty rows after those of a large array, which take no disk: it can grow where it is mapped.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    header, at, places = {}, 0, []
    for key, array in ordered:
        rows = room_for(array) if room else len(array) if array.ndim else 0
        shape = [rows, *array.shape[1:]] if array.ndim else []
        end = at + array.itemsize * int(np.prod(shape, dtype=np.int64))
        header[key] = {"dtype": names[array.dtype], "shape": shape, "data_offsets": [at, end]}
        places.append(at)
        at = end
    head = orjson.dumps(header)
    head += b" " * (-len(head) % 8)
    with file.open("wb") as out:
        out.write(len(head).to_bytes(8, "little") + head)
        for (_, array), place in zip(ordered, places, strict=True):
            out.seek(8 + len(head) + place)
            out.write(array.reshape(-1).view(np.uint8).data)
        out.truncate(8 + len(head) + at)


def room_for(array: Array) -> int:
    """Rows that an array is given on disk or in memory so that it can grow."""
    return len(array) + (len(array) // 8 if array.nbytes >= _LARGE else 0) if array.ndim else 0


def map_arrays(file: Path, private: bool = False) -> dict[str, Array]:
    """Views of a safetensors file, read-only; or `private`: who writes to one has the written pages to himself."""
    data = np.memmap(file, np.uint8, mode="c" if private else "r")
    start = 8 + int(data[:8].view("<u8")[0])
    header = orjson.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    arrays = {}
    for key, stated in header.items():
        first, last = stated["data_offsets"]
        raw = data[start + first : start + last].view(np.ndarray)
        arrays[key] = raw.view(DTYPES[stated["dtype"]]).reshape(stated["shape"])
    return arrays


def file_sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes in hex."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Forces a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
