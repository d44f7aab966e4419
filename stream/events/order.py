"""Whether events come in order of time, and how many a worker would only count because they come too late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from driftline.configs.errors import InputError
from driftline.graph.arrays import Int64


@dataclass(slots=True)
class Order:
    """Counts rows by their place, as the worker of one partition would that reads them one after the other.

    Attributes:
        late_ms: `state.late_ms`.
        rows: seen so far.
        earlier: rows with a row of a later time before them.
        too_late: those of them that are later than `late_ms`: their state would be lost.
        newest_ms, oldest_ms: latest and earliest time so far, -1 = none.
    """

    late_ms: int
    rows: int = 0
    earlier: int = 0
    too_late: int = 0
    newest_ms: int = -1
    oldest_ms: int = -1

    def see(self, t_ms: Int64) -> None:
        """Takes the times [n] of the next rows."""
        if not len(t_ms):
            return
        newest = np.maximum.accumulate(np.concatenate([[self.newest_ms], t_ms]))
        behind = newest[:-1] - t_ms
        self.rows += len(t_ms)
        self.earlier += int((behind > 0).sum())
        self.too_late += int(((behind > self.late_ms) & (newest[:-1] >= 0)).sum())
        self.newest_ms = int(newest[-1])
        oldest = int(t_ms.min())
        self.oldest_ms = oldest if self.oldest_ms < 0 else min(oldest, self.oldest_ms)

    def __str__(self) -> str:
        if not self.earlier:
            return "in order of time"
        share = 100 * self.too_late / self.rows
        return (
            f"{self.earlier:,} of {self.rows:,} rows are earlier than a row above them; sent so, {self.too_late:,} "
            f"({share:.1f}%) would come more than state.late_ms, {self.late_ms / 60_000:g} min, too late: they "
            "would change no state"
        )

    def as_json(self) -> dict[str, Any]:
        """Its numbers."""
        return {"rows": self.rows, "earlier_than_a_row_above": self.earlier, "too_late": self.too_late}


def refuse_disorder(source: object, order: Order) -> None:
    """An error if events are out of order.

    Raises:
        InputError: so it is.
    """
    if order.earlier:
        raise InputError(
            f"{source}: {order}. Nothing was sent: add --sort to send them in order of time, or --as-it-is to send "
            "them in the order of the file"
        )
