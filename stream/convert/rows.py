"""Raw rows to typed ones in the columns of the schema; rows that are not right are named and left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from driftline.configs.errors import InputError
from driftline.graph.contexts import context_of
from driftline.stream.convert.columns import NO_VALUES, NULLS, joined, without
from driftline.stream.convert.guess import TIMES, Kind, Mapping
from driftline.stream.convert.numbers import column_with_point
from driftline.stream.convert.sources import Source
from driftline.stream.durable import durable_file, put_aside
from driftline.stream.events.cells import ARROW, values_of
from driftline.stream.events.checks import Problem, Report, check_column
from driftline.stream.events.chunks import Chunk
from driftline.stream.events.schema import shorten


class Bad:
    """Rows that are not right, as JSON lines: place, what is wrong, and what was read of the row.

    Attributes:
        rows: how many there were.
    """

    def __init__(self, file: Any = None) -> None:
        self.rows, self._file = 0, file

    def add(self, source: str, part: str, number: int, problems: list[Problem], row: dict[str, Any]) -> None:
        """Counts a row, and writes it where there is a file."""
        self.rows += 1
        if self._file is not None:
            wrong = [{"column": p.column, "kind": p.kind, "got": p.got, "expected": p.expected} for p in problems]
            line = {"file": part or source, "row": number, "problems": wrong, "read": row}
            self._file.write(orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS) + b"\n")


@contextmanager
def bad_file(path: Path | None) -> Iterator[Bad]:
    """A `Bad` that writes to a file, which is there at the end also if nothing was wrong; without a path it counts.

    An earlier file is kept beside it as `.old`.
    """
    if path is None:
        yield Bad()
        return
    with durable_file(path) as file:
        yield Bad(file)
        if path.is_file():
            put_aside(path)


def schema_of(kind: Kind) -> pa.Schema:
    """Fields of the rows that come out: all of the schema."""
    return pa.schema([(field, ARROW[meaning]) for field, meaning in kind.columns.items()])


def typed_rows(
    source: Source, mapping: Mapping, report: Report, bad: Bad, chunk_rows: int = 0
) -> Iterator[pa.RecordBatch]:
    """Rows in the schema, in the order of the source, without those in which something is wrong.

    Args:
        report: counts rows and problems.
        bad: gets the rows that are left out.
        chunk_rows: of a batch, 0 = many.

    Raises:
        InputError: the source can't be read, or a part of it lacks a column.
    """
    wanted = list(dict.fromkeys(part for parts in mapping.parts.values() for part in parts))
    wanted += mapping.kept
    schema = pa.schema([*schema_of(mapping.kind), *(pa.field(name, pa.string()) for name in mapping.kept)])
    required = [part for field in mapping.kind.required for part in mapping.parts[field]]
    for part, chunk in source.chunks(wanted, required, chunk_rows):
        if part and chunk.rows:
            _check_called_alike(source, mapping, part, chunk)
        report.rows += chunk.rows + len(chunk.broken)
        problems = [*chunk.broken, *chunk.notes]
        arrays: dict[str, pa.Array] = {}
        for field, meaning in mapping.kind.columns.items():
            arrays[field], found = _typed(mapping, field, meaning, chunk)
            problems += found
        for least, name in mapping.action_from:
            reached = pc.greater_equal(arrays["value"], least).fill_null(False)
            arrays["action"] = pc.if_else(reached, name, arrays["action"])
        if mapping.below_zero:
            below = pc.less(arrays["value"], 0).fill_null(False)
            arrays["action"] = pc.if_else(below, mapping.below_zero, arrays["action"])
            arrays["value"] = pc.if_else(below, pc.negate(arrays["value"]), arrays["value"])
        for name in mapping.kept:
            raw = chunk.columns.get(name, pa.nulls(chunk.rows))
            cells = values_of(raw) if isinstance(raw, pa.Array) else raw
            arrays[name] = pa.array([context_of({name: cell}, [name])[0] or None for cell in cells], pa.string())
        by_row: dict[int, list[Problem]] = {}
        for problem in sorted(problems, key=lambda problem: problem.row):
            report.add(replace(problem, file=part))
            if not problem.warning:
                by_row.setdefault(problem.row, []).append(problem)
        for number, wrong in sorted(by_row.items()):
            bad.add(str(source), part, number, wrong, {} if number not in chunk.numbers else _row(chunk, number))
        if not chunk.rows:
            continue
        batch = pa.RecordBatch.from_pydict(arrays, schema)
        if by_row:
            batch = batch.filter(pa.array([number not in by_row for number in chunk.numbers]))
        yield batch


def _check_called_alike(source: Source, mapping: Mapping, part: str, chunk: Chunk) -> None:
    """An error if a part has a field in another column than the others, which would be lost."""
    for field, columns in mapping.parts.items():
        other = next((name for name in mapping.others.get(field, ()) if name in chunk.unknown), None)
        lost = [name for name in columns if name not in chunk.columns]
        if lost and other:
            raise InputError(
                f"{source}: part {part} has no column {lost[0]!r}, which others have as {field}, but {other!r}; "
                "expected one name in all parts: import each kind of file by itself, then a folder of what that writes"
            )


def _typed(mapping: Mapping, field: str, meaning: str, chunk: Chunk) -> tuple[pa.Array, list[Problem]]:
    """One field of all rows of a chunk, and what is wrong with it."""
    if field == "action" and mapping.action:
        return pa.array([mapping.action] * chunk.rows, pa.string()), []
    column = mapping.columns.get(field)
    required = field in mapping.kind.required
    raw = None if column is None else joined(chunk.columns, column)
    if column is None or raw is None:
        return check_column(column or field, meaning, pa.nulls(chunk.rows), chunk.numbers, required)
    raw, problems = without(raw, NO_VALUES if meaning in (*TIMES, "number", "flag") else NULLS), []
    if meaning in TIMES:
        clock = mapping.clocks[field]
        times, wrong = clock.read(raw)
        cells = values_of(raw) if isinstance(raw, pa.Array) else raw
        problems = [Problem(chunk.numbers[i], column, "not a time", shorten(cells[i]), f"{clock}") for i in wrong]
        raw = times
    elif meaning == "number":
        raw = column_with_point(raw, mapping.decimal)
    array, found = check_column(column, meaning, raw, chunk.numbers, required)
    if meaning in TIMES:
        missing = f"a time: {mapping.clocks[field]}"
        found = [replace(problem, expected=missing) if problem.kind == "missing" else problem for problem in found]
    named = {problem.row for problem in problems}
    return array, problems + [problem for problem in found if problem.row not in named]


def _row(chunk: Chunk, number: int) -> dict[str, Any]:
    """What was read of a row."""
    i = chunk.numbers.index(number)
    return {
        name: values_of(raw[i : i + 1])[0] if isinstance(raw, pa.Array) else raw[i]
        for name, raw in chunk.columns.items()
    }
