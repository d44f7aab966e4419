"""Which snapshot serves: hot swap under load, refusals, and what answers while there is none."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from dataclasses import replace

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from driftline.configs.errors import SnapshotError
from driftline.graph.rows import Event
from driftline.serving import models as models_module
from driftline.serving import popular as popular_module
from driftline.serving.engine_scorer import EngineScorer
from driftline.serving.publish import publish, release, rollback
from driftline.serving.scorer import ScoredCandidates
from driftline.serving.server import Server
from driftline.serving.snapshot import LEVEL
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def served_version(server):
    return server.models.served.snapshot.version


def test_a_swap_with_requests_in_flight_fails_none_and_mixes_no_versions(running, settings, learnt):
    stop, seen, errors = threading.Event(), Counter(), []

    def ask():
        request = pb.RecommendBatchRequest(user_ids=["user-1", "user-2", "nobody"])
        while not stop.is_set():
            try:
                answer = running.stub.RecommendBatch(request)
                versions = {one.provenance.model_version for one in answer.user_slates}
                assert len(versions) == 1
                seen[versions.pop()] += 1
            except (grpc.RpcError, AssertionError) as error:
                errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        version = publish(settings.serving.snapshots, *learnt)
        wait_for(lambda: served_version(running.server) == version)  # noqa: B023 - called in this round
        count = seen[version]
        wait_for(lambda: seen[version] > count + 3)  # noqa: B023
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(seen) == 4


def test_a_damaged_snapshot_is_refused_and_the_old_one_keeps_serving(running, settings, learnt, snapshot):
    publisher = settings.serving.snapshots.parent / "elsewhere"
    shutil.copytree(settings.serving.snapshots, publisher)
    broken = publish(publisher, *learnt)
    file = publisher / broken / "engine.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    shutil.copytree(publisher / broken, settings.serving.snapshots / broken)
    shutil.copy(publisher / "CURRENT", settings.serving.snapshots / "CURRENT")
    wait_for(lambda: running.server.models.refused)
    info = running.stub.GetModelInfo(pb.GetModelInfoRequest())
    answer = running.stub.Recommend(pb.RecommendRequest(user_id="user-1"))
    assert "damaged" in info.refused_reason
    assert info.provenance.model_version == answer.provenance.model_version == snapshot
    good = publish(settings.serving.snapshots, *learnt)
    wait_for(lambda: served_version(running.server) == good)
    assert running.stub.GetModelInfo(pb.GetModelInfoRequest()).refused_reason == ""


def test_a_snapshot_whose_metrics_fell_is_refused(running, settings, learnt, snapshot):
    parts, meta = learnt
    publish(settings.serving.snapshots, parts, replace(meta, metrics={"ndcg@10": 0.05}))
    wait_for(lambda: running.server.models.refused)
    assert "ndcg@10 fell from 0.2000 to 0.0500" in running.server.models.refused
    assert served_version(running.server) == snapshot


def test_a_snapshot_that_no_engine_can_be_built_from_is_refused(running, settings, learnt, snapshot):
    parts, meta = learnt
    publish(settings.serving.snapshots, {"items": parts["items"], "engine": {}}, meta)
    wait_for(lambda: running.server.models.refused)
    assert "can't be built into a model" in running.server.models.refused
    assert served_version(running.server) == snapshot


def test_a_rollback_is_served_and_held(running, settings, learnt, snapshot):
    second = publish(settings.serving.snapshots, *learnt)
    wait_for(lambda: served_version(running.server) == second)
    rollback(settings.serving.snapshots, snapshot)
    wait_for(lambda: served_version(running.server) == snapshot)
    third = publish(settings.serving.snapshots, *learnt)
    time.sleep(0.3)
    assert served_version(running.server) == snapshot
    assert running.stub.GetModelInfo(pb.GetModelInfoRequest()).held
    release(settings.serving.snapshots)
    wait_for(lambda: served_version(running.server) == third)
    assert not running.stub.GetModelInfo(pb.GetModelInfoRequest()).held


def test_a_server_that_starts_on_a_damaged_snapshot_serves_the_one_before(settings, worker, learnt, snapshot):
    broken = publish(settings.serving.snapshots, *learnt)
    (settings.serving.snapshots / broken / "items.safetensors").unlink()
    with Server(settings) as server:
        assert served_version(server) == snapshot
        assert "items.safetensors is missing" in server.models.refused


def test_without_a_snapshot_popularity_answers_as_fallback(settings, worker, learnt):
    with Server(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        answer = stub.Recommend(pb.RecommendRequest(user_id="user-3"))
        assert answer.provenance.served_from == pb.SERVED_FROM_FALLBACK
        assert list(answer.provenance.reasons) == ["no_snapshot"]
        assert answer.provenance.model_version == ""
        assert answer.provenance.user_state_version > 0
        assert len(answer.slate.item_ids) == 10
        repeat = stub.Recommend(
            pb.RecommendRequest(user_id="user-3", options=pb.SlateOptions(list=pb.SLATE_LIST_REPEAT, k=100))
        )
        own = stub.GetUserState(pb.GetUserStateRequest(user_id="user-3")).user_state.history.item_ids
        assert set(repeat.slate.item_ids) == set(own)
        with pytest.raises(grpc.RpcError) as caught:
            stub.SimilarItems(pb.SimilarItemsRequest(item_id="item-1"))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        version = publish(settings.serving.snapshots, *learnt)
        wait_for(lambda: server.models.served is not None)
        assert stub.Recommend(pb.RecommendRequest(user_id="user-3")).provenance.model_version == version


def test_with_neither_state_nor_snapshot_recommend_is_unavailable_and_the_state_is_cold(settings):
    with Server(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        state = stub.GetUserState(pb.GetUserStateRequest(user_id="user-3"))
        assert not state.user_state.known
        assert state.provenance.served_from == pb.SERVED_FROM_FALLBACK
        assert list(state.provenance.reasons) == ["no_state", "cold_start"]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Recommend(pb.RecommendRequest(user_id="user-3"))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        details = rpc_status.from_call(caught.value).details
        assert [one.TypeName() for one in details] == [error_details_pb2.RetryInfo.DESCRIPTOR.full_name]


def test_a_model_that_fails_on_a_request_falls_back_to_popularity(running, monkeypatch):
    def fail(view, now_ms):
        raise FloatingPointError("overflow")

    monkeypatch.setattr(running.server.models.served.scorer, "rank", fail)
    answer = running.stub.Recommend(pb.RecommendRequest(user_id="user-3"))
    assert answer.provenance.served_from == pb.SERVED_FROM_FALLBACK
    assert list(answer.provenance.reasons) == ["model_error"]
    assert len(answer.slate.item_ids) == 10


def test_a_model_that_fails_on_one_user_of_a_batch_answers_the_others(running, monkeypatch):
    engine = running.server.models.served.scorer.engine
    score = engine._slate

    def fail(view, *given):
        if view.user_id == "user-3":
            raise FloatingPointError("overflow")
        return score(view, *given)

    monkeypatch.setattr(engine, "_slate", fail)
    answer = running.stub.RecommendBatch(pb.RecommendBatchRequest(user_ids=["user-1", "user-3", "user-5"]))
    reasons = [list(one.provenance.reasons) for one in answer.user_slates]
    assert reasons == [[], ["model_error"], []]
    assert all(len(one.slate.item_ids) == 10 for one in answer.user_slates)


def test_popularity_that_is_read_anew_keeps_no_request_waiting(running, monkeypatch):
    state, entered, go_on = running.server.state, threading.Event(), threading.Event()

    def slow() -> list[tuple[str, float]]:
        entered.set()
        assert go_on.wait(30)
        return [("item-7", 2.0), ("item-3", 1.0)]

    monkeypatch.setattr(running.server.models.served.scorer, "rank", lambda view, now_ms: 1 / 0)
    request = pb.RecommendRequest(user_id="user-3")
    first = running.stub.Recommend(request)
    monkeypatch.setattr(state, "popular", slow)
    monkeypatch.setattr(popular_module, "FRESH_S", 0.0)
    assert running.stub.Recommend(request, timeout=30).slate == first.slate
    assert entered.wait(30)
    assert running.stub.Recommend(request, timeout=30).slate == first.slate  # the reading goes on all the while
    go_on.set()
    wait_for(lambda: running.stub.Recommend(request).slate.item_ids[:2] == ["item-7", "item-3"])
    monkeypatch.setattr(state, "popular", lambda: 1 / 0)
    for _ in range(3):
        assert running.stub.Recommend(request).slate.item_ids[:2] == ["item-7", "item-3"]


def test_a_model_that_knows_nothing_new_leaves_the_novel_list_to_popularity(running, worker, monkeypatch):
    scorer, stub = running.server.models.served.scorer, running.stub
    own = np.isin(np.arange(len(scorer.table)), [scorer.table.find(item) for item in history(stub, "user-3")])

    def only_own(view, now_ms):
        items = np.flatnonzero(own).astype(np.int32)
        scores = {which: np.zeros(len(items), np.float32) for which in ("overall", "novel", "repeat")}
        return ScoredCandidates(items, scores, lambda places: [() for _ in places])

    monkeypatch.setattr(scorer, "rank", only_own)
    novel = pb.RecommendRequest(user_id="user-3", options=pb.SlateOptions(list=pb.SLATE_LIST_NOVEL))
    answer = stub.Recommend(novel)
    assert (list(answer.slate.item_ids), list(answer.provenance.reasons)) == ([], [])
    now_ms = worker.processor.window.watermark_ms
    worker.apply([Event("user-4", f"unknown-{n}", now_ms, "purchase") for n in range(3)])
    monkeypatch.setattr(popular_module, "FRESH_S", 0.0)
    wait_for(lambda: list(stub.Recommend(novel).provenance.reasons) == ["nothing_new"])
    answer = stub.Recommend(novel)
    assert answer.provenance.served_from == pb.SERVED_FROM_FALLBACK
    assert set(answer.slate.item_ids) == {"unknown-0", "unknown-1", "unknown-2"}  # what it knows, it left out
    assert stub.Recommend(pb.RecommendRequest(user_id="user-3")).provenance.served_from != pb.SERVED_FROM_FALLBACK


def history(stub, user_id):
    return list(stub.GetUserState(pb.GetUserStateRequest(user_id=user_id)).user_state.history.item_ids)


def test_whatever_a_poll_meets_the_slot_goes_on_and_serves_the_next_snapshot(
    running, settings, learnt, snapshot, monkeypatch
):
    failures = [RuntimeError("surprise"), PermissionError(13, "Permission denied")]

    def fail(root):
        raise failures[0]

    monkeypatch.setattr(models_module, "current", fail)
    wait_for(lambda: "surprise" in running.server.models.refused)
    failures.reverse()
    wait_for(lambda: "Permission denied" in running.server.models.refused)
    monkeypatch.undo()
    good = publish(settings.serving.snapshots, *learnt)
    wait_for(lambda: served_version(running.server) == good)
    wait_for(lambda: running.server.models.refused == "")


def test_a_snapshot_with_item_texts_that_are_not_utf8_is_refused_and_the_next_one_served(
    running, settings, learnt, snapshot
):
    parts, meta = learnt
    items = dict(parts["items"])
    items["domain.utf8"] = np.full_like(items["domain.utf8"], 255)
    publish(settings.serving.snapshots, {**parts, "items": items}, meta)
    wait_for(lambda: "can't be built into a model" in running.server.models.refused)
    assert served_version(running.server) == snapshot
    good = publish(settings.serving.snapshots, *learnt)
    wait_for(lambda: served_version(running.server) == good)


def test_a_snapshot_that_can_not_be_read_now_is_tried_again(running, settings, learnt, snapshot, monkeypatch):
    def fail(root, version, verified):
        raise SnapshotError("can't be read") from OSError(24, "Too many open files")

    monkeypatch.setattr(models_module, "open_snapshot", fail)
    second = publish(settings.serving.snapshots, *learnt)
    wait_for(lambda: running.server.models.refused == "can't be read")
    monkeypatch.undo()
    wait_for(lambda: served_version(running.server) == second)


def test_a_level_that_the_trainer_took_as_normal_is_served_although_it_is_lower(running, settings, learnt, snapshot):
    parts, meta = learnt
    fallen = replace(meta, metrics={"ndcg@10": 0.05}, extra={**meta.extra, LEVEL: 1})
    accepted = publish(settings.serving.snapshots, parts, fallen)
    wait_for(lambda: served_version(running.server) == accepted)


def test_what_is_kept_of_users_is_read_ahead_for_an_accepted_model_alone(running, settings, learnt, monkeypatch):
    warmed = []
    monkeypatch.setattr(EngineScorer, "warm", lambda self: warmed.append(self))
    accepted = publish(settings.serving.snapshots, *learnt)
    wait_for(lambda: served_version(running.server) == accepted)
    assert warmed == [running.server.models.served.scorer]
    with monkeypatch.context() as patch:
        patch.setattr(models_module, "_warm", lambda *_: 1 / 0)
        publish(settings.serving.snapshots, *learnt)
        wait_for(lambda: running.server.models.refused)
    assert warmed == [running.server.models.served.scorer]
    assert served_version(running.server) == accepted


def test_a_model_serves_whose_reading_ahead_fails(running, settings, learnt, monkeypatch):
    monkeypatch.setattr(EngineScorer, "warm", lambda self: 1 / 0)
    version = publish(settings.serving.snapshots, *learnt)
    wait_for(lambda: served_version(running.server) == version)
    assert running.stub.Recommend(pb.RecommendRequest(user_id="user-1")).slate.item_ids
