"""Search by codes against all dot products, on vectors with and without structure; rows change in place."""

from __future__ import annotations

import numpy as np
import pytest

from driftline.graph.codes import CLOSER_ERROR, ERROR, Codes, _at_least, _reached
from driftline.graph.codes_kernel import dots, estimate, half_dots, half_rows

N, K = 20_000, 150


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def vectors_of(kind, n, dim, seed=0):
    random = np.random.default_rng(seed)
    noise = random.standard_normal((n, dim))
    if kind == "clustered":
        noise = 0.6 * noise + np.random.default_rng(9).standard_normal((50, dim))[random.integers(0, 50, n)]
    return unit(noise)


def coded(vectors):
    codes = Codes(vectors.shape[1])
    for at in range(0, len(vectors), 999):  # in pieces that end within a block
        part = np.arange(at, min(len(vectors), at + 999))
        codes.set(part, vectors[part])
    return codes


def search(codes, vectors, query, n, k=K):
    return codes.best(query[None], n, k, lambda rows, query: vectors[rows] @ query)[0]


def best(codes, vectors, query, n, k=K):
    rows, scores = search(codes, vectors, query, n, k)
    return rows[np.argsort(-scores, kind="stable")[:k]]


@pytest.mark.parametrize("kind", ["random", "clustered", "lengths"])
@pytest.mark.parametrize("dim", [32, 64, 384])
def test_the_best_by_codes_are_those_by_all_dot_products(kind, dim):
    vectors = vectors_of(kind, N, dim)
    if kind == "lengths":
        vectors *= np.exp(np.random.default_rng(2).standard_normal((N, 1)) / 2).astype(np.float32)
    codes, found, least_work = coded(vectors), [], []
    queries = np.concatenate(
        (vectors_of(kind, 10, dim, 1), vectors[:5], unit(vectors[5:25].reshape(10, 2, dim).sum(1)))
    )
    for query in queries:
        exact = np.argsort(-(vectors @ query), kind="stable")[:K]
        rows, scores = search(codes, vectors, query, N)
        assert len(np.unique(rows)) == len(rows)
        np.testing.assert_allclose(scores, vectors[rows] @ query, atol=1e-6)
        found.append(len(np.intersect1d(rows[np.argsort(-scores)[:K]], exact)) / K)
        least_work.append(len(rows))
    assert np.mean(found) >= 0.96
    assert min(found) >= 0.85
    assert max(least_work) <= N / 4 + 2 * K
    if kind == "clustered":
        assert np.median(least_work) < N / 8


