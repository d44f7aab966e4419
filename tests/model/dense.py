"""Recall and features as they were first written: a dense pass over all items for each recaller, numpy for each column.

The oracle of what driftline.model computes now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.configs.settings import Ranker
from driftline.graph.arrays import Float32, Int32, Int64
from driftline.graph.history import DAY_MS, TRAITS, HistoryDigest, history_of, traits_of
from driftline.graph.rows import key64
from driftline.graph.signals import Signals
from driftline.graph.view import ProfileVectors, UserView
from driftline.model.columns import PERSONAL, Layout
from driftline.model.part import ProfilesPlug
from driftline.model.recall import BIT, PROFILES, SCORED, Pool, listed_base, plug_bit

NEAR_ITEMS = 32
"""Newest distinct items that a candidate's text is held against one by one."""
NEAR_COSINE = 0.6


def slate(engine, view, now_ms, given=None):
    """(pool, raw features) of an engine; the lists are those of `given`, so that equal scores are in equal order."""
    signals, ranker, text = engine.signals, engine.settings.ranker, engine.text[np.arange(engine.signals.n)]
    past = history_of(view, signals.n)
    scored = score_base(view, past, now_ms, signals, text, ranker)
    extra = {
        name: (plug_bit(i), opinion(engine, plug, view, past, now_ms))
        for i, (name, plug) in enumerate(engine.plugs.items())
        if signals.n and name != PROFILES
    }
    facets = None if view.profile is None else view.profile.facets
    if facets is not None and signals.n and facets.shape[1] == text.shape[1]:
        extra[PROFILES] = (plug_bit(0), best_of((text @ facets.T).mean(1), ranker.recall, past.items))
    if given is not None:
        scored, extra = (
            with_lists(scored, given),
            {name: (bit, with_lists({name: one}, given)[name]) for name, (bit, one) in extra.items()},
        )
    pool = pool_of(past, scored, listed_base(view, signals, ranker), extra, signals.n, ranker)
    return pool, features(view, past, now_ms, pool, signals, text, engine.layout)


def with_lists(scored, given):
    return {
        name: Scored(
            given.scored[name].of(np.arange(len(one.scores), dtype=np.int32))[0],
            given.scored[name].best,
            given.scored[name].best_scores,
        )
        for name, one in scored.items()
    }


def opinion(engine, plug, view, past, now_ms):
    n = engine.signals.n
    vector = plug.user_vector(view, now_ms)
    matrix = plug.item_matrix()[:n]
    scores = matrix @ vector if len(matrix) else np.zeros(0, np.float32)
    if not np.any(vector):
        return best_of(np.zeros(n, np.float32), 0, past.items)
    known = np.full(n, scores.min() if len(scores) else 0, np.float32)
    known[: len(scores)] = scores
    return best_of(known, engine.settings.ranker.recall, past.items, above=-np.inf)


@dataclass(frozen=True, slots=True)
class Scored:
    """One recaller's opinion of every item of a request.

    Attributes:
        scores: [n] float32; of base recallers at most 0 = no opinion.
        best: [k] int32, its untouched items, the best first.
        best_scores: [k] float32, descending.
    """

    scores: Float32
    best: Int32
    best_scores: Float32

    def of(self, candidates: Int32) -> tuple[Float32, Float32]:
        """(score, rank) [c] of candidates: how many of `best` are strictly better."""
        scores = self.scores[candidates]
        return scores, np.searchsorted(-self.best_scores, -scores).astype(np.float32)


def best_of(scores: Float32, k: int, touched: Int32, above: float = 0.0) -> Scored:
    """The k best untouched items with a score above a bound; equal scores go by index."""
    masked = scores.copy()
    masked[touched] = above
    found = np.flatnonzero(masked > above)
    if len(found) > k:
        found = found[np.argpartition(-masked[found], k - 1)[:k]]
        found.sort()
    order = np.argsort(-masked[found], kind="stable")
    best = found[order].astype(np.int32)
    return Scored(scores, best, masked[best])


