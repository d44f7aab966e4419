"""Groups that more rows may still join: rows of one user at one time, however producers interleave, as a replay cuts.

A group closes when
    another group of its user arrives in its partition,
    a row of its partition lies more than SPAN_MS of event time past it,
    its partition holds more than MOST_OPEN groups and it was the first of them to open, or
    its partition is silent for IDLE_S.
Only the last looks at a clock, so a log that is read without a pause is always cut into the same groups in the same
order. Groups that close together close in the order in which they opened.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from graph.rows import Event

IDLE_S = 0.25
"""A group counts as whole when the topic had nothing more of its partition for so long."""
SPAN_MS = 1000
"""Rows of a group arrive before the event time of their partition is past them by more than this."""
MOST_OPEN = 1000
"""Open groups of a partition: many users share a time stamp where time is told in days."""

Rows = tuple[int, list[Event]]
"""A partition and the rows of one group in order of their offsets in it."""


@dataclass(slots=True)
class _Partition:
    groups: dict[str, list[Event]]
    """By user, in order of opening."""
    last_s: float = 0.0


class OpenGroups:
    """The open groups of all partitions."""

    def __init__(self) -> None:
        self._partitions: dict[int, _Partition] = {}
        self._event_ids: set[str] = set()

    def __len__(self) -> int:
        return sum(len(partition.groups) for partition in self._partitions.values())

    def holds(self, event: Event) -> bool:
        """Whether an open group has a row with this event id."""
        return event.event_id is not None and event.event_id in self._event_ids

    def add(self, number: int, event: Event, now_s: float) -> list[Rows]:
        """Takes a row; the groups that it closes."""
        partition = self._partitions.setdefault(number, _Partition({}))
        partition.last_s = now_s
        groups, user = partition.groups, event.user_id
        closed = [
            name
            for name, rows in groups.items()
            if event.timestamp_ms > rows[0].timestamp_ms + SPAN_MS
            or (name == user and event.timestamp_ms != rows[0].timestamp_ms)
        ]
        out = self._close(number, closed)
        groups.setdefault(user, []).append(event)
        if event.event_id is not None:
            self._event_ids.add(event.event_id)
        return out + self._close(number, list(groups)[: max(0, len(groups) - MOST_OPEN)])

    def idle(self, silent: Collection[int], now_s: float) -> list[Rows]:
        """Closes the groups of those of some partitions that took their last row IDLE_S ago."""
        return [
            rows
            for number, partition in self._partitions.items()
            if number in silent and now_s - partition.last_s >= IDLE_S
            for rows in self._close(number, list(partition.groups))
        ]

    def first_offset(self, number: int, otherwise: int) -> int:
        """The smallest offset of an open row of a partition."""
        groups = self._partitions[number].groups.values() if number in self._partitions else ()
        return min((rows[0].offset for rows in groups), default=otherwise)

    def state(self) -> list[Rows]:
        """Every open group, for a checkpoint."""
        return [(number, rows) for number, p in self._partitions.items() for rows in p.groups.values()]

    def load(self, state: list[Any]) -> None:
        """Takes back what `state` kept."""
        for number, rows in state:
            self._partitions.setdefault(number, _Partition({})).groups[rows[0].user_id] = list(rows)
            self._event_ids.update(event.event_id for event in rows if event.event_id is not None)

    def _close(self, number: int, users: list[str]) -> list[Rows]:
        groups = self._partitions[number].groups
        out = [(number, groups.pop(user)) for user in users]
        self._event_ids.difference_update(event.event_id for _, rows in out for event in rows if event.event_id)
        return out
