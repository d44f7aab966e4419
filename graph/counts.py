"""Counts that decay at several half-lives, exact in forward form, with the largest of each at hand.

Source: forward decay, Cormode, Shkapenyuk, Srivastava, Xu (ICDE 2009).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import grown
from driftline.graph.signals_kernel import add_decayed, order_largest
from driftline.graph.touched import Touched

if TYPE_CHECKING:
    from driftline.graph.arrays import Arrays, Int32

Float64 = NDArray[np.float64]
MAX_HALF_LIVES = 500.0
"""Forward-decayed float64 counters grow to 2^500 before their origin moves."""


class DecayedCounts:
    """Counts of rows at several half-lives, and which rows are the largest at each.

    Decay multiplies all rows alike, so only what is added can change the order: a bounded list of the largest can be
    kept exactly, in order, by moving what was just added.
    """

    def __init__(self, half_lives_ms: tuple[float, ...], top: int) -> None:
        self.half_lives_ms = np.array(half_lives_ms, np.float64)
        h = len(half_lives_ms)
        self.count: Float64 = np.zeros((0, h))
        self.total: Float64 = np.zeros(h)
        self.origin_ms = np.full(h, -1, np.int64)
        self.top: Int32 = np.full((h, top), -1, np.int32)
        self._held: NDArray[np.bool_] = np.zeros((h, 0), np.bool_)  # who is in `top`
        self._mark: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._best: list[Int32] | None = None  # the rows of `top`, until something is added
        self._touched = Touched()

    def ensure(self, n: int) -> None:
        """Make room for rows 0..n-1."""
        self.count = grown(self.count, n)
        if self._held.shape[1] < len(self.count):
            self._held = np.zeros((len(self.top), len(self.count)), np.bool_)
            self._mark = np.zeros(len(self.count), np.bool_)
            for h, rows in enumerate(self.top):
                self._held[h, rows[rows >= 0]] = True

    def _scale(self, t_ms: int) -> Float64:
        """What a weight counts at each half-life; moves the origins that lie too far back."""
        if self.origin_ms[0] < 0:
            self.origin_ms[:] = t_ms
        passed: Float64 = (t_ms - self.origin_ms) / self.half_lives_ms
        if np.maximum.reduce(passed) > MAX_HALF_LIVES:
            for h in np.flatnonzero(passed > MAX_HALF_LIVES):
                self.count[:, h] *= 2.0 ** -passed[h]
                self.total[h] *= 2.0 ** -passed[h]
                self.origin_ms[h], passed[h] = t_ms, 0.0
            self._touched.everything()
            order_largest(self.top, self.count)  # the smallest may have become equal
        return np.exp2(passed)

    def add(self, rows: Int32, weight: Float64, t_ms: int) -> None:
        """Add weights [b] to distinct rows [b] at a time."""
        if len(rows) == 0:
            return
        whole, scale = float(np.add.reduce(weight)), self._scale(t_ms)
        add_decayed(
            rows, weight, whole, scale,
            self.total, self.count, self.top, self._held, self._mark, self._touched.taken,
        )  # fmt: skip
        self._best = None

    def best(self) -> list[Int32]:
        """For each half-life the largest rows, the largest first; equal ones go by number. Not to be written to."""
        if self._best is None:
            sizes = (self.top >= 0).sum(1).tolist()
            self._best = [one[:size] for one, size in zip(self.top.copy(), sizes, strict=True)]
        return self._best

    def fade(self, t_ms: int, h: int) -> float:
        """What stored counts at a half-life are to be multiplied with as of a time; the origin's before the origin."""
        passed = (t_ms - float(self.origin_ms[h])) / float(self.half_lives_ms[h])
        return float(2.0 ** -max(passed, 0.0))

    def arrays(self, prefix: str, n: int) -> Arrays:
        """Everything that is learnt, by name; views."""
        return {
            f"{prefix}.count": self.count[:n],
            f"{prefix}.total": self.total,
            f"{prefix}.origin_ms": self.origin_ms,
            f"{prefix}.top": self.top,
        }

    def touched(self, prefix: str) -> dict[str, Touched]:
        """Which rows of the large one of `arrays` changed."""
        return {f"{prefix}.count": self._touched}

    def restore(self, arrays: Arrays, prefix: str) -> None:
        """Take over what `arrays` gave."""
        self.count = np.asarray(arrays[f"{prefix}.count"], np.float64)
        self.total = np.array(arrays[f"{prefix}.total"], np.float64)
        self.origin_ms = np.array(arrays[f"{prefix}.origin_ms"], np.int64)
        self.top = np.array(arrays[f"{prefix}.top"], np.int32)
        order_largest(self.top, self.count)
        self._best = None
        self._touched.everything()
        self.ensure(len(self.count))
