import numpy as np

from driftline.graph.history import DAY_MS
from driftline.graph.neighbors import PartnerTable
from driftline.graph.user_vectors import UserVectors

DAY = int(DAY_MS)
ONE = np.ones(1, np.float32)


def items(*numbers: int):
    return np.array(numbers, np.int32)


def ones(n: int):
    return np.ones(n, np.float32)


def table(slots=8, n=30) -> PartnerTable:
    out = PartnerTable(slots, 10 * DAY_MS)
    out.ensure(n)
    return out


def scores_of(table, source, weight, n):
    """Sums over all items, 0 where nothing points."""
    out = np.zeros(n, np.float32)
    held, sums = table.sums(source, weight, n)
    out[held] = sums
    return out


def test_pairs_equal_a_dense_sum_with_decay():
    pairs = table(slots=30)
    dense, total = np.zeros((30, 30)), np.zeros(30)
    random = np.random.default_rng(0)
    for day in range(80):
        basket = np.sort(random.choice(30, 5, replace=False)).astype(np.int32)
        pairs.add(basket, basket, ones(5), ones(5), day * DAY)
        dense *= 2 ** (-1 / 10)
        total *= 2 ** (-1 / 10)
        dense[np.ix_(basket, basket)] += 1 - np.eye(5)
        total[basket] += 1
    expected = dense[[3, 4]].T @ (np.array([1.0, 0.5]) / np.sqrt(total[[3, 4]])) / np.sqrt(total)
    got = scores_of(pairs, items(3, 4), np.array([1, 0.5], np.float32), 30)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_bounded_row_keeps_its_heaviest_partners():
    pairs = table(slots=4)
    for partner, times in ((1, 9), (2, 7), (3, 5), (4, 3), (5, 1), (6, 1)):
        for _ in range(times):
            pairs.add(items(0), items(partner), ONE, ONE, DAY)
    row = dict(zip(pairs.partner[0].tolist(), pairs.weight[0].tolist(), strict=True))
    assert row == {1: 9.0, 2: 7.0, 3: 5.0, 4: 3.0}


def test_a_new_partner_replaces_one_that_has_faded():
    pairs = table(slots=2)
    pairs.add(items(0), items(1, 2), ONE, np.array([1, 3], np.float32), 0)
    pairs.add(items(0), items(3), ONE, ONE, 5 * DAY)
    assert sorted(pairs.partner[0].tolist()) == [2, 3]


def test_an_item_is_never_its_own_partner():
    pairs = table()
    pairs.add(items(1, 2), items(1, 2), ones(2), ones(2), DAY)
    assert set(pairs.partner[1].tolist()) == {2, -1}


def test_moving_the_origin_changes_no_score():
    near, far = table(), table()
    for pairs, start in ((near, 0), (far, -5000 * DAY)):
        if start:
            pairs.add(items(20), items(21), ONE, ONE, 0)
        offset = 5000 * DAY if start else 0
        pairs.add(items(0, 1), items(0, 1), ones(2), ones(2), offset)
        pairs.add(items(0, 2), items(0, 2), ones(2), ones(2), offset + 700 * DAY)
    np.testing.assert_allclose(scores_of(near, items(0), ONE, 3), scores_of(far, items(0), ONE, 3), rtol=1e-5)


def test_the_strongest_source_is_named():
    pairs = table()
    pairs.add(items(0), items(5), np.array([3], np.float32), ONE, DAY)
    pairs.add(items(1), items(5), ONE, ONE, DAY)
    assert pairs.strongest(items(0, 1), ones(2), 5)[0] == 0
    assert pairs.strongest(items(2), ONE, 5) == (-1, 0.0)


def dense_sums(users, user_id, items, weight, n):
    """Sums over items 0..n-1: [2, n] float32, 0 where no near user took the item."""
    out = np.zeros((2, n), np.float32)
    taken, sums = users.sums(user_id, items, weight, n)
    out[:, taken] = sums
    return out


def test_nearest_users_bring_what_they_took():
    users = UserVectors(users=10, half_life_ms=60 * DAY_MS, fresh_half_life_ms=10 * DAY_MS, refresh_ms=1, nearest=2)
    for name, taken in (("a", (0, 1, 2)), ("b", (0, 1, 3)), ("c", (7, 8))):
        users.observe(name, items(*taken), np.full(len(taken), DAY, np.int64), DAY)
    users.observe("d", items(9), np.array([2 * DAY], np.int64), 2 * DAY)
    both = dense_sums(users, "a", items(0, 1, 2), ones(3), 10)
    assert np.flatnonzero(both[0]).tolist() == [0, 1, 3]  # b alone: c shares nothing, a is left out
    np.testing.assert_allclose(both[0][3], 2 / 3 / np.sqrt(3), rtol=1e-6)


