"""The loops that a learnt group's signals cost: decayed counts with their largest rows, and pairs that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Bool, Float32, Int32
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
    "void(Array(int32, 1, 'C', readonly=True), Array(int32, 1, 'C', readonly=True),"
    " Array(int32, 1, 'C', readonly=True), float32[::1], Array(float32, 1, 'C', readonly=True),"
    " int32[:, ::1], float32[:, ::1], int32[::1])"
)
def add_to_pairs(
    source: Int32, rows: Int32, target: Int32, source_weight: Float32, target_weight: Float32,
    partner: Int32, weight: Float32, mark: Int32,
) -> None:  # fmt: skip
    """Adds source_weight[i] * target_weight[j] to pairs of different items; one without a slot may take the lightest's.

    At equal weight the newer one stays, of those of one call any.

    Args:
        source: [s] distinct items; rows: [s] that of each; target: [m] distinct items.
        source_weight: [s] and target_weight: [m], not below 0.
        partner: [r, slots] int32, -1 = empty; weight: [r, slots], 0 where empty.
        mark: [n] int32, all -1 before and after.
    """
    m, slots = len(target), partner.shape[1]
    fresh, keys = np.empty(m, np.float32), np.empty(slots, np.int64)
    bits = fresh.view(np.int32)  # those of floats that are not below 0 are in their order
    for j in range(m):
        mark[target[j]] = j
    for i in range(len(source)):
        row, new = rows[i], 0
        partners, weights = partner[row], weight[row]
        for j in range(m):
            fresh[j] = source_weight[i] * target_weight[j]
        if mark[source[i]] >= 0:
            fresh[mark[source[i]]] = 0
        for slot in range(slots):
            j = mark[partners[slot]] if partners[slot] >= 0 else -1
            if j >= 0:
                weights[slot] += fresh[j]
                fresh[j] = 0
        for j in range(m):
            new += fresh[j] > 0
        if new == 0:
            continue
        held = weights.view(np.int32)
        for slot in range(slots):
            keys[slot] = np.int64(held[slot]) * slots + slot
        lightest, known = np.int64(0), False
        for j in range(m):
            if fresh[j] <= 0:
                continue
            if not known:
                least = keys[0]
                for slot in range(1, slots):  # a minimum of integers is found on vectors, one of floats is not
                    least = min(least, keys[slot])
                lightest, known = least % slots, True
            if fresh[j] >= weights[lightest]:
                partners[lightest], weights[lightest] = target[j], fresh[j]
                keys[lightest], known = np.int64(bits[j]) * slots + lightest, False
    for j in range(m):
        mark[target[j]] = -1
