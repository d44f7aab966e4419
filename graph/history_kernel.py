"""The loop that digests a user's past, compiled: one pass from the newest touch to the oldest, one back."""

from __future__ import annotations

from typing import Any

import numpy as np

from driftline.graph.arrays import Float32, Int32, Int64
from driftline.graph.compiled import compiled

_I, _L, _F = (f"Array({kind}, 1, 'A', readonly=True)" for kind in ("int32", "int64", "float32"))
DAY_MS = 86_400_000.0
_HASH = np.uint32(2654435769)


@compiled(f"({_I}, {_L}, {_F}, {_F}, {_F}, int64, boolean)")
def digest(
    items: Int32, t_ms: Int64, weights: Float32, values: Float32, prices: Float32, known: int, ordered: bool
) -> Any:
    """The arrays of a `HistoryDigest` in the order of its fields, without those that are no array.

    Args:
        items, t_ms, weights, values, prices: [n] as in `UserView`.
        known: items from this number on are left out.
        ordered: every touch is a group of its own, also where two have one time.
    """
    rows, back = np.empty(len(items), np.int64), 0
    for r in range(len(items)):
        if weights[r] > 0 and 0 <= items[r] < known:
            rows[back] = r
            back += 1
    group, group_ms, groups = np.empty(back, np.int32), np.empty(back, np.int64), 0
    for i in range(back):
        if i == 0 or ordered or t_ms[rows[i]] != t_ms[rows[i - 1]]:
            group_ms[groups] = t_ms[rows[i]]
            groups += 1
        group[i] = groups - 1

    size = 4
    while size < 2 * back:
        size *= 2
    table = np.full(size, -1, np.int32)
    place, distinct, m = np.empty(back, np.int32), np.empty(back, np.int32), 0
    for i in range(back - 1, -1, -1):
        item = items[rows[i]]
        at = (np.uint32(item) * _HASH) & np.uint32(size - 1)
        while table[at] >= 0 and distinct[table[at]] != item:
            at = (at + np.uint32(1)) & np.uint32(size - 1)
        if table[at] < 0:
            table[at], distinct[m] = m, item
            m += 1
        place[i] = table[at]

    first_ms, last_ms, previous_ms = np.empty(m, np.int64), np.empty(m, np.int64), np.empty(m, np.int64)
    times, weight, returned = np.zeros(m, np.float32), np.zeros(m, np.float32), np.zeros(m, np.float32)
    last_group, group_age = np.empty(m, np.int32), np.empty(m, np.int32)
    price, value = np.empty(m, np.float32), np.empty(m, np.float32)
    count, newest = np.zeros(m, np.int64), np.full(m, -1, np.int32)
    for i in range(back):
        p, r = place[i], rows[i]
        if count[p] == 0:
            first_ms[p], group_age[p], last_ms[p] = t_ms[r], groups - group[i], t_ms[r]
        previous_ms[p], last_ms[p] = last_ms[p], t_ms[r]
        times[p] += newest[p] != group[i]
        newest[p] = group[i]
        weight[p] += weights[r]
        price[p], value[p] = prices[r], values[r]
        count[p] += 1
    row_start, start = np.empty(m, np.int64), 0
    for p in range(m):
        last_group[p] = groups - 1 - newest[p]
        row_start[p] = start
        start += count[p]
        count[p] = row_start[p]
    row_ms = np.empty(back, np.int64)
    for i in range(back):
        row_ms[count[place[i]]] = t_ms[rows[i]]
        count[place[i]] += 1
    if back and back < len(items):
        for r in range(len(items)):
            if weights[r] < 0 and items[r] >= 0:
                at = (np.uint32(items[r]) * _HASH) & np.uint32(size - 1)
                while table[at] >= 0 and distinct[table[at]] != items[r]:
                    at = (at + np.uint32(1)) & np.uint32(size - 1)
                if table[at] >= 0:
                    returned[table[at]] -= weights[r]
    k = 0
    while k < m and last_group[k] == 0:
        k += 1
    return (
        distinct[:m].copy(), first_ms, last_ms, times, weight, last_group, group_age, previous_ms, price, value,
        returned, np.sort(distinct[:k]), group_ms[:groups].copy(), row_ms, row_start,
    )  # fmt: skip


@compiled(f"({_F}, {_F}, {_L}, int64, int64, float64)")
def traits(price: Float32, value: Float32, group_ms: Int64, touches: int, now_ms: int, unit_ms: float) -> Any:
    """The TRAITS [7] float32 of graph/history.py.

    Args:
        price, value: [m] of the distinct items; group_ms: [g] times of the groups.
        touches: events in all; now_ms: request time; unit_ms: of ages.
    """
    out, groups = np.full(7, np.nan, np.float32), len(group_ms)
    out[0], out[1] = np.log1p(float(groups)), np.log1p(float(len(price)))
    if groups == 0:
        return out
    paid, bought, n_paid, n_bought = 0.0, 0.0, 0, 0
    for i in range(len(price)):
        if np.isfinite(price[i]) and price[i] >= 0:
            paid += np.log1p(price[i])
            n_paid += 1
        if np.isfinite(value[i]) and value[i] > -1:
            bought += np.log1p(value[i])
            n_bought += 1
    out[2] = np.log1p(touches / groups)
    if n_paid:
        out[3] = paid / n_paid
    if n_bought:
        out[4] = bought / n_bought
    out[5] = np.log1p(max(now_ms - group_ms[0], 0) / unit_ms)
    out[6] = np.log1p(max(now_ms - group_ms[groups - 1], 0) / unit_ms)
    return out
