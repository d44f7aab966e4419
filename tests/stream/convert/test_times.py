"""Units, notations and zones of times."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftline.stream.convert.times import Clock, guess_clock
from driftline.stream.events.schema import EARLIEST_MS, MAX_TIMESTAMP_MS

MS = 1_705_314_645_250
WHEN = datetime.fromtimestamp(MS / 1000, UTC)
BERLIN = ZoneInfo("Europe/Berlin")
SPRING = datetime(2024, 3, 31, 3, 30, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("cell", "how", "expected"),
    [
        (MS // 1000, "s", MS - 250),
        (MS / 1000, "s", MS),
        (f"{MS / 1000}", "s", MS),
        (MS, "ms", MS),
        (str(MS), "ms", MS),
        (MS * 1000, "us", MS),
        (MS * 1_000_000 + 999_999, "ns", MS),
        ("2024-01-15T10:30:45.250Z", "iso", MS),
        ("2024-01-15 10:30:45.250 UTC", "iso", MS),
        ("2024-01-15T11:30:45.250+01:00", "iso", MS),
        ("2024-01-15 11:30:45.250 +0100", "iso", MS),
        ("2024-01-15 10:30:45.250000000", "iso", MS - 3_600_000),
        ("2024/01/15 11:30:45.250", "iso", MS),
        ("15.01.2024 11:30:45,25", "dmy", MS),
        ("15.1.24, 11:30 Uhr", "dmy", MS - 45_250),
        ("15/01/2024 11:30:45", "dmy", MS - 250),
        ("01/15/2024 11:30:45 AM", "mdy", MS - 250),
        ("1/15/2024 12:30 p.m.", "mdy", MS - 45_250 + 3_600_000),
        ("20240115", "%Y%m%d", 1_705_273_200_000),
        (20240115113045, "%Y%m%d%H%M%S", MS - 250),
        (date(2024, 1, 15), "iso", 1_705_273_200_000),
        (WHEN, "iso", MS),
    ],
)
def test_a_notation_is_found_and_read_one_by_one_and_as_a_column(cell, how, expected):
    clock, _ = guess_clock([cell], "Europe/Berlin")
    assert clock == Clock(how, "Europe/Berlin")
    assert clock.ms(cell) == expected
    times, wrong = clock.read([cell, None])
    assert (times.to_pylist(), wrong) == ([expected, None], [])


@pytest.mark.parametrize("sample", [["3.5", "4.0"], ["Toy Story"], [12, 13], ["1", "2"], [True], [["2024"]], ["2024"]])
def test_what_is_no_time_is_none(sample):
    assert guess_clock(sample, "UTC") == (None, "")


def test_day_and_month_are_not_guessed_where_nothing_tells_them_apart():
    assert guess_clock(["01/02/2024", "03/04/2024"], "UTC") == (None, "day and month can't be told apart")
    assert guess_clock(["01/02/2024", "13/04/2024"], "UTC")[0] == Clock("dmy")
    assert guess_clock(["01/02/2024", "03/14/2024"], "UTC")[0] == Clock("mdy")
    assert guess_clock(["01.02.2024", "03.04.2024"], "UTC")[0] == Clock("dmy"), "with points the day comes first"


def test_cells_that_are_no_time_are_named_and_the_others_read():
    times, wrong = Clock("s").read(pa.array(["1705314645", "soon", "", None, "1705314646.5"]))
    assert times.to_pylist() == [1_705_314_645_000, None, None, None, 1_705_314_646_500]
    assert wrong == [1]
    assert Clock("iso").read(["2024-02-30", {"a": 1}, 5, "2024-02-29"])[1] == [0, 1, 2]


def test_types_for_times_need_no_notation_and_take_the_zone_where_they_have_none():
    naive = pa.array([WHEN.replace(tzinfo=None)], pa.timestamp("ns"))
    assert Clock("iso", "Europe/Berlin").read(naive)[0].to_pylist() == [MS - 3_600_000]
    assert Clock("s", "Europe/Berlin").read(naive.cast(pa.timestamp("ns", "UTC")))[0].to_pylist() == [MS]
    assert Clock("iso").read(pa.array([date(2024, 1, 15)]))[0].to_pylist() == [1_705_276_800_000]


def test_summer_time_is_that_of_the_zone():
    (text,) = {f"{SPRING:%d.%m.%Y %H:%M}"}
    assert Clock("dmy", "Europe/Berlin").ms(text) == int(SPRING.timestamp() * 1000)
    assert Clock("iso", "Europe/Berlin").read(pa.array(["2024-03-31 03:30"]))[0][0].as_py() == SPRING.timestamp() * 1000


@given(st.integers(EARLIEST_MS, MAX_TIMESTAMP_MS), st.sampled_from(["s", "ms", "us", "ns"]))
def test_every_unit_is_found_by_its_size_and_read_exactly(ms, unit):
    number = {"s": ms // 1000, "ms": ms, "us": ms * 1000, "ns": ms * 1_000_000}[unit]
    expected = ms // 1000 * 1000 if unit == "s" else ms
    clock, _ = guess_clock([number], "UTC")
    assert clock in (Clock(unit), Clock("%Y%m%d"), Clock("%Y%m%d%H%M%S"))
    assert Clock(unit).read(pa.array([number]))[0].to_pylist() == [expected]
    assert Clock(unit).read(pa.array([str(number)]))[0].to_pylist() == [expected]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_a_unit_counts_from_the_time_that_is_said(zone):
    start = datetime(2018, 2, 1, tzinfo=ZoneInfo(zone)).timestamp() * 1000
    for how, cells, expected in (
        ("s since 2018-02-01", [0, 36, None, 2_678_373], [0, 36_000, None, 2_678_373_000]),
        ("ms since 2018-02-01T00:00", [0, 36], [0, 36]),
        ("s since 2018-02-01", ["0", "36.5"], [0, 36_500]),
    ):
        times, wrong = Clock(how, zone).read(pa.array(cells))
        assert (times.to_pylist(), wrong) == ([None if ms is None else start + ms for ms in expected], [])
    for low in (-(2**63), 2**63 - 1, -(2**62)):  # as pandas writes no time at all
        times, wrong = Clock("s since 2018-02-01", zone).read(pa.array([0, low, 36]))
        assert (times.to_pylist(), wrong) == ([start, None, start + 36_000], [1])
    times, wrong = Clock("s since the start", zone).read(["0", "36"])
    assert wrong == [0, 1]


@pytest.mark.parametrize(
    ("clock", "sample", "words"),
    [
        (Clock("s since 2018-02-01", "Europe/Berlin"), ["0"], "s since 2018-02-01; Europe/Berlin, as no zone is named"),
        (Clock("s since 2018-02-01 00:00 UTC", "Europe/Berlin"), ["0"], "s since 2018-02-01 00:00 UTC"),
        (Clock("dmy"), ["31.12.2024"], "day, month, year; UTC, as no zone is named; --zone Europe/Berlin changes it"),
        (Clock("dmy", "Europe/Berlin"), ["31.12.2024"], "day, month, year; Europe/Berlin, as no zone is named"),
        (Clock("iso"), ["2024-12-31"], "ISO 8601; UTC, as no zone is named; --zone Europe/Berlin changes it"),
        (Clock("iso"), [datetime(2024, 12, 31)], "ISO 8601; UTC, as no zone is named; --zone Europe/Berlin changes it"),
        (Clock("iso"), ["2024-12-31T10:00Z", "2024-12-31 10:00:00.5 +0100", "2024-12-31T10:00-05"], "ISO 8601"),
        (Clock("iso"), ["2024-12-31T10:00Z", "yesterday"], "ISO 8601"),
        (Clock("iso"), [datetime(2024, 12, 31, tzinfo=UTC)], "ISO 8601"),
        (Clock("s"), ["1600000000"], "seconds"),
    ],
)  # fmt: skip
def test_the_zone_is_named_at_the_place_where_the_cells_name_none(clock, sample, words):
    assert clock.about(sample) == words


def test_a_time_that_the_clocks_leave_out_or_show_twice_is_read_alike_in_every_notation():
    spring, autumn = datetime(2026, 3, 29, 1, 30, tzinfo=UTC), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    expected = [int(when.timestamp() * 1000) for when in (spring, autumn)]
    local = [datetime(2026, 3, 29, 2, 30), datetime(2026, 10, 25, 2, 30)]
    for how, cells in (
        ("dmy", pa.array([f"{when:%d.%m.%Y %H:%M}" for when in local])),
        ("iso", pa.array([f"{when:%Y-%m-%d %H:%M}" for when in local])),
        ("iso", pa.array(local, pa.timestamp("us"))),
    ):
        assert Clock(how, "Europe/Berlin").read(cells) == (pa.array(expected), []), cells


def test_a_named_column_has_the_notation_of_most_of_it_where_no_other_reads_the_rest():
    dots = ["29.11.2026 13:05"] * 5 + ["29.11.2026 25:05", "30.02.2026 13:08"]
    assert guess_clock(dots, "UTC") == (None, "")
    assert guess_clock(dots, "UTC", is_named=True) == (Clock("dmy"), "")
    assert guess_clock(["1705314645", "1705314646", "soon"], "UTC", is_named=True)[0] == Clock("s")
    assert guess_clock(["01.02.2024", "03.04.2024", "soon"], "UTC", is_named=True)[0] == Clock("dmy")
    slashes = ["13/04/2024", "14/04/2024", "15/04/2024", "04/16/2024"]
    assert guess_clock(slashes, "UTC", is_named=True) == (None, ""), "day and month in two orders"
    assert guess_clock(["29.11.2026", "soon"], "UTC", is_named=True) == (None, ""), "a half is not most"
