import numpy as np
import pytest

from driftline.stream.replay.arms import Ranking
from driftline.stream.replay.metrics import METRICS, mean_ranks, rank_list


def metric(values, name):
    return values[METRICS.index(name)]


def ranked(scores, relevant, candidate=None, items=None, worth=None):
    pool = len(scores) if candidate is None else len(candidate)
    mask = np.ones(pool, bool) if candidate is None else np.array(candidate, bool)
    ranking = Ranking(np.array(scores, float), None if items is None else np.array(items, np.int32))
    return rank_list(ranking, mask, np.array(relevant, np.int32), None if worth is None else np.array(worth, float))


def test_ties_take_the_mean_of_the_best_and_the_worst_rank():
    scores = np.array([5.0, 3.0, 3.0, 3.0, 1.0])
    assert mean_ranks(scores, np.array([5.0, 3.0, 1.0])).tolist() == [1.0, 3.0, 5.0]


def test_constant_scores_put_every_item_in_the_middle():
    values = ranked([0.0] * 21, [4])
    assert metric(values, "mrr") == pytest.approx(1 / 11)
    assert metric(values, "hr@10") == 0.0
    assert metric(values, "recall@20") == 1.0


def test_a_tie_across_the_border_of_the_top_ten_is_a_hit_only_up_to_mean_rank_ten():
    nine_above = [9.0] * 9
    assert metric(ranked([*nine_above, 1.0, 0.0], [9]), "hr@10") == 1.0
    assert metric(ranked([*nine_above, 1.0, 1.0], [9]), "hr@10") == 0.0  # ranks 10 and 11, mean 10.5


def test_several_relevant_items_give_the_ndcg_computed_by_hand():
    # ranks of items 0, 2 and 4 are 1, 3 and 5; the ideal order has them at 1, 2 and 3
    values = ranked([9.0, 8.0, 7.0, 6.0, 5.0], [0, 2, 4])
    gained = 1 / np.log2(2) + 1 / np.log2(4) + 1 / np.log2(6)
    ideal = 1 / np.log2(2) + 1 / np.log2(3) + 1 / np.log2(4)
    assert metric(values, "ndcg@10") == pytest.approx(gained / ideal)
    assert metric(values, "recall@20") == 1.0
    assert metric(values, "mrr") == 1.0


def test_more_relevant_items_than_places_can_still_reach_one():
    values = ranked(np.arange(30.0, 0.0, -1.0), range(25))
    assert metric(values, "ndcg@10") == pytest.approx(1.0)
    assert metric(values, "recall@20") == 1.0


def test_relevant_items_that_are_no_candidates_are_missed_but_counted():
    values = ranked([2.0, 1.0, 0.0], [0, 7])  # item 7 is outside the pool
    assert metric(values, "ndcg@10") == pytest.approx(1.0 / (1.0 + 1 / np.log2(3)))
    assert metric(values, "recall@20") == 0.5
    assert metric(values, "pool_recall") == 0.5


def test_items_that_an_arm_left_out_rank_behind_its_pool_tied_with_each_other():
    # pool of 10; the arm scored items 3 and 5, so the other 8 share ranks 3 to 10: mean 6.5
    values = ranked([0.1, 0.9], [0], candidate=[1] * 10, items=[3, 5])
    assert metric(values, "mrr") == pytest.approx(1 / 6.5)
    assert metric(values, "pool_recall") == 0.0
    assert metric(ranked([0.1, 0.9], [5], candidate=[1] * 10, items=[3, 5]), "mrr") == 1.0


def test_scored_items_that_are_no_candidates_of_the_list_take_no_rank():
    assert metric(ranked([9.0, 8.0, 7.0], [2], candidate=[0, 0, 1]), "mrr") == 1.0
    assert metric(ranked([9.0, 8.0, 7.0], [2], candidate=[0, 0, 1], items=[0, 1, 2]), "mrr") == 1.0


def test_a_full_vector_and_the_same_scores_by_item_give_the_same_metrics():
    rng = np.random.default_rng(0)
    scores, mask = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.7
    relevant = rng.choice(45, 6, replace=False)
    order = rng.permutation(40)
    full = ranked(scores, relevant, candidate=mask)
    listed = ranked(scores[order], relevant, candidate=mask, items=order)
    assert np.array_equal(full, listed, equal_nan=True)


def test_weighted_ndcg_counts_a_hit_by_its_worth():
    # worth 3 at rank 2 and worth 1 missed; ideal: 3 at rank 1, 1 at rank 2
    values = ranked([9.0, 8.0] + [7.0] * 20, [1, 21], worth=[3.0, 1.0])
    assert metric(values, "ndcg@10_weighted") == pytest.approx((3 / np.log2(3)) / (3 + 1 / np.log2(3)))
    assert np.isnan(metric(ranked([1.0], [0]), "ndcg@10_weighted"))