def score_base(
    view: UserView, past: HistoryDigest, now_ms: int, signals: Signals, text: Float32, settings: Ranker
) -> dict[str, Scored]:
    """The opinions of all SCORED recallers.

    Args:
        view: the user.
        past: `history_of(view)`.
        now_ms: request time.
        signals: the counted state.
        text: [n, d] float32 unit text vectors, zero rows = none; d may be 0.
        settings: list length.
    """
    n, k = signals.n, settings.recall
    source = past.items[: signals.settings.recent]
    weight = past.relative(now_ms, signals.user_half_life_ms)
    recent = weight[: len(source)]
    last, even = past.basket, np.ones(len(past.basket), np.float32)
    texts = _text_scores(past.items, weight, last, text, n)
    near = users(signals.users, view.user_id, past.items, weight, n)
    scores = {
        "basket_history": partners(signals.basket, source, recent, n),
        "basket_last": partners(signals.basket, last, even, n),
        "basket_fresh": partners(signals.basket_fresh, source, recent, n),
        "following": partners(signals.following, last, even, n),
        "onward": partners(signals.onward, source, recent, n),
        "user_knn": near[0],
        "user_knn_fresh": near[1],
        "text_history": texts[0],
        "text_last": texts[1],
    }
    return {name: best_of(value, k, past.items) for name, value in scores.items()}


def _text_scores(items: Int32, weight: Float32, last: Int32, text: Float32, n: int) -> Float32:
    """Cosines [2, n] of all items to the decayed history and to the last basket; 0 without text."""
    out = np.zeros((2, n), np.float32)
    if len(items) == 0 or text.shape[1] == 0:
        return out
    centre = np.stack((weight @ text[items], text[last].sum(0)))
    centre /= np.maximum(np.linalg.norm(centre, axis=1, keepdims=True), 1e-12)
    m = min(n, len(text))
    out[:, :m] = (text[:m] @ centre.T).T  # this way round the wide matrix is read once
    return out


def pool_of(
    past: HistoryDigest,
    scored: dict[str, Scored],
    listed: dict[str, list[Int32]],
    extra: dict[str, tuple[np.uint32, Scored]],
    n: int,
    settings: Ranker,
) -> Pool:
    """Join the recallers' lists.

    Args:
        past: the user's history; its newest `ranker.personal` items come in first.
        scored: base recallers with scores.
        listed: base recallers with lists alone.
        extra: plug or profiles -> (bit, opinion); they may add candidates but never displace one.
        n: number of items.
        settings: `pool`, `recall`, `plug_recall`, `personal`.
    """
    k = settings.recall
    mask = np.zeros(n, np.uint32)
    place = np.full(n, k, np.int32)  # best rank in any list
    order = np.arange(k, dtype=np.int32)
    touched = np.zeros(n, np.bool_)
    touched[past.items] = True
    lists = [(BIT[name], one.best) for name, one in scored.items()]
    for name, several in listed.items():
        for one in several:
            one = one[one >= 0]
            lists.append((BIT[name], one[~touched[one]][:k]))
    for bit, items in lists:
        mask[items] |= bit
        place[items] = np.minimum(place[items], order[: len(items)])
    own = past.items[: settings.personal]
    mask[own] |= BIT["personal"]
    place[own] = -1
    base = np.flatnonzero(mask).astype(np.int32)
    if len(base) > settings.pool:
        keep = np.argsort(place[base], kind="stable")[: settings.pool]
        mask[np.delete(base, keep)] = 0
        base = np.sort(base[keep])
    for bit, opinion in extra.values():
        mask[opinion.best[: settings.plug_recall]] |= bit
    inside = np.zeros(n, np.bool_)
    inside[base] = True
    more = np.flatnonzero((mask != 0) & ~inside).astype(np.int32)
    candidates = np.concatenate((base, more))
    return Pool(candidates, mask[candidates], scored | {name: one for name, (_, one) in extra.items()})


def partners(self, source: Int32, weight: Float32, n: int) -> Float32:
    """Weighted sum of the sources' normalised rows, over items 0..n-1.

    Args:
        source: [s] int32 distinct items; those that the table does not know are left out.
        weight: [s] float32.
        n: number of items.

    Returns:
        [n] float32, 0 where nothing points.
    """
    known = source < self.n
    source, weight = source[known], weight[known]
    if len(source) == 0:
        return np.zeros(n, np.float32)
    per_row = weight / np.sqrt(np.maximum(self.out[source], 1e-30))
    mass = self.weight[source] * per_row[:, None]
    total = np.bincount(self.partner[source].ravel() + 1, weights=mass.ravel(), minlength=n + 1)
    m = min(n, self.n)
    out = np.zeros(n, np.float32)
    out[:m] = total[1 : m + 1] / np.sqrt(np.maximum(self.into[:m], 1e-30))
    return out


