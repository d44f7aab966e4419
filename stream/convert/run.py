"""Files of other people to `events.parquet` and `items.parquet`: read, mapped, converted, sorted, written, counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from driftline.configs.errors import InputError
from driftline.configs.settings import ItemFiles, Settings
from driftline.graph.arrays import Int64
from driftline.stream.convert.guess import EVENTS, ITEMS, Kind, Mapping, mapping_of
from driftline.stream.convert.names import OF_PEOPLE, plain_name, rank
from driftline.stream.convert.rows import Bad, bad_file, schema_of, typed_rows
from driftline.stream.convert.sources import CONVERTED, QUERY, Sample, Source
from driftline.stream.durable import durable_file
from driftline.stream.events.checks import FUTURE, Problem, Report
from driftline.stream.events.chunks import Form
from driftline.stream.events.equal import EqualRows, Recent
from driftline.stream.events.files import UNNAMED, by_action, item_counts, raw_chunks
from driftline.stream.events.ids import Hints
from driftline.stream.events.order import Order
from driftline.stream.events.sort import sorted_rows
from driftline.stream.events.source import FORMATS, format_of

ROW_GROUP = 131_072
OF_EVENTS = ("title", "text", "categories", "brand")
"""Fields of items that rows of events may carry beside the id."""
SHOWN = 20
"""Rows that are converted to be shown."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One source and how its rows will be converted, with a note on what it is in."""

    kind: Kind
    source: Source
    mapping: Mapping
    sample: Sample
    note: str = ""

    @classmethod
    def of(cls, kind: Kind, text: str, reading: ItemFiles, keeps: Sequence[str] = ()) -> Plan:
        """Looks at the first rows of a path or a query.

        Args:
            kind: events or items.
            text: the path or the query.
            reading: what was said of such files.
            keeps: columns that stay as they are where there are such, whether a field takes them or not.

        Raises:
            InputError: there is nothing to read, or no mapping.
        """
        source = Source(text, reading)
        sample = source.sample()
        mapping = mapping_of(kind, sample, reading, str(source))
        kept = tuple(name for name in keeps if name in mapping.names)
        left_out = [name for name in mapping.left_out if name not in kept]
        absent = ", ".join(name for name in keeps if name not in kept)
        lacks = f"{source} has no column {absent}, which signals.context names" if absent else ""
        note = "; ".join(filter(None, (source.encoding_note(), lacks)))
        return cls(kind, source, replace(mapping, kept=kept, left_out=left_out), sample, note)

    def first_rows(self, n: int = 3) -> list[dict[str, Any]]:
        """The first rows, converted; those that are wrong are passed over."""
        found: list[dict[str, Any]] = []
        for batch in typed_rows(self.source, self.mapping, Report(""), Bad(), SHOWN):
            found += batch.slice(0, n).to_pylist()
            if len(found) >= n:
                break
        return found[:n]


def titles_of(events: Plan, reading: ItemFiles) -> Plan | None:
    """How items are read out of the events themselves, None where no column of theirs describes one."""
    fields = ("item_id", *OF_EVENTS)
    unknown = [name for name in events.mapping.left_out if plain_name(name) not in OF_PEOPLE]
    sample = replace(events.sample, names=[events.mapping.columns["item_id"], *unknown])
    map_ = {field: "" for field in ITEMS.columns if field not in fields}
    reading = reading.model_copy(update={"map": map_ | {"item_id": events.mapping.columns["item_id"]}})
    mapping = mapping_of(ITEMS, sample, reading, str(events.source))
    return Plan(ITEMS, events.source, mapping, sample) if mapping.columns.keys() - {"item_id"} else None


@dataclass(slots=True)
class Done:
    """What was found in a source, and written of it.

    Attributes:
        report: rows and problems.
        bad: rows that were left out, in the file that was asked for.
        written: rows of the file.
        actions: rows by action; "interact" where there is none.
        duplicates: events whose event_id an earlier one among the last `state.dedupe_ids` has: a worker drops them.
        without_action: rows whose action is chosen by value, and whose value chooses none.
        below_zero: rows whose value is below 0 in the file.
        below_zero_of: the same by action, where a column says it.
        prices_below_zero: rows whose price is.
        repeated: item rows that a later row of their id replaced.
    """

    report: Report
    bad: int = 0
    written: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    without_action: int = 0
    below_zero: int = 0
    below_zero_of: Counter[str] = field(default_factory=Counter)
    prices_below_zero: int = 0
    repeated: int = 0


def is_converted(path: Path) -> bool:
    """Whether `driftline import` wrote a file; one that can't be read it did not."""
    try:
        return format_of(path) == "parquet" and CONVERTED in (pq.read_schema(path).metadata or {})
    except (InputError, OSError, pa.ArrowException):
        return False


