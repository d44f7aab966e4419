"""What is right and wrong with the columns of an events or items file, by row and kind.

A check turns raw values into a typed Arrow array and a list of problems; it never raises. Readers raise on the
first problem, `driftline validate` lists them all.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from stream.events import MAX_ACTION_BYTES, MAX_EVENT_BYTES, MAX_ID_BYTES, MAX_NUMBER, MAX_TIMESTAMP_MS, shorten

SECONDS_BELOW_MS = 100_000_000_000  # read as milliseconds, everything below lies before March 1973

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
    "valid_from_ms": "time",
}
ITEM_REQUIRED = ("item_id",)

EXPECTED = {
    "id": f"a string of 1 to {MAX_ID_BYTES} bytes",
    "text": f"a string of at most {MAX_ID_BYTES} bytes, or nothing",
    "action": f"a string of at most {MAX_ACTION_BYTES} bytes, or nothing",
    "long": "a string, or nothing",
    "texts": "a list of strings, a string with | between them, or nothing",
    "flag": "true or false",
    "time": f"unix milliseconds (not micro- or nanoseconds), an integer from 0 to {MAX_TIMESTAMP_MS}",
    "number": f"a finite number up to {MAX_NUMBER:g}, or nothing",
}
TEXTS = ("id", "text", "action", "long")
ARROW = {
    "id": pa.string(),
    "text": pa.string(),
    "action": pa.string(),
    "long": pa.string(),
    "texts": pa.list_(pa.string()),
    "flag": pa.bool_(),
    "time": pa.int64(),
    "number": pa.float64(),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one cell or row.

    Attributes:
        row: data row from 1 (a header, and empty lines of CSV, are not counted); 0 = the file as a whole.
        column: its name, "" = the row as a whole.
        kind: short name of what is wrong, the same for all rows with this fault.
        got: what stands there, shortened.
        expected: what should.
    """

    row: int
    column: str
    kind: str
    got: str
    expected: str

    def __str__(self) -> str:
        place = f"row {self.row}" if self.row else "file"
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

    @property
    def ok(self) -> bool:
        """True if nothing but warnings was found."""
        return all(key in self.warnings for key in self.counts)

    def add(self, problem: Problem, warning: bool = False, keep: int = 5) -> None:
        """Count a problem and keep the first `keep` of its kind as examples."""
        key = (problem.kind, problem.column)
        if warning:
            self.warnings.add(key)
        if self.counts[key] < keep:
            self.examples.append(problem)
        self.counts[key] += 1

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
        problems.
    """
    array = _whole(meaning, raw)
    problems: list[Problem] = []
    if array is None:  # some value does not convert: go cell by cell to name it
        cells = values_of(raw) if isinstance(raw, pa.Array) else raw
        typed: list[Any] = []
        for number, cell in zip(numbers, cells, strict=True):
            value, kind = _cell(meaning, cell)
            typed.append(value)
            if kind:
                problems.append(Problem(number, name, kind, shorten(cell), EXPECTED[meaning]))
        array = pa.array(typed, ARROW[meaning])
    if meaning in ("text", "action"):
        array = pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    found = {problem.row for problem in problems}
    nothing = "an empty cell" if isinstance(raw, pa.Array) else "null, or no such field"
    for kind, mask in _faults(meaning, array, required):
        for i in np.flatnonzero(mask.to_numpy(zero_copy_only=False)).tolist():
            if numbers[i] not in found:
                got = shorten(array[i].as_py()) if array[i].is_valid else nothing
                problems.append(Problem(numbers[i], name, kind, got, EXPECTED[meaning]))
    return array, sorted(problems, key=lambda problem: problem.row)


def _whole(meaning: str, raw: Any) -> pa.Array | None:
    """The column converted in one go; None if a value does not convert."""
    want = ARROW[meaning]
    try:
        array = raw if isinstance(raw, pa.Array) else pa.array(raw)
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if pa.types.is_timestamp(array.type) and meaning == "time":
            array = array.cast(pa.timestamp("ms"), safe=False)
        if pa.types.is_floating(array.type) and want == pa.string():
            return None  # 17.0 is not the id "17": whether it is meant so shows only in the cells
        if meaning == "texts" and pa.types.is_string(array.type):
            return None
        if not isinstance(raw, pa.Array) and pa.types.is_boolean(array.type) and meaning != "flag":
            return None
        array = array.cast(want)
        if meaning == "texts" and array.flatten().null_count:
            return None
        array.validate(full=True)  # a file may call bytes a string that are not UTF-8
        return array
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return None


def values_of(array: pa.Array) -> list[Any]:
    """Plain values [n] of an Arrow array; bytes in place of one with a string that is not UTF-8."""
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [_value(cell) for cell in array]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return error.object


def _cell(meaning: str, cell: Any) -> tuple[Any, str]:
    """One value and the kind of its fault, "" = none."""
    if isinstance(cell, bytes):
        try:
            cell = cell.decode()
        except UnicodeDecodeError:
            return None, "not UTF-8"
    if cell is None or (isinstance(cell, str) and cell == "" and meaning not in TEXTS):
        return None, ""
    if meaning in TEXTS:
        return _text(cell)
    if meaning == "texts":
        parts = [part.strip() for part in cell.split("|") if part.strip()] if isinstance(cell, str) else cell
        good = isinstance(parts, list) and all(isinstance(part, str) for part in parts)
        return (parts, "") if good else (None, "not a list of strings")
    if meaning == "flag":
        flag = {"true": True, "false": False, "1": True, "0": False}.get(str(cell).lower())
        return flag, "" if flag is not None else "not a flag"
    return _number(meaning, cell)


def _text(cell: Any) -> tuple[str | None, str]:
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, bool) or not isinstance(cell, (str, int)):
        return None, "not a string"
    try:
        str(cell).encode()
    except UnicodeEncodeError:
        return None, "not UTF-8"
    return str(cell), ""


def _number(meaning: str, cell: Any) -> tuple[float | int | None, str]:
    try:
        number = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) and not (isinstance(cell, float) and meaning == "number"):
        return None, "not a number"
    if meaning == "number":
        return number, ""
    if not number.is_integer():
        return None, "not an integer"
    whole = cell if isinstance(cell, int) else int(number)
    return (whole, "") if abs(whole) < 1 << 63 else (None, "out of range")


def _faults(meaning: str, array: pa.Array, required: bool) -> list[tuple[str, pa.Array]]:
    """(kind, mask [n]) of what is wrong with converted values."""
    faults = [("missing", pc.is_null(array))] if required else []
    if meaning in ("id", "text", "action"):
        n_bytes = pc.binary_length(array)
        limit = MAX_ACTION_BYTES if meaning == "action" else MAX_ID_BYTES
        faults.append(("too long", pc.greater(n_bytes, limit)))
        if meaning == "id":
            faults.append(("empty", pc.equal(n_bytes, 0)))
    elif meaning == "time":
        faults.append(("out of range", pc.or_(pc.less(array, 0), pc.greater(array, MAX_TIMESTAMP_MS))))
    elif meaning == "number":
        finite = pc.is_finite(array)
        faults.append(("not finite", pc.invert(finite)))
        faults.append(("out of range", pc.and_(finite, pc.greater(pc.abs(array), MAX_NUMBER))))
    return [(kind, pc.fill_null(mask, False)) for kind, mask in faults]


def check_extra(numbers: Sequence[int], extra: list[dict[str, Any] | None] | None) -> list[Problem]:
    """Unknown fields that can't be kept in an event: it is stored and sent as JSON."""
    problems = []
    for row, fields in zip(numbers, extra or (), strict=False):
        for name, cell in (fields or {}).items():
            try:
                orjson.dumps({name: cell})
            except orjson.JSONEncodeError as error:
                expected = f"what JSON can hold ({error})"
                problems.append(Problem(row, name, "not JSON", shorten(cell), expected))
    return problems