def users(self, user_id: str, items: Int32, weight: Float32, n: int) -> Float32:
    """What the nearest users took, weighted by their similarity, the asking user left out.

    Args:
        user_id: who asks.
        items: [m] int32 distinct items of the history.
        weight: [m] float32 live decayed weights.
        n: number of items.

    Returns:
        [2, n] float32: sums of their unit vectors, and of their fresh touches.
    """
    known = items < len(self._by_item) - 1
    items, weight = items[known], weight[known]
    if len(items) == 0 or len(self._keys) == 0:
        return np.zeros((2, n), np.float32)
    at, which = _slices(self._by_item[items], self._by_item[items + 1])
    similarity = np.bincount(self._owner[at], weights=self._owner_value[at] * weight[which], minlength=len(self._keys))
    own = self._row.get(key64(user_id))
    if own is not None:
        similarity[own] = 0
    near = np.argsort(-similarity, kind="stable")[: self.nearest]
    near = near[similarity[near] > 0]
    at, which = _slices(self._start[near], self._start[near + 1])
    norm = float(np.sqrt(np.dot(weight, weight)))
    mass = (similarity[near] / max(norm, 1e-30))[which]
    taken = self._items[at]
    sums = [np.bincount(taken, mass * weights[at], n)[:n] for weights in (self._value, self._fresh)]
    return np.stack(sums).astype(np.float32)


def _slices(start: Int64, end: Int64) -> tuple[Int64, Int64]:
    """Positions of all the slices start[i]:end[i] one after another, and the i of each position."""
    length = end - start
    which = np.repeat(np.arange(len(start)), length)
    offset = np.cumsum(length) - length
    return np.arange(len(which)) + (start - offset)[which], which


def _age(ms: NDArray[np.int64], signals: Signals) -> Float32:
    """log1p of the unit of ages, 0 for the past of the past."""
    out: Float32 = np.log1p(np.maximum(ms, 0).astype(np.float32) * np.float32(1 / signals.age_unit_ms))
    return out


