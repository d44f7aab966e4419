"""Events and items from Parquet, CSV and JSONL files: columns for replay, messages for Kafka, a report for people.

All three formats hold the columns of the event or item schema; unknown columns are kept. Files are read in chunks,
so that only `read_columns` needs memory for the whole. CSV columns are read as text and typed here, so that an
error can name the row.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from configs.errors import InputError
from graph.view import Int32
from stream.evaluate.log import Columns
from stream.events import Item, shorten
from stream.file_checks import (
    EVENT_COLUMNS,
    EVENT_REQUIRED,
    ITEM_COLUMNS,
    ITEM_REQUIRED,
    Problem,
    Report,
    check_column,
    check_extra,
    check_size,
    check_times,
    values_of,
)

CHUNK_ROWS = 65_536
BLOCK_BYTES = 1 << 23


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a file as they were read.

    Attributes:
        numbers: [n] number of each row in the file, from 1; broken ones lie between.
        columns: raw values [n] of the columns that the schema knows.
        extra: [n] dicts of the fields that it does not know, or None.
        unknown: names of those fields.
        broken: rows that could not be read at all; they are not in `columns`.
    """

    numbers: Sequence[int]
    columns: dict[str, Any]
    extra: list[dict[str, Any] | None] | None
    unknown: list[str]
    broken: list[Problem]

    @property
    def rows(self) -> int:
        """How many could be read."""
        return len(self.numbers)


Chunks = Generator[Chunk, None, None]
Typed = Generator[tuple[Chunk, pa.RecordBatch, list[Problem]], None, None]

# ---------------------------------------------------------------------------------------------- reading chunks


def _chunks(path: Path, known: dict[str, str]) -> Chunks:
    readers: dict[str, Callable[[Path, dict[str, str]], Chunks]] = {
        ".parquet": _parquet_chunks,
        ".csv": _csv_chunks,
        ".jsonl": _jsonl_chunks,
        ".ndjson": _jsonl_chunks,
    }
    if path.is_dir():
        raise InputError(f"{path}: got a folder; expected a file, .parquet, .csv or .jsonl")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: got a file of type {path.suffix!r}; expected .parquet, .csv or .jsonl")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; check the path")
    try:
        with path.open("rb") as file:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise InputError(f"{path}: got a file in UTF-16; expected UTF-8, write it anew in that encoding")
        yield from reader(path, known)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as {path.suffix[1:].upper()}: {error}; is it damaged?") from error


def _table_chunk(
    path: Path, batch: pa.RecordBatch, known: dict[str, str], numbers: Sequence[int], broken: list[Problem]
) -> Chunk:
    names = batch.schema.names
    for name, n in Counter(names).items():
        if n > 1:
            raise InputError(f"{path}: got {n} columns {shorten(name)}; expected each name once, take out the others")
    unknown = [name for name in names if name not in known]
    extra: list[dict[str, Any] | None] | None = None
    if unknown:
        rows = zip(*(values_of(batch.column(name)) for name in unknown), strict=True)
        extra = [{k: v for k, v in zip(unknown, row, strict=True) if v is not None} or None for row in rows]
    columns = {name: batch.column(name) for name in names if name in known}
    return Chunk(numbers, columns, extra, unknown, broken)


def _parquet_chunks(path: Path, known: dict[str, str]) -> Chunks:
    first_row = 1
    for batch in pa.parquet.ParquetFile(path).iter_batches(CHUNK_ROWS):
        yield _table_chunk(path, batch, known, range(first_row, first_row + batch.num_rows), [])
        first_row += batch.num_rows


def _csv_chunks(path: Path, known: dict[str, str]) -> Chunks:
    broken: list[Problem] = []

    def on_bad_row(row: pa.csv.InvalidRow) -> str:
        expected = f"{row.expected_columns} fields as in the header"
        got = f"{row.actual_columns} fields in {shorten(row.text)}"
        broken.append(Problem((row.number or 1) - 1, "", "wrong number of fields", got, expected))
        return "skip"

    with path.open("rb") as file:
        header = file.readline().decode("utf-8-sig")
    if not header.strip():
        raise InputError(f"{path}: got an empty first line; expected a header with the names of the columns")
    names = next(csv.reader([header]))  # pyarrow would start threads, and abort a process that ends while they do
    if len(names) == 1 and ";" in names[0]:
        raise InputError(f"{path}: got the header {shorten(names[0])} with ';' between the columns; expected ','")
    reader = pa.csv.open_csv(
        path,
        pa.csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False),
        pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_bad_row),
        pa.csv.ConvertOptions(
            check_utf8=False, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    )
    next_row = 1
    with reader:
        for batch in reader:
            wrong = {problem.row for problem in broken}  # of the block after this one, too: the reader is ahead
            numbers = list(islice((row for row in count(next_row) if row not in wrong), batch.num_rows))
            next_row = max(numbers, default=next_row - 1) + 1
            here = [problem for problem in broken if problem.row < next_row]
            del broken[: len(here)]
            yield _table_chunk(path, batch, known, numbers, here)
    if broken:
        yield Chunk([], {}, None, [], broken)


