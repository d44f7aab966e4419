"""Times in any unit, notation and zone to unix milliseconds; whether the result is one is for checks.py to say."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from driftline.configs.columns import SINCE, iso_time
from driftline.stream.events.cells import plain, values_of
from driftline.stream.events.schema import EARLIEST_MS, MAX_TIMESTAMP_MS

UNITS = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}
"""Milliseconds of a unit, as fractions."""
WORDS = {
    "s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds",
    "iso": "ISO 8601", "dmy": "day, month, year", "mdy": "month, day, year",
}  # fmt: skip
SURE = 0.95
"""Share of a sample that must be readable before a column is taken for one that its name does not say."""
MOST = 0.5
"""More than this share is enough for a column that is named: the other rows are bad ones."""
EXACT = 1 << 53
LONGEST = 1e13
"""Of a stream, in units: three hundred years of milliseconds."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"\s*-?[0-9]+(\.[0-9]*)?\s*")
_DIGITS = re.compile(r"(19|20)[0-9]{2}(0[1-9]|1[0-2])([0-2][0-9]|3[01])([0-2][0-9][0-5][0-9][0-5][0-9])?")
_ZONE = re.compile(r".{8,}(Z|UTC|GMT|:[0-9.]+\s*[+-][0-9]{2}(:?[0-9]{2})?)")
_DAY_MONTH = re.compile(
    r"([0-9]{1,2})([./-])([0-9]{1,2})\2([0-9]{4}|[0-9]{2})"
    r"(?:(?:\s*,\s*|\s+|T)([0-9]{1,2}):([0-9]{2})(?::([0-9]{2})(?:[.,]([0-9]{1,9}))?)?\s*([AaPp]\.?[Mm]\.?)?)?(?:\s*Uhr)?"
)


