"""What a converter of a named data set makes, and how it is written: in the schema, by time, with a configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from driftline.configs.errors import InputError
from driftline.stream.convert.guess import EVENTS, ITEMS, Kind
from driftline.stream.convert.rows import schema_of
from driftline.stream.convert.run import parquet_file
from driftline.stream.convert.words import write_config
from driftline.stream.durable import make_folder
from driftline.stream.events.checks import Problem, check_column
from driftline.stream.events.schema import MAX_ID_BYTES
from driftline.stream.events.sort import in_order

CHECKED_ROWS = 65_536
"""Rows that are checked at once."""


@dataclass(frozen=True, slots=True)
class Made:
    """Events and items in columns of the schema; those that are left out are null.

    Attributes:
        events: [n] rows in any order; those of one time keep theirs.
        items: [m] rows, None = nothing is known of the items.
        notes: what people should know of it.
        preset: the configuration that fits.
        actions: what actions mean that the preset does not have.
        others: further files of events, by name.
        sections: further settings that fit.
    """

    events: pa.Table
    items: pa.Table | None = None
    notes: Sequence[str] = ()
    preset: str = "default"
    actions: dict[str, Any] = field(default_factory=dict)
    others: Mapping[str, pa.Table] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)


def checked(made: Made) -> Made:
    """The same without the rows that no reader of the schema would take, with a note on how many these are, and why.

    Raises:
        InputError: no row of a table is right.
    """
    notes = list(made.notes)

    def sound(table: pa.Table, kind: Kind, what: str) -> pa.Table:
        keep, first = np.ones(len(table), np.bool_), None
        for begin in range(0, len(table), CHECKED_ROWS):
            part = table.slice(begin, CHECKED_ROWS)
            numbers = range(begin + 1, begin + len(part) + 1)
            problems: list[Problem] = []
            for name in kind.columns.keys() & set(table.column_names):
                raw = part[name].combine_chunks()
                problems += check_column(name, kind.columns[name], raw, numbers, name in kind.required)[1]
            wrong = [problem for problem in problems if not problem.warning]
            keep[[problem.row - 1 for problem in wrong]] = False
            if first is None and wrong:
                first = min(wrong, key=lambda problem: problem.row)
        if first is None:
            return table
        if not keep.any():
            raise InputError(f"none of {len(table):,} {what} is right; as converted, {first}")
        notes.append(f"{len(table) - int(keep.sum()):,} of {len(table):,} {what} are left out; as converted, {first}")
        return table.filter(pa.array(keep))

    return replace(
        made,
        events=sound(made.events, EVENTS, "events"),
        others={name: sound(table, EVENTS, f"rows of {name}") for name, table in made.others.items()},
        items=None if made.items is None else sound(made.items, ITEMS, "items"),
        notes=notes,
    )


def write_made(made: Made, out: Path, **packed: Any) -> list[Path]:
    """Writes events.parquet, others, items.parquet and driftline.yaml into a folder; the files that were written.

    Args:
        out: made if it is not there.
        packed: goes to the Parquet writer.

    Raises:
        InputError: there is no event, or no folder to write to.
    """
    if not len(made.events):
        raise InputError("; ".join([f"no event was found for {out}, expected at least one", *made.notes]))
    make_folder(out, "OUT")
    files = [out / "events.parquet"]
    _write(in_order(made.events, "timestamp_ms"), EVENTS, files[0], **packed)
    for name, events in made.others.items():
        files.append(out / name)
        _write(in_order(events, "timestamp_ms"), EVENTS, files[-1], **packed)
    if made.items is not None:
        files.append(out / "items.parquet")
        _write(made.items, ITEMS, files[-1], **packed)
    if write_config(out / "driftline.yaml", made.preset, {}, {}, made.actions, made.sections):
        files.append(out / "driftline.yaml")
    return files


def _write(table: pa.Table, kind: Kind, to: Path, **packed: Any) -> None:
    schema = schema_of(kind)
    n = len(table)
    columns = {
        column.name: table[column.name].cast(column.type)
        if column.name in table.column_names
        else pa.nulls(n, column.type)
        for column in schema
    }
    more = {name: table[name] for name in table.column_names if name not in columns}
    with parquet_file(to, kind, {name: column.type for name, column in more.items()}, **packed) as writer:
        writer.write_table(pa.table(columns | more))


def opened(folder: Path, names: Sequence[str], what: str, columns: Sequence[str]) -> pa.Table:
    """The first of some Parquet files that a folder has, or the file itself.

    Args:
        names: of the file, as those who offer it call it.
        what: it holds, for messages.
        columns: that are read.

    Raises:
        InputError: none is there, it can't be read, or a column is missing.
    """
    path = folder if folder.is_file() else next((folder / n for n in names if (folder / n).is_file()), None)
    if path is None:
        raise InputError(f"{folder}: there is no {' and no '.join(names)}; expected {what} in a file of that name")
    try:
        return pq.read_table(path, columns=list(columns))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(
            f"{path}: can't be read as {what}: {' '.join(str(error).split()):.200}; expected a Parquet file with the "
            f"columns {', '.join(columns)}"
        ) from None


def id_of(text: str) -> str:
    """An id that says as much of a text as an id can hold: a longer one ends with a hash in place of its rest."""
    return cut(text, "~" + hashed(text))


def cut(text: str, end: str = "...") -> str:
    """A text that is no longer than an id or a brand may be, with another end where something is cut off."""
    data = text.encode()
    if len(data) <= MAX_ID_BYTES:
        return text
    return data[: MAX_ID_BYTES - len(end)].decode(errors="ignore") + end


def hashed(text: str, letters: int = 10) -> str:
    """A hash of a text in hexadecimal: ids that say nothing of persons, of an order, or of what stood beside what."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()[:letters]
