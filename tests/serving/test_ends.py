"""How far answers are behind: ends that a real broker tells, against a real server and worker."""

from __future__ import annotations

import io
import time

import grpc
import pytest
from rich.console import Console
from tests.serving.conftest import Running, shop_events

from driftline.serving import show
from driftline.serving.ends import Ends
from driftline.serving.server import Server
from driftline.serving.state_reader import StoredUser
from driftline.v1 import recommendation_pb2 as pb

LOG = len(shop_events())


def shown(renderable):
    out = io.StringIO()
    Console(file=out, width=160).print(renderable)
    return out.getvalue()


def test_what_is_not_applied_is_counted_from_the_first_record_that_is_there():
    ends = Ends()
    assert ends.pending(StoredUser(None)) == ends.pending(StoredUser(None, 0, 5)) == ends.after({}) == -1
    ends.tell({0: (100, 150), 1: (0, 30)})
    assert ends.pending(StoredUser(None)) == 80
    assert ends.pending(StoredUser(None, 0, 0)) == 50
    assert ends.pending(StoredUser(None, 0, 120)) == 30
    assert ends.pending(StoredUser(None, 1, 31)) == 0
    assert ends.pending(StoredUser(None, 2, 0)) == -1
    assert ends.after({0: 140, 1: 30}) == 10


def test_a_state_that_was_complete_since_the_end_was_reached_is_behind_by_nothing(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ends = Ends()
    ends.tell({0: (0, 10)})
    now[0] += 3
    ends.tell({0: (0, 10)})
    assert ends.pending(StoredUser(None, 0, 9, state_age_ms=4000)) == 1, "complete before the last record came"
    assert ends.pending(StoredUser(None, 0, 9, state_age_ms=1000)) == 0, "the last offset is no record"
    ends.tell({0: (0, 12)})
    assert ends.pending(StoredUser(None, 0, 9, state_age_ms=1000)) == 3
    now[0] += 60
    assert ends.pending(StoredUser(None, 0, 9)) == -1, "the broker has said nothing for a minute"


def test_answers_say_how_many_events_state_and_model_are_behind(running):
    ends = running.server._ends
    ends.tell({0: (0, LOG + 50_211)})
    state = running.stub.GetUserState(pb.GetUserStateRequest(user_id="nobody"))
    slate = running.stub.Recommend(pb.RecommendRequest(user_id="user-3"))
    info = running.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert [one.provenance.pending_events for one in (state, slate, info)] == [50_211, 50_211, -1]
    assert slate.provenance.model_pending_events == info.provenance.model_pending_events == 50_211
    for renderable in (show.user_state(state), show.slate(slate)):
        assert "50,211 events are not applied yet; the answer is as of 2023-11-" in shown(renderable)
    assert "no event applied yet" in shown(show.user_state(state))
    assert "50,211" in shown(show.model_info(info))
    with pytest.raises(grpc.RpcError, match="asked for 90000; 50,211 events are not applied yet; try again in"):
        running.stub.GetUserState(pb.GetUserStateRequest(user_id="user-3", min_user_state_version=90_000))
    ends.tell({0: (0, LOG)})
    state = running.stub.GetUserState(pb.GetUserStateRequest(user_id="nobody"))
    assert state.provenance.pending_events == 0
    assert "not applied" not in shown(show.user_state(state))
    assert "no event yet" in shown(show.user_state(state))


def test_an_item_without_a_title_is_called_so_beside_those_that_have_one():
    def slate(*titles):
        items = pb.Slate(item_ids=["lamp", "ghost"], titles=titles, scores=[2, 1])
        return shown(show.slate(pb.RecommendResponse(slate=items)))

    assert [line for line in slate("Lamp", "").splitlines() if "ghost" in line and "without a title" in line]
    assert "without a title" not in slate("", "") + slate("Lamp", "Ghost")
    state = pb.UserState(known=True, user_id="u")
    history = {"item_ids": ["lamp", "ghost"], "titles": ["Lamp", ""], "event_times_ms": [2, 1], "actions": ["play"] * 2}
    state.history.MergeFrom(pb.History(**history, values=[1, 1], prices=[1, 1]))
    told = shown(show.user_state(pb.GetUserStateResponse(user_state=state))).splitlines()
    assert [line for line in told if "ghost" in line and "without a title" in line]


def test_an_action_that_is_not_configured_is_called_that_with_its_code_where_it_can_be_but_one():
    def told(*codes):
        state = pb.UserState(known=True, user_id="u")
        both = {"item_ids": ["a", "b"], "titles": ["A", "B"], "actions": ["", "play"]}
        state.history.MergeFrom(pb.History(**both, event_times_ms=[2, 1], values=[1, 1], prices=[1, 1]))
        state.counters.actions.add(action="play", action_code=7, events=1)
        for code in codes:
            state.counters.actions.add(action_code=code, events=1)
        return shown(show.user_state(pb.GetUserStateResponse(user_state=state))).splitlines()

    one = told(0xE74812EB)
    assert "1 play, 1 not in the configuration (e74812eb)" in one[1]
    assert [line for line in one if " A " in line and "not in the configuration (e74812eb)" in line]
    several = told(0xE74812EB, 5)
    assert "1 not in the configuration (e74812eb), 1 not in the configuration (00000005)" in several[1]
    assert [line for line in several if " A " in line and "not in the configuration │" in line]


def test_a_service_without_state_says_how_many_events_wait(settings):
    with Server(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        server._ends.tell({0: (0, 7), 1: (2, 5)})
        with pytest.raises(grpc.RpcError, match="from events; 10 events are not applied yet; try again in"):
            Running(server, channel).stub.Recommend(pb.RecommendRequest(user_id="u"))
