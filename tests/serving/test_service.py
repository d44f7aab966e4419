"""The RPCs against a real server, a real RocksDB written by the processor, and a snapshot of a real engine."""

from __future__ import annotations

import math
import queue
import threading
import time

import grpc
import orjson
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tests.serving.conftest import HOUR_MS, Running
from tests.serving.test_models import wait_for

from driftline.graph.rows import Event, key64
from driftline.serving.arrays import item_part, unpack_strings
from driftline.serving.publish import publish
from driftline.serving.server import Server
from driftline.v1 import recommendation_pb2 as pb


def detail(error, kind):
    """The first detail of a kind in a rich status."""
    for packed in rpc_status.from_call(error).details:
        if packed.Is(kind.DESCRIPTOR):
            out = kind()
            packed.Unpack(out)
            return out
    return None


def test_the_state_of_a_user_holds_history_memory_freshness_and_counters(running, worker):
    row = worker.processor.user("user-3")
    answer = running.stub.GetUserState(pb.GetUserStateRequest(user_id="user-3", history_limit=4))
    state = answer.user_state
    events = row.events_array()[::-1]
    assert state.known
    assert state.domain == "home"
    assert list(state.history.event_times_ms) == events["t"][:4].tolist()
    assert state.history.item_ids[0].startswith("item-")
    assert state.history.titles[0] == f"Title of {state.history.item_ids[0]}"
    assert set(state.history.actions) == {"purchase"}
    assert set(state.history.values) == {2.0}
    assert state.history.prices[0] == events["price"][0]
    assert list(state.memory) == row.memory.tolist()
    assert state.counters.events == row.events == state.counters.history_events
    assert state.counters.actions[0].action == "purchase"
    assert state.freshness.last_event_ms == row.last_update_ms
    assert state.freshness.store_offset == worker.processor.next_offset
    assert 0 <= state.freshness.state_age_ms < 2000
    assert answer.provenance.user_state_version == row.version
    assert answer.provenance.watermark_ms == state.freshness.watermark_ms == worker.processor.window.watermark_ms
    assert answer.provenance.served_from == pb.SERVED_FROM_MODEL


def test_an_unknown_user_gets_an_empty_state_and_a_cold_start_slate(running):
    state = running.stub.GetUserState(pb.GetUserStateRequest(user_id="nobody"))
    slate = running.stub.Recommend(pb.RecommendRequest(user_id="nobody"))
    assert not state.user_state.known
    assert state.user_state.freshness.last_event_ms == -1
    assert list(slate.provenance.reasons) == ["cold_start"]
    assert len(slate.slate.item_ids) == 10


def test_a_row_that_ended_by_the_time_of_a_request_is_none(settings, worker, snapshot):
    row = worker.processor.user("user-3")
    limited = settings.model_copy(update={"state": settings.state.model_copy(update={"ttl_days": 2.0})})
    with Server(limited) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = Running(server, channel).stub
        for later_ms, reasons in ((0, []), (48 * HOUR_MS, []), (48 * HOUR_MS + 1, ["cold_start"])):
            options = pb.SlateOptions(request_time_ms=row.last_update_ms + later_ms)
            answer = stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options))
            assert list(answer.provenance.reasons) == reasons
            assert answer.slate.item_ids
        assert not stub.GetUserState(pb.GetUserStateRequest(user_id="user-3")).user_state.known


def test_a_slate_carries_version_watermark_reasons_and_titles(running, snapshot):
    answer = running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=pb.SlateOptions(k=7)))
    origin, slate = answer.provenance, answer.slate
    assert origin.model_version == snapshot
    assert origin.model_sequence == 1
    assert origin.served_from == pb.SERVED_FROM_MODEL
    assert origin.model_watermark_ms == origin.watermark_ms
    assert len(slate.item_ids) == len(slate.scores) == len(slate.titles) == len(slate.item_reasons) == 7
    assert list(slate.scores) == sorted(slate.scores, reverse=True)
    assert all(row.reasons for row in slate.item_reasons)


def test_novel_and_repeat_lists_split_the_users_past(running, worker):
    own = set(running.stub.GetUserState(pb.GetUserStateRequest(user_id="user-3")).user_state.history.item_ids)

    def ids(which):
        options = pb.SlateOptions(k=100, list=which)
        return set(running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options)).slate.item_ids)

    novel, repeat, overall = ids(pb.SLATE_LIST_NOVEL), ids(pb.SLATE_LIST_REPEAT), ids(pb.SLATE_LIST_OVERALL)
    assert repeat == own
    assert not novel & own
    assert overall == novel | repeat


