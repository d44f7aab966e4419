"""HSTU over cached keys and values equals the pass over the whole window, whatever came before and in which order."""

import copy
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.model.test_hstu_learner import stream

from driftline.configs.settings import Model
from driftline.model import item_cache
from driftline.model.encode import SequenceScorer, encode_histories
from driftline.model.history_cache import FORGOTTEN_S, HistoryCache, WindowState
from driftline.model.hstu import HSTU
from driftline.model.incremental import BLOCKS, CachedEncoder, History, window_of
from driftline.model.sequence import SequenceLearner

START_MS, DAY_MS = 1_260_000_000_000, 86_400_000
ITEMS = 30


def backbone(max_len=24, dim=16, heads=2, seed=0):
    """With weights drawn large, so that a wrong bias or position shows."""
    g = torch.Generator().manual_seed(seed)
    hstu = HSTU(dim, 2, heads, max_len, g, gaps=seed == 1).requires_grad_(False)
    for layer in hstu.layers:
        layer.uvqk.normal_(0, 0.3, generator=g)
        layer.bias.time.normal_(0, 0.5, generator=g)
        layer.bias.position.normal_(0, 0.5, generator=g)
    if hstu.gap is not None:
        hstu.gap.normal_(0, 0.5, generator=g)
    return hstu


VECTORS = torch.randn(ITEMS, 16, generator=torch.Generator().manual_seed(1)) * 0.3
BACKBONES = [backbone(seed=seed) for seed in range(2)]


def encoder(cache=None, version=0):
    return CachedEncoder(BACKBONES[version % 2], HistoryCache(1 << 24) if cache is None else cache, version)


def encoded(one, history, now_ms):
    return one.encode(history, now_ms, ITEMS, lambda rows: VECTORS.numpy()[rows])


def whole(history, now_ms, version=0):
    """The oracle: the backbone that trains, over the whole window."""
    return encode_histories(BACKBONES[version % 2], VECTORS, [history], [now_ms])[0]


def history(n, seed=0, user="u", first=0, gap_ms=DAY_MS):
    random = np.random.default_rng(seed)
    t_ms = START_MS + np.sort(random.integers(0, max(1, n) * gap_ms, n))
    return History(random.integers(-1, ITEMS, n), t_ms, user, first)


ACTIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 9), st.sampled_from([0, 1, 500, 60_000, DAY_MS, 400 * DAY_MS])),
    st.tuples(st.just("late"), st.integers(1, 5), st.integers(1, 30)),
    st.tuples(st.just("trim"), st.integers(10, 60), st.just(0)),
    st.tuples(st.just("swap"), st.booleans(), st.just(0)),
    st.tuples(st.just("ask"), st.sampled_from([0, 1, 999, DAY_MS, 90 * DAY_MS]), st.just(0)),
)


class Users:
    """Two users of one cache whose events come, come late, are cut off at the front, while models change."""

    def __init__(self):
        self.items, self.t_ms, self.first = [[], []], [[], []], [0, 0]
        self.cache, self.version, self.random = HistoryCache(40_000), 0, np.random.default_rng(0)
        self.current = encoder(self.cache)

    def act(self, user, action, much, gap):
        items, t_ms = self.items[user], self.t_ms[user]
        match action:
            case "append":
                for _ in range(much):
                    items.append(int(self.random.integers(-1, ITEMS)))
                    t_ms.append((t_ms[-1] if t_ms else START_MS) + gap)
            case "late":
                at = max(0, len(items) - gap)
                items[at:at] = self.random.integers(0, ITEMS, much).tolist()
                t_ms[at:at] = [t_ms[at] if at < len(t_ms) else START_MS] * much
            case "trim":
                cut = max(0, len(items) - much)
                del items[:cut], t_ms[:cut]
                self.first[user] += cut
            case "swap":
                self.version += 1
                self.current = encoder(self.cache, self.version)
                if much:
                    self.current.warm(ITEMS, lambda rows: VECTORS.numpy()[rows], 1000)
        return self.asked(user, much if action == "ask" else 0)

    def asked(self, user, after_ms):
        one = History(
            np.array(self.items[user], np.int64), np.array(self.t_ms[user], np.int64), f"u{user}", self.first[user]
        )
        now_ms = (self.t_ms[user][-1] if self.t_ms[user] else START_MS) + after_ms
        return one, now_ms


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), ACTIONS), min_size=1, max_size=25))
def test_cached_equals_uncached_over_events_that_append_slide_come_late_and_models_that_change(steps):
    users = Users()
    for user, action in steps:
        one, now_ms = users.act(user, *action)
        got = encoded(users.current, one, now_ms)
        np.testing.assert_allclose(got, whole(one, now_ms, users.version), atol=1e-5)
        assert np.array_equal(got, encoded(encoder(version=users.version), one._replace(user=""), now_ms))
        assert users.cache.nbytes <= users.cache.limit_bytes
        assert users.cache.nbytes == sum(k.state.nbytes for k in users.cache._users.values() if k.state)


