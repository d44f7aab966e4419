"""Which rows of a table changed since they were last taken: what a snapshot by delta asks of a table that learns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Bool, Int64, grown


class Touched:
    """Marks rows; those that were never taken count as touched, so a new or restored table starts with all of them.

    Attributes:
        taken: [m] rows that did not change since; compiled code marks a row as `add` does.
    """

    def __init__(self) -> None:
        self.taken: Bool = np.zeros(0, np.bool_)

    def add(self, rows: NDArray[np.integer[Any]]) -> None:
        """Rows [b] changed."""
        self.taken[rows[rows < len(self.taken)]] = False

    def everything(self) -> None:
        """All rows changed."""
        self.taken = np.zeros(0, np.bool_)

    def take(self, n: int, most: int | None = None) -> Int64:
        """Touched rows below n, ascending, at most so many; they are not touched any more."""
        self.taken = grown(self.taken, n)
        rows: Int64 = np.flatnonzero(~self.taken[:n])[:most]
        self.taken[rows] = True
        return rows

    def count(self, n: int) -> int:
        """How many of the rows below n are touched."""
        return n - int(np.count_nonzero(self.taken[:n]))
