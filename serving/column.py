"""A column of strings of one snapshot after the other: one that begins with all of the one before is gone on with.

A million ids take Python a second, and by default a snapshot comes every two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from driftline.graph.arrays import Int64
from driftline.serving.arrays import Array, unpack_strings


class Column:
    """Unpacks what `pack_strings` wrote under a name.

    Args:
        name: of the column.
        make: of each row.
    """

    def __init__(self, name: str, make: Callable[[str], str] = str) -> None:
        self._name, self._make = name, make
        self._utf8: Array = np.zeros(0, np.uint8)
        self._ends: Int64 = np.zeros(1, np.int64)
        self._rows: list[str] = []

    def of(self, arrays: Mapping[str, Array]) -> list[str]:
        """Its rows, [] if there is no such column; the very list of the last call where nothing has changed."""
        ends = np.asarray(arrays.get(f"{self._name}.ends", np.zeros(1)), np.int64)
        utf8 = arrays.get(f"{self._name}.utf8", np.zeros(0, np.uint8))
        same = _begins(ends, self._ends) and _begins(utf8, self._utf8[: self._ends[-1]])
        known = len(self._rows) if same else 0
        if not same or len(ends) > len(self._ends):
            more = {f"{self._name}.ends": ends[known:] - ends[known], f"{self._name}.utf8": utf8[ends[known] :]}
            self._rows = [*self._rows[:known], *map(self._make, unpack_strings(more, self._name))]
        self._utf8, self._ends = utf8, ends
        return self._rows


def _begins(array: Array, before: Array) -> bool:
    return len(array) >= len(before) and np.array_equal(array[: len(before)], before)
