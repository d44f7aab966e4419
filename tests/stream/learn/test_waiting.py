"""Which late events wait, how long, and that waiting changes no verdict on them or on others."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from driftline.graph.rows import Event
from driftline.stream.learn.waiting import AGAIN_PER_NEW, WaitingEvents
from driftline.stream.process.late import LateWindow, order_of

T0_MS = 1_600_000_000_000


def events(n: int, every_ms: int) -> list[Event]:
    """One a user and time, in order."""
    return [Event(f"u{n % 37}", f"i{n}", T0_MS + n * every_ms, "purchase", f"e{n}") for n in range(n)]


@dataclass
class Rows:
    """The verdicts of a processor, and what `StreamLearner.learn` lets wait, without models."""

    window: LateWindow
    waits: bool
    waiting: WaitingEvents = field(default_factory=WaitingEvents)
    applied: list[Event] = field(default_factory=list)
    offset: int = 0
    too_late: int = 0
    again: int = 0

    def apply(self, events: list[Event]) -> None:
        for event in events:
            event = event.changed(offset=self.offset)
            self.offset += 1
            if self.window.judge(event.timestamp_ms, event.offset) == "too late":
                self.too_late += 1
            else:
                later = self.window.take_after(order_of(event))
                run = sorted([event, *(event for undo in later for event in undo.events)], key=order_of)
                for one in run:
                    self.window.push([one], dict)
                self.applied.append(event)
        self.window.drop_old()

    def apply_late(self) -> None:
        late = self.waiting.take_all()
        if late:
            oldest_ms = min(event.timestamp_ms for event in late)
            self.again += sum(event.timestamp_ms > oldest_ms for event in self.applied)
            self.apply(late)

    def learn(self, event: Event) -> None:
        if self.waiting.must_go_before(event.timestamp_ms, 1, self.window):
            self.apply_late()
        if not (self.waits and self.waiting.takes([event], self.window)):
            self.apply([event])
            self.waiting.applied(1)
        if self.waiting.due:
            self.apply_late()


@pytest.mark.parametrize("ahead", [1, 20])
def test_after_events_ahead_of_all_others_rows_are_a_few_events_behind_and_no_more(ahead: int) -> None:
    rows = Rows(LateWindow(3_600_000, 16384), waits=True)
    first = [Event("fast", "i", T0_MS + 299_000 + n, "purchase", f"a{n}") for n in range(ahead)]
    for number, event in enumerate([*first, *events(300, 900)], 1):
        rows.learn(event)
        assert number - len(rows.applied) <= ahead
    assert rows.again <= (AGAIN_PER_NEW + 1) * number


def test_with_a_clock_that_runs_backwards_rows_are_a_share_of_the_log_behind_and_no_more() -> None:
    rows = Rows(LateWindow(3_600_000, 16384), waits=True)
    for number, event in enumerate(reversed(events(400, 5000)), 1):
        rows.learn(event)
        assert number - len(rows.applied) <= 1 + number / 2
    assert rows.again <= (AGAIN_PER_NEW + 1) * number


@pytest.mark.parametrize("late_events", [3, 8, 20, 60])
def test_no_event_is_too_late_because_others_wait_and_none_is_in_time_because_they_do(late_events: int) -> None:
    too_late = 0
    for seed in range(40):
        rng = random.Random(seed)
        late_ms, share = rng.choice([20_000, 60_000, 3_600_000]), rng.choice([0.1, 0.5, 0.9])
        by_ms = rng.choice([late_events * 1500, 90_000])
        arrives = {
            e.event_id: e.timestamp_ms + (rng.random() < share) * rng.randrange(by_ms) for e in events(150, 1000)
        }
        waiting, at_once = (Rows(LateWindow(late_ms, late_events), waits) for waits in (True, False))
        for event in sorted(events(150, 1000), key=lambda event: arrives[event.event_id]):
            waiting.learn(event)
            at_once.learn(event)
        waiting.apply_late()
        assert {e.event_id for e in waiting.applied} == {e.event_id for e in at_once.applied}, seed
        too_late += at_once.too_late
    assert too_late
