"""The stream that chaos sends is as troubled as it says, and its truth is what it says."""

from __future__ import annotations

from collections import Counter

import pytest

from driftline.configs.settings import Broker
from driftline.graph.rows import Event
from driftline.stream.chaos import feeder
from driftline.stream.chaos.oracle import Verdict
from driftline.stream.chaos.plan import Outcome, Plan
from driftline.stream.chaos.troubles import NONE, SLOW_CLOCK_MS, STEP_MS, Troubles, spaced, trouble
from driftline.stream.events.schema import InvalidEvent, parse_event

END_MS = 1_800_000_000_000
EVENTS = spaced([Event(f"u{n % 50}", f"i{n % 7}", 0, group_id="g") for n in range(20_000)], END_MS)


def ids(messages):
    for _, value in messages:
        try:
            yield parse_event(value).event_id
        except InvalidEvent:
            yield None


def test_events_get_ids_and_times_of_their_own_and_end_now() -> None:
    assert [e.timestamp_ms for e in EVENTS] == [END_MS - STEP_MS * n for n in reversed(range(20_000))]
    assert len({e.event_id for e in EVENTS}) == 20_000
    assert {e.group_id for e in EVENTS} == {None}


def test_without_troubles_the_stream_is_the_events_in_order() -> None:
    stream = trouble(EVENTS, NONE, 0)
    assert list(ids(stream.messages)) == [e.event_id for e in EVENTS]
    assert stream.letters == []


def test_shares_of_each_trouble_are_those_asked_for_and_every_event_is_there() -> None:
    stream = trouble(EVENTS, Troubles(), 1)
    times = Counter(ids(stream.messages))
    assert all(times[event.event_id] in (1, 2) for event in EVENTS)
    assert sum(times[event.event_id] == 2 for event in EVENTS) == pytest.approx(2000, rel=0.1)
    assert len(stream.letters) == len(set(stream.letters)) == 205
    at = {}
    for place, event_id in enumerate(ids(stream.messages)):
        at.setdefault(event_id, place)
    late = sum(at[e.event_id] - n > SLOW_CLOCK_MS / STEP_MS * 0.9 for n, e in enumerate(EVENTS[:10_000]))
    assert late == pytest.approx(1000, rel=0.15)


def test_a_seed_is_a_stream() -> None:
    assert trouble(EVENTS, Troubles(), 3).messages == trouble(EVENTS, Troubles(), 3).messages
    assert trouble(EVENTS, Troubles(), 3).messages != trouble(EVENTS, Troubles(), 4).messages


def test_poison_is_of_nine_kinds() -> None:
    letters = trouble(EVENTS, Troubles(fast=0), 1).letters[:9]
    reasons = []
    for _, value in letters:
        try:
            parse_event(value)
        except InvalidEvent as refusal:
            reasons.append(refusal.reason)
    assert len(reasons) == 9
    assert {"not_json", "not_an_object", "missing_field", "wrong_type", "too_large", "wrong_unit"} <= set(reasons)


def test_a_producer_that_fails_for_good_is_told_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "sender", None)  # no fault of a broker
    feed = feeder.Feed()
    feed.send(Broker(), "", [(b"key", b"value")], lambda: 1)
    assert not feed.done.is_set()
    with pytest.raises(TypeError):
        feed.check()


def test_a_run_whose_process_ended_of_itself_does_not_hold() -> None:
    verdict = Verdict(1, 0, 0, 0, True, True, True, 0, 0, 0, 0, (), "")
    outcome = Outcome(Plan(), verdict)
    assert outcome.holds
    outcome.unexplained.append("worker-0 ended with code 70: ...KeyError")
    assert not outcome.holds
    assert "worker-0 ended with code 70" in outcome.sentence()
