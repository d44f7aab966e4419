"""Columns as they are meant: cells that say that there is nothing are null, and a date and a time apart become one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from driftline.stream.events.cells import plain, values_of

NULLS = ("\\N", "NULL")
"""What databases write where there is nothing; no id is called so."""
NO_VALUES = (*NULLS, "null", "None", "none", "NaN", "nan", "NA", "N/A", "n/a", "<NA>", "-")
"""What others write where there is no number and no time."""
PLUS = "+"


def without(raw: Any, nothing: Sequence[str]) -> Any:
    """A column with null in place of cells that are one of `nothing`."""
    if not isinstance(raw, pa.Array):
        return [None if isinstance(cell, str) and cell in nothing else cell for cell in raw]
    array = plain(raw)
    if not pa.types.is_string(array.type):
        return raw
    is_nothing = pc.is_in(array, pa.array(nothing, pa.string()))
    return pc.if_else(is_nothing, pa.scalar(None, pa.string()), array) if pc.any(is_nothing).as_py() else array


def parts_of(column: str, names: Collection[str]) -> list[str]:
    """The columns that `date+time` joins; the column itself where there is one of that name."""
    parts = column.split(PLUS)
    return parts if column not in names and len(parts) > 1 and all(part in names for part in parts) else [column]


def joined(columns: Mapping[str, Any], column: str) -> Any:
    """The values [n] of a column, or those of the columns that it joins with a space between; None = there is none."""
    parts = parts_of(column, columns)
    if len(parts) == 1:
        return columns.get(column)
    lists = [values_of(columns[part]) if isinstance(columns[part], pa.Array) else columns[part] for part in parts]
    return [_text(cells) for cells in zip(*lists, strict=True)]


def _text(cells: Sequence[Any]) -> str | None:
    return None if any(cell is None or cell == "" for cell in cells) else " ".join(map(str, cells))