def test_who_was_silent_for_years_is_as_near_as_what_was_taken_says():
    def seen(*ages):
        users = UserVectors(users=9, half_life_ms=14 * DAY_MS, fresh_half_life_ms=DAY_MS, refresh_ms=1, nearest=1)
        for number, age in enumerate(ages):  # all took item 0, each other ones beside it
            taken = items(0, *(10 * (number + 1) + i for i in range(number + 1)))
            users.observe(f"u{number}", taken, np.full(len(taken), (6000 - age) * DAY, np.int64), (6000 - age) * DAY)
        users.observe("last", items(9), np.array([6000 * DAY]), 6000 * DAY)
        return dense_sums(users, "", items(0), ONE, 100)[0]

    lately, years = seen(20, 10), seen(1100, 10)
    assert np.flatnonzero(lately).tolist() == [0, 10], "who took less else is nearer"
    np.testing.assert_array_equal(years, lately)
    assert np.isfinite(seen(5900, 5000)).all()
    np.testing.assert_array_equal(seen(5900, 5000), lately)


def test_user_vectors_forget_who_was_silent_longest():
    users = UserVectors(users=2, half_life_ms=DAY_MS, fresh_half_life_ms=DAY_MS, refresh_ms=1, nearest=2)
    for name in ("a", "b", "a", "c"):
        users.observe(name, items(0), np.array([DAY], np.int64), DAY)
    assert len(users.latest) == 2
    users.observe("a", items(0), np.array([DAY], np.int64), 3 * DAY)
    assert sorted(users._row) == sorted(users.latest)


def test_an_item_that_more_users_took_than_are_looked_at_leads_to_the_most_recent_of_them(monkeypatch):
    def filled():
        users = UserVectors(users=500, half_life_ms=60 * DAY_MS, fresh_half_life_ms=DAY_MS, refresh_ms=1, nearest=400)
        for number in range(300):
            users.observe(f"u{number}", items(0, 1 + number), np.full(2, number * DAY), number * DAY)
        users.observe("last", items(0), np.array([300 * DAY]), 300 * DAY)
        return users

    everyone, _ = filled().sums("", items(0), ONE, 400)
    assert set(everyone.tolist()) == set(range(301))
    monkeypatch.setattr("driftline.graph.user_vectors.OWNERS", 20)
    bounded = filled()
    taken, sums = bounded.sums("", items(0, 7), ones(2), 400)
    assert set(taken.tolist()) == {0, 7, *range(281, 301)}
    alone, _ = bounded.sums("", items(7), ONE, 400)
    assert set(alone.tolist()) == {0, 7}, "a rare item leads to whoever took it"
    restored = UserVectors(500, 60 * DAY_MS, DAY_MS, 1, 400)
    restored.restore(bounded.arrays("x", latest=False), "x")
    again = restored.sums("", items(0, 7), ones(2), 400)
    assert np.array_equal(again[0], taken)
    assert np.array_equal(again[1], sums)


def test_a_matrix_of_many_users_is_not_rebuilt_for_a_handful_of_groups():
    def filled():
        users = UserVectors(users=2000, half_life_ms=60 * DAY_MS, fresh_half_life_ms=DAY_MS, refresh_ms=1, nearest=5)
        for number in range(1500):
            users.observe(f"u{number}", items(number), np.zeros(1, np.int64), 0)
        return users

    def built_at(users, first, last):
        for number in range(first, last):
            users.observe(f"u{number}", items(number), np.full(1, number * DAY), number * DAY)
            yield users.built_ms // DAY

    users = filled()
    days = [*built_at(users, 1, 3)]
    assert days == [1, 1]  # it was due long ago
    restored = UserVectors(2000, 60 * DAY_MS, DAY_MS, 1, 5)
    restored.restore(users.arrays("x"), "x")
    days = [*built_at(users, 3, 21)]
    assert days == [1] * 4 + [7] * 6 + [13] * 6 + [19] * 2  # 6 of 1,500 are one in 256
    assert [*built_at(restored, 3, 21)] == days
