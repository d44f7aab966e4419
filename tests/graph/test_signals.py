import numpy as np
import pytest
from tests.model.dense import decayed_times

from driftline.configs.settings import Signals as SignalSettings
from driftline.graph.counts import DecayedCounts
from driftline.graph.history import DAY_MS, history_of
from driftline.graph.rows import key64
from driftline.graph.signals import Signals
from driftline.graph.user_vectors import UserVectors
from driftline.graph.view import Group, UserView

DAY = int(DAY_MS)
SETTINGS = SignalSettings(half_lives_days=(1.0, 7.0, 30.0), neighbors=8, top=5, users=10, refresh_ms=DAY)


def view(items=(), t_ms=(), user_id="u", weight=None, value=None, price=None, domain="") -> UserView:
    n = len(items)
    return UserView(
        user_id,
        np.array(items, np.int32),
        np.array(t_ms, np.int64),
        np.ones(n, np.float32) if weight is None else np.array(weight, np.float32),
        np.full(n, np.nan, np.float32) if value is None else np.array(value, np.float32),
        np.full(n, np.nan, np.float32) if price is None else np.array(price, np.float32),
        np.zeros(n, np.uint64),
        np.zeros(n, np.uint32),
        events=n,
        first_ms=int(t_ms[0]) if n else -1,
        domain=domain,
    )


def group(items, t_ms, user_id="u", weight=None, domain="") -> Group:
    n = len(items)
    weights = np.ones(n, np.float32) if weight is None else np.array(weight, np.float32)
    none = np.full(n, np.nan, np.float32)
    return Group(user_id, t_ms, np.array(items, np.int32), weights, none, none, weights > 0, domain)


def stream(seed=0, groups=120, users=12, items=40):
    """(group, view before) of a small random shop."""
    random = np.random.default_rng(seed)
    past: dict[str, list[tuple[int, int]]] = {}
    t = 1_000 * DAY
    for _ in range(groups):
        t += int(random.integers(1, DAY))
        user = f"u{random.integers(users)}"
        basket = random.choice(items, random.integers(1, 6), replace=False).tolist()
        rows = past.setdefault(user, [])
        yield group(basket, t, user, domain="xy"[t % 2]), view([i for i, _ in rows], [at for _, at in rows], user)
        rows += [(item, t) for item in basket]


def learnt(settings=SETTINGS, **kw) -> Signals:
    signals = Signals(settings)
    for one, before in stream(**kw):
        signals.observe(one, before)
    return signals


def value_of(counts, rows, t_ms):
    """Decayed counts [c, h] of rows as of a time."""
    return counts.count[rows] * [counts.fade(t_ms, h) for h in range(len(counts.total))]


def share_of(counts, rows, items):
    """Shares [c, h] of rows, 1 = the average of so many items; the decay cancels."""
    return counts.count[rows] * (items / np.maximum(counts.total, 1e-300))


def test_decayed_counts_equal_a_sum_over_all_events():
    counts = DecayedCounts((DAY_MS, 7 * DAY_MS), top=3)
    counts.ensure(20)
    events = []
    for one, _ in stream(items=20):
        items = np.unique(one.items)
        counts.add(items, np.ones(len(items)), one.t_ms)
        events += [(item, one.t_ms) for item in items]
    now = events[-1][1] + DAY
    for h, life in enumerate((DAY_MS, 7 * DAY_MS)):
        expected = np.zeros(20)
        for item, t in events:
            expected[item] += 2.0 ** (-(now - t) / life)
        np.testing.assert_allclose(value_of(counts, np.arange(20), now)[:, h], expected, rtol=1e-9)
        np.testing.assert_allclose(share_of(counts, np.arange(20), 20)[:, h], expected / expected.sum() * 20, rtol=1e-5)
        np.testing.assert_array_equal(counts.best()[h], np.argsort(-expected, kind="stable")[:3])


def test_a_stream_longer_than_the_range_of_a_float_keeps_its_shares():
    counts = DecayedCounts((DAY_MS,), top=2)
    counts.ensure(2)
    for day in range(3000):
        counts.add(np.array([0, 1], np.int32), np.array([3.0, 1.0]), day * DAY)
    np.testing.assert_allclose(share_of(counts, np.array([0, 1]), 2)[:, 0], [1.5, 0.5], rtol=1e-6)


def test_only_first_touches_count_for_first_buyers():
    signals = Signals(SETTINGS)
    signals.observe(group([0, 1], DAY), view())
    signals.observe(group([0, 2], 2 * DAY), view([0, 1], [DAY, DAY]))
    assert signals.columns["buyers"][:3].tolist() == [1, 1, 1]
    assert signals.columns["groups"][:3].tolist() == [2, 1, 1]
    value = value_of(signals.first_buyers, np.arange(3), 2 * DAY)[:, 0]
    np.testing.assert_allclose(value, [0.5, 0.5, 1.0])
    assert signals.columns["interval_n"][0] == 1


def test_counts_as_of_a_time_long_before_them_are_those_of_their_origin():
    counts = DecayedCounts((DAY,), 0)
    counts.ensure(2)
    counts.add(np.array([1], np.int32), np.ones(1), 5000 * DAY)
    with np.errstate(all="raise"):
        assert value_of(counts, np.arange(2), 0)[:, 0].tolist() == [0.0, 1.0]