def test_an_event_redoes_two_rows_and_a_request_one():
    cache = HistoryCache(1 << 24)
    one, rows = encoder(cache), []
    past = history(20)._replace(items=np.arange(20))

    def vectors(items):
        rows.append(len(items))
        return VECTORS.numpy()[items]

    for n, now_ms in ((19, 0), (19, 5), (20, 9)):
        one.encode(History(past.items[:n], past.t_ms[:n], "u"), int(past.t_ms[n - 1]) + now_ms, ITEMS, vectors)
    assert rows == [19, 1, 2]


def test_redoing_one_row_only_would_be_wrong():
    past = history(20)._replace(items=np.arange(20))
    now_ms, rows = int(past.t_ms[-1]) + 40 * DAY_MS, encoder().rows
    vectors = VECTORS.numpy().__getitem__
    state = rows.empty()
    rows.last_row(state, past.items[:19], past.t_ms[:19], now_ms, vectors)
    state.items, state.t_ms, state.rows = past.items, past.t_ms, 19  # as if the provisional row were final
    wrong = rows.last_row(state, past.items, past.t_ms, now_ms, vectors)
    assert np.abs(wrong - whole(past, now_ms)).max() > 1e-3


@pytest.mark.parametrize("max_len", [2, 24, 100])
def test_a_window_depends_on_the_history_alone_and_keeps_its_beginning_for_a_block_of_events(max_len):
    block, begins = max(1, max_len // BLOCKS), []
    past = history(4 * max_len)._replace(items=np.arange(4 * max_len))
    for n in range(1, len(past.items) + 1):
        items, _ = window_of(History(past.items[:n], past.t_ms[:n]), n, max_len)
        assert items.tolist() == list(range(items[0], n))
        assert len(items) == n if n <= max_len else max_len - block < len(items) <= max_len
        cut = min(n - 1, items[0])  # rows that the store has dropped since change nothing
        again, _ = window_of(History(past.items[cut:n], past.t_ms[cut:n], "", cut), n, max_len)
        assert again.tolist() == items.tolist()
        begins.append(int(items[0]))
    assert set(begins) == set(range(0, begins[-1] + 1, block)) | {0}


def test_a_window_is_not_empty_where_anything_is_known():
    items = np.full(60, -1)
    items[0] = 3
    for first in range(20):
        assert window_of(History(items, np.arange(60), "u", first), ITEMS, 48)[0].tolist() == [3]
    assert not len(window_of(History(items[1:], np.arange(59)), ITEMS, 48)[0])


def test_a_model_that_still_answers_does_not_read_what_a_newer_one_keeps():
    cache, past = HistoryCache(1 << 24), history(20)
    old, new, now_ms = encoder(cache, 1), encoder(cache, 2), int(past.t_ms[-1])
    for one, version in ((old, 1), (new, 2), (old, 1), (new, 2)):
        np.testing.assert_allclose(encoded(one, past, now_ms), whole(past, now_ms, version), atol=1e-5)
    assert cache.taken == 1  # the last: it goes on from its own


def test_after_a_swap_those_who_ask_most_are_read_first_and_within_the_time_that_there_is(monkeypatch):
    cache = HistoryCache(1 << 24)
    first = encoder(cache, 1)
    for user, times in (("seldom", 1), ("often", 9), ("now and then", 4)):
        for _ in range(times):
            encoded(first, history(20, user=user), START_MS + 400 * DAY_MS)
    assert [user for user, _, _ in cache.hottest(2)] == ["often", "now and then", "seldom"]
    vectors = VECTORS.numpy().__getitem__
    assert encoder(cache, 2).warm(ITEMS, vectors, 0) == 0

    now_s = [0.0]

    def slow(rows):
        now_s[0] += 0.05
        return vectors(rows)

    second = encoder(cache, 3)
    with monkeypatch.context() as patch:
        patch.setattr("driftline.model.incremental.time.monotonic", lambda: now_s[0])
        assert second.warm(ITEMS, slow, 60) == 2
    taken = cache.taken
    for user in ("often", "now and then", "seldom"):
        now_ms, past = START_MS + 400 * DAY_MS, history(20, user=user)
        np.testing.assert_allclose(encoded(second, past, now_ms), whole(past, now_ms, 3), atol=1e-5)
    assert cache.taken == taken + 2


def test_who_does_not_ask_any_more_is_forgotten_after_some_models():
    cache, now_ms = HistoryCache(1 << 24), START_MS + 400 * DAY_MS
    encoded(encoder(cache, 1), history(20, user="gone"), now_ms)
    for version in range(2, 9):
        one = encoder(cache, version)
        one.warm(ITEMS, VECTORS.numpy().__getitem__, 1000)
        encoded(one, history(20, user="stays"), now_ms)
        assert ("gone" in cache._users) == (version < 6)
    assert cache.nbytes == cache._users["stays"].state.nbytes


def test_the_cache_is_bounded_in_bytes_and_forgets_who_asked_longest_ago():
    size = WindowState.empty(2, 16)
    size.reserve(20, 24)
    cache = HistoryCache(4 * (size.nbytes + 16 * 20))
    one = encoder(cache)
    for at in (0, 1, 2, 0, 3, 4, 0, 5):
        encoded(one, history(20, seed=at, user=f"u{at}"), START_MS + 400 * DAY_MS)
        assert cache.nbytes <= cache.limit_bytes
    assert "u0" in cache._users
    assert "u1" not in cache._users
    for at in range(6):
        cache.drop(f"u{at}")
    assert (cache.users, cache.nbytes) == (0, 0)
    none = HistoryCache(0)
    encoded(encoder(none), history(20), START_MS)
    assert (none.users, none.nbytes) == (0, 0)


def test_who_was_forgotten_is_not_put_back_by_what_was_under_way(monkeypatch):
    cache, now_ms, past = HistoryCache(1 << 24), START_MS + 400 * DAY_MS, history(20)
    first, second, rows = encoder(cache, 1), encoder(cache, 2), VECTORS.numpy()
    encoded(first, past, now_ms)

    def forgotten_meanwhile(places):
        cache.forget("u")
        return rows[places]

    assert second.warm(ITEMS, forgotten_meanwhile, 60_000) == 1
    assert (cache.users, cache.nbytes) == (0, 0)
    second.encode(past, now_ms, ITEMS, forgotten_meanwhile)
    encoded(second, past, now_ms)  # the state is read anew a moment after the tombstone
    assert (cache.users, cache.nbytes) == (0, 0)
    encoded(second, past._replace(user="other"), now_ms)
    assert cache.users == 1
    later_s = time.monotonic() + FORGOTTEN_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    encoded(second, past, now_ms)
    assert set(cache._users) == {"other", "u"}
    assert not cache._forgotten_s, "no name stays"


def test_a_user_whose_history_is_gone_leaves_the_cache():
    cache = HistoryCache(1 << 24)
    one = encoder(cache)
    encoded(one, history(20), START_MS)
    assert not encoded(one, history(0), START_MS).any()
    assert cache.users == 0


def test_threads_that_ask_for_one_user_get_what_one_alone_would_get():
    from concurrent.futures import ThreadPoolExecutor

    past, one = history(60), encoder(HistoryCache(1 << 24))
    lengths = np.random.default_rng(0).integers(30, 61, 400).tolist()
    windows = [History(past.items[:n], past.t_ms[:n], "u") for n in lengths]
    now_ms = [int(w.t_ms[-1]) + 5 for w in windows]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda pair: encoded(one, *pair), zip(windows, now_ms, strict=True)))
    for vector, window, now in zip(got, windows, now_ms, strict=True):
        assert np.array_equal(vector, encoded(encoder(), window._replace(user=""), now))


