"""One row of numbers for each candidate of a request: the only function that makes features, for training and serving.

    columns = base | one block for each plug (profiles, hstu, graph, ...) | reverse | context

A block is a slice of columns, so an arm of the replay is a set of blocks: a mask of columns and of recallers. Counts
enter as logs, popularity as a share of all touches, recaller scores relative to the best of the request; columns are
standardised with running statistics that are fixed for the request and clipped at 5. Personal columns are 0 for
items that the user has not touched and are standardised among those that are touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.history import DAY_MS, TRAITS, HistoryDigest, traits_of
from driftline.graph.reverse import REVERSE
from driftline.graph.sparse import SCRATCH
from driftline.model.columns import ITEM, PERSONAL, USER, Layout
from driftline.model.columns_kernel import (
    chance_columns,
    item_columns,
    log_shares,
    match_columns,
    nearest_columns,
    personal_columns,
    user_item_columns,
    usual,
)
from driftline.model.context_columns import CONTEXT, context_columns
from driftline.model.part import Asked, Plug, opinion_block
from driftline.model.recall import SCORED, Pool

if TYPE_CHECKING:
    from driftline.graph.arrays import Float32, Int32
    from driftline.graph.signals import Signals
    from driftline.graph.texts import TextTable
    from driftline.graph.view import UserView

NEAR_ITEMS = 32
"""Newest distinct items that a candidate's text is held against one by one."""
NEAR_COSINE = 0.6
ITEM_COUNTS = (
    "times", "groups", "buyers", "first_ms", "last_ms", "interval_sum", "interval_n", "value_sum", "value_n",
    "returned", "price",
)  # fmt: skip
"""Columns of Signals in the order in which `item_columns` takes them."""


def features(
    asked: Asked, pool: Pool, signals: Signals, text: TextTable, plugs: Mapping[str, Plug], columns: Layout
) -> Float32:
    """Raw features of a pool.

    Args:
        asked: the user and the request time.
        pool: candidates [c] and the recallers' opinions.
        signals: the counted state.
        text: unit text vectors by item.
        plugs: by block, in the order of the layout.
        columns: the layout.

    Returns:
        [f, c] float32, to be standardised.
    """
    view, past, now_ms = asked.view, asked.past, asked.now_ms
    c, n = len(pool.candidates), signals.n
    out = np.zeros((len(columns.names), c), np.float32)
    if c == 0:
        return out
    rows, items = _Rows(out), pool.candidates
    place = SCRATCH.get("place", n, np.int32, -1)
    place[items] = np.arange(c, dtype=np.int32)
    try:
        share = _popularity(rows, items, signals)
        raw = _item(rows, items, signals, now_ms, share[-1])
        _match(rows, view, past, items, signals, raw, share[signals.reference], text, now_ms)
        _user(rows, view, past, now_ms, signals.age_unit_ms)
        _personal(rows, past, place, signals, now_ms)
        for name in SCORED:
            block = rows.block(2)
            if (one := pool.scored.get(name)) is not None:
                opinion_block(items, place, one, block, share=True)
        for name, plug in plugs.items():
            block = rows.block(len(plug.columns))
            if (one := pool.scored.get(name)) is not None:
                plug.features(asked, pool, place, one, block)
        for name in REVERSE if "reverse" in columns.blocks else ():
            block = rows.block(2)
            if (one := pool.scored.get(name)) is not None:
                opinion_block(items, place, one, block, share=True)
        if (context := columns.blocks.get(CONTEXT)) is not None:
            block = rows.block(context.stop - context.start)
            context_columns(view.context, signals.contexts, items, n, block)
    finally:
        place[items] = -1
    return out


class _Rows:
    """Writes one column after another."""

    def __init__(self, out: Float32) -> None:
        self.out, self.at = out, 0

    def put(self, *values: NDArray[Any] | float) -> None:
        for value in values:
            self.out[self.at] = value
            self.at += 1

    def block(self, n: int) -> Float32:
        self.at += n
        return self.out[self.at - n : self.at]


def _popularity(rows: _Rows, items: Int32, signals: Signals) -> Float32:
    """Log shares at every half-life [h, c] (written, returned), first-buyer shares, trends."""
    n, h = float(max(signals.n, 1)), len(signals.popularity.half_lives_ms)
    share = rows.block(h)
    log_shares(items, signals.popularity.count, signals.popularity.total, n, share)
    log_shares(items, signals.first_buyers.count, signals.first_buyers.total, n, rows.block(h))
    if h > 2:
        np.subtract(share[:-2], share[2:], out=rows.block(h - 2))
    return share


