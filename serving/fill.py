"""A list that steering left too short is filled from all that the model knows, not only from what was recalled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from driftline.graph.arrays import Float32, Int32
from driftline.serving.checks import Options
from driftline.serving.filters import EVERYTHING, unit_rows
from driftline.serving.models import Served
from driftline.serving.scorer import NOVEL, REPEAT, Places, ScoredCandidates, choose
from driftline.serving.spread import looked_at, spread

MATCHES = "matches what you asked for"
"""Reason of an item that no recaller brought."""
_AT_ONCE = 256
"""Items at least that are scored to fill a list: the most popular of those that qualify."""


def chosen(
    served: Served,
    ranking: ScoredCandidates,
    options: Options,
    own: Int32,
    excluded: Collection[int],
    score: Callable[[Int32], dict[str, Float32]],
) -> tuple[ScoredCandidates, Places]:
    """The best `options.k` items that qualify, and the ranking that their places are in.

    Args:
        served: the model.
        ranking: what it recalled.
        options: what is asked of the list.
        own: items that the user touched; -1 is ignored.
        excluded: dense indices that may not be returned.
        score: scores [n] by list of further items [n]; called only for a list that steering leaves short.
    """
    wanted = looked_at(options.k) if options.diversity else options.k

    def best(ranking: ScoredCandidates) -> Places:
        allowed = served.allowed(ranking.items, options.domain, options.asked)
        return choose(ranking, options.which, wanted, own, excluded, allowed)

    places = best(ranking)
    if len(places) < options.k and options.steered:
        more = _others(served, ranking, options, own, excluded)
        if len(more):
            ranking = _joined(ranking, more, score(more))
            places = best(ranking)
    return ranking, _spread(served, ranking, options, places) if options.diversity else places


def unfiltered(options: Options) -> Options:
    """The same options of items that passed the filter already."""
    return replace(options, asked=EVERYTHING)


def _others(
    served: Served, ranking: ScoredCandidates, options: Options, own: Int32, excluded: Collection[int]
) -> Int32:
    """The most popular items beside those of a ranking that qualify."""
    keep = served.allowed(np.arange(len(served.scorer.table), dtype=np.int32), options.domain, options.asked)
    out = np.fromiter(excluded, np.int64, len(excluded))
    keep[ranking.items] = False
    keep[out[out >= 0]] = False
    if options.which in (NOVEL, REPEAT):
        of_user = np.zeros(len(keep), np.bool_)
        of_user[own[own >= 0]] = True
        keep &= of_user == (options.which == REPEAT)
    items = np.flatnonzero(keep).astype(np.int32)
    return served.scorer.popular(items, max(_AT_ONCE, 2 * options.k)) if len(items) else items


def _joined(ranking: ScoredCandidates, more: Int32, scores: dict[str, Float32]) -> ScoredCandidates:
    n = len(ranking.items)

    def reasons(places: Sequence[int]) -> list[tuple[str, ...]]:
        recalled = iter(ranking.reasons([place for place in places if place < n]))
        return [next(recalled) if place < n else (MATCHES,) for place in places]

    joined = {which: np.concatenate((old, scores[which])) for which, old in ranking.scores.items()}
    return ScoredCandidates(np.concatenate((ranking.items, more)), joined, reasons)


def _spread(served: Served, ranking: ScoredCandidates, options: Options, places: Places) -> Places:
    items = ranking.items[places]
    vectors = unit_rows(served.scorer.vectors(items))
    if served.attributes is not None:
        vectors = unit_rows(np.concatenate((vectors, served.attributes.labels(items)), 1))
    return places[spread(vectors, ranking.scores[options.which][places], options.k, options.diversity)]