def test_a_changed_row_is_found_where_it_is_now_and_other_rows_keep_their_codes():
    vectors = vectors_of("random", 3000, 64)
    codes, query = coded(vectors), vectors_of("random", 1, 64, 3)[0]
    before = codes.copy()
    changed = np.array([5, 64, 2999])
    vectors[changed] = unit(query + 0.1 * vectors[changed])
    codes.set(changed, vectors[changed])
    assert set(best(codes, vectors, query, 3000, 3).tolist()) == set(changed.tolist())
    assert not set(changed.tolist()) & set(search(before, vectors_of("random", 3000, 64), query, 3000, 3)[0])
    others = np.delete(np.arange(3000), changed)
    assert np.array_equal(codes.codes[others // 64, :, others % 64], before.codes[others // 64, :, others % 64])
    assert np.array_equal(codes.seconds[others], before.seconds[others])


def test_a_changed_row_marks_its_block_of_first_bits_and_its_own_second_bits():
    vectors = vectors_of("random", 1000, 64)
    codes = coded(vectors)
    arrays, marks = codes.arrays("x", 1000), codes.touched("x")
    assert arrays.keys() == marks.keys()
    assert {name: len(array) for name, array in arrays.items()} == {
        "x.codes": 16, "x.scales": 16, "x.lengths": 16, "x.seconds": 1000
    }  # fmt: skip
    for name, array in arrays.items():
        marks[name].take(len(array))
    codes.set(np.array([70, 999]), vectors[:2])
    assert marks["x.codes"].take(16).tolist() == [1, 15]
    assert marks["x.seconds"].take(1000).tolist() == [70, 999]


def test_rows_of_zeros_rows_past_the_end_and_a_query_of_zeros_bring_nothing():
    vectors = vectors_of("random", 500, 64)
    vectors[100:400] = 0
    codes, query = coded(vectors), vectors_of("random", 1, 64, 3)[0]
    rows, _ = search(codes, vectors, query, 450, 400)
    assert set(rows.tolist()) == {*range(100), *range(400, 450)}
    rows, _ = search(codes, vectors, query, 10_000, 400)  # items that have no row yet
    assert set(rows.tolist()) == {*range(100), *range(400, 500)}
    assert len(search(codes, vectors, np.zeros(64, np.float32), 500, 10)[0]) == 0
    assert len(search(Codes(64), vectors, query, 500, 10)[0]) == 0


def test_a_row_that_is_not_finite_takes_nothing_from_the_others():
    vectors = vectors_of("random", 20_000, 64)
    query = vectors_of("random", 1, 64, 3)[0]
    expected = search(coded(vectors), vectors, query, 20_000, 10)[0]
    broken = vectors.copy()
    broken[[7, 8, 9]] = np.array([[np.nan], [np.inf], [1e30]])
    with np.errstate(all="ignore"):
        rows = search(coded(broken), broken, query, 20_000, 10)[0]
    assert set(rows.tolist()) - {7, 8, 9} == set(expected.tolist()) - {7, 8, 9}


def test_equal_rows_do_not_make_everything_exact():
    vectors = np.tile(vectors_of("random", 1, 64), (N, 1))
    rows, _ = search(coded(vectors), vectors, vectors[0], N)
    assert K <= len(rows) <= N


@pytest.mark.parametrize("dim", [32, 64, 320, 384])
def test_the_second_bit_halves_the_error_of_an_estimate(dim):
    n = 5001
    vectors, query = vectors_of("random", n, dim), vectors_of("random", 1, dim, 1)
    vectors[::3] = unit(vectors[::3] + query)
    lengths = np.exp(np.random.default_rng(2).standard_normal(n)).astype(np.float32)
    codes, exact = coded(vectors * lengths[:, None]), vectors @ query[0]
    planes, steps, totals = codes._rounded(query)
    first = np.empty((1, -(-n // 64), 64), np.float32)
    estimate(codes.codes, codes.scales, codes.lengths, planes, steps, totals, np.zeros(1, np.float32), first)
    rows = np.random.default_rng(3).permutation(n).astype(np.int32)
    refined = codes._closer(first[0], planes[0], steps[0], totals[0] / 2, rows).reshape(-1)
    assert (refined[n:] == -np.inf).all()
    for estimates, error in ((first.reshape(-1)[rows], ERROR), (refined[:n], CLOSER_ERROR)):
        off = (estimates / lengths[rows] - exact[rows]) * codes.bits**0.5
        far = rows % 3 > 0  # what lies near is estimated better
        assert abs(off[far].mean()) < 0.05
        assert off[far].std() == pytest.approx(error, rel=0.1)
        assert off[~far].std() < error


@pytest.mark.parametrize("kind", ["random", "lengths"])
def test_the_second_bit_leaves_few_of_the_rows_that_the_first_one_does(kind):
    vectors = vectors_of("random", N, 384)
    if kind == "lengths":
        vectors *= np.exp(np.random.default_rng(2).standard_normal((N, 1)) / 2).astype(np.float32)
    codes = coded(vectors)
    arrays = codes.arrays("x", N)
    del arrays["x.seconds"]
    before = Codes.from_arrays(384, arrays, "x")
    for query in vectors_of("random", 5, 384, 1):
        exact = np.argsort(-(vectors @ query), kind="stable")[:K]
        by_both, by_one = best(codes, vectors, query, N), best(before, vectors, query, N)
        assert len(np.intersect1d(by_both, exact)) > 0.94 * K
        assert len(np.intersect1d(by_one, exact)) > 0.94 * K
        assert len(search(codes, vectors, query, N)[0]) < len(search(before, vectors, query, N)[0]) / 2


def test_queries_that_are_asked_together_find_what_each_finds_alone():
    vectors = vectors_of("clustered", 10_001, 64)
    codes, queries = coded(vectors), vectors_of("clustered", 3, 64, 1)
    queries[1] = 0
    found = codes.best(queries, 10_001, K, lambda rows, query: vectors[rows] @ query)
    assert [len(rows) > 0 for rows, _ in found] == [True, False, True]
    again = codes.best(queries, 10_001, K, lambda rows, query: vectors[rows] @ query)
    for i in (0, 2):
        rows, scores = found[i]
        np.testing.assert_allclose(scores, vectors[rows] @ queries[i], atol=1e-6)
        together = set(rows[np.argsort(-scores)[:K]].tolist())
        assert len(together & set(best(codes, vectors, queries[i], 10_001).tolist())) >= K - 1
        assert np.array_equal(rows, again[i][0])


def test_more_than_there_are_brings_all_whether_or_not_their_number_fills_a_block():
    for n in (1, 63, 64, 65, 700):
        vectors, query = vectors_of("random", n, 32), vectors_of("random", 1, 32, 3)[0]
        codes = coded(vectors)
        for asked in (n, n + 1000):
            assert sorted(search(codes, vectors, query, asked, n)[0].tolist()) == list(range(n))
            assert sorted(search(codes, vectors, query, asked, 10_000)[0].tolist()) == list(range(n))
        few = max(1, n // 2)
        assert search(codes, vectors, query, few, n)[0].tolist() == list(range(few))


def test_codes_without_second_bits_are_searched_and_not_changed():
    vectors, query = vectors_of("random", 1000, 64), vectors_of("random", 1, 64, 3)[0]
    arrays = coded(vectors).arrays("x", 1000)
    del arrays["x.seconds"]
    before = Codes.from_arrays(64, arrays, "x")
    assert not before.complete
    assert coded(vectors).complete
    exact = np.argsort(-(vectors @ query))[:20]
    assert len(np.intersect1d(best(before, vectors, query, 1000, 20), exact)) >= 19
    with pytest.raises(ValueError, match="can be searched, not changed"):
        before.copy().set(np.array([3]), vectors[:1])


def test_codes_that_were_kept_are_those_that_were_made():
    vectors = vectors_of("random", 1000, 64)
    codes, query = coded(vectors), vectors_of("random", 1, 64, 3)[0]
    kept = Codes.from_arrays(64, codes.arrays("x", 1000), "x")
    assert np.array_equal(best(kept, vectors, query, 1000), best(codes, vectors, query, 1000))
    assert Codes.from_arrays(64, {}, "x") is None


def test_dot_products_of_float16_are_those_of_its_values():
    random = np.random.default_rng(0)
    vectors = (random.standard_normal((200, 48)) * 10.0 ** random.integers(-8, 3, (200, 48))).astype(np.float16)
    vectors[0], vectors[1] = 0, np.float16(6e-8)  # nothing, and the smallest numbers that it has
    query, rows = random.standard_normal(48).astype(np.float32), random.permutation(200).astype(np.int32)
    halves, wholes = np.empty(200, np.float32), np.empty(200, np.float32)
    half_dots(vectors.view(np.uint16), rows, query, halves)
    dots(vectors.astype(np.float32), rows, query, wholes)
    read = np.empty((200, 48), np.float32)
    half_rows(vectors.view(np.uint16), rows.astype(np.int64), read)
    assert np.array_equal(read, vectors[rows].astype(np.float32))
    expected = vectors[rows].astype(np.float64) @ query
    size = np.abs(vectors[rows].astype(np.float64)) @ np.abs(query)
    assert (np.abs(halves - expected) <= 2e-6 * size + 1e-12).all()
    assert (np.abs(wholes - expected) <= 2e-6 * size + 1e-12).all()


@pytest.mark.parametrize("count", [1, 10, 500, 5000])
def test_the_bound_of_the_best_is_reached_by_about_as_many_as_asked(count):
    values = np.random.default_rng(count).standard_normal(1000).astype(np.float32) / 4
    values[::10] = -np.inf
    reached = int((values >= _reached(values, 1.5, 1)(count)).sum())
    assert min(count, 900) <= reached <= min(count, 900) + 20


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 1])
def test_values_that_reach_a_bound_are_found_in_order(share):
    values = np.random.default_rng(1).random((20, 64)).astype(np.float32)
    values[3] = -np.inf
    bound = float(np.quantile(values, 1 - share)) if share < 1 else 0.0
    assert np.array_equal(_at_least(values, bound), np.flatnonzero(values.reshape(-1) >= bound))
