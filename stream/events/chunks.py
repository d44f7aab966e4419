"""Raw rows of Parquet, Arrow and JSONL files, some at a time; those of CSV come from stream/events/csvs.py."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet

from driftline.configs.errors import InputError
from driftline.stream.events.cells import kept_values, uuid_text
from driftline.stream.events.checks import Problem
from driftline.stream.events.schema import shorten
from driftline.stream.events.source import opened

CHUNK_ROWS = 65_536
ARROW_MAGIC = b"ARROW1"
ARRAY = ": one array of them is no such file, write its objects one a line"
_KEY = re.compile(rb'"\s*:')


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a file as they were read.

    Attributes:
        numbers: [n] number of each row in the file, from 1; broken ones lie between.
        columns: raw values [n] of the columns that the schema knows.
        extra: [n] dicts of the fields that it does not know, or None.
        unknown: names of those fields.
        broken: rows that could not be read at all; they are not in `columns`.
        notes: warnings of the reader.
    """

    numbers: Sequence[int]
    columns: dict[str, Any]
    extra: list[dict[str, Any] | None] | None
    unknown: list[str]
    broken: list[Problem]
    notes: list[Problem] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many could be read."""
        return len(self.numbers)


Chunks = Generator[Chunk, None, None]


@dataclass(frozen=True, slots=True)
class Form:
    """How a file is read whose columns are not those of the schema.

    Attributes:
        header: names of the columns of a CSV file whose first line is a row; () = the first line has them.
        encoding: of a CSV file, "" = UTF-8.
        flat: fields inside of others are columns of their own, named with dots.
        keeps: unknown columns come along as `Chunk.extra`.
        rows: of a chunk, 0 = CHUNK_ROWS.
    """

    header: tuple[str, ...] = ()
    encoding: str = ""
    flat: bool = False
    keeps: bool = True
    rows: int = 0

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk at most."""
        return self.rows or CHUNK_ROWS


SCHEMA = Form()
"""Of files with the columns of the schema."""


def check_names(path: Path, names: Sequence[str], known: dict[str, str], required: Sequence[str]) -> None:
    """An error if a required column is missing or one is there twice.

    Raises:
        InputError: so it is.
    """
    for name, n in Counter(name for name in names if name.strip()).items():
        if n > 1:
            raise InputError(f"{path}: got {n} columns {shorten(name)}; expected each name once, take out the others")
    missing = [name for name in required if name not in names]
    if not missing:
        return
    near = [one for one in names if one.strip().lower() == missing[0]]
    hint = f" ({near[0]!r} must be spelt {missing[0]!r})" if near else ""
    raise InputError(
        f"{path}: column {missing[0]!r} is missing: got {shorten(', '.join(names) or 'no columns')}{hint}; "
        f"expected {', '.join(required)} and optionally {', '.join(n for n in known if n not in required)}"
    )


def table_chunk(
    path: Path,
    columns: Sequence[tuple[str, pa.Array]],
    known: dict[str, str],
    numbers: Sequence[int],
    broken: list[Problem],
    notes: list[Problem],
    keeps: bool = True,
) -> Chunk:
    """A chunk of Arrow columns; unless it `keeps` unknown ones only their names are in it.

    Raises:
        InputError: two columns have one name.
    """
    columns = [(name, array) for name, array in columns if name.strip() or array.null_count < len(array)]
    check_names(path, [name for name, _ in columns], known, ())
    if sum(not name.strip() for name, _ in columns) > 1:
        raise InputError(f"{path}: got several columns without a name; expected a name for each column with values")
    unknown = [name for name, _ in columns if name not in known]
    extra: list[dict[str, Any] | None] | None = None
    if unknown and keeps:
        rows = zip(*(kept_values(array) for name, array in columns if name not in known), strict=True)
        extra = [{k: v for k, v in zip(unknown, row, strict=True) if v is not None} or None for row in rows]
    kept = {name: array for name, array in columns if name in known}
    return Chunk(numbers, kept, extra, unknown, broken, notes)


def parquet_chunks(path: Path, known: dict[str, str], _required: Sequence[str], form: Form = SCHEMA) -> Chunks:
    """Rows of a Parquet file. No threads: a process that ends while one of Arrow's runs may abort.

    Raises:
        InputError: the folder that the file lies in says what a column of it should.
        pa.ArrowException, OSError: it can't be read.
    """
    with pa.parquet.ParquetFile(path, pre_buffer=False, coerce_int96_timestamp_unit="us") as file:
        names = file.schema_arrow.names
        for folder in path.resolve().parent.parts:
            name = folder.partition("=")[0]
            if name != folder and name in known and name not in names:
                raise InputError(
                    f"{path}: column {name!r} is missing and the folder is called {folder!r}; expected it in the file: "
                    "write the table anew without partitions"
                )
        uuids = {c.path for c in file.schema if c.logical_type.type == "UUID"}
        yield from batch_chunks(path, file.iter_batches(form.chunk_rows, use_threads=False), known, form, uuids)


