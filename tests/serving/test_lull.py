"""Looks at a topic become rarer while nothing comes, and each brings what is there."""

from __future__ import annotations

from typing import Any

import pytest

from driftline.serving import lull as module
from driftline.serving.lull import Lull, look
from driftline.stream.kafka import reading
from driftline.stream.kafka.reading import LONGEST_PAUSE_S, PAUSE_S, of_a_follower, polled


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now_s, self.slept = 100.0, list[float]()

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class Reader:
    """A client whose poll sends a fetch; what has come by then is answered, for the next poll to find."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.come, self.polls = clock, list[float](), list[float]()
        self._answer: list[float] = []

    def poll(self, timeout_ms: int, max_records: int | None = None) -> dict[str, list[Any]]:
        self.polls.append(self.clock.now_s)
        found, self._answer = self._answer, [at for at in self.come if at <= self.clock.now_s]
        self.come = [at for at in self.come if at > self.clock.now_s]
        return {"place": list(found)} if found else {}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for each in (module, reading):
        monkeypatch.setattr(each, "time", made)
    return made


def test_a_wait_is_a_tenth_of_the_silence_within_bounds(clock: Clock) -> None:
    lull = Lull(0.1, 0.5)
    clock.now_s += 300  # what is done before the first wait is no silence
    assert lull.wait_s() == 0.1
    clock.now_s += 3
    assert lull.wait_s() == pytest.approx(0.3)
    clock.now_s += 300
    assert lull.wait_s() == 0.5
    lull.end()
    clock.now_s += 300
    assert lull.wait_s() == 0.1


def test_a_look_brings_what_came_before_it(clock: Clock) -> None:
    reader = Reader(clock)
    assert look(reader) == {}
    reader.come = [clock.now_s + 0.2]
    clock.now_s += 0.3
    assert look(reader) == {"place": [100.205]}


def test_an_idle_reader_looks_rarely_takes_what_comes_at_the_next_look_and_then_looks_often_again(clock: Clock) -> None:
    reader, lull = Reader(clock), of_a_follower()
    reader.come = [150.01, 190.003]
    late = []
    while clock.now_s < 200:
        for at in polled(reader, 100, lull=lull).get("place", []):
            late.append(clock.now_s - at)
            assert lull.wait_s() == PAUSE_S
    assert len(late) == 2
    assert max(late) <= LONGEST_PAUSE_S + 0.011
    assert max(clock.slept) == LONGEST_PAUSE_S
    looks = [at for at in reader.polls if 140 <= at < 150]
    assert len(looks) <= 2 * 10 / LONGEST_PAUSE_S
    often = [at for at in reader.polls if 150.2 <= at < 150.4]
    assert len(often) >= 8


def test_without_a_lull_the_last_look_is_at_the_end_of_the_time(clock: Clock) -> None:
    reader = Reader(clock)
    reader.come = [100.055]
    assert polled(reader, 100) == {"place": [100.055]}
    assert polled(reader, 100) == {}
    assert reader.polls[-1] >= clock.now_s - PAUSE_S
    before = clock.now_s
    assert polled(reader, 0, lull=of_a_follower()) == {}
    assert clock.now_s == before