def features(
    view: UserView,
    past: HistoryDigest,
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
    _user(rows, view, past, now_ms, signals.age_unit_ms)
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


def _share(counts, rows: Int32, items: int) -> Float32:
    """Share of each row at each half-life, times the number of items: 1 = average. [c, h]."""
    return (counts.count[rows] * (items / np.maximum(counts.total, 1e-300))).astype(np.float32)


def _value(counts, rows: Int32, t_ms: int) -> NDArray[np.float64]:
    """Decayed counts [c, h] as of a time; one before the origin counts as the origin."""
    return counts.count[rows] * np.exp2(-np.maximum((t_ms - counts.origin_ms) / counts.half_lives_ms, 0.0))


def _popularity(rows: _Rows, candidates: Int32, signals: Signals, now_ms: int) -> Float32:
    """Log shares at every half-life [h, c] (written, returned), first-buyer shares, trends."""
    items = max(signals.n, 1)
    h = len(signals.popularity.half_lives_ms)
    share = rows.block(h)
    np.log(_share(signals.popularity, candidates, items).T + np.float32(0.02), out=share)
    np.log(_share(signals.first_buyers, candidates, items).T + np.float32(0.02), out=rows.block(h))
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
        _age(age_ms, signals),
        _age(since_ms, signals),
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
    return {"log_age": _age(age_ms, signals), "log_price": log_price, "interval": interval, "value": value}


def _match(
    rows: _Rows,
    view: UserView,
    past: HistoryDigest,
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
            _share(signals.popularity, past.items, signals.n)[:, signals.reference] + np.float32(0.02)
        ).mean()
        rows.put(share - usual, np.abs(share - usual))
    else:
        rows.put(0.0, 0.0)
    domain = signals.domain_counts(view.domain)
    if domain is None:
        rows.put(share, 0.0)
    else:
        inside = np.log(_share(domain, candidates, signals.n)[:, 0] + np.float32(0.02))
        rows.put(inside, inside - share)
    rows.put(*_chances(candidates, signals, now_ms))
    rows.block(len(TRAITS))[:] = np.nan_to_num(
        traits_of(past, now_ms, signals.age_unit_ms)[:, None] - signals.traits[candidates].T
    )
    since = (
        np.float32(np.log1p(max(now_ms - int(past.group_ms[-1]), 0) / signals.age_unit_ms))
        if past.groups
        else np.float32(0)
    )
    rows.put(since - item["interval"])
    since_entry = past.groups - np.searchsorted(past.group_ms, signals.columns["first_ms"][candidates])
    rows.put(np.log1p(since_entry), since_entry / max(past.groups, 1))
    if len(past.items):
        usual_age = _age(past.first_ms - signals.columns["first_ms"][past.items], signals).mean()
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
    taken = _value(signals.popularity, candidates, now_ms)[:, at]
    first = _value(signals.first_buyers, candidates, now_ms)[:, at]
    owned = _value(signals.owned, candidates, now_ms)[:, 0]
    requests = float(_value(signals.requests, np.zeros(1, np.int32), now_ms)[0, 0])
    take = np.log((first + 0.05) / (np.maximum(requests - owned, 0) + 1))
    retake = np.log((np.maximum(taken - first, 0) + 0.05) / (owned + 1))
    return take.astype(np.float32), retake.astype(np.float32)


def _user(rows: _Rows, view: UserView, past: HistoryDigest, now_ms: int, unit_ms: float) -> None:
    """The user's activity and the clock: the same for every candidate, for the network to combine."""
    since = max(now_ms - int(past.group_ms[-1]), 0) if past.groups else 0
    span = max(now_ms - int(past.group_ms[0]), 0) if past.groups else 0
    usual = span / past.groups if past.groups > 1 else 0.0
    rows.put(
        np.log1p(view.events),
        np.log1p(past.groups),
        np.log1p(24 * since / unit_ms),
        np.log1p(span / unit_ms),
        np.log1p(past.touches / max(past.groups, 1)),
        1 - len(past.items) / max(past.touches, 1),
        np.log1p(len(past.items)),
        np.log((since + unit_ms / 24) / (usual + unit_ms / 24)) if usual else 0.0,
    )
    for turns in (now_ms / DAY_MS, (now_ms / DAY_MS + 4) / 7, now_ms / DAY_MS / 365.2425):
        angle = 2 * np.pi * (turns % 1)
        rows.put(np.sin(angle), np.cos(angle))


def _personal(rows: _Rows, past: HistoryDigest, place: Int32, candidates: Int32, signals: Signals, now_ms: int) -> None:
    """What the user did with the item before; 0 where nothing, so real values avoid 0."""
    half_lives_days = signals.settings.personal_half_lives_days
    block = rows.block(len(PERSONAL) + len(half_lives_days))
    inside = np.flatnonzero(place >= 0)
    if len(inside) == 0:
        return
    at = place[inside]
    times, last, first = past.times[inside], past.last_ms[inside], past.first_ms[inside]
    elapsed, span = now_ms - last, last - first
    mean_gap = np.where(times > 1, span / np.maximum(times - 1, 1), 0)
    last_gap = last - past.previous_ms[inside]
    known = _age(mean_gap, signals)
    expected = np.where(
        times > 1,
        known,
        signals.columns["interval_sum"][past.items[inside]]
        / np.maximum(signals.columns["interval_n"][past.items[inside]], 1),
    )
    log_elapsed = _age(elapsed, signals)
    paid, now_price = past.price[inside], signals.columns["price"][past.items[inside]]
    change = np.nan_to_num(np.log((now_price + 0.01) / (paid + 0.01)))
    values = [
        np.ones(len(at), np.float32),
        np.log1p(times),
        np.log1p(past.weight[inside]),
        log_elapsed + np.float32(0.01),
        _age(now_ms - first, signals) + np.float32(0.01),
        np.where(times > 1, known + 0.01, 0),
        log_elapsed - expected,
        np.where(times > 1, _age(last_gap, signals) + 0.01, 0),
        np.where(times > 1, log_elapsed - _age(last_gap, signals), 0),
        times / past.groups,
        times / past.group_age[inside],
        np.log1p(past.last_group[inside]) + np.float32(0.01),
        past.last_group[inside] == 0,
        np.nan_to_num(np.log1p(np.maximum(past.value[inside], 0))) + np.float32(0.01),
        change,
        np.log1p(past.returned[inside]),
    ]
    values += [np.log(decayed_times(past, now_ms, d * DAY_MS)[inside] + np.float32(0.001)) for d in half_lives_days]
    block[:, at] = np.stack(values)


def decayed_times(past: HistoryDigest, now_ms: int, half_life_ms: float) -> Float32:
    """Decayed number [m] of all touches of each item."""
    if past.touches == 0:
        return np.zeros(0, np.float32)
    age = np.maximum((now_ms - past.row_ms).astype(np.float32), 0)
    fresh = np.exp2(age * np.float32(-1 / half_life_ms))
    out: Float32 = np.add.reduceat(fresh, past.row_start)
    return out


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


def _profile(rows: _Rows, profile: ProfileVectors | None, pool: Pool, text: Float32) -> None:
    """Cosines of the item's text to the user's facets."""
    one = pool.scored.get("profiles")
    if profile is None or one is None or text.shape[1] == 0:
        rows.put(*([0.0] * len(ProfilesPlug.columns)))
        return
    cosine = text[pool.candidates] @ profile.facets.T  # [c, 4]
    _, rank = one.of(pool.candidates)
    rows.put(*cosine.T, cosine.max(1), cosine.mean(1), np.log1p(rank), 1.0)