def is_ready(text: str, kind: Kind, reading: ItemFiles) -> bool:
    """Whether a path is a file in the schema, to be read as it is.

    A file that can't be read at all counts as ready: its reader says best what is wrong.
    """
    path = Path(text)
    suffixes = {suffix.lower() for suffix in path.suffixes[-2:]}
    if QUERY.match(text) and not path.exists():
        return False
    if path.is_dir() or (path.is_file() and not suffixes & FORMATS.keys()):
        return False
    try:
        if is_converted(path):
            return True
        if reading != type(reading)():
            return False
        chunk = next(raw_chunks(path, kind.columns, (), Form(rows=100, keeps=False)), None)
    except (InputError, OSError, pa.ArrowException):
        return True
    if chunk is None or not (chunk.columns or chunk.unknown):
        return True
    meant = kind is not EVENTS and any(
        rank(name, names) is not None
        for name in chunk.unknown
        for field, names in kind.names.items()
        if field not in chunk.columns
    )
    return all(field in chunk.columns for field in kind.required) and not meant


def check(plan: Plan, settings: Settings, bad: Path | None = None, say: Callable[[int], None] = lambda _: None) -> Done:
    """Converts all rows without writing them.

    Raises:
        InputError: the source can't be read.
    """
    done = Done(Report(str(plan.source), order=Order(settings.state.late_ms)))
    with bad_file(bad) as aside:
        for _ in _watched(plan, done, aside, say):
            pass
    done.bad = aside.rows
    _refuse_unmeant(plan, done, settings)
    return done


def write_events(
    plan: Plan,
    to: Path,
    settings: Settings,
    bad: Path | None = None,
    say: Callable[[int], None] = lambda _: None,
    sort: bool = True,
    undone: str = "written",
) -> Done:
    """Writes a file of events in order of time.

    Args:
        to: the Parquet file; it is there when it is whole.
        bad: file for rows that are not right, one JSON object a line; None = they are refused.
        say: gets the number of rows that were read.
        sort: False = in the order of the source.
        undone: what a refusal says that nothing was.

    Raises:
        InputError: the source can't be read, rows are not right and `bad` is None, or none is right.
    """
    done = Done(Report(str(plan.source), order=Order(settings.state.late_ms)))
    with bad_file(bad) as aside:
        rows = _watched(plan, done, aside, say)
        tables = sorted_rows(rows, to.parent) if sort else (pa.Table.from_batches([batch]) for batch in rows)
        remembered = settings.state.dedupe_ids
        before = Recent[str](remembered)  # as a Processor remembers them
        with parquet_file(to, plan.kind, dict.fromkeys(plan.mapping.kept, pa.string())) as writer:
            for table in tables:
                writer.write_table(table, ROW_GROUP)
                done.written += len(table)
                if remembered:
                    done.duplicates += sum(map(before.has, table["event_id"].drop_null().to_pylist()))
            done.bad = aside.rows
            _refuse_bad(plan, done, bad, undone)  # within: so no file comes to be
            _refuse_unmeant(plan, done, settings)
    return done


def write_items(
    plan: Plan,
    to: Path,
    bad: Path | None = None,
    say: Callable[[int], None] = lambda _: None,
    undone: str = "written",
) -> Done:
    """Writes a file of items, the last row of each id. They are held in memory, as whoever reads them does.

    Args: as those of `write_events`.

    Raises:
        InputError: as `write_events`.
    """
    done = Done(Report(str(plan.source)))
    with bad_file(bad) as aside:
        held = schema_of(plan.kind).empty_table()
        for batch in _watched(plan, done, aside, say):
            done.written += batch.num_rows
            held = _last_of_each(pa.concat_tables([held, pa.Table.from_batches([batch])]))
        done.bad = aside.rows
        _refuse_bad(plan, done, bad, undone)
        done.written, done.repeated = len(held), done.written - len(held)
        with parquet_file(to, plan.kind) as writer:
            writer.write_table(held)
    return done


def _last_of_each(table: pa.Table) -> pa.Table:
    """The last row of each item."""
    last = {item_id: row for row, item_id in enumerate(table["item_id"].to_pylist())}
    return table if len(last) == len(table) else table.take(pa.array(sorted(last.values())))


