"""What a trainer learns while it is behind: a stream of its own, in which learning and counting take known times."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from driftline.configs.settings import Settings
from driftline.stream.learn.pace import CALM, EvenShare, Pace

MOST, LEAST = 5000, 0.1
ROWS = 16
"""Of a group."""


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.3])
def test_a_share_is_spread_evenly(share: float) -> None:
    one = EvenShare(share)
    taken = np.array([one.takes_next() for _ in range(1000)])
    assert taken.sum() == pytest.approx(1000 * share, abs=1)
    assert all(abs(part.sum() - 100 * share) <= 1 for part in np.split(taken, 10))


def test_a_share_that_changes_is_made_up_for_by_the_next_ones() -> None:
    one, owed, taken = EvenShare(), 0.0, 0
    for share in np.random.default_rng(0).random(2000):
        one.share = float(share)
        taken, owed = taken + one.takes_next(), owed + float(share)
        assert abs(taken - owed) <= 1


def test_a_trainer_that_lags_learns_the_groups_that_a_replay_of_the_same_share_learns() -> None:
    settings = Settings().trainer
    pace, one = Pace(settings.catch_up_events, settings.catch_up_share), EvenShare(settings.catch_up_share)
    assert [pace.takes_next(10**6) for _ in range(100)] == [one.takes_next() for _ in range(100)]


def played(
    arrived: Callable[[float], float], learn_s: float, count_s: float, seconds: float, first_s: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A trainer that reads 500 of the `arrived(now)` records at a time, and publishes for .3 s after every 2 s.

    Args:
        first_s: what the first group takes beyond.

    Returns:
        Time and lag at each read, and whether each group was learnt.
    """
    pace, now, taken, published = Pace(MOST, LEAST), 0.0, 0, 0.0
    times, lags, learnt = [], [], []
    while now < seconds:
        lag = int(arrived(now)) - taken
        pace.see(lag, taken, now)
        times.append(now)
        lags.append(lag)
        if lag < ROWS:
            now += 0.1
        for _ in range(min(lag, 500) // ROWS):
            taken, lag = taken + ROWS, lag - ROWS
            learnt.append(pace.takes_next(lag))
            now += (learn_s if learnt[-1] else count_s) + (first_s if len(learnt) == 1 else 0.0)
        if now - published > 2.0:
            published, now = now, now + 0.3
    return np.array(times), np.array(lags), np.array(learnt)


@pytest.mark.parametrize(("per_s", "median"), [(420, 500), (600, 500), (1200, 2000)])
def test_where_more_comes_than_can_be_learnt_the_backlog_stays_short_and_no_time_is_left_unused(
    per_s: float, median: int
) -> None:
    learn_s, count_s = 0.04, 0.004  # 400 records a second learnt, 4,000 counted
    times, lags, learnt = played(lambda now: per_s * now, learn_s, count_s, 600)
    settled = times > 120
    assert np.median(lags[settled]) < median
    assert np.percentile(lags[settled], 99) < 0.7 * MOST
    groups_s, free = per_s / ROWS, 2.0 / 2.3
    assert learnt[len(learnt) // 4 :].mean() > 0.9 * (free - groups_s * count_s) / (groups_s * (learn_s - count_s))


def test_who_keeps_up_learns_all_of_it_bursts_as_well() -> None:
    _, lags, learnt = played(lambda now: 100 * now + 4000 * (now // 200), 0.02, 0.003, 1000)
    assert lags.max() > 4000
    assert learnt.all()


def test_a_file_that_comes_at_once_is_learnt_whole_up_to_the_bound() -> None:
    _, _, learnt = played(lambda now: 4900.0, 0.05, 0.003, 100)
    assert len(learnt) == 4900 // ROWS
    assert learnt.all()


@pytest.mark.parametrize("first_s", [5.0, 60.0])
@pytest.mark.parametrize("records", [3000, 4900])
def test_a_file_is_learnt_whole_though_its_first_group_takes_long(records: int, first_s: float) -> None:
    _, _, learnt = played(lambda now: records, 0.05, 0.003, 100, first_s)
    assert len(learnt) == records // ROWS
    assert learnt.all()


def test_bursts_that_come_as_the_clock_ticks_are_learnt_whole_while_there_is_time() -> None:
    pace, now, taken, learnt = Pace(MOST, LEAST), 0.0, 0, []
    while now < 300:
        lag = 640 * (int(now / 0.5) + 1) - taken
        pace.see(lag, taken, now)
        for _ in range(lag // ROWS):  # 40 groups take .4 of .5 s
            learnt.append(pace.takes_next(lag))
            now, taken, lag = now + 0.01 * learnt[-1], taken + ROWS, lag - ROWS
        pace.see(lag, taken, now)  # the poll that finds nothing
        now = 0.5 * (int(now / 0.5) + 1)
    assert np.mean(learnt) > 0.99


def test_a_long_history_is_learnt_by_the_share_and_its_end_whole() -> None:
    _, lags, learnt = played(lambda now: 200_000.0, 0.02, 0.003, 600)
    assert lags[-1] < ROWS
    last = MOST // ROWS
    assert learnt[:-last].mean() == pytest.approx(LEAST, abs=0.01)
    assert learnt[-last:].all()


def test_who_waits_for_another_partition_learns_no_less_for_it() -> None:
    pace = Pace(MOST, LEAST)
    for second in range(30):
        pace.see(2000, 100, float(second))
    assert pace.share(2000) == 1.0


def test_the_share_comes_back_when_less_comes() -> None:
    times, lags, learnt = played(lambda now: 1200 * min(now, 100) + 50 * max(now - 100, 0), 0.04, 0.004, 300)
    assert lags[times > 150].max() < CALM * MOST
    assert learnt[-100:].all()
