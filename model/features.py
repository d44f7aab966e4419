"""One row of numbers for each candidate of a request: the only function that makes features, for training and serving.

    columns = base | profiles | one block for each plug (hstu, graph, ...)

A block is a slice of columns, so an arm of the replay is a set of blocks: a mask of columns and of recallers. Counts
enter as logs, popularity as a share of all touches, recaller scores relative to the best of the request; columns are
standardised with running statistics that are fixed for the request and clipped at 5. Personal columns are 0 for
items that the user has not touched and are standardised among those that are touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graph.history import DAY_MS, TRAITS, History, traits_of
from model.columns import PERSONAL, PERSONAL_HALF_LIVES_DAYS, PROFILE_COLUMNS, Layout
from model.recall import SCORED, Pool

if TYPE_CHECKING:
    from graph.rows import Float32
    from graph.signals import Signals
    from graph.view import Int32, Profile, UserView

NEAR_ITEMS = 32
"""Newest distinct items that a candidate's text is held against one by one."""
NEAR_COSINE = 0.6
HOUR_MS = 3_600_000.0


def _days(ms: NDArray[np.int64]) -> Float32:
    """log1p of days, 0 for the past of the past."""
    out: Float32 = np.log1p(np.maximum(ms, 0).astype(np.float32) * np.float32(1 / DAY_MS))
    return out


def features(
    view: UserView,
    past: History,
    now_ms: int,
    pool: Pool,
    signals: Signals,
    text: Float32,
    columns: Layout,
) -> Float32:
    """Raw features of a pool.

    Args:
        view: the user; past: its digest.
        now_ms: request time.
        pool: candidates [c] and the recallers' opinions.
        signals: the counted state.
        text: [n, d] float32 unit text vectors.
        columns: the layout.

    Returns:
        [f, c] float32, to be standardised.
    """
    c = len(pool.candidates)
    out = np.zeros((len(columns.names), c), np.float32)
    if c == 0:
        return out
    rows = _Rows(out)
    share = _popularity(rows, pool.candidates, signals, now_ms)
    item = _item(rows, pool.candidates, signals, now_ms)
    place = np.full(signals.n, -1, np.int32)
    place[pool.candidates] = np.arange(c, dtype=np.int32)
    _match(rows, view, past, pool.candidates, signals, item, share[signals.reference], text, now_ms)
    _user(rows, view, past, now_ms)
    _personal(rows, past, place[past.items], pool.candidates, signals, now_ms)
    for name in SCORED:
        _opinion(rows, pool, name)
    _profile(rows, view.profile, pool, text)
    for name in list(columns.blocks)[2:]:
        _plug(rows, pool, name)
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


def _popularity(rows: _Rows, candidates: Int32, signals: Signals, now_ms: int) -> Float32:
    """Log shares at every half-life [h, c] (written, returned), first-buyer shares, trends."""
    items = max(signals.n, 1)
    h = len(signals.popularity.half_lives_ms)
    share = rows.block(h)
    np.log(signals.popularity.share(candidates, now_ms, items).T + np.float32(0.02), out=share)
    np.log(signals.first_buyers.share(candidates, now_ms, items).T + np.float32(0.02), out=rows.block(h))
    if h > 2:
        np.subtract(share[:-2], share[2:], out=rows.block(h - 2))
    return share


def _item(rows: _Rows, candidates: Int32, signals: Signals, now_ms: int) -> dict[str, Float32]:
    """Item columns; returns the raw ones that others need."""
    c = {name: column[candidates] for name, column in signals.columns.items()}
    seen = c["first_ms"] >= 0
    age_ms = np.where(seen, now_ms - c["first_ms"], 0)
    since_ms = np.where(seen, now_ms - c["last_ms"], 0)
    groups, buyers = np.maximum(c["groups"], 1), np.maximum(c["buyers"], 1)
    gap = np.maximum(c["last_ms"] - c["first_ms"], 1) / groups
    price = c["price"]
    log_price = np.where(np.isfinite(price), np.log1p(np.maximum(price, 0)), np.float32(np.nan)).astype(np.float32)
    interval = (c["interval_sum"] / np.maximum(c["interval_n"], 1)).astype(np.float32)
    value = (c["value_sum"] / np.maximum(c["value_n"], 1)).astype(np.float32)
    total = max(float(signals.columns["times"][: signals.n].sum()), 1.0)
    log_times = np.log(c["times"] * (signals.n / total) + 0.02)
    rows.put(
        log_times,
        _days(age_ms),
        _days(since_ms),
        np.log1p(np.maximum(since_ms, 0) / gap),
        np.log1p(c["buyers"]),
        1 - (buyers + 1) / (groups + 2),
        np.log(groups / buyers),
        interval,
        value,
        np.nan_to_num(log_price),
        c["returned"] / (c["times"] + 1),
        rows.out[len(signals.popularity.half_lives_ms) - 1] - log_times,
    )
    return {"log_age": _days(age_ms), "log_price": log_price, "interval": interval, "value": value}


