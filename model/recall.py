"""Which items are worth ranking for one request: a dozen recallers, each with a list of its own.

A recaller brings its best `ranker.recall` items that the user has not touched; `personal` brings the user's own. Plugs
and profiles bring fewer, `ranker.plug_recall`: longer lists made the order worse than they made the pool better.
Every candidate carries a bitmask of those that brought it, so an arm of the replay can drop a block's recallers from
a pool that it shares with other arms: the pool without a block's bits is exactly the pool without that block.

Score recallers score all items, so that their score and rank are features of every candidate, whoever brought it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from configs.settings import Ranker as RankerSettings
    from graph.history import History
    from graph.rows import Float32
    from graph.signals import Signals
    from graph.view import Int32, UserView

UInt32 = NDArray[np.uint32]

SCORED = (
    "basket_history",
    "basket_last",
    "basket_fresh",
    "following",
    "onward",
    "user_knn",
    "user_knn_fresh",
    "text_history",
    "text_last",
)
"""Recallers whose score and rank are base features."""
LISTED = ("popularity", "first_buyers", "domain", "newest")
"""Recallers that only bring items."""
BASE = ("personal", *SCORED, *LISTED)
PROFILES = "profiles"
FIRST_PLUG_BIT = 16
"""Bits below belong to the base recallers and to profiles, those from here on to the plugs in their order."""

BASE_BITS = np.uint32((1 << len(BASE)) - 1)
BIT = {name: np.uint32(1 << i) for i, name in enumerate((*BASE, PROFILES))}


def plug_bit(number: int) -> np.uint32:
    """The bit of the plug with this number.

    Raises:
        ValueError: there is no bit left.
    """
    if not 0 <= number < 32 - FIRST_PLUG_BIT:
        raise ValueError(f"plug number {number}: a mask has room for {32 - FIRST_PLUG_BIT} plugs; drop some arms")
    return np.uint32(1 << (FIRST_PLUG_BIT + number))


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


@dataclass(frozen=True, slots=True)
class Pool:
    """The candidates of one request.

    Attributes:
        candidates: [c] int32 distinct dense indices: those of the base recallers in index order, then the others.
        recalled: [c] uint32 bitmask of the recallers that brought each.
        scored: recaller or plug -> its opinion.
    """

    candidates: Int32
    recalled: UInt32
    scored: dict[str, Scored]


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
    view: UserView, past: History, now_ms: int, signals: Signals, text: Float32, settings: RankerSettings
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
    weight = past.decayed(now_ms, signals.user_half_life_ms)
    recent = weight[: len(source)]
    last, even = past.basket, np.ones(len(past.basket), np.float32)
    texts = _text_scores(past.items, weight, last, text, n)
    near = signals.users.scores(view.user_id, past.items, weight, n)
    scores = {
        "basket_history": signals.basket.scores(source, recent, n),
        "basket_last": signals.basket.scores(last, even, n),
        "basket_fresh": signals.basket_fresh.scores(source, recent, n),
        "following": signals.following.scores(last, even, n),
        "onward": signals.onward.scores(source, recent, n),
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


def listed_base(view: UserView, signals: Signals, settings: RankerSettings) -> dict[str, list[Int32]]:
    """The lists of all LISTED recallers, best first; a recaller may have several."""
    domain = signals.domain_counts(view.domain)
    return {
        "popularity": signals.popularity.best(),
        "first_buyers": signals.first_buyers.best(),
        "domain": [] if domain is None else domain.best(),
        "newest": [np.arange(signals.n - 1, max(signals.n - 1 - settings.newest, -1), -1, dtype=np.int32)],
    }


def pool_of(
    past: History,
    scored: dict[str, Scored],
    listed: dict[str, list[Int32]],
    extra: dict[str, tuple[np.uint32, Scored]],
    n: int,
    settings: RankerSettings,
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
