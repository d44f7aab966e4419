"""Kinds of arrays, those that grow with the ids of a stream, dictionaries of them as in checkpoints and snapshots."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]
Bool = NDArray[np.bool_]
Arrays = dict[str, NDArray[Any]]
Kind = TypeVar("Kind", bound=np.generic)


def grown(array: NDArray[Kind], n: int, fill: float = 0, most: int = 1 << 62) -> NDArray[Kind]:
    """The array with at least n rows: itself, or a copy that is at least doubled up to `most`, new rows filled."""
    if len(array) >= n:
        return array
    out = np.full((max(n, min(max(2 * len(array), 64), most)), *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out
