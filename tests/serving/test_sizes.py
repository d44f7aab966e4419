"""No answer is larger than what gRPC clients of every language take by default: 4 MiB."""

from __future__ import annotations

import grpc
import pytest
from tests.serving.test_server import recommend

from driftline.serving import sizes
from driftline.serving.arrays import item_part, unpack_strings
from driftline.serving.checks import MAX_BATCH_ITEMS, MAX_HISTORY, MAX_K, MAX_USERS
from driftline.serving.publish import publish
from driftline.serving.server import Server
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc

LONG = "\N{SNOWMAN}" * 500


@pytest.fixture
def wordy(settings, worker, learnt):
    """A server whose items have titles that are far too long, and a channel of a client that sets nothing."""
    parts, meta = learnt
    ids = unpack_strings(parts["items"], "id")
    publish(settings.serving.snapshots, {**parts, "items": item_part(ids, [LONG] * len(ids))}, meta)
    with Server(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield server, channel


def test_the_largest_batch_that_may_be_asked_reaches_a_default_client_shortened_and_says_so(wordy):
    _, channel = wordy
    request = pb.RecommendBatchRequest(user_ids=["user-1"] * MAX_USERS, options=pb.SlateOptions(k=100))
    answer = pb_grpc.RecommendationServiceStub(channel).RecommendBatch(request)
    assert 2**21 < answer.ByteSize() <= 2**22
    whole = recommend(channel).slate
    for one in answer.user_slates:
        assert 10 < len(one.slate.item_ids) < 60
        assert "shortened" in one.provenance.reasons
        assert one.slate.item_ids[:10] == whole.item_ids[:10]
        assert len(one.slate.item_ids) == len(one.slate.titles) == len(one.slate.scores) == len(one.slate.item_reasons)


def test_what_fits_is_whole_and_says_nothing(wordy):
    _, channel = wordy
    answer = pb_grpc.RecommendationServiceStub(channel).Recommend(
        pb.RecommendRequest(user_id="user-1", options=pb.SlateOptions(k=MAX_K))
    )
    assert len(answer.slate.item_ids) == 60
    assert not answer.provenance.reasons
    assert set(answer.slate.titles) == {LONG[:199] + "…"}


def test_a_batch_of_more_items_than_fit_is_refused_with_the_two_ways_out(running):
    users = [f"user-{n}" for n in range(MAX_USERS)]
    with pytest.raises(grpc.RpcError, match=r"options.k: got 1000 .* set k to 100, or ask for 25 users") as caught:
        running.stub.RecommendBatch(pb.RecommendBatchRequest(user_ids=users, options=pb.SlateOptions(k=MAX_K)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    most = pb.RecommendBatchRequest(user_ids=users[: MAX_BATCH_ITEMS // MAX_K], options=pb.SlateOptions(k=MAX_K))
    assert len(running.stub.RecommendBatch(most).user_slates) == 25


@pytest.mark.parametrize("id_bytes", [6, 256])
@pytest.mark.parametrize("title", ["", LONG])
def test_the_longest_history_fits_with_its_newest_events(id_bytes, title):
    ids, n = [str(k).zfill(id_bytes) for k in range(MAX_HISTORY)], MAX_HISTORY
    history = pb.History(
        item_ids=ids,
        titles=[sizes.short_title(title)] * n,
        event_times_ms=[2**41] * n,
        actions=["a" * 64] * n,
        values=[1.0] * n,
        prices=[2.0] * n,
        action_weights=[3.0] * n,
        group_keys=[2**63] * n,
    )
    state = pb.UserState(user_id="u", history=history, memory=[0.5] * 512)
    assert sizes.fit_state(state)
    assert 0.85 * 2**22 < state.ByteSize() < 2**22
    kept = len(state.history.item_ids)
    assert list(state.history.item_ids) == ids[:kept]
    assert {len(getattr(state.history, field.name)) for field in history.DESCRIPTOR.fields} == {kept}
    assert not sizes.fit_state(state)
