"""Rows of CSV files of all dialects, as text: what a cell means is decided by stream/events/cells.py alone.

The delimiter (, ; tab | or ::, else a blank) and the quote (" or ') are those by which the header holds the columns of
the schema, and by which the first rows have as many fields.
A quote inside quotes is doubled; line ends may be of any kind. Python's parser, not Arrow's: that one gives types to
columns that it finds itself, and starts threads.
"""

from __future__ import annotations

import codecs
import csv
import gc
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from driftline.configs.errors import InputError
from driftline.stream.events.checks import HINTS, Problem
from driftline.stream.events.chunks import SCHEMA, Chunk, Chunks, Form, check_names, table_chunk
from driftline.stream.events.schema import shorten
from driftline.stream.events.source import opened

DELIMITERS = (",", ";", "\t", "|", "::")
BLANK = " "
"""One or more separate cells where none of these does: names and titles have blanks, too."""
ONE_CHARACTER = "\x1f"
"""Stands for a delimiter of two: Python's parser takes one alone."""
QUOTES = "\"'"
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""First bytes of a file, and what it is in then; those of UTF-16 begin as those of UTF-32 do."""
LOOKED_AT = 1 << 20
"""Bytes of a file that is told to be in another encoding than UTF-8."""
FIRST_ROWS = 100
MAX_CELL = 1 << 24
"""Characters; a quote that never closes makes one cell of the rest of the file."""
FAULTS = {
    "unexpected end of data": ("quote never closes", "a quote that closes, or none at all"),
    "expected after": ("text after a quote", "a delimiter after the closing quote; quotes inside quotes doubled"),
    "field limit": ("cell too long", f"at most {MAX_CELL} characters; is a quote missing?"),
}
"""What is in the parser's messages: kind and what is expected."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file separates and quotes its cells."""

    delimiter: str
    quote: str

    def reader(self, text: Iterator[str]) -> Any:
        """Rows of a text."""
        delimiter = self.delimiter
        if len(delimiter) > 1:
            text, delimiter = (line.replace(self.delimiter, ONE_CHARACTER) for line in text), ONE_CHARACTER
        if delimiter == BLANK:
            text = map(_unpadded, text)
        return csv.reader(text, delimiter=delimiter, quotechar=self.quote, doublequote=True, strict=True)


def _unpadded(line: str) -> str:
    """A line without the blanks that align its cells, where no quote may hold them."""
    return line if QUOTES[0] in line else " ".join(filter(None, line.rstrip("\r\n").split(BLANK))) + "\n"


