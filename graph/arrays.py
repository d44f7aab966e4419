"""Arrays that grow with the ids of a stream, and the dictionaries of arrays that checkpoints and snapshots are."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
Kind = TypeVar("Kind", bound=np.generic)


def grown(array: NDArray[Kind], n: int, fill: float = 0) -> NDArray[Kind]:
    """The array with at least n rows: itself, or a copy that is at least doubled, new rows filled."""
    if len(array) >= n:
        return array
    out = np.full((max(n, 2 * len(array), 64), *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out
