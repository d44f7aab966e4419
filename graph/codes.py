"""Which rows of a large matrix have the largest dot products with a vector: a pass over codes, exact for what is left.

A row is rotated at random and keeps the signs, one bit a number; the dot product with a query is estimated from the
bits, and the error of the estimate has a bound that does not depend on the data. Rows that could be among the best by
estimate and bound are computed exactly. A change of a row changes its code alone: nothing is ever rebuilt.

Source: RaBitQ (Gao and Long, arXiv 2405.12497, sections 3 and 4). Departures: narrow vectors are rotated into more
numbers, so that more bits make up for their width; the query is rounded to the nearest of its steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from driftline.graph.arrays import Arrays, Float32, Int32, Int64, UInt64, grown
from driftline.graph.codes_kernel import LANES, PLANES, at_least, estimate, histogram
from driftline.graph.sparse import SCRATCH
from driftline.graph.touched import Touched

SMALL = 16_384 * 384
"""Numbers of a matrix up to which all dot products are computed; docs/log.md has the measurement."""
LEAST_BITS = 256
ERROR = 0.76
"""Standard deviation of an estimate between unit vectors, times the root of the number of bits."""
SURE = 1.3
"""Standard deviations by which an estimate may be too low: 90 of 100 stay within them, more where it is not close."""
FIRST = 2
"""Rows that are computed first, for each that is wanted: the worst wanted of them is the bar for all others."""
MOST = 1 / 4
"""Share of all rows that is computed exactly at most."""
SAMPLED = 100_000
"""Of more estimates so many, evenly spread, tell how many reach a bound."""
BINS = 2048
NAMES = ("codes", "scales", "lengths")
"""What there is of a row."""
SEED = 240_512_497
"""Of the rotation: any number that no data is drawn by."""


def is_small(rows: int, dim: int) -> bool:
    """Whether a matrix of this shape is searched as a whole."""
    return rows * dim <= SMALL


class Codes:
    """Codes of the rows of a matrix; a zero row is never among the best.

    Args:
        dim: width of a row.
    """

    def __init__(self, dim: int) -> None:
        self.dim, self.bits = dim, -(-max(dim, LEAST_BITS) // 64) * 64
        self.codes: UInt64 = np.zeros((0, self.bits // 64, LANES), np.uint64)
        self.scales: Float32 = np.zeros((0, LANES), np.float32)
        self.lengths: Float32 = np.zeros((0, LANES), np.float32)
        self._touched = Touched()  # blocks

    def set(self, rows: Int64 | Int32, vectors: Float32) -> None:
        """Takes rows [m] that are new or changed, with their vectors [m, dim]."""
        if not len(rows):
            return
        blocks = int(rows.max()) // LANES + 1
        self.codes, self.scales = grown(self.codes, blocks), grown(self.scales, blocks)
        self.lengths = grown(self.lengths, blocks)
        turned = vectors @ _rotation(self.dim, self.bits)
        packed = np.packbits(turned > 0, axis=1, bitorder="little").view("<u8")
        self.codes[rows // LANES, :, rows % LANES] = packed
        square = np.einsum("md,md->m", vectors, vectors)
        self.scales[rows // LANES, rows % LANES] = square / np.maximum(np.abs(turned).sum(1), np.float32(1e-30))
        self.lengths[rows // LANES, rows % LANES] = np.sqrt(square)
        self._touched.add(rows // LANES)

    def best(self, query: Float32, n: int, k: int, exact: Callable[[Int32], Float32]) -> tuple[Int32, Float32]:
        """Rows [t] below n among which the k best are, but for a few in a hundred, and their dot products [t].

        Args:
            query: [dim].
            n: number of rows.
            k: how many are wanted.
            exact: dot products [t] of rows [t].
        """
        width = float(np.linalg.norm(query))
        estimates = SCRATCH.get("estimates", n, np.float32)[:n]  # written before it is read
        estimates[len(self.scales) * LANES :] = -np.inf
        widest = 1.5 * width * float(self.lengths.max(initial=0))
        if widest == 0:
            return np.zeros(0, np.int32), np.zeros(0, np.float32)
        slack = SURE * ERROR * width / self.bits**0.5
        self._estimate(query, slack, estimates[: len(self.scales) * LANES])
        reached = _reached(estimates, widest, max(1, n // SAMPLED))
        first = self._at_least(estimates, reached(FIRST * k))
        if len(first) < k:  # a poor sample, or there are no more
            first = self._at_least(estimates, _reached(estimates, widest, 1)(FIRST * k))
        scores = exact(first)
        if len(first) <= k:
            return first, scores
        bar = float(np.partition(scores, len(scores) - k)[len(scores) - k])
        rows = self._at_least(estimates, max(bar, reached(int(max(FIRST * k, MOST * n)))))
        return rows, exact(rows)

    def _estimate(self, query: Float32, slack: float, out: Float32) -> None:
        turned = query @ _rotation(self.dim, self.bits)
        step = float(np.abs(turned).max()) / (2 ** (PLANES - 1) - 1)
        units = np.rint(turned / np.float32(step)).astype(np.int64)
        bits = (units >> np.arange(PLANES)[:, None] & 1).astype(np.bool_)
        planes = np.packbits(bits, axis=1, bitorder="little").view("<u8")
        total, sums = step * int(units.sum()), np.empty(LANES, np.int64)
        estimate(self.codes, self.scales, self.lengths, planes, step, total, slack, out, sums)

    def _at_least(self, estimates: Float32, bound: float) -> Int32:
        out = np.empty(len(estimates), np.int32)
        return out[: at_least(estimates, bound, out)].copy()

    def arrays(self, prefix: str, n: int) -> Arrays:
        """The codes of rows 0..n-1 by name; views."""
        blocks = -(-n // LANES)
        return {f"{prefix}.{name}": getattr(self, name)[:blocks] for name in NAMES}

    def touched(self, prefix: str) -> dict[str, Touched]:
        """Which rows of `arrays` changed."""
        return {f"{prefix}.{name}": self._touched for name in NAMES}

    def copy(self) -> Codes:
        """One that changes by itself."""
        other = Codes(self.dim)
        for name in NAMES:
            setattr(other, name, getattr(self, name).copy())
        return other

    @classmethod
    def from_arrays(cls, dim: int, arrays: Arrays, prefix: str) -> Codes | None:
        """The codes whose `arrays` these are, not copied; None if there are none of that name."""
        if f"{prefix}.codes" not in arrays:
            return None
        self = cls(dim)
        for name in NAMES:
            setattr(self, name, arrays[f"{prefix}.{name}"])
        return self


def _reached(estimates: Float32, widest: float, every: int) -> Callable[[int], float]:
    """Gives a bound that about so many estimates reach, if there are so many: by each so-many-th of them.

    `widest` is what hardly any estimate lies beyond, either way.
    """
    bins = np.empty(BINS, np.int64)
    histogram(estimates, every, widest, bins)
    above = np.cumsum(bins[::-1]) * every
    return lambda count: widest - (int(np.searchsorted(above, count)) + 1) * 2 * widest / BINS


@cache
def _rotation(dim: int, bits: int) -> Float32:
    """[dim, bits], rows orthonormal, the same in every process."""
    turned, upper = np.linalg.qr(np.random.default_rng(SEED).standard_normal((bits, dim)))
    return np.ascontiguousarray((turned * np.sign(np.diag(upper))).T, np.float32)
