"""Ranking metrics of one list: HR, NDCG, Recall, MRR and pool recall, with ties counted at their mean rank.

An item's rank is the mean of the best and the worst that the order among equal scores allows. A hit in the top k
means mean rank <= k. Candidates that the arm left out of its pool rank behind the pool, tied with each other;
relevant items that are no candidates at all are never hit but stay in the denominators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from driftline.graph.arrays import Int32
    from driftline.stream.replay.arms import Floats, Ranking

METRICS = ("hr@10", "ndcg@10", "recall@20", "mrr", "hr@20", "ndcg@20", "pool_recall", "ndcg@10_weighted")

DISCOUNT = 1.0 / np.log2(1.0 + np.arange(1, 21))
IDEAL = np.cumsum(DISCOUNT)
"""IDEAL[n - 1] is the DCG of n hits on top."""


def mean_ranks(scores: Floats, of: Floats) -> NDArray[np.float64]:
    """Mean rank (1 = first) of each value among scores, both in descending order.

    Args:
        scores: [n] scores of all candidates.
        of: [m] scores of candidates, each occurring in `scores`.

    Returns:
        [m] float64; for a value v: 1 + number above v + (number equal to v - 1) / 2.
    """
    ascending = np.sort(scores)
    above = len(scores) - np.searchsorted(ascending, of, side="right")
    below = np.searchsorted(ascending, of, side="left")
    return np.asarray(0.5 * (1 + above + len(scores) - below), np.float64)


def measure(
    ranks: NDArray[np.float64],
    relevant: int,
    in_pool: int,
    weights: tuple[Floats, Floats] | None = None,
) -> NDArray[np.float64]:
    """All metrics of one list.

    Args:
        ranks: [m] mean ranks of the relevant candidates, m <= relevant.
        relevant: number of relevant items, candidates or not; at least 1.
        in_pool: how many of them the arm's own pool holds.
        weights: what the ranked ones [m] and all relevant ones [relevant] are worth to the business; None = not asked.

    Returns:
        [len(METRICS)] float64; the weighted metric is NaN without weights.
    """
    gain = 1.0 / np.log2(1.0 + ranks)
    top10, top20 = ranks <= 10, ranks <= 20
    weighted = np.nan
    if weights is not None:
        best = np.sort(weights[1])[::-1][:10]
        ideal = float((best * DISCOUNT[: len(best)]).sum())
        weighted = float((weights[0] * gain)[top10].sum()) / ideal if ideal > 0 else np.nan
    return np.array(
        [
            float(top10.any()),
            gain[top10].sum() / IDEAL[min(10, relevant) - 1],
            top20.sum() / min(20, relevant),
            1.0 / ranks.min() if len(ranks) else 0.0,
            float(top20.any()),
            gain[top20].sum() / IDEAL[min(20, relevant) - 1],
            in_pool / relevant,
            weighted,
        ]
    )


def rank_list(
    ranking: Ranking, candidate: NDArray[np.bool_], relevant: Int32, worth: Floats | None = None
) -> NDArray[np.float64]:
    """Metrics of one ranking over one candidate set.

    Args:
        ranking: the arm's scores; entries that are no candidates are ignored.
        candidate: [pool] bool.
        relevant: [m] int32 distinct dense indices, at least one; those >= pool are no candidates.
        worth: [m] what each relevant item is worth to the business, or None.

    Returns:
        [len(METRICS)] float64.
    """
    pool = len(candidate)
    inside = np.flatnonzero(relevant < pool)
    inside = inside[candidate[relevant[inside]]]
    wanted = relevant[inside]
    weights = None if worth is None else (worth[inside], worth)
    if ranking.items is None:
        ranks = mean_ranks(ranking.scores[candidate], ranking.scores[wanted])
        return measure(ranks, len(relevant), len(wanted), weights)
    keep = candidate[ranking.items]
    items, scores = ranking.items[keep], ranking.scores[keep]
    place = np.full(pool, -1, np.int64)
    place[items] = np.arange(len(items))
    at = place[wanted]
    left_out = int(candidate.sum()) - len(items)
    ranks = np.full(len(wanted), len(items) + 0.5 * (1 + left_out))
    ranks[at >= 0] = mean_ranks(scores, scores[at[at >= 0]])
    return measure(ranks, len(relevant), int((at >= 0).sum()), weights)
