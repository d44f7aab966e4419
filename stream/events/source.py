"""A file as it lies on a disk: opened, unpacked, and the same at the end of the reading as at its beginning.

What is not a regular file is refused: a file is read more than once, for its header, its rows and its check sum.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from driftline.configs.errors import InputError

PACKED: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ\x00", lzma.open),
    ".zst": (
        b"\x28\xb5\x2f\xfd",
        lambda path: io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")),
    ),
}
"""By suffix: the first bytes of a packed file, and what unpacks it."""
FORMATS = {
    ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
WHOLE = ("parquet", "arrow")
"""Formats that are packed inside."""
OTHERS = {b"PAR1": "a Parquet file", b"PK\x03\x04": "a ZIP file or a spreadsheet", b"SQLite": "a SQLite database"}
"""First bytes of what is often sent under the name of a text file."""


def format_of(path: Path) -> str:
    """ "parquet", "arrow", "csv" or "jsonl", by the name of a regular file.

    Raises:
        InputError: there is no such file, it is not regular or has another name.
    """
    is_folder = _check_kind(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-2:-1] if suffixes and suffixes[-1] in PACKED else suffixes[-1:]
    if is_folder:
        raise InputError(
            f"{path}: got a folder; expected a file, .parquet, .csv or .jsonl. The parts that Spark and others write "
            "into a folder go into one file first, in order of time"
        )
    if not last or last[0] not in FORMATS or (FORMATS[last[0]] in WHOLE and suffixes[-1] in PACKED):
        raise InputError(
            f"{path}: got a file of type {path.suffix!r}; expected .parquet, .arrow, .csv or .jsonl "
            "(text also as .gz, .bz2, .xz or .zst)"
        )
    return FORMATS[last[0]]


def _check_kind(path: Path) -> bool:
    """Whether it is a folder; an error if it is neither that nor a regular file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read: {error}; check the path and its permissions") from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(
            f"{path}: got a pipe or a device; expected a regular file, as it is read more than once: write it to one"
        )
    return stat.S_ISDIR(mode)


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Reads inside of it see one file: whoever wrote it has ended.

    Raises:
        InputError: size or time of the file at the end are not those of the beginning.
    """
    before = _state(path)
    yield
    if (after := _state(path)) != before:
        raise InputError(
            f"{path}: changed while it was read, from {before[0]:,} to {after[0]:,} bytes; expected a file that "
            "nobody writes: wait for its end, or copy it, and start again"
        )


def _state(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ino


@contextmanager
def opened(path: Path, is_utf8: bool = True) -> Iterator[IO[bytes]]:
    """The bytes of a text file, unpacked if its first bytes say that it is packed.

    Raises:
        InputError: it is in UTF-16, or no text file at all.
        OSError, EOFError: it can't be read or unpacked.
    """
    with path.open("rb") as file:
        start = file.read(6)
    unpack = next((opener for magic, opener in PACKED.values() if start.startswith(magic)), None)
    with path.open("rb") if unpack is None else unpack(path) as file:
        start = file.read(6)
        if is_utf8 and (start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or start[1:2] == b"\x00"):
            raise InputError(f"{path}: got a file in UTF-16; expected UTF-8; --encoding utf-16 reads CSV in it")
        for magic, what in OTHERS.items():
            if start.startswith(magic):
                raise InputError(f"{path}: got {what} by its first bytes; expected text, name it by what it is")
    with path.open("rb") if unpack is None else unpack(path) as file:
        yield file


def readable(path: Path) -> None:
    """An error if this user may not read the file.

    Raises:
        InputError: so it is.
    """
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: this user may not read it; expected a file with read permission (chmod a+r)")
