"""Rows of an events file as columns, and which of them a Processor drops as duplicates."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32, Int64


@dataclass(frozen=True, slots=True)
class Columns:
    """Rows of a file in the event schema, sorted stably by time. `None` columns were not in the file.

    Attributes:
        user_id, item_id, action, group_id, domain: (codes [n] int32, -1 = null; values) in order of first sight.
        t_ms: [n] int64.
        value, price: [n] float32, NaN = null.
        event_id: [n] object of str or None; None = no such column.
        extra: [n] object, dict of a row's fields that the schema does not know, or None.
        offset: [n] int64 ascending, a row's number before duplicates were dropped; None = none were.
    """

    user_id: tuple[Int32, list[str]]
    item_id: tuple[Int32, list[str]]
    t_ms: Int64
    action: tuple[Int32, list[str]]
    value: Float32
    price: Float32
    group_id: tuple[Int32, list[str]]
    domain: tuple[Int32, list[str]]
    event_id: NDArray[np.object_] | None = None
    extra: NDArray[np.object_] | None = None
    offset: Int64 | None = None

    def __len__(self) -> int:
        return len(self.t_ms)

    def take(self, rows: Int64) -> Columns:
        """Some rows in the given order, ids recoded in order of first sight."""
        return Columns(
            user_id=_recoded(self.user_id, rows),
            item_id=_recoded(self.item_id, rows),
            t_ms=self.t_ms[rows],
            action=_recoded(self.action, rows),
            value=self.value[rows],
            price=self.price[rows],
            group_id=_recoded(self.group_id, rows),
            domain=_recoded(self.domain, rows),
            event_id=None if self.event_id is None else self.event_id[rows],
            extra=None if self.extra is None else self.extra[rows],
            offset=None if self.offset is None else self.offset[rows],
        )


def _recoded(column: tuple[Int32, list[str]], rows: Int64) -> tuple[Int32, list[str]]:
    codes, names = column[0][rows], column[1]
    present, first = np.unique(codes[codes >= 0], return_index=True)
    seen = present[np.argsort(first, kind="stable")]
    new = np.full(len(names) + 1, -1, np.int32)  # the last entry maps null to null
    new[seen] = np.arange(len(seen), dtype=np.int32)
    return new[codes], [names[i] for i in seen]


def without_duplicates(columns: Columns, remembered: int) -> tuple[Columns, int]:
    """The rows that a Processor applies, and how many it drops: those of an event_id among the last `remembered` ones.

    The others keep their numbers as offsets, so that they end in the same state.
    """
    if columns.event_id is None or remembered == 0:
        return columns, 0
    known: set[str] = set()
    by_age: deque[str] = deque()
    kept = []
    for row, event_id in enumerate(columns.event_id):
        if event_id in known:
            continue
        kept.append(row)
        if event_id is not None:
            known.add(event_id)
            by_age.append(event_id)
            if len(known) > remembered:
                known.remove(by_age.popleft())
    rows = np.array(kept, np.int64)
    dropped = len(columns) - len(rows)
    return (replace(columns.take(rows), offset=rows), dropped) if dropped else (columns, 0)
