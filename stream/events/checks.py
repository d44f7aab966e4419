"""What is right and wrong with the columns of an events or items file, by row and kind.

A check turns raw values into a typed Arrow array and a list of problems; it never raises. Readers raise on the
first problem, `driftline validate` lists them all.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from driftline.stream.events.cells import (
    ARROW,
    EXACT_BELOW,
    TEXTS,
    convert,
    is_raw_uuid,
    plain,
    values_of,
    whole_column,
)
from driftline.stream.events.order import Order
from driftline.stream.events.schema import (
    EARLIEST_MS,
    EXAMPLE_MS,
    MAX_ACTION_BYTES,
    MAX_EVENT_BYTES,
    MAX_ID_BYTES,
    MAX_NUMBER,
    MAX_TIMESTAMP_MS,
    UNITS_MS,
    shorten,
)

EVENT_COLUMNS = {
    "user_id": "id",
    "item_id": "id",
    "timestamp_ms": "time",
    "action": "action",
    "event_id": "text",
    "value": "number",
    "price": "number",
    "group_id": "text",
    "domain": "text",
}
EVENT_REQUIRED = ("user_id", "item_id", "timestamp_ms")

ITEM_COLUMNS = {
    "item_id": "id",
    "title": "long",
    "text": "long",
    "categories": "texts",
    "brand": "text",
    "price": "number",
    "domain": "text",
    "available": "flag",
    "valid_from_ms": "since",
}
ITEM_REQUIRED = ("item_id",)

EXPECTED = {
    "id": f"a string of 1 to {MAX_ID_BYTES} bytes",
    "text": f"a string of at most {MAX_ID_BYTES} bytes, or nothing",
    "action": f"a string of at most {MAX_ACTION_BYTES} bytes, or nothing",
    "long": "a string, or nothing",
    "texts": "a list of strings, a string with | between them, or nothing",
    "flag": "true or false, 1 or 0, yes or no (ja, oui, si; nein, non)",
    "time": f"unix milliseconds such as {EXAMPLE_MS}, an integer from {EARLIEST_MS} to {MAX_TIMESTAMP_MS}",
    "since": f"unix milliseconds such as {EXAMPLE_MS}, an integer from 0 to {MAX_TIMESTAMP_MS}, or nothing",
    "number": f"a finite number up to {MAX_NUMBER:g}, or nothing",
}
FUTURE = "a time that has passed: a worker refuses what is more than state.future_ms ahead"
HINTS = {
    "not UTF-8": "text in UTF-8: write the file anew, or say what it is in: --encoding cp1252, latin-1, utf-16 ("
    "--items-encoding of items)",
    "digits lost": "ids as text or integers: a number with a point is rounded from here on, the id is no longer in it",
    "decimal comma": "a decimal point, and nothing between thousands: 1014.6 for 1014,6. A comma may mean either, so "
    "it is not guessed; export with a point, or say --decimal , (or .)",
}
"""What is expected where a kind of fault says more than the meaning of the column."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one cell or row.

    Attributes:
        row: data row from 1 (a header, and empty lines of CSV, are not counted); 0 = the file as a whole.
        column: its name, "" = the row as a whole.
        kind: short name of what is wrong, the same for all rows with this fault.
        got: what stands there, shortened.
        expected: what should.
        warning: it is allowed but suspicious.
        file: part of a folder in which it stands, "" = there is one file.
    """

    row: int
    column: str
    kind: str
    got: str
    expected: str
    warning: bool = False
    file: str = ""

    def __str__(self) -> str:
        place = f"row {self.row}" if self.row else "file"
        place = f"{self.file}, {place}" if self.file else place
        where = f"{place}, column {self.column!r}" if self.column else place
        return f"{where}: {self.kind}: got {self.got}; expected {self.expected}"


@dataclass(slots=True)
class Report:
    """What `validate` found.

    Attributes:
        rows: data rows read.
        counts: problems by (kind, column).
        examples: the first problems of each kind.
        warnings: (kind, column) of what is allowed but suspicious; the rest are errors.
        unknown: columns that the schema does not know; those of events are kept, those of items left out.
        unknown_actions: rows by action, of the actions that the configuration does not set.
        first_ms, last_ms: span of the event times.
        item_rows: rows by item id, where they were counted.
        unnamed_values: events with a value and no action that says what it means.
        order: of the events, None = of items.
    """

    path: str
    rows: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Problem] = field(default_factory=list)
    warnings: set[tuple[str, str]] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    unknown_actions: Counter[str] = field(default_factory=Counter)
    first_ms: int | None = None
    last_ms: int | None = None
    item_rows: Counter[str] = field(default_factory=Counter)
    unnamed_values: int = 0
    order: Order | None = None

    @property
    def ok(self) -> bool:
        """True if nothing but warnings was found."""
        return all(key in self.warnings for key in self.counts)

    def add(self, problem: Problem, warning: bool = False, keep: int = 5, times: int = 1) -> None:
        """Count a problem, which so many rows have, and keep the first `keep` of its kind as examples."""
        key = (problem.kind, problem.column)
        if warning or problem.warning:
            self.warnings.add(key)
        if self.counts[key] < keep:
            self.examples.append(problem)
        self.counts[key] += times

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "path": self.path,
            "ok": self.ok,
            "rows": self.rows,
            "first_ms": self.first_ms,
            "last_ms": self.last_ms,
            "unknown_columns": self.unknown,
            "unknown_actions": dict(self.unknown_actions.most_common()),
            **({} if self.order is None else {"order": self.order.as_json(), "unnamed_values": self.unnamed_values}),
            "problems": [
                {"kind": kind, "column": column, "count": n, "warning": (kind, column) in self.warnings}
                for (kind, column), n in self.counts.items()
            ],
            "examples": [
                {"row": p.row, "column": p.column, "kind": p.kind, "got": p.got, "expected": p.expected}
                for p in self.examples
            ],
        }


def check_column(
    name: str, meaning: str, raw: Any, numbers: Sequence[int], required: bool
) -> tuple[pa.Array, list[Problem]]:
    """Type one column.

    Args:
        name: its name.
        meaning: a key of EXPECTED.
        raw: Arrow array or list of Python values [n].
        numbers: [n] row number of each value.
        required: null is a problem.

    Returns:
        Arrow array [n] of ARROW[meaning] with null where a value is wrong or an optional text is empty, and the
        problems, warnings among them.
    """
    whole = plain(raw) if isinstance(raw, pa.Array) else raw
    array = whole_column(meaning, whole)
    problems: list[Problem] = []
    if array is None:  # go cell by cell to name what does not convert
        array, problems = _cells(name, meaning, whole, numbers)
    elif isinstance(raw, pa.Array) and meaning in TEXTS and is_raw_uuid(raw):
        expected = f"text; taken as a UUID, such as {array.drop_null()[0]}"
        problems = [Problem(number, name, "bytes as text", "16 bytes", expected, True) for number in numbers]
    if meaning in ("text", "action"):
        array = pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    found = {problem.row for problem in problems if not problem.warning}
    nothing = "an empty cell" if isinstance(raw, pa.Array) else "null, or no such field"
    for kind, mask in _faults(meaning, array, required):
        for i in np.flatnonzero(mask.to_numpy(zero_copy_only=False)).tolist():
            if numbers[i] not in found:
                got = shorten(array[i].as_py()) if array[i].is_valid else nothing
                problems.append(Problem(numbers[i], name, kind, got, EXPECTED[meaning]))
    return array, sorted(problems, key=lambda problem: problem.row)


def _cells(name: str, meaning: str, raw: Any, numbers: Sequence[int]) -> tuple[pa.Array, list[Problem]]:
    is_float = isinstance(raw, pa.Array) and pa.types.is_floating(raw.type)
    exact_below = EXACT_BELOW[raw.type.bit_width if is_float else 64]
    typed: list[Any] = []
    problems = []
    for number, cell in zip(numbers, values_of(raw) if isinstance(raw, pa.Array) else raw, strict=True):
        value, kind = convert(meaning, cell, exact_below)
        typed.append(value)
        if kind:
            expected = HINTS.get(kind, EXPECTED[meaning])
            problems.append(Problem(number, name, kind, shorten(cell), expected))
        elif value is not None and meaning in TEXTS and isinstance(cell, (float, Decimal)):
            problems.append(Problem(number, name, "number as text", shorten(cell), f"text; taken as {value!r}", True))
        elif value and meaning == "texts" and isinstance(cell, str) and looks_like_list(value):
            expected = "JSON's list or | between them; taken as it stands"
            problems.append(Problem(number, name, "looks like a list", shorten(cell), expected, True))
    return pa.array(typed, ARROW[meaning]), problems


def looks_like_list(values: Sequence[str]) -> bool:
    """Whether brackets or braces are left around what was read of a cell."""
    return (values[0][:1], values[-1][-1:]) in (("[", "]"), ("{", "}"), ("(", ")"))


def _faults(meaning: str, array: pa.Array, required: bool) -> list[tuple[str, pa.Array]]:
    """(kind, mask [n]) of what is wrong with converted values."""
    faults = [("missing", pc.is_null(array))] if required else []
    if meaning in ("id", "text", "action"):
        n_bytes = pc.binary_length(array)
        limit = MAX_ACTION_BYTES if meaning == "action" else MAX_ID_BYTES
        faults.append(("too long", pc.greater(n_bytes, limit)))
        if meaning == "id":
            faults.append(("empty", pc.equal(n_bytes, 0)))
    elif meaning in ("time", "since"):
        earliest_ms = EARLIEST_MS if meaning == "time" else 0
        outside = pc.or_(pc.less(array, earliest_ms), pc.greater(array, MAX_TIMESTAMP_MS))
        for unit, (times, parts) in UNITS_MS.items():
            meant = pc.and_(
                pc.greater_equal(array, EARLIEST_MS * parts // times),
                pc.less_equal(array, MAX_TIMESTAMP_MS * parts // times),
            )
            faults.append((f"looks like {unit}", pc.and_(outside, meant)))
            outside = pc.and_(outside, pc.invert(meant))
        faults.append(("out of range", outside))
    elif meaning == "number":
        finite = pc.is_finite(array)
        faults.append(("not finite", pc.invert(finite)))
        faults.append(("out of range", pc.and_(finite, pc.greater(pc.abs(array), MAX_NUMBER))))
    return [(kind, pc.fill_null(mask, False)) for kind, mask in faults]


def check_extra(numbers: Sequence[int], extra: list[dict[str, Any] | None] | None) -> list[Problem]:
    """Unknown fields that can't be kept in an event: it is stored and sent as JSON."""
    problems = []
    for row, fields in zip(numbers, extra or (), strict=False):
        if fields is None or _as_json(fields) is not None:
            continue
        for name, cell in fields.items():
            try:
                orjson.dumps({name: cell})
            except orjson.JSONEncodeError as error:
                expected = f"what JSON can hold, text in UTF-8 among it ({error})"
                problems.append(Problem(row, name, "not JSON", shorten(cell), expected))
    return problems