@pytest.mark.parametrize("n", [0, 1, 7, 24, 60])
def test_candidates_over_one_history_equal_each_candidate_after_the_history(n):
    past, items = history(n)._replace(items=np.arange(n) % ITEMS), np.array([0, 3, 3, 29, 11])
    now_ms = int(past.t_ms[-1]) + 40 * DAY_MS if n else START_MS
    rows, vectors = encoder().rows, VECTORS.numpy().__getitem__
    state, (window, t_ms) = rows.empty(), window_of(past, ITEMS, 24)
    if n:
        rows.last_row(state, window, t_ms, now_ms, vectors)
    for item, vector in zip(items, rows.candidates(state, now_ms, vectors(items)), strict=True):
        x = VECTORS[torch.tensor([*window, item])][None]
        t = torch.tensor([[*t_ms, now_ms, now_ms]])
        np.testing.assert_allclose(vector, BACKBONES[0](x, t)[0, -1].numpy(), atol=1e-5)


SETTINGS = Model(dim=16, max_len=12, batch=6, step_groups=2, learning_rate=0.01, full_softmax=4, negatives=7)


def test_what_a_learner_keeps_ends_with_its_weights():
    learner, now_ms = SequenceLearner(SETTINGS, text_dim=8), START_MS + 200 * DAY_MS
    text = np.random.default_rng(0).standard_normal((ITEMS, 8)).astype(np.float32)
    for row in range(ITEMS):
        learner.set_text(row, text[row])
    past = history(30)
    for one in stream(40):
        learner.learn(one)
        vectors = learner.average.backbone, learner._cache.vectors()
        expected = encode_histories(*vectors, [past], [now_ms])
        for _ in range(2):
            np.testing.assert_allclose(learner.encode([past], [now_ms]), expected, atol=1e-5)
    learner.set_text(int(past.items[-1]), -10 * text[0])
    fresh = encode_histories(learner.average.backbone, learner._cache.vectors(), [past], [now_ms])
    np.testing.assert_allclose(learner.encode([past], [now_ms]), fresh, atol=1e-5)