def _watched(plan: Plan, done: Done, aside: Bad, say: Callable[[int], None]) -> Iterator[pa.RecordBatch]:
    """The rows of a plan, counted."""
    report, hints, equal = done.report, Hints(), EqualRows()
    for batch in typed_rows(plan.source, plan.mapping, report, aside):
        say(report.rows)
        if not batch.num_rows:
            continue
        report.item_rows.update(item_counts(batch))
        done.prices_below_zero += pc.sum(pc.less(batch.column("price"), 0)).as_py() or 0
        if plan.kind is EVENTS:
            hints.see(batch)
            equal.see(batch)
            t_ms = batch.column("timestamp_ms").to_numpy()
            if (ahead := t_ms > time.time() * 1000).any():
                _warn_of_future(report, plan.mapping.columns["timestamp_ms"], t_ms[ahead])
            if report.order is not None:
                report.order.see(t_ms)
            low, high = int(t_ms.min()), int(t_ms.max())
            report.first_ms = low if report.first_ms is None else min(low, report.first_ms)
            report.last_ms = high if report.last_ms is None else max(high, report.last_ms)
            done.actions.update(by_action(batch))
            if plan.mapping.action_from:
                done.without_action += batch.column("action").null_count
            below = batch.filter(_below_zero(plan.mapping, batch))
            done.below_zero += below.num_rows
            if "action" in plan.mapping.columns:
                done.below_zero_of.update(by_action(below))
        yield batch
    for problem in hints.problems():
        report.add(problem)
    equal.tell(report)


def _below_zero(mapping: Mapping, batch: pa.RecordBatch) -> pa.Array:
    """Whether the value of each row is below 0 in the file."""
    named = mapping.below_zero
    return pc.equal(batch.column("action"), named) if named else pc.less(batch.column("value"), 0)


def _warn_of_future(report: Report, column: str, t_ms: Int64) -> None:
    problem = Problem(0, column, "in the future", str(t_ms[0]), FUTURE, True)
    report.add(problem, keep=1, times=len(t_ms))


def _refuse_unmeant(plan: Plan, done: Done, settings: Settings) -> None:
    """An error if rows got an action without a meaning by their value: they would count as wanted."""
    mapping, known = plan.mapping, ", ".join(settings.actions)
    if (n := done.without_action) and not mapping.action:
        least, name = mapping.action_from[0]
        raise InputError(
            f"{plan.source}: {n:,} rows have a value below {least:g}, where {name!r} begins, or none in "
            f"{mapping.columns['value']!r}, and nothing says what they are; expected --action NAME, one of {known} "
            f"(without a word they would be an {UNNAMED!r}, which --action {UNNAMED} keeps so)"
        )
    unset = [name for name in done.actions if name not in settings.actions and name != UNNAMED]
    if mapping.action_from and unset:
        name = unset[0]
        raise InputError(
            f"{plan.source}: {done.actions[name]:,} rows would be {name!r} by their value in "
            f"{mapping.columns['value']!r}, which configuration {settings.name!r} does not set; expected one of "
            f"{known}: --action-from NAME=VALUE and --action NAME for what is below, or set it: actions: "
            f"{{{name}: {{weight: 1.0, positive: true}}}}, positive: false where it is not wanted"
        )
    name = mapping.below_zero
    if name and done.below_zero and name not in settings.actions:
        raise InputError(
            f"{plan.source}: {done.below_zero:,} rows have a value below 0 in {plan.mapping.columns['value']!r} and "
            f"would be {name!r}, which configuration {settings.name!r} does not set; expected one of "
            f"{known}: --action-below-zero NAME (that of the other rows keeps them as they are), "
            f"or set it: actions: {{{name}: {{weight: -1.0, positive: false}}}}"
        )


def _refuse_bad(plan: Plan, done: Done, bad: Path | None, undone: str) -> None:
    report = done.report
    if report.rows == 0:
        raise InputError(f"{plan.source}: got 0 rows; expected at least one")
    if done.bad and (bad is None or done.bad == report.rows):
        kinds = ", ".join(
            f"{n:,} {kind}{f' in {column!r}' if column else ''}"
            for (kind, column), n in report.counts.most_common()
            if (kind, column) not in report.warnings
        )
        first = next(problem for problem in report.examples if not problem.warning)
        then = "" if done.bad == report.rows else ": --bad FILE puts them aside there and takes the others"
        raise InputError(
            f"{plan.source}: {done.bad:,} of {report.rows:,} rows are not right ({kinds}), the first: {first}. Nothing "
            f"was {undone}{then}"
        )


@contextmanager
def parquet_file(
    to: Path, kind: Kind, more: dict[str, pa.DataType] | None = None, **packed: Any
) -> Iterator[pq.ParquetWriter]:
    """A Parquet file in the schema that says so, whole or not there, with `more` columns; `packed` is its writer's."""
    fields = [*schema_of(kind), *(pa.field(name, of) for name, of in (more or {}).items())]
    schema = pa.schema(fields, {CONVERTED: kind.schema.encode()})
    with durable_file(to) as file, pq.ParquetWriter(file, schema, compression="zstd", **packed) as writer:
        yield writer