def arrow_chunks(path: Path, known: dict[str, str], _required: Sequence[str], form: Form = SCHEMA) -> Chunks:
    """Rows of an Arrow file, or of an Arrow stream in a file.

    Raises:
        pa.ArrowException, OSError: it can't be read.
    """
    with pa.OSFile(str(path)) as file:
        if file.read(len(ARROW_MAGIC)) == ARROW_MAGIC:
            reader = pa.ipc.open_file(file)
            batches: Iterable[pa.RecordBatch] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            file.seek(0)
            batches = pa.ipc.open_stream(file)
        parts = (part for batch in batches for part in _parts(batch, form.chunk_rows))
        yield from batch_chunks(path, parts, known, form)


def _parts(batch: pa.RecordBatch, rows: int) -> Generator[pa.RecordBatch, None, None]:
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def batch_chunks(
    path: Path, batches: Iterable[pa.RecordBatch], known: dict[str, str], form: Form, uuids: Collection[str] = ()
) -> Chunks:
    """Rows of Arrow batches; `uuids` are columns whose 16 bytes are UUIDs."""
    first_row = 1
    for batch in batches:
        whole = pa.table(batch)
        while form.flat and any(pa.types.is_struct(kind) for kind in whole.schema.types):
            whole = whole.flatten()
        arrays = (column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in whole.columns)
        columns = [
            (name, uuid_text(array) if name in uuids and pa.types.is_fixed_size_binary(array.type) else array)
            for name, array in zip(whole.schema.names, arrays, strict=True)
        ]
        yield table_chunk(path, columns, known, range(first_row, first_row + len(whole)), [], [], form.keeps)
        first_row += len(whole)


def jsonl_chunks(path: Path, known: dict[str, str], _required: Sequence[str], form: Form = SCHEMA) -> Chunks:
    """Rows of a file with one JSON object a line.

    Raises:
        OSError, EOFError: it can't be read.
    """
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    broken: list[Problem] = []
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            row = _json_row(number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            if isinstance(row, Problem):
                broken.append(row)
            else:
                rows.append(_flat(row) if form.flat else row)
                numbers.append(number)
            if len(rows) == form.chunk_rows:
                yield _object_chunk(rows, known, numbers, broken, form.keeps)
                rows, numbers, broken = [], [], []
    if rows or broken:
        yield _object_chunk(rows, known, numbers, broken, form.keeps)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Fields of objects inside of a row as fields of the row, named with dots."""
    if not any(isinstance(cell, dict) for cell in row.values()):
        return row
    found: dict[str, Any] = {}
    for name, cell in row.items():
        if isinstance(cell, dict):
            found.update({f"{name}.{inner}": value for inner, value in _flat(cell).items()})
        else:
            found[name] = cell
    return found


def _json_row(number: int, line: bytes) -> dict[str, Any] | Problem:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        got = shorten(line.decode(errors="replace").rstrip()) if line.strip() else "an empty line"
        expected = f"one JSON object a line ({error.msg} at character {error.pos + 1}){ARRAY * line.startswith(b'[')}"
        return Problem(number, "", "not JSON", got, expected)
    if not isinstance(row, dict):
        expected = f"one JSON object a line{ARRAY * isinstance(row, list)}"
        return Problem(number, "", "not an object", shorten(row), expected)
    if line.count(b":") != len(row) and len(_KEY.findall(line)) != len(row) and (key := _repeated_key(line)):
        return Problem(number, key, "key given twice", shorten(line.decode().rstrip()), "each key of an object once")
    return row


def _repeated_key(line: bytes) -> str | None:
    """A key that one of the objects of a line has twice; orjson keeps the last without a word."""
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        found.extend(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)

    try:
        json.loads(line, object_pairs_hook=look)
    except (RecursionError, ValueError):  # nested more deeply than Python reads, or an integer of thousands of digits
        return None
    return found[0] if found else None


def _object_chunk(
    rows: list[dict[str, Any]], known: dict[str, str], numbers: list[int], broken: list[Problem], keeps: bool
) -> Chunk:
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    unknown = [name for name in names if name not in known]
    columns = {name: [row.get(name) for row in rows] for name in names if name in known}
    extra: list[dict[str, Any] | None] | None = None
    if unknown and keeps:
        extra = [{k: row[k] for k in unknown if row.get(k) is not None} or None for row in rows]
    return Chunk(numbers, columns, extra, unknown, broken)
