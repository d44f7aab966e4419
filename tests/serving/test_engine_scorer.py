"""Training and serving see the same: the trainer's learner against a snapshot of it and rows read from RocksDB."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from configs.settings import Settings
from graph.view import Profile, view_of
from serving.arrays import item_part
from serving.engine_scorer import engine_builder
from serving.publish import publish
from serving.snapshot import Meta, open_snapshot
from serving.state_reader import StateReader
from stream.learner import StreamLearner, group_of
from stream.processor import Processor, Record
from stream.store import RocksStore
from tests.serving.conftest import shop_events, small_settings

TEXT_DIM = 6


class Texts:
    """A fixed unit vector for each item."""

    def get(self, item_id):
        vector = np.random.default_rng(int(item_id.split("-")[1])).standard_normal(TEXT_DIM).astype(np.float32)
        return vector / np.linalg.norm(vector)


class Profiles:
    """The same facets for everybody."""

    def at(self, user_id, now_ms):
        return Profile(np.eye(4, TEXT_DIM, dtype=np.float32), 0, 1)

    def request(self, record):
        pass


@pytest.fixture(scope="module")
def whole_settings(tmp_path_factory):
    base = small_settings(tmp_path_factory.mktemp("engine")).model_dump()
    base["model"] |= {"dim": 8, "blocks": 1, "max_len": 20, "batch": 4, "step_groups": 4}
    base["ranker"] |= {"text_dim": TEXT_DIM}
    return Settings.model_validate(base)


@pytest.fixture(scope="module")
def learner(whole_settings):
    """Sequence, graph, text, profiles and ranker, having learnt the shop as the trainer does."""
    learner = StreamLearner(whole_settings, Texts(), Profiles())
    groups = {}
    for event in shop_events(60):
        groups.setdefault(event.group_id, []).append(event)
    for events in groups.values():
        t_ms = events[0].timestamp_ms
        view = learner.view(events[0].user_id, t_ms)
        slate = learner.slate(view, t_ms)
        learner.add_items(list(dict.fromkeys(event.item_id for event in events)))
        learner.learn(group_of(events, learner.table, whole_settings), events, view, slate)
    return learner


@pytest.fixture(scope="module")
def scorer(whole_settings, learner):
    """What serving builds from a snapshot of the learner."""
    parts = {
        "engine": dict(learner.engine.arrays(replay=False)),
        "items": item_part(learner.table.ids),
        "hstu": dict(learner.sequence.arrays()),
        "graph": dict(learner.graph.arrays()),
    }
    root = whole_settings.serving.snapshots
    publish(root, parts, Meta(extra={"plugs": list(learner.engine.plugs)}))
    return engine_builder(whole_settings)(open_snapshot(root))


@pytest.fixture(scope="module")
def reader(whole_settings):
    """Rows of the same events, written by a worker's processor."""
    store = RocksStore(whole_settings.state.root / "partition-0", sync=False)
    processor = Processor(whole_settings, store)
    processor.commit(processor.apply([Record(event.offset, event) for event in shop_events(60)]))
    with StateReader(whole_settings.state.root) as reader:
        yield reader
    store.close()


@pytest.mark.parametrize("user_id", ["user-0", "user-7", "user-13", "nobody"])
def test_features_and_scores_of_serving_are_those_of_training(learner, scorer, reader, user_id):
    now_ms = shop_events(60)[-1].timestamp_ms + 1000
    trained = learner.slate(learner.view(user_id, now_ms), now_ms)
    view = view_of(reader.user(user_id).row, scorer.table, user_id, Profiles().at(user_id, now_ms))
    served = scorer.engine.slate(view, now_ms)
    np.testing.assert_array_equal(served.candidates, trained.candidates)
    np.testing.assert_array_equal(served.recalled, trained.recalled)
    # a mapped file lies elsewhere in memory, and a dot product rounds by where its rows begin
    np.testing.assert_allclose(served.features, trained.features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(served.scores, trained.scores, rtol=1e-4, atol=1e-5)


def test_a_score_of_chosen_items_is_that_of_the_slate_and_others_are_scored_too(scorer, reader):
    now_ms = shop_events(60)[-1].timestamp_ms + 1000
    view = view_of(reader.user("user-7").row, scorer.table, "user-7")
    ranking = scorer.rank(view, now_ms)
    for which in ("mix", "novel", "repeat"):
        again = scorer.score(view, now_ms, ranking.items[::-1].copy())[which]
        np.testing.assert_allclose(again[::-1], ranking.scores[which], rtol=1e-4, atol=1e-5)
    everything = scorer.score(view, now_ms, np.arange(len(scorer.table), dtype=np.int32))["mix"]
    assert np.isfinite(everything).all()


def test_an_item_that_is_asked_for_twice_has_the_score_of_one_asked_once(scorer, reader):
    now_ms = shop_events(60)[-1].timestamp_ms + 1000
    view = view_of(reader.user("user-7").row, scorer.table, "user-7")
    items = view.items[:1].tolist() + [9, 3, 9] + view.items[:1].tolist()
    scores = scorer.score(view, now_ms, np.array(items, np.int32))
    for which in ("mix", "novel", "repeat"):
        once = {n: scorer.score(view, now_ms, np.array([n], np.int32))[which][0] for n in set(items)}
        np.testing.assert_allclose(scores[which], [once[n] for n in items], rtol=1e-4, atol=1e-5)


def test_a_ranking_keeps_nothing_of_the_slate_but_what_its_reasons_need(scorer, reader, monkeypatch):
    view = view_of(reader.user("user-7").row, scorer.table, "user-7")
    made = []
    slate = scorer.engine.slate
    monkeypatch.setattr(scorer.engine, "slate", lambda *of: made.append(slate(*of)) or made[-1])
    ranking = scorer.rank(view, shop_events(60)[-1].timestamp_ms + 1000)
    features = weakref.ref(made.pop().features)
    assert features() is None
    assert ranking.reasons([0])


def test_reasons_are_given_for_any_place(scorer, reader):
    view = view_of(reader.user("user-7").row, scorer.table, "user-7")
    ranking = scorer.rank(view, shop_events(60)[-1].timestamp_ms + 1000)
    rows = ranking.reasons(range(len(ranking.items)))
    assert all(len(row) == 1 and row[0] for row in rows)
