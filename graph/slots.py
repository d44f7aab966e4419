"""Which items have a row in a table of bounded size: frequent ones, and those that are still used.

While all items fit, item i has row i. Beyond that an item without a row asks for one whenever it is used: of a few
rows, looked at in turns, it takes one that was not used for long, else the least frequent one, if that is less frequent
than the item itself. Frequencies are the caller's; forward-decayed ones compare over any time.

Source: sampled eviction of the least frequent (as in TinyLFU, arXiv 1512.00727, section 3), here in turns and not by
chance, so that equal logs give equal tables.
"""

from __future__ import annotations

import numpy as np

from driftline.graph.arrays import Arrays, Float32, Int32, Int64, grown
from driftline.graph.touched import Touched

LOOKED_AT = 16
"""Rows that an item without one may take."""


class Slots:
    """Rows of items.

    Args:
        size: rows at most.
        ttl_ms: a row that was not used for so long is free; 0 = never.

    Attributes:
        used: rows that were ever given.
        touched: rows that were used or lost their item; the owner of what the rows hold marks it here as well.
    """

    def __init__(self, size: int, ttl_ms: float) -> None:
        self.size, self.ttl_ms = size, ttl_ms
        self.used = 0
        self.touched = Touched()
        self._row: Int32 | None = None  # [n], -1 = none; None = all items fit
        self._item: Int32 = np.zeros(0, np.int32)  # [size], whose row it is
        self._used_ms: Int64 = np.zeros(0, np.int64)
        self._hand = 0

    def ensure(self, n: int) -> int:
        """Makes room for items 0..n-1; how many rows are needed."""
        self.used = min(n, self.size)
        self._used_ms = grown(self._used_ms, self.used)
        if n > self.size:
            self._divide()
            assert self._row is not None
            self._row = grown(self._row, n, -1)
        return self.used

    def of(self, items: Int32) -> Int32:
        """Rows [m] int32 of items [m], -1 = none; while all items fit, that of an unknown item is its own number."""
        if self._row is None:
            return items
        return np.where(items < len(self._row), self._row[np.minimum(items, len(self._row) - 1)], np.int32(-1))

    def admit(self, items: Int32, frequency: Float32, t_ms: int) -> tuple[Int32, Int32]:
        """Rows [m] of distinct items [m] that are used at a time, -1 = none, and those rows whose items lost them.

        Args:
            items: [m] int32.
            frequency: [n] float32 of all items, these uses counted.
            t_ms: the time.
        """
        if self._row is None:
            self._used_ms[items] = np.maximum(self._used_ms[items], t_ms)
            self.touched.add(items)
            return items, items[:0]
        rows = self._row[items]
        here = rows[rows >= 0]
        self._used_ms[here] = np.maximum(self._used_ms[here], t_ms)
        freed = []
        for place in np.flatnonzero(rows < 0):
            row = self._row_for(frequency, float(frequency[items[place]]), t_ms)
            if row >= 0:
                self._row[self._item[row]], self._row[items[place]] = -1, row
                self._item[row], self._used_ms[row] = items[place], t_ms
                rows[place] = row
                freed.append(row)
        self.touched.add(rows[rows >= 0])
        return rows, np.array(freed, np.int32)

    def _row_for(self, frequency: Float32, asked: float, t_ms: int) -> int:
        looked_at = (self._hand + np.arange(min(LOOKED_AT, self.size))) % self.size
        self._hand = (self._hand + LOOKED_AT) % self.size
        looked_at = looked_at[self._used_ms[looked_at] < t_ms]  # those of this very time stay
        if not len(looked_at):
            return -1
        idle_ms = t_ms - self._used_ms[looked_at]
        if self.ttl_ms and idle_ms.max() > self.ttl_ms:
            return int(looked_at[idle_ms.argmax()])
        held = frequency[self._item[looked_at]]
        least = int(held.argmin())
        return int(looked_at[least]) if held[least] < asked else -1

    def _divide(self) -> None:
        """From item i in row i to rows that items take from each other."""
        if self._row is None:
            self._row, self._item = np.arange(self.size, dtype=np.int32), np.arange(self.size, dtype=np.int32)
            self.touched.everything()

    def arrays(self, prefix: str) -> Arrays:
        """Everything by name; views."""
        out: Arrays = {f"{prefix}.used_ms": self._used_ms[: self.used]}
        if self._row is not None:
            out |= {f"{prefix}.row_item": self._item, f"{prefix}.hand": np.array([self._hand], np.int64)}
        return out

    def by_row(self, prefix: str) -> tuple[str, ...]:
        """Those of `arrays` that change by rows."""
        return (f"{prefix}.used_ms",) if self._row is None else (f"{prefix}.used_ms", f"{prefix}.row_item")

    def restore(self, arrays: Arrays, prefix: str, n: int) -> None:
        """Takes over what `arrays` gave, for n items; not copied."""
        self._used_ms, self._row, self._hand = np.asarray(arrays[f"{prefix}.used_ms"], np.int64), None, 0
        self.touched.everything()
        self.used = len(self._used_ms)
        if f"{prefix}.row_item" in arrays:
            self._item = np.asarray(arrays[f"{prefix}.row_item"], np.int32)
            self._row = np.full(n, -1, np.int32)
            self._row[self._item] = np.arange(len(self._item), dtype=np.int32)
            self._hand = int(arrays[f"{prefix}.hand"][0])
