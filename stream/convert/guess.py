"""Which column of a file is meant by which field of the schema: by its name, if what it holds agrees."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from driftline.configs.errors import InputError
from driftline.configs.settings import EventFiles, ItemFiles
from driftline.stream.convert.columns import PLUS, parts_of
from driftline.stream.convert.names import EVENT_NAMES, ITEM_NAMES, QUANTITIES, RATINGS, plain_name, rank
from driftline.stream.convert.numbers import OPEN, sign_of, sign_of_file, with_point
from driftline.stream.convert.sources import Sample
from driftline.stream.convert.times import MOST, SURE, WORDS, Clock, could_count, guess_clock
from driftline.stream.events.cells import convert
from driftline.stream.events.checks import EVENT_COLUMNS, EVENT_REQUIRED, EXPECTED, ITEM_COLUMNS, ITEM_REQUIRED
from driftline.stream.events.files import UNNAMED
from driftline.stream.events.schema import shorten

MOST_ACTIONS = 100
"""Different values of a column that is taken for actions without being told."""
TIMES = ("time", "since")
WHAT = {
    "id": "an id", "text": "a short text", "action": "an action", "long": "a text", "texts": "a list of texts",
    "flag": EXPECTED["flag"], "time": "a time", "since": "a time", "number": "a number",
}  # fmt: skip
"""What a column holds, for messages."""
RETURN = "return"
"""Of pieces that came back: its value says how many, above 0."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file holds.

    Attributes:
        columns: fields of the schema and their meanings.
        required: those that must be there.
        names: what columns are called that hold them.
        option: of the command line, for messages.
        schema: its name.
    """

    columns: dict[str, str]
    required: tuple[str, ...]
    names: dict[str, str]
    option: str
    schema: str


EVENTS = Kind(EVENT_COLUMNS, EVENT_REQUIRED, EVENT_NAMES, "--map", "driftline.interaction.v1")
ITEMS = Kind(ITEM_COLUMNS, ITEM_REQUIRED, ITEM_NAMES, "--items-map", "driftline.item.v1")


@dataclass(frozen=True, slots=True)
class Mapping:
    """How rows become those of the schema.

    Attributes:
        kind: events or items.
        columns: column of the file by field, in the order of the schema.
        clocks: notation of the times by field.
        decimal: point or comma of numbers in text, or what `numbers.sign_of_file` says.
        action: of all events, "" = they have a column for it, or none.
        left_out: columns that no field takes.
        others: further columns that a field could have been, by field.
        names: of all columns of the file.
        lacking: columns by field that the configuration names and the file has not.
        action_from: (least value, action) of the events whose value says what was done, the smallest first.
        below_zero: action of the events whose value is below 0, which is then written above it; "" = that of all.
        unfit: words on those of the left out that are called as a field is and hold something else.
        kept: columns that stay as they are, as text, whether a field takes them or not: those of `signals.context`.
    """

    kind: Kind
    columns: dict[str, str]
    clocks: dict[str, Clock]
    decimal: str
    action: str
    left_out: list[str]
    others: dict[str, list[str]]
    names: list[str]
    lacking: dict[str, str]
    action_from: tuple[tuple[float, str], ...] = ()
    below_zero: str = ""
    unfit: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def parts(self) -> dict[str, list[str]]:
        """The columns that are read for each field: several where a date and a time are joined."""
        return {field: parts_of(column, self.names) for field, column in self.columns.items()}

    @property
    def is_rating(self) -> bool:
        """Whether `value` says how much somebody liked an item, by the name of its column."""
        return _is_called(self.columns, RATINGS)

    @property
    def may_be_rating(self) -> bool:
        """Whether the name of the column of `value` does not say that it is something else, as seconds or pieces."""
        is_known = rank(self.columns["value"], EVENT_NAMES["value"]) is not None
        return self.is_rating or not is_known or _is_called(self.columns, ["value"])


def _is_called(columns: dict[str, str], names: Sequence[str]) -> bool:
    """Whether the column of `value` has one of these names."""
    return plain_name(columns.get("value", "").rsplit(".", 1)[-1]) in names


def mapping_of(kind: Kind, sample: Sample, reading: ItemFiles, source: str) -> Mapping:
    """What `reading` says, and guesses where it says nothing.

    Raises:
        InputError: a field or column that is named does not exist or holds something else, or a required field has
            no column; with the columns that could be meant.
    """
    _check_header(sample, source)
    names = sample.names
    sample = _with_joined(sample, reading)
    decimal = reading.decimal or sign_of_file(sample.values)
    fits = _fits(kind, sample, reading, decimal)
    columns: dict[str, str] = {}
    lacking = {
        field: column
        for field, column in reading.map.items()
        if field in kind.columns and column and column not in sample.names and reading.may_lack(field)
    }
    told = {field: column for field, column in reading.map.items() if field not in lacking}
    for field, column in told.items():
        _check_named(kind, sample, field, column, source)
        if column:
            columns[field] = column
    action = reading.action if isinstance(reading, EventFiles) and "action" not in columns else ""
    others: dict[str, list[str]] = {}
    for field in kind.columns:
        if field in told or (field == "action" and action):
            continue
        taken = set(columns.values())
        named = [name for name in sample.names if name not in taken and rank(name, kind.names[field]) is not None]
        named = [
            name for name in sorted(named, key=lambda name: rank(name, kind.names[field]) or 0) if fits(field, name)
        ]
        if not named and kind is EVENTS and field not in kind.required and (action or "action" in columns):
            named = [name for name in sample.names if not sample.values[name] and rank(name, kind.names[field]) == 0]
        if named:
            columns[field], *others[field] = named
    if "timestamp_ms" in kind.required and "timestamp_ms" not in columns and "timestamp_ms" not in told:
        times = [name for name in sample.names if name not in columns.values() and fits("timestamp_ms", name, False)]
        if len(times) == 1:
            columns["timestamp_ms"] = times[0]
    if lacks := [field for field in kind.required if field not in columns]:
        more = "".join(f" {kind.option} {field}=COLUMN" for field in lacks[1:])
        also = f"; none was found for {' and '.join(lacks[1:])} either:{more}" if more else ""
        raise InputError(_no_column(kind, sample, lacks[0], fits, columns, reading, source) + also)
    ordered = {field: columns[field] for field in kind.columns if field in columns}
    for field in told:
        if field in ordered:
            _check_contents(kind, sample, field, ordered, fits, reading, source)
    if kind is EVENTS and ordered["user_id"] == ordered["item_id"]:
        raise InputError(
            f"{source}: column {ordered['user_id']!r} is mapped to user_id and item_id; expected one of them"
        )
    for field, column in ordered.items():
        if decimal == OPEN and kind.columns[field] == "number" and sign_of(sample.values[column]):
            raise InputError(
                f"{source}: column {column!r} holds {_some(sample, column)}: is a comma before decimals, or between "
                "thousands? Say which: --decimal , or --decimal ."
            )
    clocks = {
        field: _clock(sample.values[ordered[field]], reading) or Clock("iso", reading.zone)
        for field in ordered
        if kind.columns[field] in TIMES
    }
    read = {part for column in ordered.values() for part in parts_of(column, names)}
    left_out = [name for name in names if name not in read]
    others = {field: found for field, found in others.items() if found}
    action_from = _action_from(reading, ordered, source)
    below_zero = _below_zero(reading, ordered, action, source)
    unfit = tuple(
        f"{name!r} is called as {field} is and holds {_some(sample, name)}; expected {WHAT[kind.columns[field]]} in "
        "most rows, or it stays out"
        for name in left_out
        for field in kind.columns
        if field not in {*ordered, *told} and sample.values[name] and rank(name, kind.names[field]) is not None
    )
    return Mapping(
        kind, ordered, clocks, decimal, action, left_out, others, names, lacking, action_from, below_zero, unfit
    )


def _action_from(reading: ItemFiles, columns: dict[str, str], source: str) -> tuple[tuple[float, str], ...]:
    """The bounds of values that actions begin at, ascending.

    Raises:
        InputError: a column says the action, there is no value, or another option says the action of values below 0.
    """
    if not isinstance(reading, EventFiles) or not reading.action_from:
        return ()
    bounds, below = reading.action_from, reading.action_below_zero
    if "action" in columns:
        raise InputError(
            f"{source}: --action-from: column {columns['action']!r} says the action of each row; expected none: "
            "--map action="
        )
    if "value" not in columns:
        raise InputError(f"{source}: --action-from: no column is the value; expected one: --map value=COLUMN")
    if below and (below in bounds or min(bounds.values()) < 0):
        raise InputError(
            f"{source}: got --action-below-zero {below} with --action-from {_told(bounds)}: which action has a value "
            "below 0? Expected bounds from 0 on, for other actions, or one of the two options"
        )
    return tuple(sorted((least, name) for name, least in bounds.items()))


def _told(bounds: dict[str, float]) -> str:
    return ",".join(f"{name}={least:g}" for name, least in bounds.items())


def _below_zero(reading: ItemFiles, columns: dict[str, str], action: str, source: str) -> str:
    """What events with a value below 0 are: as it is said, or returns where the others are purchases of so many pieces.

    Raises:
        InputError: it is said, and so does a column.
    """
    if "value" not in columns or not isinstance(reading, EventFiles):
        return ""
    said = reading.action_below_zero
    if "action" in columns:
        if said:
            raise InputError(
                f"{source}: --action-below-zero {said}: column {columns['action']!r} says the action of each row; "
                "expected none: --map action= or --action NAME for all rows"
            )
        return ""
    is_bought = action == "purchase" or (action in ("", UNNAMED) and _is_called(columns, QUANTITIES))
    is_bought = is_bought and not reading.action_from and not _is_called(columns, RATINGS)
    name = said or (RETURN if is_bought else "")
    return "" if name == (action or UNNAMED) else name


def _with_joined(sample: Sample, reading: ItemFiles) -> Sample:
    """A sample that also has the columns that join others of it."""
    columns = [column for column in reading.map.values() if len(parts_of(column, sample.names)) > 1]
    values = {
        column: [
            " ".join(map(str, cells)) for cells in zip(*(sample.values[p] for p in column.split(PLUS)), strict=False)
        ]
        for column in columns
    }
    return replace(sample, names=[*sample.names, *columns], values=sample.values | values)


def _clock(values: Sequence[Any], reading: ItemFiles, is_named: bool = True) -> Clock | None:
    if reading.time:
        return Clock(reading.time, reading.zone)
    return guess_clock(values, reading.zone, is_named)[0]


class Fits(Protocol):
    """Whether the values of a column could be those of a field."""

    def __call__(self, field: str, name: str, is_named: bool = True) -> bool:
        """So it is; where the column `is_named` for it, most values are enough, and the others are bad ones."""


def _fits(kind: Kind, sample: Sample, reading: ItemFiles, decimal: str) -> Fits:
    def fits(field: str, name: str, is_named: bool = True) -> bool:
        values, meaning = sample.values[name], kind.columns[field]
        if not values:
            return False
        if meaning in TIMES:
            clock = _clock(values, reading, is_named)
            return clock is not None and _is_most(clock.ms, values, is_named)
        if field == "event_id":
            return all(len(set(map(str, part))) == len(part) for part in sample.of_parts(name))
        if field == "action" and (len(set(map(str, values))) > MOST_ACTIONS or not isinstance(values[0], str)):
            return False

        def value(cell: Any) -> Any:
            cell = with_point(cell, "," if decimal == OPEN else decimal) if meaning == "number" else cell
            converted, fault = convert(meaning, cell)
            return None if fault else converted

        return _is_most(value, values, is_named)

    return fits


def _is_most(value: Callable[[Any], Any], values: Sequence[Any], is_named: bool) -> bool:
    share = sum(value(cell) is not None for cell in values) / len(values)
    return share > MOST if is_named else share >= SURE


# ---------------------------------------------------------------------------------------------- refusals


def _check_header(sample: Sample, source: str) -> None:
    """An error if the names of the columns are values of a row."""
    numbers = sum(name.strip().replace(".", "", 1).isdigit() for name in sample.names)
    if numbers * 2 > len(sample.names):
        raise InputError(
            f"{source}: the first line holds no names of columns: got {shorten(', '.join(sample.names))}; "
            "say them: --header user_id,item_id,value,timestamp_ms"
        )


def _check_named(kind: Kind, sample: Sample, field: str, column: str, source: str) -> None:
    if field not in kind.columns:
        near = difflib.get_close_matches(field, kind.columns, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(kind.columns)}"
        raise InputError(f"{kind.option} {field}={column}: there is no field {field!r}; {hint}")
    if column and column not in sample.names:
        near = difflib.get_close_matches(column, sample.names, 1, 0.5)
        same = [name for name in sample.names if plain_name(name) == plain_name(column)]
        hint = f"did you mean {(same or near)[0]!r}? " if same or near else ""
        raise InputError(
            f"{source}: {kind.option} {field}={column}: there is no column {column!r}; "
            f"{hint}The columns are {', '.join(sample.names)}"
        )


def _check_contents(
    kind: Kind,
    sample: Sample,
    field: str,
    columns: dict[str, str],
    fits: Fits,
    reading: ItemFiles,
    source: str,
) -> None:
    """An error if the column that a field was told to take holds something else."""
    name = columns[field]
    if fits(field, name) or (field not in kind.required and not sample.values[name]) or field in ("event_id", "action"):
        return
    meaning = kind.columns[field]
    what = WHAT[meaning]
    open_word = guess_clock(sample.values[name], reading.zone)[1] if meaning in TIMES and not reading.time else ""
    if open_word:
        raise InputError(_ambiguous(source, name, sample, open_word))
    could = [other for other in sample.names if other != name and fits(field, other, False)]
    hint = f"{', '.join(map(repr, could))} could be it" if could else "no other column could be it"
    zones = (
        "names of zones but UTC and GMT, as CEST or Europe/Berlin, can't be read: take them out and say --zone "
        "Europe/Berlin"
    )
    if meaning in TIMES and not reading.time:
        say = f"say how it is written, as --time '%d.%m.%Y %H:%M'; {zones}"
        hint = f"{hint}; {say}" if could else say
    elif meaning in TIMES and "%Z" in reading.time:
        hint = zones
    told = f" as {Clock(reading.time, reading.zone)}" if reading.time and meaning in TIMES else ""
    raise InputError(
        f"{source}: {kind.option} {field}={name}: {name!r} holds {_some(sample, name)}; expected {what}{told}; {hint}"
    )


def _no_column(
    kind: Kind,
    sample: Sample,
    field: str,
    fits: Fits,
    columns: dict[str, str],
    reading: ItemFiles,
    source: str,
) -> str:
    named = [name for name in sample.names if rank(name, kind.names[field]) is not None]
    if kind.columns[field] in TIMES:
        for name in (named or sample.names) if reading.time else ():
            clock, word = guess_clock(sample.values[name], reading.zone)
            if clock or word:
                hint = (
                    f"it looks like {WORDS.get(clock.how, clock.how)}: --time {shlex.quote(clock.how)}"
                    if clock
                    else word
                )
                return (
                    f"{source}: column {name!r} holds {shorten(str(sample.values[name][0]))}, which is no time in "
                    f"{WORDS.get(reading.time, repr(reading.time))}, as --time {shlex.quote(reading.time)} says; "
                    f"{hint}; without --time it is guessed"
                )
        for name in named:
            if word := guess_clock(sample.values[name], reading.zone)[1]:
                return _ambiguous(source, name, sample, word)
    free = [name for name in sample.names if name not in columns.values()]
    could = [name for name in free if fits(field, name, False)]
    hint = f"; {', '.join(map(repr, could[:8]))} could be it" if could else ""
    for name in named:
        if name not in columns.values():
            hint = f"; {name!r} is called so, but holds {_some(sample, name)}{hint}"
            if kind.columns[field] in TIMES and not reading.time and could_count(sample.values[name]):
                hint += ", which may count from a time on: --time 's since 2018-02-01'"
    return (
        f"{source}: no column was found for {field}: got {', '.join(sample.names)}{hint}; "
        f"say which one it is: {kind.option} {field}=COLUMN"
    )


def _ambiguous(source: str, name: str, sample: Sample, word: str) -> str:
    got = _some(sample, name)
    return f"{source}: column {name!r} holds {got}: {word}; say which comes first: --time dmy or --time mdy"


def _some(sample: Sample, name: str) -> str:
    """Values of a column, for messages."""
    return ", ".join(shorten(value) for value in list(dict.fromkeys(map(str, sample.values[name])))[:3]) or "nothing"
