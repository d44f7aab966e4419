"""Which rows of a large matrix have the largest dot products with a vector: a pass over codes, exact for what is left.

A row is rotated at random and keeps two bits a number: the sign, and which of two sizes it has. The dot product with a
query is estimated from the bits, and the error of an estimate does not depend on the data.

    first bits of all rows   -> an estimate each; those that could be among the best
    second bits of these     -> an estimate with half the error; those that could be among the best
    dot products of these    -> exact

A change of a row changes its code alone: nothing is ever rebuilt. A row whose square is not finite is as one of zeros.

Source: RaBitQ (Gao and Long, arXiv 2405.12497, sections 3 and 4). Departures: narrow vectors are rotated into more
numbers, so that more bits make up for their width; the query is rounded to the nearest of its steps; the second bit,
whose estimate has one factor for all rows, as rotated numbers are so nearly normal that theirs hardly differ.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Protocol

import numpy as np

from driftline.graph.arrays import Arrays, Bool, Float32, Int32, Int64, UInt64, grown
from driftline.graph.codes_kernel import LANES, PLANES, at_least, estimate, histogram, refine
from driftline.graph.sparse import SCRATCH
from driftline.graph.touched import Touched

SMALL = 16_384 * 384
"""Numbers of a matrix up to which all dot products are computed; docs/log.md has the measurement."""
LEAST_BITS = 256
STEP = 0.996
"""Between the four values that two bits tell apart, -1.5, -.5, .5 and 1.5 steps, of normal numbers with a deviation of
1: it leaves the least error (Max, 1960)."""
MEAN_SIZE = (2 / np.pi) ** 0.5
"""Of such a number."""
CLOSER = 0.902
"""What the estimate by one bit counts in that by both: MEAN_SIZE over the mean product of such a number and its value,
in steps."""
ERROR, CLOSER_ERROR = 0.76, 0.39
"""Standard deviation of an estimate between unit vectors, by one bit and by both, times the root of the number of
bits."""
SURE, CLOSER_SURE = 1.7, 1.6
"""Standard deviations by which an estimate may be too low: 95 of 100 stay within them, more where it is not close."""
FIRST, CLOSER_FIRST = 8, 2
"""Rows for each that is wanted whose second bits are read first, and whose products are computed first: the worst that
is wanted of them is the bar for all others."""
MOST = 1 / 4
"""Share of all rows whose second bits are read at most."""
SAMPLED = 25_000
"""Of more bounds so many, evenly spread, tell how many reach a value."""
BINS = 2048
BY_ROW = "seconds"
NAMES = ("codes", "scales", "lengths", BY_ROW)
"""What there is of a row, in blocks but for those by row."""
SEED = 240_512_497
"""Of the rotation: any number that no data is drawn by."""


class Products(Protocol):
    """What rows are ranked by."""

    def __call__(self, rows: Int32, query: Float32) -> Float32:
        """Dot products [t] of rows [t] with a query [dim]."""


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
        self.seconds: UInt64 = np.zeros((0, self.bits // 64), np.uint64)
        self._touched, self._touched_rows = Touched(), Touched()  # blocks, rows

    def set(self, rows: Int64 | Int32, vectors: Float32) -> None:
        """Takes rows [m] that are new or changed, with their vectors [m, dim].

        Raises:
            ValueError: there are rows without second bits.
        """
        if not len(rows):
            return
        if len(self.codes) and not self.complete:
            raise ValueError("these codes have no second bits: they can be searched, not changed; make new ones")
        n = int(rows.max()) + 1
        for name in NAMES:
            setattr(self, name, grown(getattr(self, name), n if name == BY_ROW else _blocks(n)))
        turned = vectors @ _rotation(self.dim, self.bits)
        size, above = np.abs(turned), turned > 0
        square = np.einsum("md,md->m", vectors, vectors)
        broken = ~np.isfinite(square)  # no row's fault is to be that of a search over all
        square[broken], size[broken] = 0, 0
        length = np.sqrt(square)
        far = size > (length * np.float32(STEP / self.bits**0.5))[:, None]
        self.codes[rows // LANES, :, rows % LANES] = _packed(above)
        self.scales[rows // LANES, rows % LANES] = square / np.maximum(size.sum(1), np.float32(1e-30))
        self.lengths[rows // LANES, rows % LANES] = length
        self.seconds[rows] = _packed(far == above)
        self._touched.add(rows // LANES)
        self._touched_rows.add(rows)

    def best(self, queries: Float32, n: int, k: int, exact: Products) -> list[tuple[Int32, Float32]]:
        """Of each query: rows [t] below n among which the k best are, but for a few in a hundred, and their products.

        Args:
            queries: [m, dim]; one pass is made for all of them.
            n: number of rows.
            k: how many are wanted.
            exact: computes their products.
        """
        found = [(np.zeros(0, np.int32), np.zeros(0, np.float32)) for _ in queries]
        n = min(n, len(self.scales) * LANES, len(self.seconds) if self.complete else n)
        lengths = self.lengths.reshape(-1)
        longest = float(lengths[:: max(1, n // SAMPLED)].max(initial=0)) or float(lengths.max(initial=0))
        widths = np.sqrt(np.einsum("md,md->m", queries, queries))
        asked = np.flatnonzero(widths * np.float32(longest))
        if not len(asked):
            return found
        size = len(asked) * _blocks(n) * LANES
        bounds = SCRATCH.get("bounds", size, np.float32)[:size]  # written before it is read
        bounds = bounds.reshape(len(asked), -1, LANES)
        planes, steps, totals = self._rounded(queries[asked])
        slack, closer_slack = SURE * ERROR / self.bits**0.5, CLOSER_SURE * CLOSER_ERROR / self.bits**0.5
        slacks = widths[asked] * np.float32(slack)
        estimate(self.codes, self.scales, self.lengths, planes, steps, totals, slacks, bounds)
        bounds.reshape(len(asked), -1)[:, n:] = -np.inf
        for i, place in enumerate(asked):
            query, width = queries[place], float(widths[place])
            # the length of a row is about its scale, times MEAN_SIZE, times the root of the number of bits
            less = totals[i] / 2 + width * MEAN_SIZE * self.bits**0.5 * (slack - closer_slack / CLOSER)
            closer = partial(self._closer, bounds[i], planes[i], steps[i], less)
            found[place] = _best(bounds[i], closer, partial(exact, query=query), 1.5 * width * longest, k)
        return found

    def _closer(self, bounds: Float32, planes: UInt64, step: float, less: float, rows: Int32) -> Float32:
        """Bounds [t] of rows [t] in blocks; see `refine`."""
        out = np.full(_blocks(len(rows)) * LANES, -np.inf, np.float32)
        if self.complete:
            refine(self.seconds, self.scales.reshape(-1), rows, bounds.reshape(-1), planes, step, less, CLOSER, out)
        else:
            out[: len(rows)] = bounds.reshape(-1)[rows]
        return out.reshape(-1, LANES)

    def _rounded(self, queries: Float32) -> tuple[UInt64, Float32, Float32]:
        """Planes [m, PLANES, words] of queries turned and rounded, what a unit is [m], and their sums [m]."""
        turned = queries @ _rotation(self.dim, self.bits)
        steps = np.abs(turned).max(1, keepdims=True) / np.float32(2 ** (PLANES - 1) - 1)
        units = np.rint(turned / steps).astype(np.int64)
        planes = _packed((units[:, None] >> np.arange(PLANES)[:, None] & 1).astype(np.bool_))
        return planes, steps[:, 0], steps[:, 0] * units.sum(1).astype(np.float32)

    def arrays(self, prefix: str, n: int) -> Arrays:
        """The codes of rows 0..n-1 by name; views."""
        return {f"{prefix}.{name}": getattr(self, name)[: n if name == BY_ROW else _blocks(n)] for name in NAMES}

    def touched(self, prefix: str) -> dict[str, Touched]:
        """Which rows of `arrays` changed."""
        return {f"{prefix}.{name}": self._touched_rows if name == BY_ROW else self._touched for name in NAMES}

    @property
    def complete(self) -> bool:
        """Whether there are second bits; those without, as earlier releases kept them, can be searched, not changed."""
        return len(self.seconds) > 0

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
            setattr(self, name, arrays.get(f"{prefix}.{name}", getattr(self, name)))
        return self


def _best(
    bounds: Float32, closer: Callable[[Int32], Float32], exact: Callable[[Int32], Float32], widest: float, k: int
) -> tuple[Int32, Float32]:
    """See `Codes.best`.

    Args:
        bounds: [blocks, LANES], what dot products are at most.
        closer: gives closer bounds [.., LANES] of rows [t], minus infinity behind them.
        exact: dot products [t] of rows [t].
        widest: as in `_reached`.
        k: how many are wanted.
    """
    sampled, wanted = _reached(bounds, widest, max(1, bounds.size // SAMPLED)), FIRST * k
    first = _at_least(bounds, sampled(wanted))
    if len(first) < k:  # a poor sample, or there are no more
        first = _at_least(bounds, _reached(bounds, widest, 1)(wanted))
    if len(first) <= k:
        return first, exact(first)

    def sifted(rows: Int32) -> tuple[Int32, float]:
        """Of rows those that could be among the best, and the worst that is wanted of the most promising."""
        refined = closer(rows)
        edge = _reached(refined, widest, 1)(CLOSER_FIRST * k)
        scores = exact(rows[_at_least(refined, edge)])
        if len(scores) < k:
            return rows, -np.inf
        bar = float(np.partition(scores, len(scores) - k)[len(scores) - k])
        return rows[_at_least(refined, min(bar, edge))], bar

    _, bar = sifted(first)
    rows, _ = sifted(_at_least(bounds, max(bar, sampled(int(max(wanted, MOST * bounds.size))))))
    return rows, exact(rows)


def _at_least(values: Float32, bound: float) -> Int32:
    out = np.empty(values.size, np.int32)
    return out[: at_least(values, bound, out)].copy()


def _blocks(n: int) -> int:
    return -(-n // LANES)


def _packed(bits: Bool) -> UInt64:
    """[..., bits] as words [..., bits / 64]."""
    return np.packbits(bits, axis=-1, bitorder="little").view("<u8")


def _reached(estimates: Float32, widest: float, every: int) -> Callable[[int], float]:
    """Gives a bound that about so many estimates reach, if there are so many: by each so-many-th of them.

    `widest` is what hardly any estimate lies beyond, either way.
    """
    bins = np.empty(BINS, np.int64)
    histogram(estimates.reshape(-1), every, widest, bins)
    above = np.cumsum(bins[::-1]) * every
    return lambda count: widest - (int(np.searchsorted(above, count)) + 1) * 2 * widest / BINS


@cache
def _rotation(dim: int, bits: int) -> Float32:
    """[dim, bits], rows orthonormal, the same in every process."""
    turned, upper = np.linalg.qr(np.random.default_rng(SEED).standard_normal((bits, dim)))
    return np.ascontiguousarray((turned * np.sign(np.diag(upper))).T, np.float32)
