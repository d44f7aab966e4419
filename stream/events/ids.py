"""What ids tell of how a file was written: suspicious forms, and items files that do not belong to the events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from driftline.stream.events.checks import Problem
from driftline.stream.events.schema import shorten

ENOUGH = 0.9
"""Share of the rows whose item should be in the items file."""
FORMS = {
    "end in .0": (
        r"^-?[0-9]+\.0$",
        "ids as they are elsewhere: pandas writes integers with gaps as numbers with a point",
    ),
    "have an exponent": (r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]+$", "ids as text: spreadsheets shorten long numbers"),
    "stand in quotes": (r"^(?s:['\"].*['\"])$", "ids without quotes, or a header that is quoted in the same way"),
    "begin or end with a space": (r"^(?s:\s.*|.*\s)$", "ids without spaces around them, if they are not part of them"),
}
"""Forms that the ids of a whole column hardly have on purpose, and what is expected."""
MISSING = ("nan", "NaN", "None", "null", "NULL", "<NA>", "NA", "N/A")
LONGEST_MISSING = max(map(len, MISSING))


@dataclass(slots=True)
class _Column:
    """`forms` are those that all ids so far have."""

    rows: int = 0
    forms: list[str] = field(default_factory=lambda: list(FORMS))
    missing: Counter[str] = field(default_factory=Counter)
    example: str = ""


class Hints:
    """Counts the forms of user and item ids while a file is read."""

    def __init__(self) -> None:
        self._columns = {name: _Column() for name in ("user_id", "item_id")}

    def see(self, batch: pa.RecordBatch) -> None:
        """Takes the typed columns of some rows."""
        for name, column in self._columns.items():
            if name not in batch.schema.names:
                continue
            ids = batch.column(name).drop_null()
            column.forms = [form for form in column.forms if _all_have(ids, FORMS[form][0])]
            short = ids.filter(pc.less_equal(pc.binary_length(ids), LONGEST_MISSING))
            column.missing.update(short.filter(pc.is_in(short, pa.array(MISSING, pa.string()))).to_pylist())
            column.rows += len(ids)
            if not column.example and len(ids):
                column.example = shorten(ids[0].as_py())

    def problems(self) -> list[Problem]:
        """Warnings of what was seen."""
        found = []
        for name, column in self._columns.items():
            for form in column.forms if column.rows else ():
                got = f"{column.rows:,} of {column.rows:,} rows, such as {column.example}"
                expected = f"{FORMS[form][1]}; they are kept as they are"
                found.append(Problem(0, name, f"all ids {form}", got, expected, True))
            for text, n in column.missing.items():
                got = f"{text!r} in {n:,} rows"
                expected = "an empty cell where there is none; it is kept as an id"
                found.append(Problem(0, name, "an id that says missing", got, expected, True))
        return found


def _all_have(ids: pa.Array, pattern: str) -> bool:
    parts = (ids[:16], ids)  # most forms are ruled out by the first rows
    return all(pc.all(pc.match_substring_regex(part, pattern)).as_py() is not False for part in parts)


@dataclass(frozen=True, slots=True)
class Join:
    """How many of the items that events name are in an items file.

    Attributes:
        ids, joined_ids: different item ids of the events, and those of them in the file.
        rows, joined_rows: events, and those of them whose item is in the file.
        example, item: an id of the events that is not in the file, and one of the file; "" = none.
        hint: what would make more of them join, "" = nothing known.
    """

    ids: int
    joined_ids: int
    rows: int
    joined_rows: int
    example: str
    item: str
    hint: str

    @classmethod
    def of(cls, rows_by_item: Mapping[str, int], items: Collection[str]) -> Join:
        """Counts.

        Args:
            rows_by_item: events by item id.
            items: ids of the items file; a set or a mapping.
        """
        apart = [name for name in rows_by_item if name not in items]
        rows = sum(rows_by_item.values())
        return cls(
            len(rows_by_item),
            len(rows_by_item) - len(apart),
            rows,
            rows - sum(rows_by_item[name] for name in apart),
            apart[0] if apart else "",
            next(iter(items), ""),
            _hint(apart, items) if apart else "",
        )

    def as_json(self) -> dict[str, Any]:
        """Its numbers."""
        return {
            "item_ids": self.ids,
            "in_items": self.joined_ids,
            "rows": self.rows,
            "rows_in_items": self.joined_rows,
        }

    def problem(self, events: str = "item_id of the events", items: str = "that of the items") -> Unjoined | None:
        """A warning if too few rows join, in the words of every command.

        Args:
            events, items: the columns of the ids, for people.
        """
        if not self.rows or self.joined_rows >= ENOUGH * self.rows:
            return None
        if self.joined_ids:
            share = f"{self.joined_rows:,} of {self.rows:,} rows ({100 * self.joined_rows / self.rows:.1f}%)"
            lack = (
                f"{self.joined_ids:,} of {self.ids:,} item ids of the events are in the items file, with {share}, so "
                "the others have no title, category or price of their item"
            )
        else:
            lack = (
                f"none of the {self.ids:,} item ids of the events is in the items file, so no event has a title, a "
                "category or a price of its item"
            )
        return Unjoined(
            0, "item_id", "few items join" if self.joined_ids else "items do not join",
            f"{lack}: {events} holds {shorten(self.example)}, {items} holds {shorten(self.item)}",
            f"the same ids{self.hint}: name other columns (--map item_id=COLUMN, --items-map item_id=COLUMN), or other "
            "files",
            True,
        )  # fmt: skip


class Unjoined(Problem):
    """An items file that does not belong to the events: of both files, so that its sentence names no place in one."""

    def __str__(self) -> str:
        return f"{self.got}; expected {self.expected}"


def _hint(apart: list[str], items: Collection[str]) -> str:
    forms: dict[str, Callable[[str], str]] = {
        "leading zeros": lambda name: name.lstrip("0"),
        "a trailing .0": lambda name: name.removesuffix(".0"),
        "upper and lower case": str.lower,
        "spaces around them": str.strip,
        "quotes around them": lambda name: name.strip("'\""),
    }
    for what, form in forms.items():
        known = {form(name) for name in items}
        n = sum(form(name) in known for name in apart)
        if 2 * n > len(apart):
            return f"; but for {what}, {n:,} more would join"
    return ""