def test_a_return_leaves_popularity_and_pairs_alone():
    signals, same = Signals(SETTINGS), Signals(SETTINGS)
    for one in (signals, same):
        one.observe(group([0, 1], DAY), view())
    signals.observe(group([0], 2 * DAY, weight=[-1]), view([0, 1], [DAY, DAY]))
    assert signals.columns["returned"][0] == 1
    for name, array in same.popularity.arrays("p", 2).items():
        np.testing.assert_array_equal(signals.popularity.arrays("p", 2)[name], array)


def test_restored_signals_continue_identically():
    whole, half = Signals(SETTINGS), Signals(SETTINGS)
    for number, (one, before) in enumerate(stream()):
        if number == 60:
            half = Signals.from_arrays(SETTINGS, half.arrays())
        whole.observe(one, before)
        half.observe(one, before)
    arrays = half.arrays()
    assert arrays.keys() == whole.arrays().keys()
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_read_only_signals_refuse_to_learn():
    frozen = Signals.from_arrays(SETTINGS, learnt().arrays(), read_only=True)
    with pytest.raises(ValueError, match="read-only"):
        frozen.observe(group([0], DAY), view())


def test_single_click_groups_learn_transitions():
    signals = Signals(SETTINGS)
    for session in range(5):
        user = f"s{session}"
        signals.observe(group([0], DAY + session, user), view(user_id=user))
        signals.observe(group([1], DAY + 10 + session, user), view([0], [DAY + session], user))
    scores = np.zeros(signals.n, np.float32)
    led_to, sums = signals.following.sums(np.array([0], np.int32), np.ones(1, np.float32), signals.n)
    scores[led_to] = sums
    assert np.argmax(scores) == 1
    assert scores[1] > 0.9


def test_domains_past_the_bound_share_none():
    signals = Signals(SETTINGS.model_copy(update={"domains": 1}))
    signals.observe(group([0], DAY, domain="a"), view())
    signals.observe(group([1], DAY, domain="b"), view())
    assert signals.domain_counts("a") is not None
    assert signals.domain_counts("b") is None


def test_the_digest_of_a_history_counts_groups_and_orders_by_recency():
    past = history_of(view([3, 1, 3, 2, 3], [0, 0, DAY, 2 * DAY, 2 * DAY]))
    assert past.items.tolist() == [3, 2, 1]
    assert past.times.tolist() == [3, 1, 1]
    assert past.groups == 3
    assert past.basket.tolist() == [2, 3]
    assert past.last_group.tolist() == [0, 0, 2]
    assert past.previous_ms.tolist() == [DAY, 2 * DAY, 0]
    np.testing.assert_allclose(decayed_times(past, 3 * DAY, DAY_MS), [0.5 + 0.25 + 0.125, 0.5, 0.125])


def test_unknown_and_returned_items_are_no_touches():
    past = history_of(view([0, -1, 0], [0, 1, 2], weight=[1, 1, -1]))
    assert past.items.tolist() == [0]
    assert past.groups == 1
    assert past.returned.tolist() == [1]


def test_a_forgotten_user_is_nobody_s_neighbour_and_the_others_stay():
    def observed(*user_ids):
        users = UserVectors(100, DAY_MS, DAY_MS, 1, 10)
        for n, user_id in enumerate(user_ids):
            items = np.arange(n, n + 3, dtype=np.int32)
            users.observe(user_id, items, np.full(3, n * 10, np.int64), n * 10)
        users._build(100)
        return users

    asked = (np.arange(6, dtype=np.int32), np.ones(6, np.float32), 9)
    for gone in ("a", "b", "d"):
        users = observed("a", "b", "c", "d")
        before = np.concatenate(users.sums("z", *asked), None)
        users.forget(gone)
        users.forget("nobody")
        alone = observed("a", "b", "c", "d")
        alone.latest.pop(key64(gone))
        alone._build(100)
        np.testing.assert_array_equal(
            np.concatenate(users.sums("z", *asked), None), np.concatenate(alone.sums("z", *asked), None)
        )
        assert not np.array_equal(np.concatenate(users.sums("z", *asked), None), before)
        assert key64(gone) not in users.arrays("u")["u.matrix_keys"]
        assert key64(gone) not in users.arrays("u")["u.keys"]


def test_what_is_computed_of_a_matrix_is_taken_over_where_it_is_the_same_and_nowhere_else():
    def observed(days):
        users = UserVectors(100, DAY_MS, DAY_MS, 1, 10)
        for n in range(days):
            users.observe("abcd"[n % 4], np.arange(n, n + 3, dtype=np.int32), np.full(3, n * DAY), n * DAY)
        return users

    def restored(users, before=None):
        out = UserVectors(100, DAY_MS, DAY_MS, 1, 10)
        out.restore(users.arrays("u", latest=False), "u", before)
        return out

    asked = (np.arange(6, dtype=np.int32), np.ones(6, np.float32), 20)
    earlier = restored(observed(8))
    same = restored(observed(8), earlier)
    assert same._row is earlier._row
    assert same._owner is earlier._owner
    forgot = restored(observed(8))
    forgot.forget("a")
    for now, before in ((observed(8), earlier), (observed(9), earlier), (observed(7), earlier), (observed(8), forgot)):
        after, fresh = restored(now, before), restored(now)
        for user_id in ("a", "z"):
            for got, wanted in zip(after.sums(user_id, *asked), fresh.sums(user_id, *asked), strict=True):
                np.testing.assert_array_equal(got, wanted)
        for name in ("_by_item", "_owner", "_owner_value"):
            np.testing.assert_array_equal(getattr(after, name), getattr(fresh, name))
        assert after._row == fresh._row
    same.forget("a")
    assert key64("a") in earlier._row, "who forgets changes nobody else's"
