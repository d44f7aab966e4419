"""Profiles of a replay become valid as the live budget writes them."""

from __future__ import annotations

import numpy as np

from driftline.configs.settings import Profiles
from driftline.llm.refresh import RequestQueue
from driftline.model.artefact import Placebo, shuffled
from driftline.stream.replay.inputs import ItemTexts
from driftline.stream.replay.schedule import Asked, Schedule

SECOND = 1000
SETTINGS = Profiles(max_per_minute=2, batch=1, delay_ms=5 * SECOND, queue=10, min_interval_ms=0)


def test_what_the_budget_can_not_write_at_once_is_valid_later() -> None:
    schedule: Schedule[Asked] = Schedule(SETTINGS)
    for user in range(5):
        schedule.offer(Asked(f"u{user}", 1, 1_000_000))
    found = [schedule.newest(f"u{user}", 2_000_000) for user in range(5)]
    valid = [one[0] - 1_000_000 for one in found if one is not None]
    assert valid == [5 * SECOND, 30 * SECOND, 60 * SECOND, 90 * SECOND, 120 * SECOND]  # two a minute
    assert schedule.newest("u3", 1_000_000 + 89 * SECOND) is None


def test_the_queue_of_a_replay_drops_and_spaces_what_the_live_one_does() -> None:
    schedule: Schedule[Asked] = Schedule(SETTINGS.model_copy(update={"queue": 2, "min_interval_ms": 3_600_000}))
    for user in range(4):
        schedule.offer(Asked(f"u{user}", 1, 1_000_000))
    read = [schedule.newest(f"u{user}", 9_000_000) is not None for user in range(4)]
    assert read == [False, False, True, True]
    schedule.offer(Asked("u2", 2, 1_000_000 + 3_599_000))
    assert schedule.newest("u2", 9_000_000) == (1_005_000, Asked("u2", 1, 1_000_000))


def test_no_profile_is_valid_earlier_because_somebody_asked_often() -> None:
    rng = np.random.default_rng(0)
    asked = [Asked(f"u{rng.integers(9)}", n, int(t)) for n, t in enumerate(np.sort(rng.integers(0, 900_000, 60)))]
    seldom: Schedule[Asked] = Schedule(SETTINGS)
    often: Schedule[Asked] = Schedule(SETTINGS)
    for one in asked:
        for t_ms in range(one.as_of_ms - 3000, one.as_of_ms, 700):
            often.advance(t_ms)
        seldom.offer(one)
        often.offer(one)
    for user in range(9):
        for t_ms in range(0, 1_500_000, 10_000):
            assert seldom.newest(f"u{user}", t_ms) == often.newest(f"u{user}", t_ms)


def test_the_budget_of_a_minute_is_the_live_one() -> None:
    queue: RequestQueue[Asked] = RequestQueue(Profiles(max_per_minute=30, batch=100))
    schedule: Schedule[Asked] = Schedule(Profiles(max_per_minute=30, batch=100, delay_ms=0))
    for n in range(200):
        queue.offer(Asked(f"u{n}", 1, 0))
        schedule.offer(Asked(f"u{n}", 1, 0))
    live = sum(len(queue.take(t_s)) for t_s in range(121))
    replayed = sum(schedule.newest(f"u{n}", 120_001) is not None for n in range(200))
    assert live == replayed == 90


def test_a_placebo_is_what_was_written_before_for_somebody_else_and_each_is_used_once() -> None:
    schedule: Schedule[Asked] = Schedule(SETTINGS)
    asked = [Asked(f"u{n % 5}", 1 + n // 5, 1_000_000 + n * 60 * SECOND) for n in range(20)]
    for one in asked:
        schedule.offer(one)
    schedule.advance(1 << 50)
    others = [schedule.before(one) for one in asked]
    assert others == [None, *asked[:-1]]
    twice = Asked("u4", 9, 10_000_000)
    schedule.offer(twice)  # the user of the one before
    schedule.advance(1 << 51)
    assert schedule.before(twice) == asked[-2]


def test_a_placebo_of_texts_gives_each_item_that_of_another_one() -> None:
    texts = {f"i{n}": np.full(3, n, np.float32) for n in range(50)}
    placebo = Placebo(ItemTexts(texts), shuffled(list(texts), 0).get)
    assert placebo.at("i50", 0) is None
    other = {name: vector for name in texts if (vector := placebo.at(name, 0)) is not None}
    assert set(other) == set(texts)
    assert sorted(float(vector[0]) for vector in other.values()) == [float(n) for n in range(50)]
    assert not any(other[name] is texts[name] for name in texts)
