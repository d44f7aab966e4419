"""The context of a request: from the client to the ranking, and what is told of a field that no model reads."""

from __future__ import annotations

from dataclasses import replace

import grpc
import numpy as np
import pytest
from tests.serving.conftest import START_MS, shop_events, small_settings

from driftline.client import Client, InvalidRequest
from driftline.configs.settings import Settings
from driftline.graph.view import view_of
from driftline.serving.arrays import item_part
from driftline.serving.engine_scorer import engine_builder
from driftline.serving.publish import publish
from driftline.serving.server import Server
from driftline.serving.snapshot import Meta, open_snapshot
from driftline.stream.learn.learner import StreamLearner, group_of
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc

NOW_MS = START_MS + 200 * 3_600_000


@pytest.fixture
def settings(tmp_path) -> Settings:
    base = small_settings(tmp_path).model_dump()
    base["signals"] |= {"context": ["device"]}
    base["model"] |= {"backbone": "off"}
    base["graph"] |= {"weights": "off"}
    return Settings.model_validate(base)


@pytest.fixture
def learner(settings) -> StreamLearner:
    """Has learnt the shop, in which the first items of the catalogue are taken on phones."""
    learner = StreamLearner(settings)
    groups = {}
    for event in shop_events():
        device = "phone" if int(event.item_id.split("-")[1]) < 30 else "desk"
        groups.setdefault(event.group_id, []).append(event.changed(extra={"device": device}))
    for events in groups.values():
        group_context = (events[0].extra["device"],)
        view = learner.view(events[0].user_id, events[0].timestamp_ms, group_context)
        slate = learner.slate(view, events[0].timestamp_ms)
        learner.add_items(list(dict.fromkeys(event.item_id for event in events)))
        group = group_of(events, learner.table, settings)
        assert group.context == group_context
        learner.learn(group, events, view, slate)
    return learner


@pytest.fixture
def served(settings, learner, worker):
    parts = {"engine": dict(learner.engine.arrays(rehearsal=False)), "items": item_part(learner.table.ids)}
    publish(settings.serving.snapshots, parts, Meta(extra={"plugs": []}))
    with Server(settings) as server:
        yield server


@pytest.fixture
def service(served):
    with Client(f"127.0.0.1:{served.port}") as client:
        yield client


def test_a_request_with_a_context_gets_the_ranking_that_training_gives_it(settings, learner, service):
    for device in ("phone", "desk"):
        answer = service.recommend("stranger", k=10, at_ms=NOW_MS, context={"device": device})
        slate = learner.slate(learner.view("stranger", NOW_MS, (device,)), NOW_MS)
        items, scores = slate.top(10)
        assert list(answer.slate.item_ids) == [learner.table.ids[item] for item in items]
        np.testing.assert_allclose(answer.slate.scores, scores, rtol=1e-5)
        assert "unknown_context" not in answer.provenance.reasons
    snapshot = open_snapshot(settings.serving.snapshots)
    scorer = engine_builder(settings)(snapshot)
    view = replace(view_of(None, scorer.table, "stranger"), context=("phone",))
    trained = learner.slate(learner.view("stranger", NOW_MS, ("phone",)), NOW_MS)
    np.testing.assert_allclose(scorer.engine.slate(view, NOW_MS).features, trained.features, rtol=1e-5, atol=1e-6)


def test_another_context_is_another_ranking_also_from_the_cache_and_in_a_batch(service):
    def scores(**options):
        return list(service.recommend("user-3", k=5, at_ms=NOW_MS, **options).slate.scores)

    phone, desk, none = (scores(context=given) for given in ({"device": "phone"}, {"device": "desk"}, None))
    assert phone != desk != none != phone
    assert scores(context={"device": "phone"}) == phone
    batch = service.recommend_batch(["user-3", "user-4"], k=5, at_ms=NOW_MS, context={"device": "desk"})
    assert list(batch.user_slates[0].slate.scores) == pytest.approx(desk)
    items = list(service.recommend("user-3", k=5, at_ms=NOW_MS, context={"device": "phone"}).slate.item_ids)
    scored = service.score("user-3", items, at_ms=NOW_MS, context={"device": "phone"})
    assert list(scored.scores) == pytest.approx(phone, rel=1e-5)


def test_a_field_that_the_model_does_not_read_is_named_and_changes_nothing(service):
    plain = service.recommend("user-3", k=5, at_ms=NOW_MS)
    asked = service.recommend("user-3", k=5, at_ms=NOW_MS, context={"colour": "red"})
    assert list(asked.slate.scores) == list(plain.slate.scores)
    assert "unknown_context" in asked.provenance.reasons
    assert "unknown_context" in service.score("user-3", ["item-1"], context={"colour": "red"}).provenance.reasons


def test_without_a_model_no_field_is_read(settings, worker):
    with Server(settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        asked = client.recommend("user-3", k=5, at_ms=NOW_MS, context={"device": "phone"})
        plain = client.recommend("user-3", k=5, at_ms=NOW_MS)
    assert list(asked.provenance.reasons) == [*plain.provenance.reasons, "unknown_context"]
    assert "no_snapshot" in plain.provenance.reasons
    assert list(asked.slate.item_ids) == list(plain.slate.item_ids)


def test_a_context_out_of_bounds_is_refused_field_by_field(served, service):
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        many = {f"f{n}": "x" for n in range(17)}
        for given, words in ((many, "got 17 fields, expected 16 at most"), ({"device": "x" * 257}, "got 257 bytes")):
            with pytest.raises(grpc.RpcError) as refused:
                stub.Recommend(pb.RecommendRequest(user_id="u", options=pb.SlateOptions(context=given)))
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert words in refused.value.details()
    with pytest.raises(InvalidRequest, match=r"context is .*expected text by name"):
        service.recommend("user-3", context={"device": 4})
