"""A catalogue that is searched by codes beside one searched as a whole: pools, features, restarts, snapshots."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from driftline.configs.settings import Graph, Model, Ranker, Settings
from driftline.graph import codes
from driftline.graph.learn import GraphLearner
from driftline.graph.texts import TextTable
from driftline.graph.view import Group, ItemTable, ProfileVectors, UserView
from driftline.model import sequence
from driftline.model.engine import Engine
from driftline.model.plugs import GraphPlug, SequencePlug
from driftline.model.sequence import SequenceLearner, SequenceScorer

ITEMS, DIM, DAY = 3000, 64, 86_400_000
SETTINGS = Settings(
    ranker=Ranker(hidden=8, members=2, sampled=20, text_dim=DIM, recall=50, plug_recall=30, pool=300),
    model=Model(dim=16, max_len=12, batch=6, step_groups=2, full_softmax=100, negatives=60),
    graph=Graph(memory_dim=8, embed_dim=8, message_dim=8, time_dim=4),
)
APPROXIMATE = ("text_history", "text_last", "hstu", "graph", "fused", "profiles")


class World:
    """An engine with both models that has learnt a few baskets around items whose texts are alike."""

    def __init__(self, groups=25, **model):
        settings = SETTINGS.model_copy(update={"model": SETTINGS.model.model_copy(update=model)})
        random = np.random.default_rng(0)
        centres = random.standard_normal((60, DIM))
        vectors = centres[np.arange(ITEMS) % 60] + 0.8 * random.standard_normal((ITEMS, DIM))
        self.texts = TextTable(DIM)
        self.sequence = SequenceLearner(settings.model, text_dim=DIM, texts=self.texts)
        self.graph = GraphLearner(SETTINGS.graph, DIM, self.texts)
        self.plugs = {
            "hstu": SequencePlug(self.sequence),
            "graph": GraphPlug(self.graph),
            "fused": GraphPlug(self.graph, fused=True),
        }
        self.engine = Engine(settings, ItemTable(f"item {n}" for n in range(ITEMS)), self.plugs, self.texts)
        for item, vector in enumerate((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)):
            self.engine.set_text(item, vector)
            self.sequence.set_text(item, vector)
            self.graph.add_item(item, f"item {item}")
        self.engine.grow(ITEMS)
        self.random, self.now_ms = random, 1000 * DAY
        for _ in range(groups):
            self.learn()

    def view(self):
        taste, n = int(self.random.integers(60)), int(self.random.integers(3, 20))
        items = (taste + 60 * self.random.integers(0, ITEMS // 60, n)).astype(np.int32)
        facets = self.random.standard_normal((4, DIM)).astype(np.float32)
        ones = np.ones(n, np.float32)
        return UserView(
            f"u{self.random.integers(30)}", items, self.now_ms - DAY * np.arange(n, 0, -1), ones, ones, ones,
            np.arange(1, n + 1, dtype=np.uint64), np.zeros(n, np.uint32), events=n,
            memory=self.random.standard_normal(8).astype(np.float32), last_update_ms=self.now_ms - DAY,
            profile=ProfileVectors(facets / np.linalg.norm(facets, axis=1, keepdims=True), 0),
        )  # fmt: skip

    def learn(self):
        self.now_ms += DAY // 7
        view = self.view()
        items = np.unique(view.items[:4] + 60).astype(np.int32) % ITEMS
        ones = np.ones(len(items), np.float32)
        group = Group(view.user_id, self.now_ms, items, ones, ones, ones, ones > 0)
        self.engine.learn(group, view, self.engine.slate(view, self.now_ms))
        self.sequence.learn(group)

    def whole(self):
        """The same engine, searched as a whole."""
        other = copy.deepcopy(self.engine)
        rows = self.texts[np.arange(ITEMS)]
        other.text = TextTable.from_arrays({"text": rows}, read_only=True)
        for plug in other.plugs.values():
            plug.item_codes = lambda: None
        return other


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setattr(codes, "SMALL", 1000)
    return World()


def test_by_codes_lists_hold_what_a_whole_search_finds_and_equal_candidates_have_equal_features(world):
    whole, found = world.whole(), {name: [] for name in APPROXIMATE}
    assert all(plug.item_codes() is not None for plug in world.plugs.values())
    for _ in range(25):
        view, now_ms = world.view(), world.now_ms + DAY
        mine, theirs = world.engine.slate(view, now_ms), whole.slate(view, now_ms)
        for name in APPROXIMATE:
            one, other = mine.pool.scored[name], theirs.pool.scored[name]
            assert (one.exact is not None) == (len(one.best) > 0)
            if len(other.best):
                found[name].append(len(np.intersect1d(one.best, other.best)) / len(other.best))
        both, here, there = np.intersect1d(mine.candidates, theirs.candidates, return_indices=True)
        assert len(both) > 0.9 * len(theirs.candidates)
        ranks = np.array([name.startswith("rank_") or name.endswith("_rank") for name in world.engine.layout.names])
        np.testing.assert_allclose(mine.raw[~ranks][:, here], theirs.raw[~ranks][:, there], atol=1e-4)
        np.testing.assert_array_equal(mine.pool.candidates[mine.own], theirs.pool.candidates[theirs.own])
    for name, shares in found.items():
        assert shares, name
        assert np.mean(shares) >= 0.95, name


def test_by_codes_a_candidate_is_worth_the_whole_logit_as_in_a_whole_search(monkeypatch):
    """Popularity, and the terms of what the user had, included; the most popular are found however far they lie."""
    monkeypatch.setattr(codes, "SMALL", 1000)
    world = World(groups=60, aware=True, copying=True, untied=True)
    world.sequence.copying.weights[:] = 1.0, 2.0, 3.0, -4.0, 0.5, 0.7, 0.8
    whole, plug = world.whole(), world.plugs["hstu"]
    assert plug.item_codes() is not None
    shares = []
    for _ in range(25):
        view, now_ms = world.view(), world.now_ms + DAY
        mine, theirs = world.engine.slate(view, now_ms), whole.slate(view, now_ms)
        one, other = mine.pool.scored["hstu"], theirs.pool.scored["hstu"]
        assert one.exact is not None
        assert other.exact is None
        some = np.unique(np.concatenate((view.items, one.best, np.arange(5)))).astype(np.int32)
        np.testing.assert_allclose(one.exact(some), other.of(some)[0], atol=1e-5)
        assert one.best[0] == other.best[0]
        shares.append(len(np.intersect1d(one.best, other.best)) / len(other.best))
        both, here, there = np.intersect1d(mine.candidates, theirs.candidates, return_indices=True)
        assert np.isin(np.unique(view.items), both).all()
        columns = [
            n for n, name in enumerate(world.engine.layout.names) if name.startswith("hstu_") and "rank" not in name
        ]
        assert len(columns) == 6
        np.testing.assert_allclose(mine.raw[columns][:, here], theirs.raw[columns][:, there], atol=1e-4)
    assert np.mean(shares) >= 0.95


def test_the_most_popular_of_a_large_catalogue_are_looked_for_now_and_then_and_restored_to_the_bit(monkeypatch):
    monkeypatch.setattr(codes, "SMALL", 1000)
    monkeypatch.setattr(sequence, "POPULAR_GROUPS", 8)
    world, looked = World(groups=160, aware=True, copying=True, untied=True), []
    popular = world.sequence.popular_of

    def noted(n, items=None, now_ms=0):
        looked.extend([1] * (items is None))
        return popular(n, items, now_ms)

    world.sequence.popular_of = noted
    for _ in range(20):
        world.learn()
    assert 2 <= len(looked) <= 4
    del world.sequence.popular_of
    state = world.sequence.state_dict()
    state["most_popular"] = (state["most_popular"][0], state["most_popular"][1][::-1].copy())  # as no search would say
    again = SequenceLearner(world.sequence.settings, text_dim=DIM, texts=world.engine.text)
    again.load_state_dict(copy.deepcopy(state))
    assert again.most_popular(ITEMS, 10).tolist() == state["most_popular"][1][:10].tolist()
    popularity, found = world.sequence.popular(), world.sequence.most_popular(ITEMS, 10)
    assert len(np.intersect1d(found, np.argsort(-popularity)[:20])) >= 9


def test_scores_of_given_items_are_exact_whoever_asks(world):
    view = world.view()
    slate = world.engine.slate(view, world.now_ms)
    everyone = np.arange(ITEMS, dtype=np.int32)
    centre = slate.past.decayed(world.now_ms, world.engine.signals.user_half_life_ms) @ world.texts[slate.past.items]
    scores, _ = slate.pool.scored["text_history"].of(everyone)
    np.testing.assert_allclose(scores, world.texts[everyone] @ (centre / np.linalg.norm(centre)), atol=1e-5)
    scores, ranks = slate.pool.scored["hstu"].of(everyone)
    query = world.plugs["hstu"].user_vector(view, world.now_ms)
    np.testing.assert_allclose(scores, world.sequence.item_matrix() @ query, atol=1e-5)
    best = slate.pool.scored["hstu"].best
    assert ranks[best].tolist() == list(range(len(best)))


def test_codes_follow_what_learning_changes(world):
    for plug in world.plugs.values():
        plug.item_codes()
    for _ in range(10):
        world.learn()
    for plug in world.plugs.values():
        matrix = plug.item_matrix()
        anew = codes.Codes(matrix.shape[1])
        anew.set(np.arange(ITEMS), matrix)
        held, expected = plug.item_codes().arrays("x", ITEMS), anew.arrays("x", ITEMS)
        np.testing.assert_allclose(held["x.scales"], expected["x.scales"], rtol=1e-5)
        assert np.mean(held["x.codes"] == expected["x.codes"]) > 0.999  # numbers next to 0 may round to either side
        assert np.mean(held["x.seconds"] == expected["x.seconds"]) > 0.999


def test_a_snapshot_answers_as_the_engine_that_wrote_it(world):
    view, now_ms = world.view(), world.now_ms + DAY
    expected = world.engine.slate(view, now_ms)
    parts = world.engine.arrays(rehearsal=False), world.sequence.arrays(), world.graph.arrays()
    engine, sequence, graph = ({name: array.copy() for name, array in part.items()} for part in parts)
    for part in (engine, sequence, graph):
        for array in part.values():
            array.flags.writeable = False
    learner = GraphLearner.from_arrays(SETTINGS.graph, graph)
    plugs = {
        "hstu": SequencePlug(SequenceScorer.from_arrays(SETTINGS.model, sequence)),
        "graph": GraphPlug(learner),
        "fused": GraphPlug(learner, fused=True),
    }
    served = Engine.from_arrays(SETTINGS, world.engine.table, engine, plugs, read_only=True)
    got = served.slate(view, now_ms)
    assert np.array_equal(got.candidates, expected.candidates)
    np.testing.assert_allclose(got.scores, expected.scores, atol=1e-5)


def test_checkpoints_hold_texts_once_and_a_learner_with_a_table_of_its_own_keeps_it(world):
    assert "text" in world.engine.arrays()
    assert "text" not in world.sequence.state_dict()["items"]
    assert "texts" not in world.graph.state_dict()
    alone = SequenceLearner(SETTINGS.model, text_dim=DIM)
    alone.set_text(3, world.texts[3])
    again = SequenceLearner(SETTINGS.model, text_dim=DIM)
    again.load_state_dict(copy.deepcopy(alone.state_dict()))
    assert np.array_equal(again.items.texts[3], world.texts[3])
    assert np.array_equal(again.item_matrix(), alone.item_matrix())
