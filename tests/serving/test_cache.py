"""Rankings kept for a moment, and for no longer: each holds the engine that made it."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
from tests.serving.test_models import wait_for

from driftline.model.history_cache import FORGOTTEN_S
from driftline.serving.cache import RecentRankings
from driftline.serving.publish import publish
from driftline.v1 import recommendation_pb2 as pb


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_ranking_is_given_for_an_equal_key_of_about_the_same_time_only():
    kept = RecentRankings(users=2, close_ms=10)
    kept.put("u", "m", "key", 1000, "ranking")
    assert kept.get("u", "m", "key", 1010) == "ranking"
    assert kept.get("u", "m", "key", 1011) is None
    assert kept.get("u", "m", "other", 1000) is None
    assert kept.get("u", "n", "key", 1000) is None


def test_old_rankings_go_when_another_comes(clock):
    kept = RecentRankings(users=100, close_ms=1000)
    for user in ("a", "b", "c"):
        kept.put(user, "m", "key", 0, "ranking")
        clock[0] += 0.9
    assert len(kept._kept) == 3
    clock[0] += 0.1
    kept.put("d", "m", "key", 0, "ranking")
    assert list(kept._kept) == ["b", "c", "d"]
    clock[0] += 60
    kept.put("d", "m", "key", 0, "ranking")
    assert list(kept._kept) == ["d"]


def test_a_forgotten_user_s_ranking_goes_and_a_request_in_flight_brings_none_back(clock):
    kept = RecentRankings(users=10, close_ms=1000)
    for user in ("a", "b"):
        kept.put(user, "m", "key", 0, "ranking")
    kept.forget("a")
    assert list(kept._kept) == ["b"]
    kept.put("a", "m", "key", 0, "ranking")
    assert kept.get("a", "m", "key", 0) is None
    clock[0] += FORGOTTEN_S + 1
    kept.put("a", "m", "key", 0, "ranking")
    assert kept.get("a", "m", "key", 0) == "ranking"
    assert not kept._forgotten_s


def test_the_tombstone_of_a_user_s_profile_drops_the_user_s_ranking(running):
    rankings = running.server._service._recommender._rankings
    for user in ("user-1", "user-2"):
        running.stub.Recommend(pb.RecommendRequest(user_id=user))
    assert list(rankings._kept) == ["user-1", "user-2"]
    assert running.server.profiles.put(b"user-1", None)
    assert list(rankings._kept) == ["user-2"]


def test_the_engine_of_a_model_that_was_replaced_is_freed(running, settings, learnt):
    def ask(user, sequence):
        options = pb.SlateOptions(min_model_sequence=sequence)
        return running.stub.Recommend(pb.RecommendRequest(user_id=user, options=options))

    for user in ("user-1", "user-2"):
        ask(user, 1)
    retired = weakref.ref(running.server.models.served.scorer.engine)
    parts, meta = learnt
    publish(settings.serving.snapshots, parts, meta)
    wait_for(lambda: running.server.models.served.snapshot.sequence == 2)
    ask("user-3", 2)
    wait_for(lambda: gc.collect() >= 0 and retired() is None)