@dataclass(frozen=True, slots=True)
class Clock:
    """How a column writes times.

    Attributes:
        how: a key of WORDS, a unit since a time ("s since 2018-02-01"), or a format as strptime has it. Columns of a
            type for times need none.
        zone: of times that name none.
    """

    how: str
    zone: str = "UTC"

    def __str__(self) -> str:
        words = WORDS.get(self.how, self.how)
        return words if _names_zone(self.how) else f"{words}, {self.zone} where no zone is named"

    def about(self, sample: Sequence[Any]) -> str:
        """Words on how a column is read whose first values are those of `sample`, with what changes the zone."""
        words = WORDS.get(self.how, self.how)
        if _names_zone(self.how):
            return words
        times = self.read(list(sample))[0].is_valid().to_pylist()  # what is no time has no zone either
        sample = [cell for cell, is_time in zip(sample, times, strict=True) if is_time]
        if sample and all(map(_has_zone, sample)):
            return words
        other = "; --zone Europe/Berlin changes it" if self.zone == "UTC" else ""
        where = "where no zone is named, as in some rows" if any(map(_has_zone, sample)) else "as no zone is named"
        return f"{words}; {self.zone}, {where}{other}"

    def read(self, raw: Any) -> tuple[pa.Array, list[int]]:
        """Milliseconds [n] int64, null where there is nothing, and the rows where there is something that is no time.

        Args:
            raw: Arrow array or list of Python values [n].
        """
        array = plain(raw) if isinstance(raw, pa.Array) else _array(raw)
        if array is not None:
            try:
                if (times := self._whole(array)) is not None:
                    return times, []
            except pa.ArrowException:
                pass
        return self._cells(values_of(array) if array is not None else raw)

    def _whole(self, array: pa.Array) -> pa.Array | None:
        kind = array.type
        if pa.types.is_null(kind):
            return array.cast(pa.int64())
        if pa.types.is_date(kind):
            array = array.cast(pa.timestamp("ms"))
        if pa.types.is_timestamp(array.type):
            return self._instants(array)
        if unit := counted(self.how, self.zone):
            if pa.types.is_string(kind):
                array = array.cast(pa.int64())
            return _scaled(array, *unit) if pa.types.is_integer(array.type) else None
        if self.how == "iso" and pa.types.is_string(kind):
            first = array.drop_null()[:1].to_pylist()
            has_zone = bool(first) and re.search(r"(Z|[+-][0-9]{2}:?[0-9]{2})$", first[0][10:]) is not None
            return self._instants(array.cast(pa.timestamp("us", "UTC" if has_zone else None)))
        return None

    def _instants(self, times: pa.Array) -> pa.Array:
        if times.type.tz is None:
            # a time that the clocks leave out raises, and is read cell by cell: Arrow would take the end before the gap
            times = pc.assume_timezone(times, self.zone, ambiguous="earliest", nonexistent="raise")
        return times.cast(pa.timestamp("ms", times.type.tz), safe=False).cast(pa.int64())

    def _cells(self, cells: Sequence[Any]) -> tuple[pa.Array, list[int]]:
        known: dict[Any, int | None] = {}  # most columns of dates and of seconds have few different ones
        found: list[int | None] = []
        wrong = []
        for i, cell in enumerate(cells):
            if cell is None or cell == "" or cell != cell:
                found.append(None)
                continue
            try:
                if cell not in known:
                    known[cell] = self.ms(cell)
                ms = known[cell]
            except TypeError:  # a list
                ms = None
            if ms is None:
                wrong.append(i)
            found.append(ms)
        return pa.array(found, pa.int64()), wrong

    def ms(self, cell: Any) -> int | None:
        """Milliseconds of one value, None if it is no time in this notation."""
        try:
            if isinstance(cell, datetime):
                return self._ms_of(cell)
            if isinstance(cell, date):
                return self._ms_of(datetime(cell.year, cell.month, cell.day))
            if unit := counted(self.how, self.zone):
                return _number_ms(cell, *unit)
            text = str(cell).strip() if isinstance(cell, (str, int)) and not isinstance(cell, bool) else ""
            return self._ms_of(_PARSERS.get(self.how, self._by_format)(text))
        except (ValueError, OverflowError):
            return None

    def _by_format(self, text: str) -> datetime:
        return datetime.strptime(text, self.how)

    def _ms_of(self, when: datetime) -> int:
        return _ms_of(when, self.zone)


@cache
def counted(how: str, zone: str) -> tuple[str, int] | None:
    """The unit of a notation that counts, and the milliseconds from which it does; None = it is another one."""
    unit, since, start = how.partition(SINCE)
    if unit not in UNITS:
        return None
    try:
        return unit, _ms_of(iso_time(start), zone) if since else 0
    except ValueError:
        return None


def _ms_of(when: datetime, zone: str) -> int:
    since = (when if when.tzinfo else when.replace(tzinfo=ZoneInfo(zone))) - _EPOCH
    return since // timedelta(milliseconds=1)


def _names_zone(how: str) -> bool:
    """Whether a notation alone says which instant a cell is."""
    unit, since, start = how.partition(SINCE)
    return _has_zone(start) if unit in UNITS and since else unit in UNITS or "%z" in how


def _has_zone(cell: Any) -> bool:
    return cell.tzinfo is not None if isinstance(cell, datetime) else _ZONE.fullmatch(str(cell).strip()) is not None


def _array(cells: Sequence[Any]) -> pa.Array | None:
    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None


def _scaled(array: pa.Array, unit: str, start_ms: int) -> pa.Array | None:
    times, parts = UNITS[unit]
    numbers = array.fill_null(0).to_numpy(zero_copy_only=False)
    if numbers.size and max(int(numbers.max()), -int(numbers.min())) > (1 << 62) // times:
        return None
    scaled = start_ms + numbers.astype(np.int64) * times // parts
    return pa.array(scaled, mask=array.is_null().to_numpy(zero_copy_only=False))