def _match(
    rows: _Rows,
    view: UserView,
    past: History,
    candidates: Int32,
    signals: Signals,
    item: dict[str, Float32],
    share: Float32,
    text: Float32,
    now_ms: int,
) -> None:
    """How an item relates to what this user usually takes, and to the user's domain."""
    own_price = np.log1p(past.price[np.isfinite(past.price) & (past.price >= 0)])
    own_value = np.log1p(past.value[np.isfinite(past.value) & (past.value > -1)])
    gap = np.nan_to_num(item["log_price"] - own_price.mean()) if len(own_price) else np.zeros_like(share)
    width = float(own_price.std()) + 0.2 if len(own_price) else 1.0
    rows.put(gap, np.abs(gap) / width, item["value"] - own_value.mean() if len(own_value) else 0.0)
    if len(past.items):
        usual = np.log(
            signals.popularity.share(past.items, now_ms, signals.n)[:, signals.reference] + np.float32(0.02)
        ).mean()
        rows.put(share - usual, np.abs(share - usual))
    else:
        rows.put(0.0, 0.0)
    domain = signals.domain_counts(view.domain)
    if domain is None:
        rows.put(share, 0.0)
    else:
        inside = np.log(domain.share(candidates, now_ms, signals.n)[:, 0] + np.float32(0.02))
        rows.put(inside, inside - share)
    rows.put(*_chances(candidates, signals, now_ms))
    rows.block(len(TRAITS))[:] = np.nan_to_num(traits_of(past, now_ms)[:, None] - signals.traits[candidates].T)
    since = np.float32(np.log1p(max(now_ms - int(past.group_ms[-1]), 0) / DAY_MS)) if past.groups else np.float32(0)
    rows.put(since - item["interval"])
    since_entry = past.groups - np.searchsorted(past.group_ms, signals.columns["first_ms"][candidates])
    rows.put(np.log1p(since_entry), since_entry / max(past.groups, 1))
    if len(past.items):
        usual_age = _days(past.first_ms - signals.columns["first_ms"][past.items]).mean()
        rows.put(item["log_age"] - usual_age)
    else:
        rows.put(0.0)
    if len(past.items) and text.shape[1]:
        close = text[candidates] @ text[past.items[:NEAR_ITEMS]].T
        rows.put(close.max(1), (close > NEAR_COSINE).mean(1))
    else:
        rows.put(0.0, 0.0)


def _chances(candidates: Int32, signals: Signals, now_ms: int) -> tuple[Float32, Float32]:
    """Log chances [c] that a request of a user without the item takes it, and that one of a user with it does again."""
    at = signals.reference
    taken = signals.popularity.value(candidates, now_ms)[:, at]
    first = signals.first_buyers.value(candidates, now_ms)[:, at]
    owned = signals.owned.value(candidates, now_ms)[:, 0]
    requests = float(signals.requests.value(np.zeros(1, np.int32), now_ms)[0, 0])
    take = np.log((first + 0.05) / (np.maximum(requests - owned, 0) + 1))
    retake = np.log((np.maximum(taken - first, 0) + 0.05) / (owned + 1))
    return take.astype(np.float32), retake.astype(np.float32)