def check_size(row: int, message: bytes) -> Problem | None:
    """What is wrong with a row whose message is larger than an event may be; its unknown fields make it so."""
    if len(message) <= MAX_EVENT_BYTES:
        return None
    return Problem(row, "", "too large", f"{len(message)} bytes as JSON", f"at most {MAX_EVENT_BYTES}")


def check_times(report: Report, numbers: Sequence[int], times: pa.Array, last_ms: int) -> int:
    """Warn of times that run backwards, look like seconds or lie in the future.

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
    whole = np.where(whole > MAX_TIMESTAMP_MS, -1, whole)  # out of range, as is told
    ahead = np.maximum.accumulate(np.concatenate([[last_ms], whole]))
    valid = whole >= 0
    if last_ms < 0 and valid.any() and whole[first := int(valid.argmax())] < SECONDS_BELOW_MS:
        expected = "unix milliseconds, which is 1,000 times that; `driftline produce` sends nothing of such a file"
        report.add(Problem(numbers[first], "timestamp_ms", "begins in seconds", str(whole[first]), expected))
    for kind, mask, expected in (
        ("earlier than a row above", whole < ahead[:-1], "rows in time order"),
        ("looks like seconds", whole < SECONDS_BELOW_MS, "unix milliseconds"),
        ("in the future", whole > time.time() * 1000, "a time that has passed: a worker refuses days to come"),
    ):
        for i in np.flatnonzero(valid & mask).tolist():
            report.add(Problem(numbers[i], "timestamp_ms", kind, str(whole[i]), expected), warning=True)
    if valid.any():
        low, high = int(whole[valid].min()), int(whole[valid].max())
        report.first_ms = low if report.first_ms is None else min(low, report.first_ms)
        report.last_ms = high if report.last_ms is None else max(high, report.last_ms)
    return int(ahead[-1])
