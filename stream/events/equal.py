"""Events that stand in a file twice: without an event_id nobody can tell whether both are meant."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from driftline.stream.events.checks import Problem, Report
from driftline.stream.events.schema import shorten

Key = TypeVar("Key", bound=Hashable)
NEARBY = 200_000
"""Rows among which an equal one is looked for: those of before, as they come."""


class Recent(Generic[Key]):
    """The last so many different keys."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._known: set[Key] = set()
        self._by_age: deque[Key] = deque()

    def has(self, key: Key) -> bool:
        """Whether a key is among them; from now on it is."""
        if key in self._known:
            return True
        self._known.add(key)
        self._by_age.append(key)
        if len(self._by_age) > self._remembered:
            self._known.remove(self._by_age.popleft())
        return False


class EqualRows:
    """Counts rows without an event_id that are equal, in every column that is read, to one before."""

    def __init__(self) -> None:
        self._found, self._example = 0, ""
        self._before = Recent[int](NEARBY)

    def see(self, batch: pa.RecordBatch) -> None:
        """Takes the typed columns of the next rows."""
        names = batch.schema.names
        if "event_id" in names:
            if batch.column("event_id").null_count == 0:
                return
            batch = batch.filter(pc.is_null(batch.column("event_id")))
        columns = [pc.fill_null(batch.column(name).cast(pa.string()), "") for name in names if name != "event_id"]
        for row, text in enumerate(pc.binary_join_element_wise(*columns, "\x1f").to_pylist()):
            if self._before.has(hash(text)):
                if not self._found:
                    user_id, item_id = (shorten(batch.column(name)[row].as_py()) for name in ("user_id", "item_id"))
                    self._example = f"twice what {user_id} did with {item_id}"
                self._found += 1

    def tell(self, report: Report) -> None:
        """Adds a warning to a report, if there are any."""
        if self._found:
            expected = "rows that differ, or columns for an event_id: without one each of them counts"
            problem = Problem(
                0, "", "equal in every column that is read to a row before", self._example, expected, True
            )
            report.add(problem, keep=1, times=self._found)
