"""Events and items from Parquet, CSV and JSONL files: columns for replay, messages for Kafka, a report for people.

All formats hold the columns of the event or item schema; unknown columns are kept. Files are read in chunks, so that
only `read_columns` needs memory for the whole. Whoever reads sees the same rows, types, refusals and warnings.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from driftline.configs.errors import InputError
from driftline.graph.arrays import Int32, Int64
from driftline.stream.events.checks import (
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
)
from driftline.stream.events.chunks import (
    SCHEMA,
    Chunk,
    Chunks,
    Form,
    arrow_chunks,
    check_names,
    jsonl_chunks,
    parquet_chunks,
)
from driftline.stream.events.columns import Columns
from driftline.stream.events.csvs import csv_chunks
from driftline.stream.events.ids import Hints
from driftline.stream.events.order import Order
from driftline.stream.events.schema import (
    MAX_ACTION_BYTES,
    MAX_EVENT_BYTES,
    MAX_ID_BYTES,
    MAX_TIMESTAMP_MS,
    Item,
    shorten,
)
from driftline.stream.events.source import format_of, readable, unchanged

LOG = logging.getLogger(__name__)

LARGE_BYTES = MAX_EVENT_BYTES - 6 * (5 * MAX_ID_BYTES + MAX_ACTION_BYTES) - 256
"""Unknown fields of fewer bytes fit into an event, whatever its known ones are."""
SHARED_ROWS = 65_536
"""Different rows of unknown fields that are looked for among those that come later."""
UNNAMED = "interact"
"""Action of events that name none."""
Typed = Generator[tuple[Chunk, pa.RecordBatch, list[Problem]], None, None]
READERS: dict[str, Callable[[Path, dict[str, str], Sequence[str], Form], Chunks]] = {
    "parquet": parquet_chunks,
    "arrow": arrow_chunks,
    "csv": csv_chunks,
    "jsonl": jsonl_chunks,
}


def raw_chunks(
    path: Path, known: dict[str, str], required: Sequence[str], form: Form = SCHEMA, kind: str = ""
) -> Chunks:
    """Rows of a file as they were read.

    Args:
        known: columns that are wanted; only the names count.
        required: those of them that must be there.
        form: how it is read.
        kind: a key of READERS, "" = by the name of the file.

    Raises:
        InputError: it can't be read, or changed meanwhile.
    """
    kind = kind or format_of(path)
    readable(path)
    try:
        with unchanged(path):
            yield from READERS[kind](path, known, required, form)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: can't be read as {kind.upper()}: {error}; is it damaged?") from error


# ---------------------------------------------------------------------------------------------- typed chunks


def _typed(path: Path, known: dict[str, str], required: tuple[str, ...]) -> Typed:
    """Chunks with their typed columns and what is wrong in them."""
    told: set[str] = set()
    with contextlib.closing(raw_chunks(path, known, required)) as chunks:
        for chunk in chunks:
            problems = chunk.broken + chunk.notes + _nearly(chunk, known, told)
            if chunk.rows == 0:
                yield chunk, pa.RecordBatch.from_pydict({}), problems
                continue
            check_names(path, [*chunk.columns, *chunk.unknown], known, required)
            typed = {}
            for name, raw in chunk.columns.items():
                typed[name], found = check_column(name, known[name], raw, chunk.numbers, name in required)
                problems += found
            yield chunk, pa.RecordBatch.from_pydict(typed), sorted(problems, key=lambda problem: problem.row)


def _nearly(chunk: Chunk, known: dict[str, str], told: set[str]) -> list[Problem]:
    """Warnings of unknown columns that are known ones but for their spelling; `told` are those so far."""
    found = []
    for name in chunk.unknown:
        meant = name.strip("\ufeff \t\r\n").lower()
        if meant in known and meant not in chunk.columns and name not in told:
            told.add(name)
            expected = f"{meant!r}, if it is meant; as it is, driftline does not know this column"
            found.append(Problem(0, name, "spelt differently", shorten(name), expected, True))
    return found


def _typed_events(path: Path) -> Typed:
    hints = Hints()
    with contextlib.closing(_typed(path, EVENT_COLUMNS, EVENT_REQUIRED)) as typed:
        for chunk, batch, problems in typed:
            hints.see(batch)
            problems += check_extra(chunk.numbers, chunk.extra)
            wrong = {problem.row for problem in problems if not problem.warning}
            yield chunk, batch, problems + _too_large(chunk, batch, wrong)
    if found := hints.problems():
        yield Chunk([], {}, None, [], []), pa.RecordBatch.from_pydict({}), found


def _strict(path: Path, typed: Typed) -> Iterator[tuple[Chunk, pa.RecordBatch]]:
    """Rows of a file in which nothing is wrong; what is suspicious is told in the log, once for each kind."""
    report = Report(str(path))
    try:
        with contextlib.closing(typed):
            for chunk, batch, problems in typed:
                for problem in problems:
                    if not problem.warning:
                        raise _refused(path, problem)
                    report.add(problem, keep=1)
                if chunk.rows:
                    yield chunk, batch
    finally:
        for problem in report.examples:
            n = report.counts[problem.kind, problem.column]
            LOG.warning("%s: %s%s", path, problem, f" ({n:,} rows)" if n > 1 else "")


def _refused(path: Path, problem: Problem) -> InputError:
    return InputError(f"{path}: {problem}; `driftline validate` lists everything that is wrong")


def validate(path: Path, actions: Container[str] | None = None, count_items: bool = False, late_ms: int = 0) -> Report:
    """Everything that is wrong with an events file.

    Args:
        actions: that the configuration sets; others are counted in the report. None = none are.
        count_items: fill `item_rows` of the report.
        late_ms: `state.late_ms`, by which events come too late.

    Raises:
        InputError: the file can't be read at all or lacks a required column.
    """
    report = Report(str(path), order=Order(late_ms))
    ids: set[str] = set()
    last_ms = -1
    for chunk, batch, problems in _typed_events(path):
        _count(report, chunk, problems)
        if chunk.rows == 0:
            continue
        if count_items:
            _count_items(report, batch)
        if actions is not None:
            whole = _full(batch)
            found = {name: n for name, n in by_action(whole).items() if name not in actions}
            report.unknown_actions.update(found)
            unnamed = pc.and_(pc.equal(whole.column("action"), UNNAMED), pc.is_valid(whole.column("value")))
            report.unnamed_values += pc.sum(unnamed).as_py() or 0
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
        _count_items(report, batch)
        _warn_of_repeats(report, chunk, batch, "item_id", ids, "the last row counts")
    return report


def _count_items(report: Report, batch: pa.RecordBatch) -> None:
    if "item_id" in batch.schema.names:
        report.item_rows.update(item_counts(batch))


def item_counts(batch: pa.RecordBatch) -> dict[str, int]:
    """Rows by item id."""
    counted = pc.value_counts(batch.column("item_id").drop_null())
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


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
    """Rows, but for the wrong ones, that make too large a message. Without large unknown fields none does."""
    found = []
    for i, more in enumerate(chunk.extra or ()):
        if more is not None and chunk.numbers[i] not in wrong and len(orjson.dumps(more)) > LARGE_BYTES:
            message = _message({name: batch.column(name)[i].as_py() for name in batch.schema.names}, more)
            found.append(check_size(chunk.numbers[i], message))
    return [problem for problem in found if problem]


# ---------------------------------------------------------------------------------------------- what readers get


def read_columns(path: Path, limit: int | None = None) -> Columns:
    """The first `limit` rows of an events file as columns, sorted stably by time.

    Raises:
        InputError: the file can't be read, or a cell is wrong; names the row and the column.
    """
    batches: list[pa.RecordBatch] = []
    extra: list[dict[str, Any] | None] = []
    shared: dict[str, dict[str, Any]] = {}
    rows = 0
    for chunk, batch in _strict(path, _typed_events(path)):
        batches.append(_full(batch))
        if chunk.extra is not None:
            extra += [None] * (rows - len(extra)) + [_one_of(shared, row) for row in chunk.extra]
        rows += batch.num_rows
        if limit is not None and rows >= limit:
            break
    if not batches:
        raise InputError(f"{path}: got 0 rows; expected at least one event")
    table = pa.Table.from_batches(batches).slice(0, limit)
    return _columns(table, (extra + [None] * (rows - len(extra)))[: table.num_rows] if extra else None)


def _one_of(shared: dict[str, dict[str, Any]], row: dict[str, Any] | None) -> dict[str, Any] | None:
    """The row, or an earlier one that is equal: few devices and regions make millions of rows."""
    if row is None or len(shared) >= SHARED_ROWS:
        return row if row is None else shared.get(repr(row), row)
    return shared.setdefault(repr(row), row)


def by_action(batch: pa.RecordBatch) -> dict[str, int]:
    """Rows by action; "interact" where there is none."""
    counted = pc.value_counts(batch.column("action").fill_null(UNNAMED))
    return dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


def _full(batch: pa.RecordBatch) -> pa.RecordBatch:
    """All columns of the schema, null where the file has none."""
    types = {"time": pa.int64(), "number": pa.float64()}
    columns = {}
    for name, meaning in EVENT_COLUMNS.items():
        present = name in batch.schema.names
        columns[name] = batch.column(name) if present else pa.nulls(batch.num_rows, types.get(meaning, pa.string()))
    columns["action"] = columns["action"].fill_null(UNNAMED)
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


def order_of(
    path: Path, late_ms: int, since_ms: int = 0, until_ms: int | None = None, actions: Counter[str] | None = None
) -> Order:
    """The order of an events file, of those of a span of event time if one is given. Raises as `read_columns` does.

    Args:
        actions: gets the rows of the span by action.
    """
    order = Order(late_ms)
    with contextlib.closing(_typed_events(path)) as typed:
        for _, batch, problems in typed:
            if wrong := [problem for problem in problems if not problem.warning]:
                raise _refused(path, wrong[0])
            if batch.num_rows:
                t_ms = batch.column("timestamp_ms").to_numpy()
                inside = _inside(t_ms, since_ms, until_ms)
                order.see(t_ms[inside])
                if actions is not None:
                    actions.update(by_action(_full(batch).filter(pa.array(inside))))
    return order


def count_behind(
    path: Path, bounds_ms: Int64, owner: Callable[[str], int], since_ms: int = 0, until_ms: int | None = None
) -> int:
    """Events of a file, of those of a span of event time, that are earlier than a bound of their partition.

    Args:
        bounds_ms: [partitions].
        owner: the partition of a user.
    """
    found = 0
    with contextlib.closing(_typed_events(path)) as typed:
        for _, batch, _ in typed:
            if batch.num_rows:
                t_ms, users = batch.column("timestamp_ms").to_numpy(), batch.column("user_id").dictionary_encode()
                bound_ms = bounds_ms[[owner(user) for user in users.dictionary.to_pylist()]]
                earlier = t_ms < bound_ms[users.indices.to_numpy()]
                found += int((earlier & _inside(t_ms, since_ms, until_ms)).sum())
    return found


def _inside(t_ms: Int64, since_ms: int, until_ms: int | None) -> NDArray[np.bool_]:
    """[n] bool: which times lie in a span, whose end is no part of it; None = it has none."""
    return (t_ms >= since_ms) & (t_ms < (MAX_TIMESTAMP_MS + 1 if until_ms is None else until_ms))


def count_rows(path: Path) -> int | None:
    """The rows of a file if its format tells without reading them, else None; so also for a file that is not good."""
    with contextlib.suppress(pa.ArrowException, OSError):
        return int(pa.parquet.read_metadata(path).num_rows) if path.suffix.lower() == ".parquet" else None
    return None


def read_messages(
    path: Path, watch: Callable[[pa.RecordBatch], None] | None = None
) -> Generator[tuple[bytes, bytes], None, None]:
    """(key, JSON value) of each event in the order of the file, for a producer. Raises as `read_columns` does.

    Args:
        watch: gets the typed columns of some thousand rows before any of them is given out.
    """
    for chunk, batch in _strict(path, _typed_events(path)):
        if watch is not None:
            watch(batch)
        extra = chunk.extra or [None] * batch.num_rows
        for row, more in zip(batch.to_pylist(), extra, strict=True):
            yield row["user_id"].encode(), _message(row, more)


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
