"""A tree of plain values as bytes that hold data only, whoever wrote them: JSON for its shape, .npy for numbers.

    {"rows": {b"u:7": b"..."}, "optimizer": [tensor, 0.1, None]}
      -> .npy of the JSON ["dict", "rows", ["dict", ["bytes", 3], ["bytes", 3]], "optimizer", ["list", ...]]
      -> one .npy for each of DTYPES: the bytes and the elements of every array, end to end, in the order of the JSON

Numbers come back to the bit, dictionaries in their order, tuples as tuples, arrays and tensors with their type and
shape. A value of another class is refused when it is written, so nothing that is read can name one.
"""

from __future__ import annotations

import json
import math
import tokenize
from collections.abc import Iterator
from typing import IO, Any, NoReturn

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

DTYPES = (
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
)  # fmt: skip
BYTES = "uint8"
BROKEN = (
    TypeError, LookupError, RuntimeError, OverflowError, SyntaxError, tokenize.TokenError, UserWarning,
)  # fmt: skip
"""What NumPy's reader of headers and a wrong node raise beside ValueError."""


def write_tree(file: IO[bytes], tree: Any) -> None:
    """Writes a tree of None, bool, int, float, str, bytes, dict, list, tuple, set, NumPy arrays and torch tensors.

    Raises:
        TypeError: something else is in it.
    """
    pack = _Pack()
    shape = json.dumps(pack.node(tree), separators=(",", ":")).encode()
    _write_array(file, np.frombuffer(shape, np.uint8), dtype=np.dtype(np.uint8))
    for dtype, arrays in pack.arrays.items():
        _write_array(file, *arrays, dtype=np.dtype(dtype))


def read_tree(file: IO[bytes]) -> Any:
    """What `write_tree` wrote; reads from where the file stands.

    Raises:
        ValueError: it is not that.
    """
    try:
        shape = json.loads(_read_array(file, np.dtype(np.uint8)).tobytes())
        return _Unpack({dtype: _read_array(file, np.dtype(dtype)) for dtype in DTYPES}).value(shape)
    except BROKEN as error:
        raise ValueError(f"not a tree of plain values: {error!r:.200}") from None


class _Pack:
    """Values to nodes of JSON; takes the elements of arrays as it meets them."""

    def __init__(self) -> None:
        self.arrays: dict[str, list[NDArray[Any]]] = {dtype: [] for dtype in DTYPES}

    def node(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind is bytes:
            self.arrays[BYTES].append(np.frombuffer(value, np.uint8))
            return ["bytes", len(value)]
        if isinstance(value, dict):
            return ["dict", *(self.node(part) for pair in value.items() for part in pair)]
        if kind in (list, tuple, set):
            return [kind.__name__, *(self.node(part) for part in value)]
        if isinstance(value, torch.Tensor):
            return ["tensor", *self._elements(value.detach().numpy())]
        if isinstance(value, np.ndarray):
            return ["array", *self._elements(value)]
        raise TypeError(f"a checkpoint holds plain values and arrays; got {kind.__module__}.{kind.__qualname__}")

    def _elements(self, array: NDArray[Any]) -> list[Any]:
        dtype = array.dtype.name
        if dtype not in self.arrays:
            raise TypeError(f"a checkpoint holds arrays of {', '.join(DTYPES)}; got {array.dtype}")
        self.arrays[dtype].append(array.reshape(-1))
        return [dtype, *array.shape]


class _Unpack:
    """Nodes of JSON to values; takes elements in the order in which `_Pack` did."""

    def __init__(self, arrays: dict[str, NDArray[Any]]) -> None:
        self._arrays, self._at = arrays, dict.fromkeys(arrays, 0)

    def value(self, node: Any) -> Any:
        if not isinstance(node, list):
            return node if not isinstance(node, dict) else _refuse(node)
        kind, *parts = node
        if kind == "bytes":
            return self._take(BYTES, *parts).tobytes()
        if kind in ("array", "tensor"):
            dtype, *shape = parts
            array = self._take(dtype, math.prod(shape)).reshape(shape).copy()
            return torch.from_numpy(array) if kind == "tensor" else array
        if kind == "dict":
            values = self._values(parts)
            return dict(zip(values, values, strict=True))
        if kind in ("list", "tuple", "set"):
            return {"list": list, "tuple": tuple, "set": set}[kind](self._values(parts))
        return _refuse(node)

    def _values(self, nodes: list[Any]) -> Iterator[Any]:
        return (self.value(node) for node in nodes)

    def _take(self, dtype: str, count: int) -> NDArray[Any]:
        at = self._at[dtype]
        taken = self._arrays[dtype][at : at + count]
        if count < 0 or len(taken) != count:
            raise ValueError(f"{count} elements of {dtype} are expected at {at}, {len(taken)} are there")
        self._at[dtype] = at + count
        return taken


def _refuse(node: Any) -> NoReturn:
    raise ValueError(f"not a node of a tree: {node!r:.100}")


def _write_array(file: IO[bytes], *pieces: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """One row of all pieces, which are not copied together: some are mapped files."""
    shape = (sum(len(piece) for piece in pieces),)
    npy.write_array_header_1_0(file, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    for piece in pieces:
        file.write(np.ascontiguousarray(piece).view(BYTES).data)


def _read_array(file: IO[bytes], expected: np.dtype[Any]) -> NDArray[Any]:
    npy.read_magic(file)
    shape, _, dtype = npy.read_array_header_1_0(file)
    if dtype != expected or len(shape) != 1:
        raise ValueError(f"expected a row of {expected}, got {dtype} {shape}")
    data = file.read(shape[0] * dtype.itemsize)
    return np.frombuffer(data, dtype)
