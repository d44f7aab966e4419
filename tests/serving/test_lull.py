"""Looks at a topic become rarer while nothing comes, and frequent again with the first record."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from driftline.serving import follower
from driftline.serving.follower import Lull
from driftline.stream.kafka import reading
from driftline.stream.kafka.reading import polled, reads_on


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now_s, self.slept = 100.0, list[float]()

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (follower, reading):
        monkeypatch.setattr(module, "time", made)
    return made


def test_a_wait_is_a_tenth_of_the_silence_within_bounds(clock: Clock) -> None:
    lull = Lull(0.1, 0.5)
    assert lull.wait_s == 0.1
    clock.now_s += 3
    assert lull.wait_s == pytest.approx(0.3)
    clock.now_s += 300
    assert lull.wait_s == 0.5
    lull.end()
    assert lull.wait_s == 0.1


def test_an_idle_reader_asks_rarely_and_at_once_again_when_something_comes(clock: Clock) -> None:
    come: list[dict[str, list[Any]]] = []
    asked: list[float] = []

    def poll(timeout_ms: int, max_records: int | None) -> dict[str, list[Any]]:
        asked.append(clock.now_s)
        return come.pop() if come else {}

    reader, lull = SimpleNamespace(poll=poll), reads_on()
    while clock.now_s < 160:
        assert polled(reader, 100, lull=lull) == {}
    assert sum(second < 101 for second in asked) > 20
    assert sum(150 <= second < 160 for second in asked) <= 101
    assert max(clock.slept) <= reading.LONGEST_PAUSE_S
    come.append({"place": ["record"]})
    before = clock.now_s
    assert polled(reader, 100, lull=lull) == {"place": ["record"]}
    assert clock.now_s == before
    clock.slept.clear()
    polled(reader, 100, lull=lull)
    assert clock.slept[0] == reading.PAUSE_S
