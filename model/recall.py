"""Which items are worth ranking for one request: a dozen recallers, each with a list of its own.

A recaller brings its best `ranker.recall` items that the user has not touched; `personal` brings the user's own. Plugs
bring fewer, `ranker.plug_recall`: longer lists made the order worse than they made the pool better.
Every candidate carries a bitmask of those that brought it, so an arm of the replay can drop a block's recallers from
a pool that it shares with other arms: the pool without a block's bits is exactly the pool without that block.

Score recallers score every item that they have an opinion of, so that their score and rank are features of each
candidate, whoever brought it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from driftline.graph.codes_kernel import dots
from driftline.graph.sparse import best_rows, rank_in
from driftline.model.join import join
from driftline.model.products import products

if TYPE_CHECKING:
    from driftline.configs.settings import Ranker as RankerSettings
    from driftline.graph.arrays import Float32, Int32
    from driftline.graph.codes import Codes
    from driftline.graph.history import HistoryDigest
    from driftline.graph.signals import Signals
    from driftline.graph.texts import TextTable
    from driftline.graph.view import UserView

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
LISTED = ("popularity", "first_buyers", "domain", "newest", "context")
"""Recallers that only bring items."""
BASE = ("personal", *SCORED, *LISTED)
PROFILES = "profiles"
"""The first plug of every engine."""

PLUGS = 31 - len(BASE)
"""Bits after those of the base recallers; the last bit of a mask is that of the pool's joining (model/join.py)."""

BASE_BITS = np.uint32((1 << len(BASE)) - 1)
BIT = {name: np.uint32(1 << i) for i, name in enumerate(BASE)}


def plug_bit(number: int) -> np.uint32:
    """The bit of the plug with this number, in the engine's order.

    Raises:
        ValueError: there is no bit left.
    """
    if not 0 <= number < PLUGS:
        raise ValueError(f"plug number {number}: a mask has room for {PLUGS} plugs; drop some arms")
    return np.uint32(1 << (len(BASE) + number))


NO_SCORES = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Scored:
    """One recaller's opinion of the items of a request.

    Attributes:
        items: [t] int32 distinct items that it has a score of; None = items 0..t-1.
        scores: [t] float32; of base recallers at most 0 = no opinion.
        best: [k] int32, its untouched items, the best first.
        best_scores: [k] float32, descending.
        otherwise: score of all other items.
        exact: gives scores [m] of any items [m]; None = `scores` and `otherwise` say them all.
    """

    items: Int32 | None
    scores: Float32
    best: Int32
    best_scores: Float32
    otherwise: float = 0.0
    exact: Callable[[Int32], Float32] | None = None

    def of(self, candidates: Int32) -> tuple[Float32, Float32]:
        """(score, rank) [c] of candidates: how many of `best` are strictly better."""
        scores = np.full(len(candidates), self.otherwise, np.float32)
        if self.exact is not None:
            scores = self.exact(candidates)
        elif self.items is None:
            known = candidates < len(self.scores)
            scores[known] = self.scores[candidates[known]]
        elif len(self.items):
            order = np.argsort(self.items)
            at = order[np.minimum(np.searchsorted(self.items, candidates, sorter=order), len(order) - 1)]
            scores = np.where(self.items[at] == candidates, self.scores[at], scores)
        return scores, np.searchsorted(-self.best_scores, -scores).astype(np.float32)

    def list_alone(self) -> Scored:
        """Its best items without the scores of all others, which is what `rank` reads."""
        return Scored(None, NO_SCORES, self.best, self.best_scores)

    def rank(self, item: int) -> int:
        """How many of `best` are strictly better than an item of it; their number for any other."""
        return rank_in(self.best, self.best_scores, item)


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


def best_of(scores: Float32, k: int, touched: Int32, n: int, above: float = 0.0, otherwise: float = 0.0) -> Scored:
    """The k best untouched of items 0, 1, ... with a score above a bound; equal scores go by index.

    Args:
        scores: [m] float32 of items 0..m-1, `otherwise` is that of items m..n-1.
        k: how many at most.
        touched: [t] int32 items below n.
        n: number of items.
        above: bound.
    """
    return Scored(None, scores, *best_rows(None, scores, k, touched, n, above), otherwise)


class Space(Protocol):
    """Vectors of items by dense index."""

    @property
    def codes(self) -> Codes | None:
        """Of a large space; None = all its vectors are compared."""

    def dense(self, n: int) -> Float32:
        """Those of the first n items, or as many as it has: [m, d]; asked only where there are no codes."""

    def dots(self, rows: Int32, query: Float32) -> Float32:
        """Dot products [t] of rows [t] with a vector [d], those that it does not have included."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """A plug's vectors [m, d] as a space; an item that the plug does not know lies as far away as can be."""

    matrix: Float32
    codes: Codes | None

    def dense(self, n: int) -> Float32:
        """See Space."""
        return self.matrix[:n]

    def dots(self, rows: Int32, query: Float32) -> Float32:
        """See Space."""
        out = np.full(len(rows), -float(np.linalg.norm(query)), np.float32)
        known = rows < len(self.matrix)
        inside = np.empty(int(known.sum()), np.float32)
        dots(self.matrix, rows[known], query, inside)
        out[known] = inside
        return out


def nearest(space: Space, query: Float32, k: int, touched: Int32, n: int, above: float = 0.0) -> Scored:
    """The k untouched items whose vectors have the largest dot products with a vector, above a bound.

    In a large space some in a hundred may be missed, and `exact` computes the score of any other item.
    """
    return nearest_each(space, query[None], k, touched, n, above)[0]