def test_an_item_that_was_only_returned_is_neither_repeated_nor_shown_as_new(running, worker):
    def ids(which):
        options = pb.SlateOptions(k=100, list=which)
        return running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options)).slate.item_ids

    returned = ids(pb.SLATE_LIST_NOVEL)[0]
    worker.apply([Event("user-3", returned, worker.processor.window.watermark_ms, "return")])
    wait_for(lambda: returned in running.stub.GetUserState(state_of("user-3")).user_state.history.item_ids)
    for which in (pb.SLATE_LIST_NOVEL, pb.SLATE_LIST_REPEAT):
        assert returned not in ids(which)


def state_of(user_id):
    return pb.GetUserStateRequest(user_id=user_id)


def test_another_list_of_the_same_user_comes_from_the_cache_and_a_new_event_ends_it(running, worker):
    def ask(which):
        at_ms = worker.processor.window.watermark_ms + 1000
        options = pb.SlateOptions(list=which, request_time_ms=at_ms)
        return running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options))

    assert ask(pb.SLATE_LIST_OVERALL).provenance.served_from == pb.SERVED_FROM_MODEL
    assert ask(pb.SLATE_LIST_NOVEL).provenance.served_from == pb.SERVED_FROM_CACHE
    version = worker.processor.next_offset + 1
    worker.apply([Event("user-3", "item-50", worker.processor.window.watermark_ms, "purchase")])
    options = pb.SlateOptions(min_user_state_version=version, k=100, list=pb.SLATE_LIST_REPEAT)
    answer = retried(lambda: running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options)))
    assert answer.provenance.served_from == pb.SERVED_FROM_MODEL
    assert answer.provenance.user_state_version == version
    assert "item-50" in answer.slate.item_ids


@pytest.mark.parametrize("outcome", ["duplicate", "dead", "too late", "of another user", "of an unknown user"])
def test_waiting_for_an_offset_ends_whatever_became_of_its_event(running, worker, outcome):
    newest_ms = worker.processor.window.watermark_ms
    worker.apply([Event("user-3", "item-50", newest_ms, "purchase", "once")])
    event = {
        "duplicate": Event("user-3", "item-50", newest_ms, "purchase", "once"),
        "dead": b"{broken",
        "too late": Event("user-3", "item-50", newest_ms - 10**9, "purchase"),
        "of another user": Event("user-4", "item-50", newest_ms, "purchase"),
        "of an unknown user": b"{broken",
    }[outcome]
    user_id = "stranger" if outcome == "of an unknown user" else "user-3"
    version = worker.processor.next_offset + 1
    asked = {"min_user_state_version": version}
    calls = {
        "GetUserState": pb.GetUserStateRequest(user_id=user_id, **asked),
        "Recommend": pb.RecommendRequest(user_id=user_id, options=pb.SlateOptions(**asked)),
        "ScoreItems": pb.ScoreItemsRequest(user_id=user_id, item_ids=["item-1"], **asked),
    }
    for name, request in calls.items():
        with pytest.raises(grpc.RpcError, match=rf"is applied up to offset \d+, asked for {version};"):
            getattr(running.stub, name)(request)
    stream = running.stub.WatchUserState(pb.WatchUserStateRequest(user_id=user_id, **asked))
    worker.apply([event])
    for name, request in calls.items():
        retried(lambda: getattr(running.stub, name)(request))  # noqa: B023 - called in this round
    assert next(stream).user_state.freshness.store_offset >= version
    stream.cancel()


def test_a_version_that_an_answer_names_can_be_asked_for(running):
    version = running.stub.GetUserState(pb.GetUserStateRequest(user_id="user-3")).provenance.user_state_version
    assert version > 0
    running.stub.GetUserState(pb.GetUserStateRequest(user_id="user-3", min_user_state_version=version))