def test_a_copy_of_a_learner_keeps_its_own_weights_and_histories():
    learner, past, now_ms = SequenceLearner(SETTINGS), history(30), START_MS + 200 * DAY_MS
    for one in stream(20):
        learner.learn(one)
    before = learner.encode([past], [now_ms])
    twin = copy.deepcopy(learner)
    for one in stream(20, seed=1):
        learner.learn(one)
    assert np.array_equal(twin.encode([past], [now_ms]), before)
    assert not np.allclose(learner.encode([past], [now_ms]), before, atol=1e-3)


def test_what_was_asked_before_does_not_change_an_answer_by_a_bit():
    asked, silent = SequenceLearner(SETTINGS), SequenceLearner(SETTINGS)
    for number, one in enumerate(stream(41)):
        for learner in (asked, silent):
            learner.learn(one)
        past = history(30 + number % 7, seed=3)
        for n in range(25, len(past.items)):
            asked.encode([History(past.items[:n], past.t_ms[:n], "u")], [int(past.t_ms[n - 1])])
        now_ms = int(past.t_ms[-1]) + 1000
        assert np.array_equal(asked.encode([past], [now_ms]), silent.encode([past], [now_ms]))


@pytest.mark.parametrize("backbone", ["hstu", "sasrec"])
def test_snapshots_that_follow_each_other_answer_from_one_cache_as_their_learner_does(backbone):
    learner = SequenceLearner(SETTINGS.model_copy(update={"backbone": backbone}))
    cache, now_ms = HistoryCache(1 << 24), START_MS + 300 * DAY_MS
    for version in range(1, 5):
        for one in stream(20, seed=version):
            learner.learn(one)
        scorer = SequenceScorer.from_arrays(learner.settings, learner.arrays(), cache, version)
        assert scorer.warm(1000) == (3 if backbone == "hstu" and version > 1 else 0)
        for n in (20 + version, 21 + version, 30):
            asked = [history(n, seed=seed, user=f"u{seed}") for seed in range(3)]
            expected = encode_histories(learner.average.backbone, learner._cache.vectors(), asked, [now_ms] * 3)
            np.testing.assert_allclose(scorer.encode(asked, [now_ms] * 3), expected, atol=1e-5)


