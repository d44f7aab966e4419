"""How far something is: a line that is renewed on a terminal, one a minute elsewhere, none where nothing waits."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import pytest

from driftline.stream.headway import Headway, Rate, duration


def told(to: io.TextIOBase, seconds: int, left_at_first: int, a_second: int = 10) -> Headway:
    headway = Headway("worker", "records", 1000.0, to)  # type: ignore[arg-type]
    for n in range(seconds + 1):
        done = min(left_at_first, a_second * n)
        headway.tell(done, left_at_first - done, now_s=1000.0 + n)
    return headway


def test_where_lines_stay_there_is_one_a_minute_and_one_at_the_end() -> None:
    to = io.StringIO()
    headway = told(to, 125, 12_000)
    assert headway.left_s == pytest.approx(1075)
    headway.tell(12_000, 0, now_s=2200.0)
    headway.tell(12_010, 0, now_s=2201.0)
    assert to.getvalue().splitlines() == [
        "worker: 10 records/s; 11,950 are left, about 20 min",
        "worker: 10 records/s; 11,350 are left, about 19 min",
        "worker: 10 records/s; 10,750 are left, about 18 min",
        "worker: nothing is left, 12,000 records so far",
    ]


@pytest.fixture
def terminal() -> Iterator[tuple[int, io.TextIOWrapper]]:
    ours, theirs = os.openpty()
    with open(theirs, "w", newline="") as to:
        yield ours, to
    os.close(ours)


def test_on_a_terminal_one_line_is_renewed_and_the_cursor_waits_at_its_beginning(
    terminal: tuple[int, io.TextIOWrapper],
) -> None:
    ours, to = terminal
    told(to, 8, 1000)
    text = ""
    while text.count("are left") < 4 or not text.endswith("\r"):  # a terminal hands on what it has by now
        text += os.read(ours, 4096).decode()
    lines = text.split("\x1b[2K")
    assert [line.strip("\r") for line in lines[1:]] == [
        f"worker: 10 records/s; {left} are left, about {left // 10} s" for left in (950, 940, 930, 920)
    ]
    assert all(line.endswith("\r") for line in lines)


def test_what_ends_within_seconds_or_does_not_move_says_nothing() -> None:
    for seconds, left, a_second in ((100, 40, 10), (100, 1000, 0)):
        to = io.StringIO()
        headway = told(to, seconds, left, a_second)
        assert to.getvalue() == ""
        assert headway.left_s == (None if a_second == 0 else 0.0)


def test_a_rate_is_of_the_last_while_and_begins_anew_with_another_count() -> None:
    rate = Rate(0.0)
    assert rate.at(0.0, 0) == 0.0
    for n in range(60):
        rate.at(float(n), 100 * n)
    for n in range(60, 90):
        rate.at(float(n), 5900 + 10 * (n - 59))
    assert rate.at(90.0, 6210) == pytest.approx(10)
    assert rate.at(91.0, 0) == 0.0
    assert rate.at(92.0, 7) == pytest.approx(7)


def test_times_are_said_in_the_unit_that_fits() -> None:
    assert [duration(seconds) for seconds in (7, 99.4, 720, 36_000)] == ["7 s", "99 s", "12 min", "10.0 h"]