def retried(call, seconds=5.0):
    """Calls again while the answer is UNAVAILABLE, as RetryInfo says."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            retry = detail(error, error_details_pb2.RetryInfo)
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline or retry is None:
                raise
            time.sleep(min(0.05, retry.retry_delay.ToMilliseconds() / 1000))


def test_excluded_items_and_items_of_another_domain_are_left_out(running):
    def ids(**options):
        request = pb.RecommendRequest(user_id="user-3", options=pb.SlateOptions(k=1000, **options))
        return list(running.stub.Recommend(request).slate.item_ids)

    everything = ids()
    left_out = everything[:3]
    assert ids(excluded_item_ids=left_out) == everything[3:]
    assert set(ids(domain="home")) == set(everything)
    elsewhere = ids(domain="garden")
    assert elsewhere
    assert len(elsewhere) < len(everything)


def test_a_batch_answers_each_user_as_a_single_request_does(running, worker):
    at_ms = worker.processor.window.watermark_ms + 1
    options = pb.SlateOptions(k=5, request_time_ms=at_ms)
    users = ["user-1", "nobody", "user-1"]
    batch = running.stub.RecommendBatch(pb.RecommendBatchRequest(user_ids=users, options=options))
    assert [one.user_id for one in batch.user_slates] == users
    for one in batch.user_slates:
        single = running.stub.Recommend(pb.RecommendRequest(user_id=one.user_id, options=options))
        assert single.slate == one.slate


def test_scores_of_chosen_items_equal_those_of_the_slate(running, worker):
    at_ms = worker.processor.window.watermark_ms + 1
    options = pb.SlateOptions(k=20, request_time_ms=at_ms, list=pb.SLATE_LIST_NOVEL)
    slate = running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options)).slate
    ids = list(reversed(slate.item_ids))
    request = pb.ScoreItemsRequest(user_id="user-3", item_ids=ids, request_time_ms=at_ms, list=pb.SLATE_LIST_NOVEL)
    scores = running.stub.ScoreItems(request).scores
    assert list(scores) == pytest.approx(list(reversed(slate.scores)), abs=1e-5)


def test_similar_items_are_those_of_shared_baskets(running):
    slate = running.stub.SimilarItems(pb.SimilarItemsRequest(item_id="item-20", k=4)).slate
    assert set(slate.item_ids) <= {f"item-{n}" for n in range(15, 26)}
    assert "item-20" not in slate.item_ids
    assert list(slate.scores) == sorted(slate.scores, reverse=True)


def test_similar_items_say_why(running):
    slate = running.stub.SimilarItems(pb.SimilarItemsRequest(item_id="item-20", k=4)).slate
    assert [list(row.reasons) for row in slate.item_reasons] == [["often taken together"]] * 4


def test_an_item_that_is_not_available_is_never_recommended(running, settings, learnt):
    first = running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=pb.SlateOptions(k=1000))).slate
    gone = first.item_ids[0]
    parts, meta = learnt
    items = {key: array.copy() for key, array in parts["items"].items()}
    items["available"][unpack_strings(items, "id").index(gone)] = False
    publish(settings.serving.snapshots, {**parts, "items": items}, meta)
    options = pb.SlateOptions(k=1000, min_model_sequence=2)
    request = pb.RecommendRequest(user_id="user-3", options=options)
    answer = retried(lambda: running.stub.Recommend(request))
    assert list(answer.slate.item_ids) == [item for item in first.item_ids if item != gone]
    assert gone not in running.stub.SimilarItems(pb.SimilarItemsRequest(item_id="item-20", k=60)).slate.item_ids
    assert running.stub.ScoreItems(pb.ScoreItemsRequest(user_id="user-3", item_ids=[gone])).scores


def test_a_slate_of_popularity_beside_a_model_leaves_out_what_is_not_available_or_of_another_domain(
    running, settings, learnt, worker, monkeypatch
):
    parts, meta = learnt
    ids = unpack_strings(parts["items"], "id")
    items = item_part(ids, (), ["home" if n % 2 else "garden" for n in range(60)], [n > 3 for n in range(60)])
    publish(settings.serving.snapshots, {**parts, "items": items}, meta)
    wait_for(lambda: running.server.models.served.snapshot.sequence == 2)
    worker.apply([Event("user-4", "unheard-of", worker.processor.window.watermark_ms, "purchase")])
    wait_for(lambda: running.server.state.item_id(key64("unheard-of")))

    def fails(view, now_ms):
        raise RuntimeError("on purpose")

    monkeypatch.setattr(running.server.models.served.scorer, "rank", fails)

    def ask(**options):
        return running.stub.Recommend(
            pb.RecommendRequest(user_id="user-3", options=pb.SlateOptions(k=1000, min_model_sequence=2, **options))
        )

    assert "model_error" in ask().provenance.reasons
    assert set(ask().slate.item_ids) == {*ids[4:], "unheard-of"}
    assert set(ask(domain="garden").slate.item_ids) == {*ids[4::2], "unheard-of"}


def test_the_model_info_names_version_source_and_metrics(running, snapshot):
    info = running.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert info.provenance.model_version == snapshot
    assert [(one.name, one.value) for one in info.metrics] == [("ndcg@10", 0.2)]
    assert (info.source_offsets[0].topic, info.source_offsets[0].partition) == ("interactions", 0)
    assert info.items == 60
    assert [one.model_version for one in info.available_versions] == [snapshot]
    assert info.git_revision == "abc"


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        (lambda stub: stub.GetUserState(pb.GetUserStateRequest(history_limit=-1)), {"user_id", "history_limit"}),
        (
            lambda stub: stub.Recommend(
                pb.RecommendRequest(
                    user_id="x" * 300,
                    options=pb.SlateOptions(
                        k=1001,
                        list=9,
                        request_time_ms=1_700_000_000_000_000,
                        excluded_item_ids=[""],
                        domain="ä" * 129,
                    ),
                )
            ),
            {
                "user_id",
                "options.k",
                "options.list",
                "options.request_time_ms",
                "options.excluded_item_ids[0]",
                "options.domain",
            },
        ),
        (lambda stub: stub.RecommendBatch(pb.RecommendBatchRequest()), {"user_ids"}),
        (lambda stub: stub.ScoreItems(pb.ScoreItemsRequest(user_id="u")), {"item_ids"}),
        (lambda stub: stub.SimilarItems(pb.SimilarItemsRequest(k=-3, domain="x" * 257)), {"item_id", "k", "domain"}),
        (
            lambda stub: list(stub.WatchUserState(pb.WatchUserStateRequest(min_interval_ms=-1))),
            {"user_id", "min_interval_ms"},
        ),
    ],
)
def test_invalid_arguments_name_every_field(running, call, fields):
    with pytest.raises(grpc.RpcError) as caught:
        call(running.stub)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    violations = detail(caught.value, error_details_pb2.BadRequest).field_violations
    assert {one.field for one in violations} == fields
    assert all("expected" in one.description for one in violations)


def test_of_many_violations_the_first_are_told_and_the_others_counted(running):
    options = pb.SlateOptions(excluded_item_ids=[""] * 10_000)
    with pytest.raises(grpc.RpcError) as caught:
        running.stub.Recommend(pb.RecommendRequest(user_id="", options=options))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().endswith("; and 9981 more")
    fields = [one.field for one in detail(caught.value, error_details_pb2.BadRequest).field_violations]
    assert fields == ["user_id", *(f"options.excluded_item_ids[{n}]" for n in range(19))]


def test_an_unknown_item_is_not_found_by_name(running):
    with pytest.raises(grpc.RpcError) as caught:
        running.stub.SimilarItems(pb.SimilarItemsRequest(item_id="no-such"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert detail(caught.value, error_details_pb2.ResourceInfo).resource_name == "no-such"


def test_scores_of_known_items_are_given_and_the_unknown_ones_named(running):
    def ask(*item_ids):
        return running.stub.ScoreItems(pb.ScoreItemsRequest(user_id="user-1", item_ids=item_ids))

    mixed, known = ask("no-such", "item-1", "nor-this", "item-2", "no-such"), ask("item-1", "item-2")
    assert list(mixed.unknown_item_ids) == ["no-such", "nor-this"]
    assert [math.isnan(score) for score in mixed.scores] == [True, False, True, False, True]
    assert [mixed.scores[1], mixed.scores[3]] == pytest.approx(list(known.scores), abs=1e-5)
    assert "unknown_items" in mixed.provenance.reasons
    assert not known.unknown_item_ids
    assert not known.provenance.reasons
    nothing = ask("no-such")
    assert list(nothing.unknown_item_ids) == ["no-such"]
    assert [math.isnan(score) for score in nothing.scores] == [True]


def test_a_model_that_is_not_there_yet_is_unavailable_with_retry_info(running):
    options = pb.SlateOptions(min_model_sequence=2)
    with pytest.raises(grpc.RpcError) as caught:
        running.stub.Recommend(pb.RecommendRequest(user_id="user-1", options=options))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert detail(caught.value, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0


def test_a_request_before_the_newest_event_is_answered_as_of_that_event(running, worker):
    last_ms = worker.processor.user("user-3").last_update_ms
    options = pb.SlateOptions(request_time_ms=last_ms - 10_000)
    answer = running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options))
    assert answer.provenance.request_time_ms == last_ms
    assert list(answer.provenance.reasons) == ["as_of_newest_event"]
    state = running.stub.GetUserState(pb.GetUserStateRequest(user_id="user-3", request_time_ms=last_ms - 10_000))
    assert list(state.provenance.reasons) == ["as_of_newest_event"]
    assert list(running.stub.Recommend(pb.RecommendRequest(user_id="user-3")).provenance.reasons) == []


def test_a_request_years_after_the_last_event_is_answered(running):
    options = pb.SlateOptions(request_time_ms=2_200_000_000_000)
    answer = running.stub.Recommend(pb.RecommendRequest(user_id="user-3", options=options))
    assert answer.provenance.served_from == pb.SERVED_FROM_MODEL
    assert all(math.isfinite(score) for score in answer.slate.scores)


def test_a_profile_joins_from_its_valid_time_on(running, worker):
    now_ms = worker.processor.window.watermark_ms
    for version, valid_from_ms in ((1, now_ms - 10), (2, now_ms + 3_600_000)):
        record = {
            "user_id": "user-3",
            "text": f"Text {version}",
            "facets": {"interests": "lamps", "brands": "none"},
            "source": "template",
            "version": version,
            "valid_from_ms": valid_from_ms,
        }
        assert running.server.profiles.put(b"user-3", orjson.dumps(record))

    def ask(at_ms):
        return running.stub.GetUserState(pb.GetUserStateRequest(user_id="user-3", request_time_ms=at_ms))

    before, after = ask(now_ms), ask(now_ms + 3_600_000)
    assert before.user_state.profile.text == "Text 1"
    assert before.provenance.profile_version == 1
    assert after.user_state.profile.text == "Text 2"
    assert [(one.name, one.text) for one in after.user_state.profile.facets] == [
        ("interests", "lamps"),
        ("brands", "none"),
    ]
    assert after.user_state.profile.valid_from_ms == now_ms + 3_600_000


def test_a_watcher_sees_a_change_that_the_writer_commits(running, worker):
    stream = running.stub.WatchUserState(pb.WatchUserStateRequest(user_id="user-3", history_limit=1))
    seen: queue.Queue = queue.Queue()

    def read():
        try:
            for message in stream:
                seen.put(message)
        except grpc.RpcError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    first = seen.get(timeout=5)
    worker.apply([Event("user-4", "item-1", worker.processor.window.watermark_ms, "purchase")])
    worker.apply([Event("user-3", "item-9", worker.processor.window.watermark_ms, "view")])
    second = seen.get(timeout=5)
    stream.cancel()
    reader.join()
    assert seen.empty()
    assert second.user_state.counters.events == first.user_state.counters.events + 1
    assert second.user_state.history.item_ids[0] == "item-9"
    assert second.user_state.history.actions[0] == "view"


def test_a_watcher_that_left_gives_its_slot_back_within_its_interval(running):
    request = pb.WatchUserStateRequest(user_id="user-3", min_interval_ms=3_600_000)
    stream = running.stub.WatchUserState(request)
    assert next(stream).user_state.known
    time.sleep(0.3)  # until its thread waits
    stream.cancel()
    wait_for(lambda: running.server.metrics.watchers._value.get() == 0)


def test_a_watcher_hears_of_changes_no_more_often_than_its_interval(running, worker):
    stream = running.stub.WatchUserState(pb.WatchUserStateRequest(user_id="user-3", min_interval_ms=600))
    before = next(stream).user_state.counters.events
    started = time.monotonic()
    for item in ("item-1", "item-2"):
        worker.apply([Event("user-3", item, worker.processor.window.watermark_ms, "view")])
    after = next(stream).user_state.counters.events
    stream.cancel()
    assert after == before + 2
    assert time.monotonic() - started > 0.4
