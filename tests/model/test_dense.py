"""Recall and features against the dense passes of tests/model/dense.py."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from driftline.configs.settings import Ranker, Settings, Signals
from driftline.graph.history import DAY_MS
from driftline.graph.view import Group, ItemTable, ProfileVectors, UserView
from driftline.model.engine import Engine
from driftline.model.part import VectorPlug

HERE = Path(__file__).parent
DAY = int(DAY_MS)
ITEMS, USERS, DIM = 150, 30, 16
ACTIONS = np.array([1.0, 0.3, 3.0, -1.0], np.float32)


class Plug(VectorPlug):
    """Knows fewer items than there are, and nothing of users without a history."""

    def __init__(self, known: int) -> None:
        self.matrix = np.random.default_rng(known).standard_normal((known, 4)).astype(np.float32)

    def user_vector(self, view: UserView, now_ms: int) -> np.ndarray:
        known = view.items[(view.items >= 0) & (view.items < len(self.matrix))]
        return self.matrix[known].mean(0) if len(known) else np.zeros(4, np.float32)

    def item_matrix(self) -> np.ndarray:
        return self.matrix


def some(random, scale, n):
    """Positive numbers, a fifth of them missing."""
    return np.where(random.random(n) < 0.2, np.nan, scale * random.random(n)).astype(np.float32)


def stream(seed, groups=120):
    """Baskets with returns, prices and values that are missing, late groups, a growing catalogue, two domains."""
    random = np.random.default_rng(seed)
    past: dict[str, list[Group]] = {}
    t = 1000 * DAY
    for number in range(groups):
        t += int(random.exponential(DAY / 2))
        user, size = f"u{int(USERS * random.random() ** 2)}", min(ITEMS, 20 + 2 * number)
        items = (size * random.random(random.integers(1, 9)) ** 2).astype(np.int32)
        weight = random.choice(ACTIONS, len(items))
        at = t - int(random.integers(0, 9 * DAY)) if random.random() < 0.1 else t
        domain = ("", "here", "there")[number % 3]
        price, value = some(random, 9, len(items)), some(random, 5, len(items))
        group = Group(user, at, items, weight, value, price, weight > 0.5, domain)
        mine = past.setdefault(user, [])
        yield group, view_of(user, [one for one in mine if one.t_ms <= at], domain, random)
        mine.append(group)


def view_of(user, groups, domain, random):
    groups = sorted(groups, key=lambda one: one.t_ms)

    def joined(name, kind):
        return np.concatenate([np.zeros(0, kind), *(getattr(one, name) for one in groups)])

    items = joined("items", np.int32)
    t_ms = np.repeat([one.t_ms for one in groups], [len(one.items) for one in groups]).astype(np.int64)
    facets = random.standard_normal((4, DIM)).astype(np.float32)
    profile = ProfileVectors(facets / np.linalg.norm(facets, axis=1, keepdims=True), 0)
    return UserView(
        user, items, t_ms, joined("weight", np.float32), joined("value", np.float32), joined("price", np.float32),
        np.zeros(len(items), np.uint64), np.zeros(len(items), np.uint32), events=len(items), domain=domain,
        profile=profile,
    )  # fmt: skip


MINUTES = {"age_unit_days": 1 / 1440, "personal_half_lives_days": (0.001, 0.1, 365.0)}


def engine_of(signals=None, **ranker) -> Engine:
    settings = Settings(
        ranker=Ranker(hidden=8, members=2, sampled=20, text_dim=DIM, **ranker),
        signals=Signals(
            half_lives_days=(1.0, 7.0, 30.0),
            neighbors=8,
            top=20,
            users=20,
            nearest=5,
            recent=20,
            refresh_ms=DAY,
            **(signals or {}),
        ),
    )
    engine = Engine(settings, ItemTable(f"item {n}" for n in range(ITEMS)), {"few": Plug(40), "all": Plug(ITEMS)})
    text = np.random.default_rng(1).standard_normal((ITEMS - 10, DIM)).astype(np.float32)
    for index, vector in enumerate(text):
        engine.set_text(index, vector / np.linalg.norm(vector))
    return engine


@pytest.mark.parametrize(
    "ranker",
    [
        {"recall": 15, "pool": 40, "newest": 5, "plug_recall": 5, "personal": 10},
        {"recall": 150, "pool": 1000, "newest": 50},
        {"recall": 150, "pool": 1000, "signals": MINUTES},
        {"recall": 3, "pool": 10, "newest": 0, "plug_recall": 0, "personal": 0},
    ],
)
def test_pools_and_features_are_those_of_dense_passes_over_all_items(ranker, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import dense

    engine = engine_of(**ranker)
    for number, (group, view) in enumerate(stream(len(ranker))):
        now_ms = group.t_ms
        view = replace(view, profile=None) if number % 7 == 0 else view
        slate, (pool, raw) = engine.slate(view, now_ms), dense.slate(engine, view, now_ms)
        everyone = np.arange(engine.signals.n, dtype=np.int32)
        for name, one in pool.scored.items():
            other = slate.pool.scored[name]
            np.testing.assert_allclose(other.of(everyone)[0], one.scores, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(other.best_scores, one.best_scores, atol=1e-5, err_msg=name)
            np.testing.assert_allclose(one.scores[other.best], other.best_scores, atol=1e-5, err_msg=name)
            assert len(set(other.best.tolist()) & set(slate.past.items.tolist())) == 0
        pool, raw = dense.slate(engine, view, now_ms, slate.pool)
        np.testing.assert_array_equal(slate.candidates, pool.candidates)
        np.testing.assert_array_equal(slate.recalled, pool.recalled)
        np.testing.assert_allclose(slate.raw, raw, atol=2e-5)
        engine.learn(group, view, slate)


def test_what_threads_share_of_scratch_space_mixes_no_answers():
    from concurrent.futures import ThreadPoolExecutor

    engine = engine_of(recall=15, pool=40)
    asked = []
    for group, view in stream(3):
        engine.learn(group, view, engine.slate(view, group.t_ms))
        asked.append((view, group.t_ms))
    alone = [engine.slate(view, now_ms) for view, now_ms in asked]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: engine.slate(*one), asked))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.candidates, other.candidates)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_a_failed_request_leaves_nothing_in_the_scratch_space(monkeypatch):
    engine = engine_of(recall=15, pool=40)
    for group, view in stream(4):
        engine.learn(group, view, engine.slate(view, group.t_ms))
    expected = engine.slate(view, group.t_ms)
    other = next(one for _, one in stream(4) if len(one.items) and one.user_id != view.user_id)
    with monkeypatch.context() as patch:
        patch.setattr("driftline.model.features.opinion_block", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.slate(other, group.t_ms - 30 * DAY)
    again = engine.slate(view, group.t_ms)
    np.testing.assert_array_equal(expected.raw, again.raw)
