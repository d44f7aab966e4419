"""Scoring behind one seam: a ranking of candidates for one view, and the choice of a slate from it.

`PopularityScorer` answers while no model serves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32
from driftline.graph.view import ItemTable, UserView

OVERALL, NOVEL, REPEAT = "overall", "novel", "repeat"
"""Names of the lists, as the ranker names its heads."""


Places = NDArray[np.intp]
Reasons = Callable[[Sequence[int]], list[tuple[str, ...]]]
"""Readable reasons of the candidates at some places, the strongest first; computed only for those that are shown."""


@dataclass(frozen=True, slots=True)
class ScoredCandidates:
    """Candidates of one request with their scores.

    Attributes:
        items: [c] int32 dense indices, each once.
        scores: [c] float32 by list ("overall", "novel", "repeat"), larger is better.
        reasons: of places in `items`.
    """

    items: Int32
    scores: dict[str, Float32]
    reasons: Reasons


class Scorer(Protocol):
    """What answers requests: loaded from a snapshot, read-only, called from several threads."""

    @property
    def table(self) -> ItemTable:
        """The items that it knows."""

    @property
    def context(self) -> tuple[str, ...]:
        """The fields of a request's context that it reads, in the order of `UserView.context`."""

    def oneself(self, user_id: str) -> int:
        """The index of a user among the items, who is no candidate of oneself; -1 = none."""

    def rank(self, view: UserView, now_ms: int) -> ScoredCandidates:
        """Candidates and scores for a user at a time."""

    def rank_all(self, views: Sequence[UserView], now_ms: Sequence[int]) -> list[ScoredCandidates]:
        """`rank` of several users."""

    def score(self, view: UserView, now_ms: int, items: Int32) -> dict[str, Float32]:
        """Scores [n] by list of given items [n] int32."""

    def similar(self, item: int, k: int) -> ScoredCandidates:
        """At most k items that go with an item, best first, with scores "overall"."""

    def popular(self, items: Int32, k: int) -> Int32:
        """The k most popular of some items, the most popular first."""

    def vectors(self, items: Int32) -> Float32:
        """Vectors [m, d] of some items that lie near each other where the items are alike; d may be 0."""

    def warm(self) -> None:
        """Once it is sure to serve: brings up to date what is kept of users for the model before."""


class PopularityScorer:
    """Decayed popularity for everybody, the user's own items by recency on the repeat list."""

    def __init__(self, popularity: Sequence[tuple[str, float]], one_id_space: bool = False) -> None:
        self._one_id_space = one_id_space
        self._table = ItemTable(item_id for item_id, _ in popularity)
        self._popularity = np.array([score for _, score in popularity], np.float32)

    @property
    def table(self) -> ItemTable:
        """See Scorer."""
        return self._table

    @property
    def context(self) -> tuple[str, ...]:
        """See Scorer; popularity is one for all."""
        return ()

    def oneself(self, user_id: str) -> int:
        """See Scorer: an id that is an item's, too, is the user's own."""
        return self._table.find(user_id) if self._one_id_space else -1

    def rank(self, view: UserView, now_ms: int) -> ScoredCandidates:
        """See Scorer."""
        items = np.arange(len(self._table), dtype=np.int32)
        return ScoredCandidates(items, self.score(view, now_ms, items), lambda places: [("popular now",)] * len(places))

    def rank_all(self, views: Sequence[UserView], now_ms: Sequence[int]) -> list[ScoredCandidates]:
        """See Scorer."""
        return [self.rank(view, now) for view, now in zip(views, now_ms, strict=True)]

    def score(self, view: UserView, now_ms: int, items: Int32) -> dict[str, Float32]:
        """See Scorer."""
        popularity = self._popularity[items]
        last_ms = np.full(len(self._table), -1, np.int64)
        own = view.items >= 0
        np.maximum.at(last_ms, view.items[own], view.t_ms[own])
        age_days = np.maximum(0, now_ms - last_ms[items]) / 86_400_000
        recency = np.where(last_ms[items] >= 0, 0.5 ** (age_days / 30.0), 0.0).astype(np.float32)
        return {OVERALL: popularity, NOVEL: popularity, REPEAT: recency}

    def similar(self, item: int, k: int) -> ScoredCandidates:
        """See Scorer; popularity knows no similarity."""
        return ScoredCandidates(np.zeros(0, np.int32), {OVERALL: np.zeros(0, np.float32)}, lambda places: [])

    def popular(self, items: Int32, k: int) -> Int32:
        """See Scorer."""
        return np.sort(items)[:k]

    def vectors(self, items: Int32) -> Float32:
        """See Scorer; popularity knows of no likeness."""
        return np.zeros((len(items), 0), np.float32)

    def warm(self) -> None:
        """See Scorer; nothing is kept."""


def choose(
    ranking: ScoredCandidates,
    which: str,
    k: int,
    own: Int32,
    excluded: Collection[int] = (),
    allowed: NDArray[np.bool_] | None = None,
) -> Places:
    """Places in a ranking of the best k items that qualify, best first; ties by place.

    Args:
        ranking: candidates and scores.
        which: list: "overall", "novel" (none of `own`) or "repeat" (only `own`).
        k: how many at most.
        own: [n] int32 items that the user touched; -1 is ignored.
        excluded: dense indices that may not be returned.
        allowed: [c] bool, which candidates may be returned; None = all.
    """
    keep = np.ones(len(ranking.items), np.bool_)
    if which != OVERALL:
        keep &= np.isin(ranking.items, own) == (which == REPEAT)
    if excluded:
        keep &= ~np.isin(ranking.items, list(excluded))
    if allowed is not None:
        keep &= allowed
    places = np.flatnonzero(keep)
    order = np.argsort(-ranking.scores[which][places], kind="stable")[:k]
    return places[order]
