"""Groups that more rows may still join: rows of one user at one time, however producers interleave, as a replay cuts.

Where rows came one after the other (`state.groups: sessions`) each is a group that is closed as it comes.

A group closes when
    another group of its user arrives in its partition,
    a row of any partition lies more than SPAN_MS of event time past it,
    more than MOST_OPEN groups are open and it was the first of them to open, or
    its partition is silent for IDLE_S.
Only the last looks at a clock, so a log that is read without a pause is always cut into the same groups in the same
order. Groups that close together close in the order in which they opened.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from driftline.graph.rows import Event, fields_of

IDLE_S = 0.25
"""A group counts as whole when the topic had nothing more of its partition for so long."""
SPAN_MS = 1000
"""Rows of a group arrive before the event time of the stream is past them by more than this."""
MOST_OPEN = 1000
"""Open groups: many users share a time stamp where time is told in days."""

Rows = tuple[int, list[Event]]
"""A partition and the rows of one group in order of their offsets in it."""


class OpenGroups:
    """The open groups of all partitions.

    Args:
        ordered: no row joins another.
    """

    def __init__(self, ordered: bool = False) -> None:
        self._ordered = ordered
        self._groups: dict[tuple[int, str], list[Event]] = {}
        """By partition and user, in order of opening."""
        self._last_s: dict[int, float] = {}
        self._event_ids: set[str] = set()
        self._newest: list[Event] | None = None
        """The group that the last row joined."""

    def __len__(self) -> int:
        return len(self._groups)

    def holds(self, event: Event) -> bool:
        """Whether an open group has a row with this event id."""
        return event.event_id is not None and event.event_id in self._event_ids

    def add(self, number: int, event: Event, now_s: float) -> list[Rows]:
        """Takes a row; the groups that it closes."""
        if self._ordered:
            return [(number, [event])]
        self._last_s[number] = now_s
        groups, mine = self._groups, (number, event.user_id)
        rows = groups.get(mine)
        if rows is not None and rows is self._newest and event.timestamp_ms == rows[0].timestamp_ms:
            self._join(rows, event)
            return []  # as far as others go, the row before it said the same
        closed = [
            name
            for name, rows in groups.items()
            if event.timestamp_ms > rows[0].timestamp_ms + SPAN_MS
            or (name == mine and event.timestamp_ms != rows[0].timestamp_ms)
        ]
        out = self._close(closed) if closed else []
        self._join(groups.setdefault(mine, []), event)
        return out + self._close(list(groups)[: len(groups) - MOST_OPEN]) if len(groups) > MOST_OPEN else out

    def _join(self, rows: list[Event], event: Event) -> None:
        rows.append(event)
        self._newest = rows
        if event.event_id is not None:
            self._event_ids.add(event.event_id)

    def drop(self, user_id: str) -> None:
        """Leaves out a user's open groups: nobody learns them."""
        self._close([name for name in self._groups if name[1] == user_id])

    def idle(self, silent: Collection[int], now_s: float) -> list[Rows]:
        """Closes the groups of those of some partitions that took their last row IDLE_S ago."""
        ended = {number for number in silent if now_s - self._last_s.get(number, 0.0) >= IDLE_S}
        return self._close([name for name in self._groups if name[0] in ended])

    def first_offset(self, number: int, otherwise: int) -> int:
        """The smallest offset of an open row of a partition."""
        return min((rows[0].offset for name, rows in self._groups.items() if name[0] == number), default=otherwise)

    def state(self) -> list[tuple[int, list[dict[str, Any]]]]:
        """Every open group as plain values, for a checkpoint."""
        return [(number, [fields_of(row) for row in rows]) for (number, _), rows in self._groups.items()]

    def load(self, state: list[Any]) -> None:
        """Takes back what `state` kept."""
        for number, plain in state:
            rows = [Event(**fields) for fields in plain]
            self._groups[number, rows[0].user_id] = rows
            self._event_ids.update(event.event_id for event in rows if event.event_id is not None)

    def _close(self, names: list[tuple[int, str]]) -> list[Rows]:
        out = [(name[0], self._groups.pop(name)) for name in names]
        self._event_ids.difference_update(event.event_id for _, rows in out for event in rows if event.event_id)
        return out