def _jsonl_chunks(path: Path, known: dict[str, str]) -> Chunks:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    broken: list[Problem] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = orjson.loads(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            except orjson.JSONDecodeError as error:
                got = shorten(line.decode(errors="replace").rstrip()) if line.strip() else "an empty line"
                expected = f"one JSON object a line ({error.msg} at character {error.pos + 1})"
                broken.append(Problem(number, "", "not JSON", got, expected))
                continue
            if isinstance(row, dict):
                rows.append(row)
                numbers.append(number)
            else:
                broken.append(Problem(number, "", "not an object", shorten(row), "one JSON object a line"))
            if len(rows) == CHUNK_ROWS:
                yield _object_chunk(rows, known, numbers, broken)
                rows, numbers, broken = [], [], []
    if rows or broken:
        yield _object_chunk(rows, known, numbers, broken)


def _object_chunk(
    rows: list[dict[str, Any]], known: dict[str, str], numbers: list[int], broken: list[Problem]
) -> Chunk:
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    unknown = [name for name in names if name not in known]
    columns = {name: [row.get(name) for row in rows] for name in names if name in known}
    extra: list[dict[str, Any] | None] | None = None
    if unknown:
        extra = [{k: row[k] for k in unknown if row.get(k) is not None} or None for row in rows]
    return Chunk(numbers, columns, extra, unknown, broken)


# ---------------------------------------------------------------------------------------------- typed chunks


def _typed(path: Path, known: dict[str, str], required: tuple[str, ...]) -> Typed:
    """Chunks with their typed columns and what is wrong in them."""
    with contextlib.closing(_chunks(path, known)) as chunks:
        for chunk in chunks:
            problems = list(chunk.broken)
            if chunk.rows == 0:
                yield chunk, pa.RecordBatch.from_pydict({}), problems
                continue
            missing = [name for name in required if name not in chunk.columns]
            if missing:
                raise _lacks(path, missing[0], chunk, known, required)
            typed = {}
            for name, raw in chunk.columns.items():
                typed[name], found = check_column(name, known[name], raw, chunk.numbers, name in required)
                problems += found
            yield chunk, pa.RecordBatch.from_pydict(typed), sorted(problems, key=lambda problem: problem.row)


def _lacks(path: Path, name: str, chunk: Chunk, known: dict[str, str], required: tuple[str, ...]) -> InputError:
    got = ", ".join([*chunk.columns, *chunk.unknown]) or "no columns"
    near = [one for one in chunk.unknown if one.strip().lower() == name]
    hint = f" ({near[0]!r} must be spelt {name!r})" if near else ""
    return InputError(
        f"{path}: column {name!r} is missing: got {shorten(got)}{hint}; "
        f"expected {', '.join(required)} and optionally {', '.join(n for n in known if n not in required)}"
    )


def _typed_events(path: Path) -> Typed:
    with contextlib.closing(_typed(path, EVENT_COLUMNS, EVENT_REQUIRED)) as typed:
        for chunk, batch, problems in typed:
            yield chunk, batch, problems + check_extra(chunk.numbers, chunk.extra)


def _strict(path: Path, typed: Typed) -> Iterator[tuple[Chunk, pa.RecordBatch]]:
    with contextlib.closing(typed):
        for chunk, batch, problems in typed:
            if problems:
                raise _refused(path, problems[0])
            if chunk.rows:
                yield chunk, batch


def _refused(path: Path, problem: Problem) -> InputError:
    return InputError(f"{path}: {problem}; `driftline validate` lists everything that is wrong")


def validate(path: Path, actions: Container[str] | None = None) -> Report:
    """Everything that is wrong with an events file.

    Args:
        actions: that the configuration sets; others are counted in the report. None = none are.

    Raises:
        InputError: the file can't be read at all or lacks a required column.
    """
    report = Report(str(path))
    ids: set[str] = set()
    last_ms = -1
    for chunk, batch, problems in _typed_events(path):
        _count(report, chunk, problems + _too_large(chunk, batch, {problem.row for problem in problems}))
        if chunk.rows == 0:
            continue
        if actions is not None:
            found = Counter(_full(batch).column("action").to_pylist())
            report.unknown_actions.update({name: n for name, n in found.items() if name not in actions})
        _warn_of_repeats(report, chunk, batch, "event_id", ids, "the second row will be dropped")
        last_ms = check_times(report, chunk.numbers, batch.column("timestamp_ms"), last_ms)
    if report.rows == 0:
        report.add(Problem(0, "", "no rows", "0 rows", "at least one event"))
    return report


def validate_items(path: Path) -> Report:
    """Everything that is wrong with an items file. Raises as `validate` does."""
    report = Report(str(path))
    ids: set[str] = set()
    for chunk, batch, problems in _typed(path, ITEM_COLUMNS, ITEM_REQUIRED):
        _count(report, chunk, problems)
        _warn_of_repeats(report, chunk, batch, "item_id", ids, "the last row counts")
    return report


def _count(report: Report, chunk: Chunk, problems: list[Problem]) -> None:
    report.rows += chunk.rows + len(chunk.broken)
    report.unknown += [name for name in chunk.unknown if name not in report.unknown]
    for problem in problems:
        report.add(problem)


def _warn_of_repeats(
    report: Report, chunk: Chunk, batch: pa.RecordBatch, column: str, ids: set[str], then: str
) -> None:
    """Warn of ids that an earlier row has; `ids` are those so far."""
    ids_here = batch.column(column).to_pylist() if column in batch.schema.names else ()
    for number, one in zip(chunk.numbers, ids_here, strict=False):
        if one is not None and one in ids:
            expected = f"an id that no other row has; {then}"
            report.add(Problem(number, column, "duplicate", shorten(one), expected), True)
        ids.add(one)


def _too_large(chunk: Chunk, batch: pa.RecordBatch, wrong: set[int]) -> list[Problem]:
    """Rows, but for the wrong ones, that make too large a message. Without unknown fields none does."""
    if chunk.extra is None:
        return []
    rows = zip(chunk.numbers, batch.to_pylist(), chunk.extra, strict=True)
    found = [check_size(number, _message(row, more)) for number, row, more in rows if number not in wrong]
    return [problem for problem in found if problem]


# ---------------------------------------------------------------------------------------------- what readers get


def read_columns(path: Path, limit: int | None = None) -> Columns:
    """The first `limit` rows of an events file as columns, sorted stably by time.

    Raises:
        InputError: the file can't be read, or a cell is wrong; names the row and the column.
    """
    batches: list[pa.RecordBatch] = []
    extra: list[dict[str, Any] | None] = []
    rows = 0
    for chunk, batch in _strict(path, _typed_events(path)):
        batches.append(_full(batch))
        if chunk.extra is not None:
            extra += [None] * (rows - len(extra)) + chunk.extra
        rows += batch.num_rows
        if limit is not None and rows >= limit:
            break
    if not batches:
        raise InputError(f"{path}: got 0 rows; expected at least one event")
    table = pa.Table.from_batches(batches).slice(0, limit)
    return _columns(table, (extra + [None] * (rows - len(extra)))[: table.num_rows] if extra else None)


def _full(batch: pa.RecordBatch) -> pa.RecordBatch:
    """All columns of the schema, null where the file has none."""
    types = {"time": pa.int64(), "number": pa.float64()}
    columns = {}
    for name, meaning in EVENT_COLUMNS.items():
        present = name in batch.schema.names
        columns[name] = batch.column(name) if present else pa.nulls(batch.num_rows, types.get(meaning, pa.string()))
    columns["action"] = columns["action"].fill_null("interact")
    return pa.RecordBatch.from_pydict(columns)


def _columns(table: pa.Table, extra: list[dict[str, Any] | None] | None) -> Columns:
    def coded(name: str) -> tuple[Int32, list[str]]:
        array = table[name].combine_chunks().dictionary_encode()
        return array.indices.fill_null(-1).to_numpy(), array.dictionary.to_pylist()

    ids, t_ms = table["event_id"], table["timestamp_ms"].to_numpy()
    columns = Columns(
        user_id=coded("user_id"),
        item_id=coded("item_id"),
        t_ms=t_ms,
        action=coded("action"),
        value=table["value"].to_numpy().astype(np.float32),
        price=table["price"].to_numpy().astype(np.float32),
        group_id=coded("group_id"),
        domain=coded("domain"),
        event_id=None if ids.null_count == len(ids) else np.array(ids.to_pylist(), object),
        extra=None if extra is None else np.array([*extra, None], object)[:-1],
    )
    return columns.take(np.argsort(t_ms, kind="stable"))


def count_rows(path: Path) -> int | None:
    """The rows of a file if its format tells without reading them, else None; so also for a file that is not good."""
    with contextlib.suppress(pa.ArrowException, OSError):
        return int(pa.parquet.read_metadata(path).num_rows) if path.suffix.lower() == ".parquet" else None
    return None


def read_messages(path: Path) -> Generator[tuple[bytes, bytes], None, None]:
    """(key, JSON value) of each event in the order of the file, for a producer. Raises as `read_columns` does."""
    for chunk, batch in _strict(path, _typed_events(path)):
        extra = chunk.extra or [None] * batch.num_rows
        for number, row, more in zip(chunk.numbers, batch.to_pylist(), extra, strict=True):
            message = _message(row, more)
            if problem := check_size(number, message):
                raise _refused(path, problem)
            yield row["user_id"].encode(), message


def _message(row: dict[str, Any], more: dict[str, Any] | None) -> bytes:
    event = {name: cell for name, cell in row.items() if cell is not None}
    return orjson.dumps(event | more if more else event)


def read_items(path: Path) -> dict[str, Item]:
    """Items by id; a later row replaces an earlier one of the same id. Raises as `read_columns` does."""
    items: dict[str, Item] = {}
    for _, batch in _strict(path, _typed(path, ITEM_COLUMNS, ITEM_REQUIRED)):
        for row in batch.to_pylist():
            given = {name: cell for name, cell in row.items() if cell is not None}
            given["categories"] = list(given.get("categories", ()))
            items[row["item_id"]] = Item(**given)
    return items