def _item(rows: _Rows, items: Int32, signals: Signals, now_ms: int, longest: Float32) -> Float32:
    """Item columns; returns log age, log price, interval and value [4, c], which others need."""
    raw = np.empty((4, len(items)), np.float32)
    counted = [signals.columns[name] for name in ITEM_COUNTS]
    average, block = signals.n / max(signals.touches(), 1.0), rows.block(len(ITEM))
    item_columns(items, now_ms, _per(signals), average, *counted, longest, block, raw)  # type: ignore[call-arg]
    return raw


def _match(
    rows: _Rows,
    view: UserView,
    past: HistoryDigest,
    items: Int32,
    signals: Signals,
    raw: Float32,
    share: Float32,
    text: TextTable,
    now_ms: int,
) -> None:
    """How an item relates to what this user usually takes, and to the user's domain."""
    first_ms, taken, at = signals.columns["first_ms"], signals.popularity, signals.reference
    n = float(signals.n)
    of_user = usual(
        past.items, past.price, past.value, past.first_ms, first_ms, taken.count, taken.total, n, at, _per(signals)
    ).astype(np.float32)
    domain, inside = signals.domain_counts(view.domain), share
    if domain is not None:
        shares = np.empty((len(domain.total), len(items)), np.float32)
        log_shares(items, domain.count, domain.total, n, shares)
        inside = shares[0]
    block, age = rows.block(7), np.empty((1, len(items)), np.float32)
    match_columns(of_user, raw, share, inside, domain is not None, block, age)
    _chances(rows, items, signals, now_ms)
    unit_ms = signals.age_unit_ms
    since = math.log1p(max(now_ms - int(past.group_ms[-1]), 0) / unit_ms) if past.groups else 0.0
    block = rows.block(len(TRAITS) + 3)
    user_item_columns(
        items, traits_of(past, now_ms, unit_ms), signals.traits, past.group_ms, first_ms, since, raw[2], block
    )
    rows.put(age[0])
    near = past.items[:NEAR_ITEMS]
    if len(near) and text.dim:
        nearest_columns(text[items] @ text[near].T, NEAR_COSINE, rows.block(2))
    else:
        rows.put(0.0, 0.0)


def _chances(rows: _Rows, items: Int32, signals: Signals, now_ms: int) -> None:
    at, taken, first, owned = signals.reference, signals.popularity, signals.first_buyers, signals.owned
    fade = np.array([taken.fade(now_ms, at), first.fade(now_ms, at), owned.fade(now_ms, 0)])
    requests = float(signals.requests.count[0, 0]) * signals.requests.fade(now_ms, 0)
    chance_columns(items, taken.count, first.count, owned.count, at, fade, requests, rows.block(2))


def _user(rows: _Rows, view: UserView, past: HistoryDigest, now_ms: int, unit_ms: float) -> None:
    """The user's activity and the clock: the same for every candidate, for the network to combine."""
    part_ms = unit_ms / 24  # of a day an hour: the time since the last group is told finer
    since = max(now_ms - int(past.group_ms[-1]), 0) if past.groups else 0
    span = max(now_ms - int(past.group_ms[0]), 0) if past.groups else 0
    usually = span / past.groups if past.groups > 1 else 0.0
    turns = (now_ms / DAY_MS, (now_ms / DAY_MS + 4) / 7, now_ms / DAY_MS / 365.2425)
    angles = [2 * math.pi * (turn % 1) for turn in turns]
    values = (
        math.log1p(view.events),
        math.log1p(past.groups),
        math.log1p(since / part_ms),
        math.log1p(span / unit_ms),
        math.log1p(past.touches / max(past.groups, 1)),
        1 - len(past.items) / max(past.touches, 1),
        math.log1p(len(past.items)),
        math.log((since + part_ms) / (usually + part_ms)) if usually else 0.0,
        *(turn(angle) for angle in angles for turn in (math.sin, math.cos)),
    )
    rows.block(len(USER))[:] = np.array(values, np.float32)[:, None]


def _personal(rows: _Rows, past: HistoryDigest, place: Int32, signals: Signals, now_ms: int) -> None:
    """What the user did with the item before; 0 where nothing, so real values avoid 0."""
    of_items = (signals.columns[name] for name in ("interval_sum", "interval_n", "price"))
    rates = _rates(signals.settings.personal_half_lives_days)
    personal_columns(  # type: ignore[call-arg]
        past.items, place, now_ms, _per(signals), past.groups, past.first_ms, past.last_ms, past.previous_ms,
        past.times, past.weight, past.last_group, past.group_age, past.value, past.price, past.returned, past.row_ms,
        past.row_start, *of_items, rates, rows.block(len(PERSONAL) + len(rates)),
    )  # fmt: skip


@cache
def _rates(half_lives_days: tuple[float, ...]) -> Float32:
    return np.array([-1 / (days * DAY_MS) for days in half_lives_days], np.float32)


def _per(signals: Signals) -> float:
    """Units of ages in a millisecond."""
    return 1 / signals.age_unit_ms