@contextmanager
def _text(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    """The text of a file; marks at its start say what it is in, whatever `encoding` does."""
    errors = "strict" if encoding else "surrogateescape"
    with opened(path, not encoding) as file:
        start = file.peek(4)  # type: ignore[attr-defined]
        marked = next((name for mark, name in MARKS if start.startswith(mark)), "")
        with io.TextIOWrapper(file, marked or encoding or "utf-8-sig", errors=errors, newline="") as text:
            yield text


def utf8_letter(path: Path, encoding: str) -> str:
    """A letter that is not ASCII of a file that is to be read in a narrow encoding and is in UTF-8 without a mark.

    "" = there is none, as the first bytes tell.
    """
    if not encoding or codecs.lookup(encoding).name.startswith("utf"):
        return ""
    with opened(path, False) as file:
        start = file.read(LOOKED_AT)
    try:
        text = start[: start.rfind(b"\n") + 1 or None].decode()
    except UnicodeDecodeError:
        return ""
    return "" if start.startswith(codecs.BOM_UTF8) else next((one for one in text if not one.isascii()), "")


def _header(path: Path, known: dict[str, str], required: Sequence[str], form: Form) -> tuple[Dialect, list[str]]:
    """The dialect whose header has the required columns and the most known ones; else that with the most columns.

    Without a header: the one that gives a row as many cells as there are names.
    """
    best: tuple[tuple[bool, int, int, int], Dialect, list[str]] | None = None
    dialects = [Dialect(delimiter, quote) for quote in QUOTES for delimiter in DELIMITERS]
    for dialect in (*dialects, Dialect(BLANK, QUOTES[0])):
        if dialect.delimiter == BLANK and best is not None and (best[0][0] if form.header else len(best[2]) > 1):
            break
        names: list[str]
        with _text(path, form.encoding) as text:
            reader = dialect.reader(text)
            try:
                names = next(reader, [])
            except csv.Error:
                continue
            whole = _whole_rows(reader, len(names), dialect.quote)
        rank = all(name in names for name in required), sum(name in known for name in names), len(names), whole
        if form.header:
            rank = len(names) == len(form.header), 0, len(names), whole
        if best is None or (rank > best[0] and (rank[0] or whole or dialect.delimiter != BLANK)):
            best = rank, dialect, names
    if best is None:
        raise InputError(f"{path}: the header has a quote that never closes; expected the names of the columns")
    _, dialect, names = best
    if form.header:
        if len(names) != len(form.header):
            got = f"{len(form.header)} names for rows of {len(names)} fields"
            raise InputError(
                f"{path}: got {got}, such as {shorten(dialect.delimiter.join(names))}; expected one for each"
            )
        return dialect, list(form.header)
    if not any(name.strip() for name in names):
        with _text(path, form.encoding) as text:
            got = "an empty first line" if text.read(1) else "an empty file"
        raise InputError(f"{path}: got {got}; expected a header with the names of the columns")
    for name in names:
        if any("\udc80" <= character <= "\udcff" for character in name):
            raise InputError(f"{path}: the header is not UTF-8: got {_bytes(name)!r}; expected {HINTS['not UTF-8']}")
    return dialect, names


def _whole_rows(reader: Any, fields: int, quote: str) -> int:
    """How many of the next rows have the fields of the header; 0 where the usual quote stands in them and is none."""
    with suppress(csv.Error):
        rows = list(islice(reader, FIRST_ROWS))
        if quote == QUOTES[0] or not any(QUOTES[0] in cell for row in rows for cell in row):
            return sum(len(row) == fields for row in rows)
    return 0


def csv_chunks(path: Path, known: dict[str, str], required: Sequence[str], form: Form = SCHEMA) -> Chunks:
    """Rows of a CSV file, cells as text, empty ones as null.

    Raises:
        InputError: the header can't be read or has a name twice.
        OSError, EOFError: the file can't be read.
    """
    csv.field_size_limit(MAX_CELL)
    dialect, names = _header(path, known, required, form)
    check_names(path, names, known, required)
    row_number = 1
    with _text(path, form.encoding) as text:
        reader = dialect.reader(text)
        if not form.header:
            next(reader)
        while True:
            first_line = reader.line_num + 1
            rows, fault = _some_rows(reader, form.chunk_rows)
            if not rows and fault is None:
                return
            is_plain = fault is None and reader.line_num - first_line + 1 == len(rows)  # a line, a row
            if is_plain and set(map(len, rows)) == {len(names)}:
                numbers = range(row_number, row_number + len(rows))
                yield table_chunk(path, _columns(names, rows), known, numbers, [], [], form.keeps)
                row_number = numbers.stop
            else:
                sorted_out = _sort_out(dialect, names, rows, row_number, first_line)
                row_number = sorted_out.next_number
                if fault is not None:
                    sorted_out.broken.append(_fault(row_number, reader.line_num, fault))
                    row_number += 1
                yield _chunk(path, names, known, sorted_out, form.keeps)


def _some_rows(reader: Any, limit: int) -> tuple[list[list[str]], csv.Error | None]:
    """The next rows, empty ones for empty lines, up to one that can't be read and its error."""
    rows: list[list[str]] = []
    collects = gc.isenabled()
    gc.disable()  # there is no garbage among rows of text, and looking for it takes as long as reading them
    try:
        for row in islice(reader, limit):
            rows.append(row)  # what came before an error counts
    except csv.Error as error:
        return rows, error
    finally:
        if collects:
            gc.enable()
    return rows, None


@dataclass(slots=True)
class _SortedOut:
    """Rows by what is wrong with them."""

    next_number: int
    rows: list[list[str]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    broken: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def _sort_out(dialect: Dialect, names: Sequence[str], rows: list[list[str]], number: int, line: int) -> _SortedOut:
    """Numbers rows that are not all as they should be; empty ones, of empty lines, are not counted."""
    found = _SortedOut(number)
    for row in rows:
        breaks = sum(cell.count("\n") + cell.count("\r") - cell.count("\r\n") for cell in row)
        line += 1 + breaks
        if not row:
            continue
        if len(row) == len(names):
            found.rows.append(row)
            found.numbers.append(found.next_number)
            if breaks:
                found.notes += _swallowed(found.next_number, names, row, dialect.delimiter)
        else:
            got = f"{len(row)} fields in {shorten(dialect.delimiter.join(row))} (line {line - 1})"
            expected = f"{len(names)} fields as in the header"
            found.broken.append(Problem(found.next_number, "", "wrong number of fields", got, expected))
        found.next_number += 1
    return found


def _chunk(path: Path, names: Sequence[str], known: dict[str, str], found: _SortedOut, keeps: bool) -> Chunk:
    if not found.rows:
        return Chunk([], {}, None, [], found.broken)
    return table_chunk(path, _columns(names, found.rows), known, found.numbers, found.broken, found.notes, keeps)


def _fault(number: int, line: int, error: csv.Error) -> Problem:
    for part, (kind, expected) in FAULTS.items():
        if part in str(error):
            return Problem(number, "", kind, f"a row up to line {line}", expected)
    return Problem(number, "", "not CSV", f"a row up to line {line} ({error})", "cells with a delimiter between them")


def _swallowed(number: int, names: Sequence[str], row: Sequence[str], delimiter: str) -> Iterator[Problem]:
    """A warning for a cell with line breaks one of whose lines has as many delimiters as a row has."""
    for name, cell in zip(names, row, strict=True):
        if len(names) > 2 and any(line.count(delimiter) >= len(names) - 1 for line in cell.splitlines()):
            expected = "one cell; if these are rows, a quote before them is not closed"
            yield Problem(number, name, "rows inside a quoted cell", shorten(cell), expected, True)


def _columns(names: Sequence[str], rows: list[list[str]]) -> list[tuple[str, pa.Array]]:
    return [(name, _array(cells)) for name, cells in zip(names, zip(*rows, strict=True), strict=True)]


def _array(cells: Sequence[str]) -> pa.Array:
    """Text; bytes where a cell is not UTF-8."""
    try:
        array: pa.Array = pa.array(cells, pa.string())
        return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)
    except UnicodeEncodeError:
        return pa.array([_bytes(cell) if cell else None for cell in cells], pa.binary())


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
