"""What is taken under which circumstances of a request: decayed counts of items by field and value (device, region).

A context is one value for each field of `signals.context`, "" = not given. Counts of one value are read beside those of
everybody at the same half-lives, so that what is said is how a device or a region differs. A field has room for a
bounded number of values, in the order in which they come; further ones share none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import TYPE_CHECKING

import numpy as np

from driftline.graph.counts import DecayedCounts, Float64
from driftline.graph.rows import MAX_ID_BYTES, key64
from driftline.graph.touched import Touched

if TYPE_CHECKING:
    from driftline.graph.arrays import Arrays, Int32

Context = tuple[str, ...]
EVERYBODY = "context.everybody"
DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,14})\.[0-9]+")
"""A number that is written with a fraction; what is written without may be a code, as 007."""


def context_of(fields: Mapping[str, object] | None, names: Sequence[str]) -> Context:
    """The context that the fields of an event give, () without names; see `value_of`."""
    if not fields:
        return ("",) * len(names)
    return tuple(value_of(fields.get(name)) for name in names)


def value_of(value: object) -> str:
    """A value of a context as it is compared: events and requests alike.

    JSON, CSV, Parquet and requests tell 4 and 4.0, true and True apart; here they are one. "" stands for what is no
    text, number or time, for a number that is none, and for what has more than 256 bytes, which no request could name.
    """
    if isinstance(value, (date, time)):
        value = value.isoformat()
    if isinstance(value, str) and DECIMAL.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return ""
        value = int(value) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if not isinstance(value, (str, int)):
        return ""
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        text = text.lower()
    return text if len(text.encode()) <= MAX_ID_BYTES else ""


class Contexts:
    """Decayed touches of items by field and value.

    Args:
        names: of the fields.
        half_lives_ms: of the counts.
        most: values of a field with counts of their own.
        top: largest items of each that are kept at hand.

    Attributes:
        everybody: [n, h] touches in groups of any context.
        values: (number of the field, key64 of the value) -> [n, h] touches under it.
    """

    def __init__(self, names: Sequence[str], half_lives_ms: tuple[float, ...], most: int, top: int) -> None:
        self.names, self._half_lives_ms, self._most, self._top = tuple(names), half_lives_ms, most, top
        self.everybody = DecayedCounts(half_lives_ms, 0)
        self.values: dict[tuple[int, int], DecayedCounts] = {}
        self._room = [most] * len(self.names)

    def ensure(self, n: int) -> None:
        """Make room for items 0..n-1."""
        if self.names:
            for counts in (self.everybody, *self.values.values()):
                counts.ensure(n)

    def add(self, context: Context, items: Int32, weight: Float64, t_ms: int) -> None:
        """Count a group.

        Args:
            context: of its request; () = nothing is known of it.
            items: [b] distinct, for which there is room; weight: [b] of their touches.
            t_ms: its time.
        """
        if not self.names:
            return
        self.everybody.add(items, weight, t_ms)
        for field, value in enumerate(context):
            key = field, key64(value)
            if not value:
                continue
            if key not in self.values and self._room[field]:
                self._room[field] -= 1
                self.values[key] = DecayedCounts(self._half_lives_ms, self._top)
                self.values[key].ensure(len(self.everybody.count))
            if key in self.values:
                self.values[key].add(items, weight, t_ms)

    def of(self, context: Context) -> list[DecayedCounts | None]:
        """Counts under the value of each field; None where it has none of its own."""
        given = (*context, *[""] * (len(self.names) - len(context)))
        return [self.values.get((field, key64(value))) if value else None for field, value in enumerate(given)]

    def best(self, context: Context) -> list[Int32]:
        """The items that are taken most under each value and at each half-life, the largest first."""
        return [rows for counts in self.of(context) if counts is not None for rows in counts.best()]

    def arrays(self, n: int) -> Arrays:
        """Everything that is learnt, by name; views. Nothing without fields."""
        if not self.names:
            return {}
        out = self.everybody.arrays(EVERYBODY, n)
        out["contexts"] = np.array(list(self.values), np.uint64).reshape(-1, 2)
        for i, counts in enumerate(self.values.values()):
            out |= counts.arrays(f"context.{i}", n)
        return out

    def touched(self) -> dict[str, Touched]:
        """Which rows of `arrays` changed."""
        if not self.names:
            return {}
        out = self.everybody.touched(EVERYBODY)
        for i, counts in enumerate(self.values.values()):
            out |= counts.touched(f"context.{i}")
        return out

    def restore(self, arrays: Arrays) -> None:
        """Take over what `arrays` gave."""
        if not self.names:
            return
        self.everybody.restore(arrays, EVERYBODY)
        for i, (field, key) in enumerate(arrays["contexts"].tolist()):
            self._room[field] -= 1
            self.values[field, key] = DecayedCounts(self._half_lives_ms, self._top)
            self.values[field, key].restore(arrays, f"context.{i}")
