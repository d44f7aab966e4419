"""Where rows come from: a file, a folder of parts, or a query that DuckDB answers. Rows come some at a time."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from driftline.configs.errors import InputError
from driftline.configs.settings import ItemFiles
from driftline.stream.convert.columns import NULLS
from driftline.stream.events.checks import HINTS
from driftline.stream.events.chunks import ARROW_MAGIC, Chunk, Chunks, Form, batch_chunks
from driftline.stream.events.csvs import utf8_letter
from driftline.stream.events.files import raw_chunks
from driftline.stream.events.schema import shorten
from driftline.stream.events.source import FORMATS, PACKED, format_of, opened, readable

QUERY = re.compile(r"\s*(select|with|from|attach)\s", re.IGNORECASE)
SAMPLE_ROWS = 20_000
"""That are looked at before all are read, of all parts together."""
LEAST_OF_PART = 100
"""Of them, of each part of a folder of many."""
DUCKDB_MEMORY = "1GB"
CONVERTED = b"driftline.schema"
"""Key in the metadata of a Parquet file that `driftline import` wrote."""


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a source.

    Attributes:
        path: where it lies.
        kind: "parquet", "arrow", "csv" or "jsonl".
        name: what messages call it.
        columns: those that its folders are named after, `country=DE`, with their value.
    """

    path: Path
    kind: str
    name: str
    columns: dict[str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """The first rows of a source.

    Attributes:
        names: of its columns, of a folder those of all parts.
        values: by name, those that are there of the first rows of each part.
        rows: how many were looked at.
        ends: by name, where the values of each part end; nothing = there is one part.
    """

    names: list[str]
    values: dict[str, list[Any]]
    rows: int
    ends: dict[str, list[int]] = field(default_factory=dict)

    def of_parts(self, name: str) -> list[list[Any]]:
        """The values of a column, those of each part apart."""
        values, ends = self.values[name], self.ends.get(name, [])
        return [values[start:end] for start, end in pairwise([0, *ends])] if ends else [values]


class Source:
    """Rows that are not in the schema.

    Raises:
        InputError: there is nothing to read, or DuckDB is not installed.
    """

    def __init__(self, text: str, reading: ItemFiles) -> None:
        """Takes a path, or a query as SQL."""
        self.text = text
        self.is_query = QUERY.match(text) is not None and not _exists(text)
        self.parts = [] if self.is_query else parts_of(Path(text))
        self._form = Form(reading.header, reading.encoding, flat=True)

    @property
    def name(self) -> str:
        """What the file or folder is called without endings of its format; "" = it is a query."""
        if self.is_query:
            return ""
        path = Path(self.text).absolute()
        while not path.is_dir() and path.suffix.lower() in FORMATS.keys() | PACKED.keys():
            path = path.with_suffix("")
        return path.name

    def __str__(self) -> str:
        return shorten(self.text.strip()) if self.is_query else self.text

    def chunks(
        self, known: Sequence[str], required: Sequence[str], rows: int = 0, keeps: bool = False
    ) -> Iterator[tuple[str, Chunk]]:
        """(name of the part, at most `rows` rows) with the `known` columns; others are in `extra` if they are kept.

        A part without one of the other columns has null there.

        Raises:
            InputError: a part can't be read, or lacks a required column.
        """
        form = replace(self._form, rows=rows, keeps=keeps)
        names = dict.fromkeys(known, "")
        if self.is_query:
            yield from (("", chunk) for chunk in _answers(self.text, names, form))
        for part in self.parts:
            inside = {name: "" for name in names if name not in part.columns}
            needed = [name for name in required if name not in part.columns]
            with contextlib.closing(raw_chunks(part.path, inside, needed, form, part.kind)) as chunks:
                for chunk in chunks:
                    lost = [name for name in needed if name not in chunk.columns]
                    if lost and chunk.rows and part.kind != "jsonl":
                        raise InputError(f"{self}: part {part.name} has no column {lost[0]!r}, which others have")
                    for name in part.columns.keys() & names.keys() if chunk.rows else ():
                        chunk.columns[name] = pa.array([part.columns[name]] * chunk.rows, pa.string())
                    yield (part.name if len(self.parts) > 1 else ""), chunk

    def sample(self) -> Sample:
        """The names of the columns, and the values of the first rows; of a folder those of every part.

        Raises:
            InputError: there is no row, the first ones can't be read, or text is in another encoding.
        """
        values: dict[str, list[Any]] = {}
        ends: dict[str, list[int]] = {}
        rows, broken = 0, ""
        for part, chunk in self._heads():
            if not chunk.rows and chunk.broken:
                broken = broken or str(chunk.broken[0])
                continue
            rows += chunk.rows
            found: dict[str, list[Any]] = {name: [] for name in chunk.unknown}
            for row in chunk.extra or ():
                for name, cell in (row or {}).items():
                    if cell is not None and cell != "" and not (isinstance(cell, str) and cell in NULLS):
                        found[name].append(cell)
            for name, cells in found.items():
                if part is not None and part.kind == "csv":
                    _check_text(part, name, cells)
            found |= {name: [value] for name, value in (part.columns if part else {}).items()}
            for name, cells in found.items():
                values.setdefault(name, []).extend(cells)
                ends.setdefault(name, []).append(len(values[name]))
        if not values:
            raise InputError(f"{self}: {broken or 'got 0 rows; expected a header and rows'}")
        return Sample(list(values), values, rows, ends)

    def _heads(self) -> Iterator[tuple[Part | None, Chunk]]:
        """The first rows of each part, or of the answer."""
        form = replace(self._form, rows=max(LEAST_OF_PART, SAMPLE_ROWS // max(1, len(self.parts))))
        sources: Iterator[tuple[Part | None, Chunks]] = (
            (part, raw_chunks(part.path, {}, (), form, part.kind)) for part in self.parts
        )
        for part, chunks in [(None, _answers(self.text, {}, form))] if self.is_query else sources:
            with contextlib.closing(chunks):
                head = next((chunk for chunk in chunks if chunk.rows or chunk.unknown or chunk.broken), None)
            if head is not None:
                yield part, head

    def encoding_note(self) -> str:
        """A word on parts that are in UTF-8 and are told to be in something else, "" = there is none."""
        encoding = self._form.encoding
        for part in self.parts:
            if part.kind == "csv" and (letter := utf8_letter(part.path, encoding)):
                read = letter.encode().decode(encoding, "replace")
                return (
                    f"{part.path}: is UTF-8 by its letters and is read as {encoding}: {letter!r} becomes {read!r}; "
                    "leave the encoding out, or, where other parts are in it, import each kind of file by itself"
                )
        return ""


def _check_text(part: Part, name: str, values: Sequence[Any]) -> None:
    """An error if a column is text in another encoding, also where no field takes it: it might if it were read."""
    if any(isinstance(value, bytes) for value in values):
        got = next(value for value in values if isinstance(value, bytes) and not value.isascii())
        raise InputError(
            f"{part.path}: column {name!r} is not UTF-8: got {shorten(got)}; expected {HINTS['not UTF-8']}"
        )


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # it is too long for a name
        return False


def parts_of(path: Path) -> list[Part]:
    """The file itself, or all files of a folder and of the folders in it by name, but for those that are hidden.

    Raises:
        InputError: there is none, or they are of several formats.
    """
    if not path.is_dir():
        return [Part(path, kind_of(path), path.name, {})]
    found = []
    for file in sorted(path.rglob("*")):
        inner = file.relative_to(path)
        if not file.is_file() or any(part.startswith(("_", ".")) for part in inner.parts):
            continue
        pairs = (folder.partition("=") for folder in inner.parts[:-1])
        found.append(Part(file, kind_of(file), str(inner), {name: value for name, sign, value in pairs if sign}))
    kinds = sorted({part.kind for part in found})
    if not found:
        raise InputError(f"{path}: the folder holds no file; expected parts, .parquet, .arrow, .csv or .jsonl")
    if len(kinds) > 1:
        raise InputError(
            f"{path}: got parts of several formats, {' and '.join(kinds)}; expected one, name a folder of it"
        )
    return found


def kind_of(path: Path) -> str:
    """The format of a file by its name, or by its first bytes where the name says nothing.

    Raises:
        InputError: it can't be read, or is a format of its own kind.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    if suffixes and suffixes[-1] in FORMATS:
        return format_of(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such file; check the path")
    readable(path)
    with path.open("rb") as file:
        start = file.read(len(ARROW_MAGIC))
    if start[:4] == b"PAR1":
        return "parquet"
    if start == ARROW_MAGIC:
        return "arrow"
    with opened(path, False) as text:
        return "jsonl" if text.read(1) == b"{" else "csv"


def _plain(answer: Any) -> Any:
    """What a query answers; the text of what DuckDB takes for JSON, as ids that are numbers here and text there."""
    kinds = list(map(str, answer.types))
    if "JSON" not in kinds:
        return answer
    columns = [f"c{n}" for n in range(len(kinds))]  # by place: several may have one name
    texts = [f"{column}->>'$'" if kind == "JSON" else column for column, kind in zip(columns, kinds, strict=True)]
    names = ['"' + name.replace('"', '""') + '"' for name in answer.columns]
    picked = ", ".join(f"{text} AS {name}" for text, name in zip(texts, names, strict=True))
    return answer.query("answer", f"SELECT {picked} FROM answer AS answer({', '.join(columns)})")


def _answers(query: str, known: dict[str, str], form: Form) -> Chunks:
    try:
        import duckdb
    except ImportError:
        raise InputError("a query needs DuckDB, which is not installed: pip install 'driftline[sql]'") from None
    with duckdb.connect() as connection:
        try:
            connection.execute(f"SET memory_limit = '{DUCKDB_MEMORY}'; SET TimeZone = 'UTC'")
            last = duckdb.extract_statements(query)[-1]
            asks = [duckdb.ExpectedResultType.QUERY_RESULT]
            if last.expected_result_type != asks and last.type.name != "MULTI":  # as a PIVOT of unknown values is
                raise InputError(
                    f"{shorten(query.strip())}: the last statement, {last.type.name}, is no query; "
                    "expected a query last: ATTACH 'shop.db' AS shop; SELECT ... FROM shop.events"
                )
            reader = _plain(connection.sql(query)).to_arrow_reader(form.chunk_rows)
            yield from batch_chunks(Path("query"), reader, known, form)
        except (duckdb.Error, pa.ArrowException) as error:
            raise InputError(f"DuckDB does not answer the query: {error}") from None