def composed_at_once(learner):
    """The oracle: every row composed again."""
    rows = torch.arange(len(learner.items))
    with torch.no_grad():
        parts = zip(rows.split(item_cache.ROWS_A_STEP), learner._cache.state(), strict=True)
        bare = torch.cat([learner.items.compose(learner.items.leaf(part).detach(), part, z) for part, z in parts])
    counts, means = (z[: len(rows)] for z in learner.average.arrays(learner.items.width))
    used = np.flatnonzero(counts)
    bare[used] = torch.from_numpy(means[used])
    return bare.numpy()


def texts(learner, rows, seed=0):
    random = np.random.default_rng(seed)
    for row in rows:
        learner.set_text(row, random.standard_normal(8).astype(np.float32))


@pytest.mark.parametrize("average", [0.0, 0.99])
@pytest.mark.parametrize("text", [False, True])
def test_item_vectors_that_follow_what_changed_equal_all_of_them_composed_again(average, text):
    settings = SETTINGS.model_copy(update={"average": average, "text": text})
    learner = SequenceLearner(settings, text_dim=8)
    for number, one in enumerate(stream(60)):
        if number % 9 == 4:
            texts(learner, range(number, number + 5), number)
        learner.learn(one)
        if number % 3:
            continue  # several changes between two looks
        assert torch.equal(learner._cache.state()[0], learner.items.project.detach())
        np.testing.assert_allclose(learner._cache.vectors().numpy(), composed_at_once(learner), atol=1e-6)
        lengths = np.linalg.norm(learner._cache.vectors().numpy(), axis=1, keepdims=True)
        np.testing.assert_allclose(learner.item_matrix(), learner._cache.vectors().numpy() / lengths, atol=1e-6)
    learner.load_state_dict(learner.state_dict())
    np.testing.assert_allclose(learner._cache.vectors().numpy(), composed_at_once(learner), atol=1e-6)


def test_a_group_without_a_step_composes_no_item_again_and_a_step_only_those_it_used():
    learner = SequenceLearner(SETTINGS.model_copy(update={"step_groups": 4}))
    learner.items.grow(1000)
    learner.item_matrix()
    for number, one in enumerate(stream(40), 1):
        composed, steps = learner._cache.touched()["vectors"], learner.steps
        composed.take(1000)
        learner.learn(one)
        learner.item_matrix()
        rows = len(composed.take(1000))
        assert rows <= 30 if learner.steps > steps else rows == 0, number


def test_rows_of_a_large_catalogue_that_no_step_has_used_follow_the_projection_in_turns(monkeypatch):
    composed, compose = [], item_cache.ItemCache._compose
    monkeypatch.setattr(item_cache, "ROWS_A_STEP", 50)
    monkeypatch.setattr(
        item_cache.ItemCache,
        "_compose",
        lambda self, rows, n: (composed.append((self, len(rows))), compose(self, rows, n)),
    )
    asked, silent, groups = SequenceLearner(SETTINGS, text_dim=8), SequenceLearner(SETTINGS, text_dim=8), stream(60)
    for learner in (asked, silent):
        texts(learner, range(230))
        for number, one in enumerate(groups):
            learner.learn(one)
            if learner is asked:
                learner.item_matrix()
            if number == 30:
                learner.load_state_dict(learner.state_dict())  # between two turns
    projects = asked._cache.state()
    assert len(projects) == 5
    assert all(torch.equal(z, asked.items.project.detach()) == (i == asked.steps % 5) for i, z in enumerate(projects))
    np.testing.assert_allclose(asked._cache.vectors().numpy(), composed_at_once(asked), atol=1e-6)
    np.testing.assert_allclose(asked.item_matrix(), silent.item_matrix(), atol=1e-6)
    assert sum(rows for cache, rows in composed if cache is asked._cache) < 230 * asked.steps / 2
