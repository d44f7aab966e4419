"""One user's past, digested once a request: what the signals, the recallers and the features all read.

Only events with a positive action weight count as touches; the others (returns) are kept apart. A group is every
touch of one time stamp. It knows nothing of the stream: a `UserView` in, arrays out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graph.rows import Float32
from graph.view import Int32, Int64, UserView

DAY_MS = 86_400_000.0


@dataclass(frozen=True, slots=True)
class History:
    """Distinct items of one user, the most recently touched first.

    Attributes:
        items: [m] int32 dense indices.
        first_ms, last_ms: [m] int64 times of the first and the last touch.
        times: [m] float32, groups that held the item.
        weight: [m] float32, summed action weights.
        last_group: [m] int32, number of the last group that held it, counted back from the newest (0).
        group_age: [m] int32, groups since and including the first that held it.
        previous_ms: [m] int64, time of the touch before the last group; = last_ms without one.
        price, value: [m] float32 of the last touch; NaN = none.
        returned: [m] float32, -sum of the negative weights.
        basket: [k] int32, distinct items of the newest group.
        groups: number of groups.
        group_ms: [g] int64 times of the groups, oldest first.
        touches: number of touching events.
        row_ms: [touches] int64, times of all touches ordered by item.
        row_start, recent: item i of `items` has the run of `row_ms` that starts at row_start[recent[i]].
    """

    items: Int32
    first_ms: Int64
    last_ms: Int64
    times: Float32
    weight: Float32
    last_group: Int32
    group_age: Int32
    previous_ms: Int64
    price: Float32
    value: Float32
    returned: Float32
    basket: Int32
    groups: int
    group_ms: Int64
    touches: int
    row_ms: Int64
    row_start: NDArray[np.intp]
    recent: NDArray[np.intp]

    def decayed(self, now_ms: int, half_life_ms: float, limit: int | None = None) -> Float32:
        """Weights [m] or [limit] of the last touches, 1 now and a half after each half-life."""
        age = (now_ms - self.last_ms[:limit]).astype(np.float32)
        return np.exp2(np.maximum(age, 0) * np.float32(-1 / half_life_ms))

    def decayed_times(self, now_ms: int, half_life_ms: float) -> Float32:
        """Decayed number [m] of all touches of each item."""
        if self.touches == 0:
            return np.zeros(0, np.float32)
        age = np.maximum((now_ms - self.row_ms).astype(np.float32), 0)
        fresh = np.exp2(age * np.float32(-1 / half_life_ms))
        return np.add.reduceat(fresh, self.row_start)[self.recent]


TRAITS = ("groups", "items", "basket", "price", "value", "span", "since")


def traits_of(past: History, now_ms: int) -> Float32:
    """What kind of user this is: logs of the TRAITS [7] float32, NaN = not known."""
    if past.groups == 0:
        return np.array([0, 0, np.nan, np.nan, np.nan, np.nan, np.nan], np.float32)
    price = past.price[np.isfinite(past.price) & (past.price >= 0)]
    value = past.value[np.isfinite(past.value) & (past.value > -1)]
    return np.array(
        [
            np.log1p(past.groups),
            np.log1p(len(past.items)),
            np.log1p(past.touches / past.groups),
            np.log1p(price).mean() if len(price) else np.nan,
            np.log1p(value).mean() if len(value) else np.nan,
            np.log1p(max(now_ms - int(past.group_ms[0]), 0) / DAY_MS),
            np.log1p(max(now_ms - int(past.group_ms[-1]), 0) / DAY_MS),
        ],
        np.float32,
    )


def _empty() -> History:
    i4, i8, f4 = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32)
    at = np.zeros(0, np.intp)
    return History(i4, i8, i8, f4, f4, i4, i4, i8, f4, f4, f4, i4, 0, i8, 0, i8, at, at)


def history_of(view: UserView, items: int | None = None) -> History:
    """Digest a view.

    Args:
        view: one user.
        items: number of known items; touches of further ones are left out. None = all with an index are known.
    """
    touched = (view.weight > 0) & (view.items >= 0)
    if items is not None:
        touched &= view.items < items
    rows = np.flatnonzero(touched)
    if len(rows) == 0:
        return _empty()
    item, t = view.items[rows], view.t_ms[rows]
    new_group = np.empty(len(rows), np.bool_)
    new_group[0] = True
    np.not_equal(t[1:], t[:-1], out=new_group[1:])
    group = np.cumsum(new_group, dtype=np.int32) - 1
    groups = int(group[-1]) + 1

    order = np.argsort(item, kind="stable")  # by item, in time order within it
    sorted_items, sorted_group = item[order], group[order]
    last = np.empty(len(rows), np.bool_)  # the last row of each item
    last[-1] = True
    np.not_equal(sorted_items[1:], sorted_items[:-1], out=last[:-1])
    end = np.flatnonzero(last)
    start = np.empty_like(end)
    start[0] = 0
    start[1:] = end[:-1] + 1
    distinct = np.ones(len(rows), np.float32)  # 1 at the first row of an item within a group
    distinct[1:] = (sorted_items[1:] != sorted_items[:-1]) | (sorted_group[1:] != sorted_group[:-1])
    times = np.add.reduceat(distinct, start)
    weight = np.add.reduceat(view.weight[rows][order], start)

    end_row, start_row = order[end], order[start]
    recent = np.argsort(-end_row, kind="stable")
    row_start = start
    end, start, end_row, start_row = end[recent], start[recent], end_row[recent], start_row[recent]
    before = np.maximum(end - 1, start)  # a second row of the same group would be no earlier touch: rare, harmless
    basket = item[group == groups - 1]
    returned = np.zeros(len(end), np.float32)
    if len(rows) < len(view.items):
        returned = _returns(view, sorted_items[end])
    return History(
        items=sorted_items[end],
        first_ms=t[start_row],
        last_ms=t[end_row],
        times=times[recent],
        weight=weight[recent],
        last_group=(groups - 1 - group[end_row]).astype(np.int32),
        group_age=(groups - group[start_row]).astype(np.int32),
        previous_ms=t[order[before]],
        price=view.price[rows][end_row],
        value=view.value[rows][end_row],
        returned=returned,
        basket=basket if len(basket) == 1 else np.unique(basket),
        groups=groups,
        group_ms=t[new_group],
        touches=len(rows),
        row_ms=t[order],
        row_start=row_start,
        recent=recent,
    )


def _returns(view: UserView, items: Int32) -> Float32:
    """Summed negative weights [m] of the given distinct items."""
    rows = np.flatnonzero((view.weight < 0) & (view.items >= 0))
    order = np.argsort(items, kind="stable")
    at = np.minimum(np.searchsorted(items[order], view.items[rows]), len(items) - 1)
    hit: NDArray[np.bool_] = items[order][at] == view.items[rows]
    out = np.zeros(len(items), np.float32)
    np.add.at(out, order[at[hit]], -view.weight[rows][hit])
    return out