def nearest_each(space: Space, queries: Float32, k: int, touched: Int32, n: int, above: float = 0.0) -> list[Scored]:
    """`nearest` of vectors [m, d]: one pass over the codes for all of them."""
    if space.codes is None:
        return [best_of(scores, k, touched, n, above) for scores in products(space.dense(n), queries)]
    found = space.codes.best(queries, n, k + len(touched), space.dots)
    return [
        Scored(items, scores, *best_rows(items, scores, k, touched, n, above), exact=partial(space.dots, query=query))
        for (items, scores), query in zip(found, queries, strict=True)
    ]


def score_base(
    view: UserView, past: HistoryDigest, now_ms: int, signals: Signals, settings: RankerSettings
) -> dict[str, Scored]:
    """The opinions of all SCORED recallers but those by text.

    Args:
        view: the user.
        past: `history_of(view)`.
        now_ms: request time.
        signals: the counted state.
        settings: list length.
    """
    n, k = signals.n, settings.recall
    source = past.items[: signals.settings.recent]
    weight = past.relative(now_ms, signals.user_half_life_ms)
    recent = weight[: len(source)]
    last, even = past.basket, np.ones(len(past.basket), np.float32)
    touched = past.items
    sums = {
        "basket_history": signals.basket.best(source, recent, n, k, touched),
        "basket_last": signals.basket.best(last, even, n, k, touched),
        "basket_fresh": signals.basket_fresh.best(source, recent, n, k, touched),
        "following": signals.following.best(last, even, n, k, touched),
        "onward": signals.onward.best(source, recent, n, k, touched),
    }
    near, taken, *best = signals.users.best(view.user_id, touched, weight, n, k, touched)
    sums["user_knn"], sums["user_knn_fresh"] = (near, taken[0], *best[:2]), (near, taken[1], *best[2:])
    return {name: Scored(*one) for name, one in sums.items()}


def score_texts(
    pasts: Sequence[HistoryDigest], now_ms: Sequence[int], signals: Signals, text: TextTable, k: int
) -> list[dict[str, Scored]]:
    """The opinions of the two recallers by text, of several users: a small table is read once for all of them.

    Args:
        pasts: of the users; now_ms: their request times.
        signals: the counted state.
        text: unit text vectors by item; their width may be 0.
        k: list length.
    """
    n, names = signals.n, ("text_history", "text_last")
    if not text.dim:
        nothing = np.zeros(0, np.float32)
        return [{name: best_of(nothing, k, past.items, n) for name in names} for past in pasts]
    centres = [text_centres(*one, signals, text) for one in zip(pasts, now_ms, strict=True)]
    if text.codes is not None:
        found = [nearest_each(text, one, k, past.items, n) for one, past in zip(centres, pasts, strict=True)]
    else:
        alike = products(text.dense(n), np.concatenate(centres))
        pairs = zip(alike[::2], alike[1::2], pasts, strict=True)
        found = [[best_of(one, k, past.items, n) for one in two] for *two, past in pairs]
    return [dict(zip(names, two, strict=True)) for two in found]


def text_centres(past: HistoryDigest, now_ms: int, signals: Signals, text: TextTable) -> Float32:
    """Unit vectors [2, d] of the texts of the decayed history and of the last basket; zeros without a history."""
    weight = past.relative(now_ms, signals.user_half_life_ms)
    centre = np.stack((weight @ text[past.items], text[past.basket].sum(0)))
    centre /= np.maximum(np.sqrt((centre * centre).sum(1, keepdims=True)), np.float32(1e-12))
    return centre


def listed_base(view: UserView, signals: Signals, settings: RankerSettings) -> dict[str, list[Int32]]:
    """The lists of all LISTED recallers, best first; a recaller may have several."""
    domain = signals.domain_counts(view.domain)
    return {
        "popularity": signals.popularity.best(),
        "first_buyers": signals.first_buyers.best(),
        "domain": [] if domain is None else domain.best(),
        "newest": [np.arange(signals.n - 1, max(signals.n - 1 - settings.newest, -1), -1, dtype=np.int32)],
        "context": signals.contexts.best(view.context),
    }


def pool_of(
    past: HistoryDigest,
    scored: dict[str, Scored],
    listed: dict[str, list[Int32]],
    extra: dict[str, tuple[np.uint32, Scored]],
    n: int,
    settings: RankerSettings,
    oneself: int = -1,
) -> Pool:
    """Join the recallers' lists.

    Args:
        past: the user's history; its newest `ranker.personal` items come in first.
        scored: base recallers with scores.
        listed: base recallers with lists alone.
        extra: plug -> (bit, opinion); they may add candidates but never displace one.
        n: number of items.
        settings: `pool`, `recall`, `plug_recall`, `personal`.
        oneself: the user's own index among the items, which is no candidate; -1 = none.
    """
    most = settings.recall + len(past.items)  # of a list no further entry can count
    base = [(BIT[name], one.best) for name, one in scored.items()]
    base += [(BIT[name], one[:most]) for name, several in listed.items() for one in several]
    more = [(bit, one.best[: settings.plug_recall]) for bit, one in extra.values()]
    touched, own = past.items, past.items[: settings.personal]
    if oneself >= 0:
        touched, own = np.append(touched, np.int32(oneself)), own[own != oneself]
    candidates, recalled = join(base, more, touched, own, BIT["personal"], settings.recall, settings.pool, max(n, 1))
    return Pool(candidates, recalled, scored | {name: one for name, (_, one) in extra.items()})