def _as_json(fields: dict[str, Any]) -> bytes | None:
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError:
        return None


def check_size(row: int, message: bytes) -> Problem | None:
    """What is wrong with a row whose message is larger than an event may be; its unknown fields make it so."""
    if len(message) <= MAX_EVENT_BYTES:
        return None
    return Problem(row, "", "too large", f"{len(message)} bytes as JSON", f"at most {MAX_EVENT_BYTES}")


def check_times(report: Report, numbers: Sequence[int], times: pa.Array, last_ms: int) -> int:
    """Warn of times that run backwards or lie in the future.

    Args:
        report: takes the warnings and the first and last time.
        numbers: [n] row number of each value.
        times: [n] int64, null = not valid.
        last_ms: latest time of the rows before, -1 = none.

    Returns:
        The latest time so far.
    """
    if times.null_count == len(times):
        return last_ms
    whole = times.fill_null(-1).to_numpy()
    whole = np.where((whole < EARLIEST_MS) | (whole > MAX_TIMESTAMP_MS), -1, whole)  # no times, as is told
    ahead = np.maximum.accumulate(np.concatenate([[last_ms], whole]))
    valid = whole >= 0
    if report.order is not None:
        report.order.see(whole[valid])
    for kind, mask, expected in (
        ("earlier than a row above", whole < ahead[:-1], "rows in time order"),
        (
            "in the future",
            whole > time.time() * 1000,
            FUTURE,
        ),
    ):
        for i in np.flatnonzero(valid & mask).tolist():
            report.add(Problem(numbers[i], "timestamp_ms", kind, str(whole[i]), expected), warning=True)
    if valid.any():
        low, high = int(whole[valid].min()), int(whole[valid].max())
        report.first_ms = low if report.first_ms is None else min(low, report.first_ms)
        report.last_ms = high if report.last_ms is None else max(high, report.last_ms)
    return int(ahead[-1])
