"""The loops that a learnt group's signals cost: decayed counts with their largest rows, and pairs that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Bool, Float32, Int32, Int64
from driftline.graph.compiled import compiled, inlined

Float64 = NDArray[np.float64]


@inlined
def _before(row: np.int32, other: np.int32, h: int, count: Float64) -> Any:
    """Whether a row stands before another one: the larger count, at equal counts the smaller number."""
    return count[row, h] > count[other, h] or (count[row, h] == count[other, h] and row < other)


@inlined
def _rise(top: Int32, at: int, h: int, count: Float64) -> None:
    """Moves the row at a place to where it belongs among those before it."""
    row = top[at]
    while at > 0 and _before(row, top[at - 1], h, count):
        top[at] = top[at - 1]
        at -= 1
    top[at] = row


@compiled("void(int32[:, ::1], Array(float64, 2, 'C', readonly=True))")
def order_largest(top: Int32, count: Float64) -> None:
    """Brings the largest rows [h, k], -1 = none, in order: the largest first, equal ones by number."""
    for h in range(len(top)):
        for at in range(1, top.shape[1]):
            if top[h, at] < 0:
                break
            _rise(top[h], at, h, count)


@compiled(
    "void(Array(int32, 1, 'C', readonly=True), Array(float64, 1, 'C', readonly=True), float64[::1], float64[:, ::1],"
    " int32[:, ::1], boolean[:, ::1], boolean[::1])"
)
def add_counts(
    rows: Int32, weight: Float64, scale: Float64, count: Float64, top: Int32, held: Bool, mark: Bool
) -> None:
    """Adds weights [b] to distinct rows [b] and keeps the largest rows in order.

    Args:
        scale: [h] what a weight counts at each half-life.
        count: [n, h].
        top: [h, k] as `order_largest` leaves it; held: [h, n] who is in it.
        mark: [n], all False before and after.
    """
    for i in range(len(rows)):
        for h in range(len(scale)):
            count[rows[i], h] += weight[i] * scale[h]
    k = top.shape[1]
    if k == 0:
        return
    for row in rows:
        mark[row] = True
    for h in range(len(top)):
        one, size = top[h], 0
        while size < k and one[size] >= 0:
            if mark[one[size]]:
                _rise(one, size, h, count)
            size += 1
        least = count[one[k - 1], h] if size == k else -np.inf
        for row in rows:
            if held[h, row] or count[row, h] <= least:
                continue
            if size < k:
                size += 1
            elif _before(row, one[k - 1], h, count):
                held[h, one[k - 1]] = False
            else:
                continue
            held[h, row] = True
            one[size - 1] = row
            _rise(one, size - 1, h, count)
    for row in rows:
        mark[row] = False


@compiled(
    "void(Array(int32, 1, 'C', readonly=True), Array(float64, 1, 'C', readonly=True), float64, float64[::1],"
    " float64[::1], float64[:, ::1], int32[:, ::1], boolean[:, ::1], boolean[::1], boolean[::1])"
)
def add_decayed(
    rows: Int32, weight: Float64, whole: float, scale: Float64, total: Float64,
    count: Float64, top: Int32, held: Bool, mark: Bool, taken: Bool,
) -> None:  # fmt: skip
    """`add_counts`, and what else adding changes.

    Args:
        whole: sum of the weights.
        total: [h].
        taken: [m] becomes False at the rows.
    """
    for h in range(len(scale)):
        total[h] += whole * scale[h]
    for row in rows:
        if row < len(taken):
            taken[row] = False
    add_counts(rows, weight, scale, count, top, held, mark)


@compiled(
    "int64[::1](Array(int32, 1, 'C', readonly=True), Array(int32, 1, 'C', readonly=True),"
    " Array(int32, 1, 'C', readonly=True), float32[::1], Array(float32, 1, 'C', readonly=True),"
    " int32[:, ::1], float32[:, ::1], int32[::1], float32[:, ::1])"
)
def add_met_pairs(
    source: Int32, rows: Int32, target: Int32, source_weight: Float32, target_weight: Float32,
    partner: Int32, weight: Float32, mark: Int32, fresh: Float32,
) -> Int64:  # fmt: skip
    """Adds source_weight[i] * target_weight[j] to the pairs that have a slot; the others of different items are fresh.

    Args:
        source: [s] distinct items; rows: [s] that of each; target: [m] distinct items.
        source_weight: [s]; target_weight: [m].
        partner: [r, slots] int32, -1 = empty; weight: [r, slots].
        mark: [n] int32, all -1 before and after.
        fresh: [s, m] takes the weights of the pairs without a slot, 0 for all others.

    Returns:
        [r] int64, the entries of `source` that have any.
    """
    left, found = np.empty(len(source), np.int64), 0
    for j in range(len(target)):
        mark[target[j]] = j
    for i in range(len(source)):
        row, one, new = rows[i], fresh[i], 0
        for j in range(len(target)):
            one[j] = source_weight[i] * target_weight[j]
        if mark[source[i]] >= 0:
            one[mark[source[i]]] = 0
        for slot in range(partner.shape[1]):
            j = mark[partner[row, slot]] if partner[row, slot] >= 0 else -1
            if j >= 0:
                weight[row, slot] += one[j]
                one[j] = 0
        for j in range(len(target)):
            new += one[j] != 0
        if new:
            left[found] = i
            found += 1
    for j in range(len(target)):
        mark[target[j]] = -1
    return left[:found]


@compiled(
    "float32[:, ::1](int64[::1], Array(int32, 1, 'C', readonly=True), float32[:, ::1],"
    " Array(float32, 2, 'C', readonly=True))"
)
def joined_pairs(left: Int64, rows: Int32, fresh: Float32, weight: Float32) -> Float32:
    """Weights of pairs without a slot and of those with one, negative: fresh first, at equal weight the newer stays.

    Args:
        left, rows, fresh, weight: as `add_met_pairs` has them.

    Returns:
        [r, m + slots].
    """
    m, k = fresh.shape[1], weight.shape[1]
    out = np.empty((len(left), m + k), np.float32)
    for n in range(len(left)):
        for j in range(m):
            out[n, j] = -fresh[left[n], j]
        for slot in range(k):
            out[n, m + slot] = -weight[rows[left[n]], slot]
    return out


@compiled(
    "void(int64[::1], Array(int32, 1, 'C', readonly=True), float32[:, ::1], int64[:, ::1],"
    " Array(int32, 1, 'C', readonly=True), int32[:, ::1], float32[:, ::1])"
)
def keep_pairs(
    left: Int64, rows: Int32, below: Float32, keep: Int64, target: Int32, partner: Int32, weight: Float32
) -> None:
    """Fills rows with some of the pairs that they held and of the fresh ones.

    Args:
        left, rows, target, partner, weight: as `add_met_pairs` has them.
        below: [r, m + slots] of `joined_pairs`; keep: of that shape, the first `slots` columns that stay.
    """
    m, k = len(target), partner.shape[1]
    before = np.empty(k, np.int32)
    for n in range(len(left)):
        row = rows[left[n]]
        before[:] = partner[row]
        for slot in range(k):
            j = keep[n, slot]
            weight[row, slot] = -below[n, j]
            if weight[row, slot] <= 0:
                partner[row, slot] = -1
            else:
                partner[row, slot] = target[j] if j < m else before[j - m]