def _user(rows: _Rows, view: UserView, past: History, now_ms: int) -> None:
    """The user's activity and the clock: the same for every candidate, for the network to combine."""
    since = max(now_ms - int(past.group_ms[-1]), 0) if past.groups else 0
    span = max(now_ms - int(past.group_ms[0]), 0) if past.groups else 0
    usual = span / past.groups if past.groups > 1 else 0.0
    rows.put(
        np.log1p(view.events),
        np.log1p(past.groups),
        np.log1p(since / HOUR_MS),
        np.log1p(span / DAY_MS),
        np.log1p(past.touches / max(past.groups, 1)),
        1 - len(past.items) / max(past.touches, 1),
        np.log1p(len(past.items)),
        np.log((since + HOUR_MS) / (usual + HOUR_MS)) if usual else 0.0,
    )
    for turns in (now_ms / DAY_MS, (now_ms / DAY_MS + 4) / 7, now_ms / DAY_MS / 365.2425):
        angle = 2 * np.pi * (turns % 1)
        rows.put(np.sin(angle), np.cos(angle))


def _personal(rows: _Rows, past: History, place: Int32, candidates: Int32, signals: Signals, now_ms: int) -> None:
    """What the user did with the item before; 0 where nothing, so real values avoid 0."""
    block = rows.block(len(PERSONAL))
    inside = np.flatnonzero(place >= 0)
    if len(inside) == 0:
        return
    at = place[inside]
    times, last, first = past.times[inside], past.last_ms[inside], past.first_ms[inside]
    elapsed, span = now_ms - last, last - first
    mean_gap = np.where(times > 1, span / np.maximum(times - 1, 1), 0)
    last_gap = last - past.previous_ms[inside]
    known = _days(mean_gap)
    expected = np.where(
        times > 1,
        known,
        signals.columns["interval_sum"][past.items[inside]]
        / np.maximum(signals.columns["interval_n"][past.items[inside]], 1),
    )
    log_elapsed = _days(elapsed)
    paid, now_price = past.price[inside], signals.columns["price"][past.items[inside]]
    change = np.nan_to_num(np.log((now_price + 0.01) / (paid + 0.01)))
    values = [
        np.ones(len(at), np.float32),
        np.log1p(times),
        np.log1p(past.weight[inside]),
        log_elapsed + np.float32(0.01),
        _days(now_ms - first) + np.float32(0.01),
        np.where(times > 1, known + 0.01, 0),
        log_elapsed - expected,
        np.where(times > 1, _days(last_gap) + 0.01, 0),
        np.where(times > 1, log_elapsed - _days(last_gap), 0),
        times / past.groups,
        times / past.group_age[inside],
        np.log1p(past.last_group[inside]) + np.float32(0.01),
        past.last_group[inside] == 0,
        np.nan_to_num(np.log1p(np.maximum(past.value[inside], 0))) + np.float32(0.01),
        change,
        np.log1p(past.returned[inside]),
    ]
    values += [
        np.log(past.decayed_times(now_ms, d * DAY_MS)[inside] + np.float32(0.001)) for d in PERSONAL_HALF_LIVES_DAYS
    ]
    block[:, at] = np.stack(values)


def _opinion(rows: _Rows, pool: Pool, name: str) -> None:
    """Score relative to the best of the list, and log rank; 0 without an opinion."""
    one = pool.scored.get(name)
    if one is None or len(one.best_scores) == 0:
        rows.put(0.0, 0.0)
        return
    scores, rank = one.of(pool.candidates)
    top = max(float(one.best_scores[0]), 1e-12)
    rows.put(np.log(np.maximum(scores, 0) / top + np.float32(0.003)), np.log1p(rank))


def _plug(rows: _Rows, pool: Pool, name: str) -> None:
    """Score below the best of the list, and log rank; 0 without an opinion."""
    one = pool.scored.get(name)
    if one is None or len(one.best_scores) == 0:
        rows.put(0.0, 0.0)
        return
    scores, rank = one.of(pool.candidates)
    rows.put(scores - one.best_scores[0], np.log1p(rank))


def _profile(rows: _Rows, profile: Profile | None, pool: Pool, text: Float32) -> None:
    """Cosines of the item's text to the user's facets."""
    one = pool.scored.get("profiles")
    if profile is None or one is None or text.shape[1] == 0:
        rows.put(*([0.0] * len(PROFILE_COLUMNS)))
        return
    cosine = text[pool.candidates] @ profile.facets.T  # [c, 4]
    _, rank = one.of(pool.candidates)
    rows.put(*cosine.T, cosine.max(1), cosine.mean(1), np.log1p(rank), 1.0)
