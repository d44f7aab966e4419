"""The best of many scores, and what a source contributes, against sorting and dense sums in numpy."""

import numpy as np
import pytest

from driftline.graph.history import DAY_MS
from driftline.graph.neighbors import PartnerTable
from driftline.graph.sparse import best_rows, owners_of, rank_in

N = 500


def scores_of(kind, random):
    """Scores that fall into few bins of leading bits, or many, with ties, negative ones and zeros."""
    if kind == "ties":
        return random.integers(-3, 4, N).astype(np.float32)
    if kind == "one_bin":
        return (1 + random.random(N) * 1e-4).astype(np.float32)
    if kind == "equal":
        return np.full(N, 0.25, np.float32)
    return (random.standard_normal(N) * 10.0 ** random.integers(-20, 20, N)).astype(np.float32)


@pytest.mark.parametrize("kind", ["ties", "one_bin", "equal", "wide"])
@pytest.mark.parametrize("k", [0, 1, 30, N])
@pytest.mark.parametrize("above", [0.0, -np.inf, 1.0])
@pytest.mark.parametrize("listed", [False, True])
def test_the_best_are_those_of_a_stable_sort(kind, k, above, listed):
    random = np.random.default_rng(k)
    scores = scores_of(kind, random)
    items = random.permutation(2 * N)[:N].astype(np.int32) if listed else None
    names = np.arange(N) if items is None else items
    touched = random.choice(names, 40, replace=False).astype(np.int32)
    keep = (scores > above) & ~np.isin(names, touched)
    order = np.lexsort((names[keep], -scores[keep]))[:k]
    best, best_scores = best_rows(items, scores, k, touched, 2 * N, above)
    np.testing.assert_array_equal(best, names[keep][order])
    np.testing.assert_array_equal(best_scores, scores[keep][order])
    for item in names[:50].tolist():
        place = np.flatnonzero(best == item)
        expected = (best_scores > best_scores[place[0]]).sum() if len(place) else len(best)
        assert rank_in(best, best_scores, item) == expected


def test_the_strongest_source_is_that_of_the_whole_matrix():
    random = np.random.default_rng(0)
    table = PartnerTable(6, 30 * DAY_MS)
    table.ensure(40)
    for t in range(80):
        items = random.choice(40, 5, replace=False).astype(np.int32)
        ones = np.ones(5, np.float32)
        table.add(items, items, ones, ones, t * int(DAY_MS))
    source, weight = np.array([3, 50, 9, 17, 22], np.int32), np.array([1, 9, 0.5, 0.2, 1], np.float32)
    met = 0
    for item in range(40):
        known = source < table.n
        held = np.where(table.partner[source[known]] == item, table.weight[source[known]], 0).sum(1)
        share = held * weight[known] / np.sqrt(table.out[source[known]])
        best = int(share.argmax())
        row = source[known][best]
        expected = (-1, 0.0)
        if share[best] > 0:
            expected, met = (row, held[best] / np.sqrt(table.out[row] * table.into[item])), met + 1
        other, strength = table.strongest(source, weight, item)
        assert (other, strength) == (expected[0], pytest.approx(expected[1], rel=1e-5))
    assert met > 5


def test_owners_of_an_item_are_its_last_ones_in_the_order_of_users():
    random = np.random.default_rng(4)
    start = np.append(0, np.cumsum(random.integers(0, 9, 60)))
    items = random.integers(0, 25, start[-1]).astype(np.int32)
    value = random.random(start[-1], np.float32)
    by_item, owner, owner_value = owners_of(start, items, value, 6)
    of = np.repeat(np.arange(60), np.diff(start))
    for item in range(items.max() + 1):
        run, wanted = slice(by_item[item], by_item[item + 1]), np.flatnonzero(items == item)[-6:]
        np.testing.assert_array_equal(owner[run], of[wanted])
        np.testing.assert_array_equal(owner_value[run], value[wanted])
    assert (np.bincount(items) > 6).any()
    assert [len(part) for part in owners_of(np.zeros(1, np.int64), items[:0], value[:0], 6)] == [1, 0, 0]