def _number_ms(cell: Any, unit: str, start_ms: int) -> int | None:
    times, parts = UNITS[unit]
    if isinstance(cell, str):
        if not _NUMBER.fullmatch(cell):
            return None
        cell = float(cell) if "." in cell else int(cell)
    if isinstance(cell, bool):
        return None
    ms = cell * times // parts if isinstance(cell, int) else round(float(cell) * times / parts)
    return start_ms + int(ms) if abs(ms) < EXACT else None


def _day_first(text: str) -> datetime:
    return _parts(text, 1, 3)


def _month_first(text: str) -> datetime:
    return _parts(text, 3, 1)


def _parts(text: str, day: int, month: int) -> datetime:
    found = _DAY_MONTH.fullmatch(text)
    if found is None:
        raise ValueError(text)
    year, hour = int(found[4]), int(found[5] or 0)
    if len(found[4]) == 2:
        year += 2000 if year < 70 else 1900  # as POSIX has it
    if found[9]:
        if not 1 <= hour <= 12:
            raise ValueError(text)
        hour = hour % 12 + 12 * (found[9][0] in "pP")
    micros = int((found[8] or "0").ljust(6, "0")[:6])
    return datetime(year, int(found[month]), int(found[day]), hour, int(found[6] or 0), int(found[7] or 0), micros)


_PARSERS: dict[str, Callable[[str], datetime]] = {"iso": iso_time, "dmy": _day_first, "mdy": _month_first}


# ---------------------------------------------------------------------------------------------- guessing


def guess_clock(sample: Sequence[Any], zone: str, is_named: bool = False) -> tuple[Clock | None, str]:
    """How a column writes times, None if it holds none; and a word where the sample leaves it open.

    Args:
        sample: values that are there.
        zone: of times that name none.
        is_named: its name says that it holds times, so a notation of most of them will do where no other one reads
            what it does not.
    """
    if not sample:
        return None, ""
    reads = {how: _reads(Clock(how, zone), sample) for how in _candidates(sample)}
    rates = {how: sum(good) / len(sample) for how, good in reads.items()}
    best = max(rates, key=lambda how: rates[how], default="")
    if not best or rates[best] < SURE:
        missed = [i for i, good in enumerate(reads.get(best, ())) if not good]
        otherwise = any(good[i] for good in reads.values() for i in missed)
        if not is_named or rates.get(best, 0.0) <= MOST or otherwise:
            return None, ""
    if rates.get("dmy", 0) == rates.get("mdy", 0) == rates[best]:
        return None, "day and month can't be told apart"
    return Clock(best, zone), ""


def _candidates(sample: Sequence[Any]) -> list[str]:
    if all(isinstance(cell, date) for cell in sample):
        return ["iso"]
    numbers = sum(map(_is_number, sample))
    if numbers == len(sample):
        texts = [str(cell).strip() for cell in sample]
        if all(_DIGITS.fullmatch(text) for text in texts):
            return ["%Y%m%d" if all(len(text) == 8 for text in texts) else "%Y%m%d%H%M%S"]
        return list(UNITS)
    return [*_PARSERS, *(UNITS if numbers else ())]


def could_count(sample: Sequence[Any]) -> bool:
    """Whether values may be times that count from another time on than 1970."""
    return bool(sample) and all(_is_number(cell) and 0 <= float(cell) < LONGEST for cell in sample)


def _is_number(cell: Any) -> bool:
    if isinstance(cell, str):
        return _NUMBER.fullmatch(cell) is not None
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _reads(clock: Clock, sample: Sequence[Any]) -> list[bool]:
    """Whether each value is a time in a notation."""

    def reads(cell: Any) -> bool:
        if clock.how == "mdy" and "." in str(cell)[:6]:  # with points the day comes first
            return False
        ms = clock.ms(cell)
        return ms is not None and EARLIEST_MS <= ms <= MAX_TIMESTAMP_MS

    return [reads(cell) for cell in sample]
