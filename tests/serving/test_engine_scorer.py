"""Training and serving see the same: the trainer's learner against a snapshot of it and rows read from RocksDB."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from tests.serving.conftest import shop_events, small_settings

from driftline.configs.settings import Settings
from driftline.graph.view import ProfileVectors, view_of
from driftline.model.encode import SequenceScorer
from driftline.serving.arrays import item_part
from driftline.serving.engine_scorer import engine_builder
from driftline.serving.profiles import ProfileStore
from driftline.serving.publish import publish
from driftline.serving.snapshot import Meta, open_snapshot
from driftline.serving.state_reader import StateReader
from driftline.stream.learn.learner import StreamLearner, group_of
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import RocksStore

TEXT_DIM = 6


class Texts:
    """A fixed unit vector for each item."""

    def at(self, item_id, now_ms):
        vector = np.random.default_rng(int(item_id.split("-")[1])).standard_normal(TEXT_DIM).astype(np.float32)
        return vector / np.linalg.norm(vector)


class Profiles:
    """The same facets for everybody."""

    made_on_request = False

    def at(self, user_id, now_ms):
        return ProfileVectors(np.eye(4, TEXT_DIM, dtype=np.float32), 0, 1)

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


def published(learner, root):
    """A snapshot of a learner, opened."""
    parts = learner.arrays() | {"items": item_part(learner.table.ids)}
    publish(root, parts, Meta(extra={"parts": list(learner.parts)}))
    return open_snapshot(root)


@pytest.fixture(scope="module")
def scorer(whole_settings, learner):
    """What serving builds from a snapshot of the learner."""
    return engine_builder(whole_settings)(published(learner, whole_settings.serving.snapshots))


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


def test_users_that_are_ranked_together_get_what_each_gets_alone(scorer, reader):
    now_ms = shop_events(60)[-1].timestamp_ms + 1000
    views = [
        view_of(reader.user(user).row, scorer.table, user, Profiles().at(user, now_ms) if n % 2 else None)
        for n, user in enumerate(("user-0", "nobody", "user-7", "user-13", "user-7"))
    ]
    times = [now_ms + n for n in range(len(views))]
    for view, at_ms, together in zip(views, times, scorer.rank_all(views, times), strict=True):
        alone = scorer.rank(view, at_ms)
        np.testing.assert_array_equal(together.items, alone.items)
        for which, scores in alone.scores.items():
            np.testing.assert_allclose(together.scores[which], scores, rtol=1e-4, atol=1e-5)
        assert together.reasons([0]) == alone.reasons([0])


def test_a_score_of_chosen_items_is_that_of_the_slate_and_others_are_scored_too(scorer, reader):
    now_ms = shop_events(60)[-1].timestamp_ms + 1000
    view = view_of(reader.user("user-7").row, scorer.table, "user-7")
    ranking = scorer.rank(view, now_ms)
    for which in ("overall", "novel", "repeat"):
        again = scorer.score(view, now_ms, ranking.items[::-1].copy())[which]
        np.testing.assert_allclose(again[::-1], ranking.scores[which], rtol=1e-4, atol=1e-5)
    everything = scorer.score(view, now_ms, np.arange(len(scorer.table), dtype=np.int32))["overall"]
    assert np.isfinite(everything).all()


def test_an_item_that_is_asked_for_twice_has_the_score_of_one_asked_once(scorer, reader):
    now_ms = shop_events(60)[-1].timestamp_ms + 1000
    view = view_of(reader.user("user-7").row, scorer.table, "user-7")
    items = view.items[:1].tolist() + [9, 3, 9] + view.items[:1].tolist()
    scores = scorer.score(view, now_ms, np.array(items, np.int32))
    for which in ("overall", "novel", "repeat"):
        once = {n: scorer.score(view, now_ms, np.array([n], np.int32))[which][0] for n in set(items)}
        np.testing.assert_allclose(scores[which], [once[n] for n in items], rtol=1e-4, atol=1e-5)


def test_a_ranking_keeps_nothing_of_the_slate_but_what_its_reasons_need(scorer, reader, monkeypatch):
    view = view_of(reader.user("user-7").row, scorer.table, "user-7")
    made = []
    slate = scorer.engine.slate
    monkeypatch.setattr(scorer.engine, "slate", lambda *of: made.append(slate(*of)) or made[-1])
    ranking = scorer.rank(view, shop_events(60)[-1].timestamp_ms + 1000)
    one = made.pop()
    scores = [said.scores for said in one.pool.scored.values() if len(said.scores)]
    large = [weakref.ref(array) for array in (one.features, *scores)]
    del scores
    del one
    assert [array for array in large if array() is not None] == []
    assert ranking.reasons([0])


def test_reasons_are_given_for_any_place(scorer, reader):
    view = view_of(reader.user("user-7").row, scorer.table, "user-7")
    ranking = scorer.rank(view, shop_events(60)[-1].timestamp_ms + 1000)
    rows = ranking.reasons(range(len(ranking.items)))
    assert all(len(row) == 1 and row[0] for row in rows)


def test_a_model_that_follows_another_answers_from_histories_it_read_again_as_one_that_keeps_none(
    whole_settings, learner, reader, tmp_path, monkeypatch
):
    now_ms, rows, asked, scorer = shop_events(60)[-1].timestamp_ms + 1000, [], set(), None
    none_kept = whole_settings.serving.model_copy(update={"sequence_cache_mb": 0})
    build, build_without = (
        engine_builder(whole_settings),
        engine_builder(whole_settings.model_copy(update={"serving": none_kept})),
    )
    read = SequenceScorer._taken
    monkeypatch.setattr(SequenceScorer, "_taken", lambda self, items: rows.append(len(items)) or read(self, items))
    for version in range(2):
        snapshot = published(learner, tmp_path)
        before, scorer, other = scorer, build(snapshot), build_without(snapshot)
        if before is not None:
            rows.clear()
            before.engine.slate(view_of(reader.user("user-7").row, before.table, "user-7"), now_ms)
            assert rows == [1], "a model that is built, and may yet be refused, takes nothing from the one that serves"
        rows.clear()
        scorer.warm()
        warmed = sum(rows)
        assert (warmed > 0) == (version > 0)  # the second one reads who asked the first
        for user_id in ("user-0", "user-7", "user-0", "user-7"):
            view = view_of(reader.user(user_id).row, scorer.table, user_id)
            rows.clear()
            kept = scorer.engine.slate(view, now_ms)
            assert (rows == [1]) == (version > 0 or user_id in asked), "a request that brings nothing new reads one row"
            asked.add(user_id)
            np.testing.assert_array_equal(kept.features, other.engine.slate(view, now_ms).features)
        rows.clear()


def test_the_tombstone_of_a_user_takes_the_kept_history_of_that_user_alone(whole_settings, learner, reader, tmp_path):
    profiles, now_ms = ProfileStore(), shop_events(60)[-1].timestamp_ms + 1000
    scorer = engine_builder(whole_settings, profiles.on_forget)(published(learner, tmp_path))
    for user_id in ("user-0", "user-7"):
        scorer.engine.slate(view_of(reader.user(user_id).row, scorer.table, user_id), now_ms)
    cache = scorer.engine.plugs["hstu"].encoder._encoder.cache
    assert cache.users == 2
    assert profiles.put(b"user-7", None)
    assert set(cache._users) == {"user-0"}
