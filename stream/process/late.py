"""The late window: undo records of the last epochs, so that a late event can be put where it belongs.

An event is late when an earlier offset carried a later time. It is merged by one rollback to its place and one
re-apply, as long as it lies within `late_ms` of the watermark and fewer than `late_events` applied events come after
it; else it is too late and only counted. The verdict depends on the log up to the event, not on its cuts.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any, Literal

import orjson
from msgspec.structs import astuple

from driftline.graph.rows import Event, key64, without_users
from driftline.stream.events.frames import frame, unframe
from driftline.stream.events.schema import decode_event

Order = tuple[int, int]
"""(timestamp_ms, offset)"""

Verdict = Literal["in order", "late", "too late"]


@dataclass(slots=True)
class Undo:
    """One applied run of events and the rows from before it.

    Attributes:
        events: in order.
        before: stored values of the rows that they touch and of the chunks of histories that they change, None = there
            was none.
        sequence: number of the record, counting up.
        top: largest offset of what lies before them in order of time and came after some of it; -1 = nothing did.
    """

    events: list[Event]
    before: dict[bytes, bytes | None]
    sequence: int
    top: int = -1

    @property
    def store_key(self) -> bytes:
        """Where the store keeps it."""
        return b"w:" + self.sequence.to_bytes(8, "big")

    def encode(self) -> bytes:
        """Bytes for the store: top and events as JSON, then keys and values of the rows."""
        events = orjson.dumps([self.top, *map(_fields, self.events)])
        return frame([events, *chain.from_iterable(self.before.items())])

    def has(self, user_ids: Collection[str]) -> bool:
        """Whether one of the events is of one of some users."""
        return any(event.user_id in user_ids for event in self.events)

    def empty_places(self, keys: Sequence[int]) -> bool:
        """Empties the places of users by key64 in the rings of the items' rows; whether there were any."""
        rows = {key: value for key, value in self.before.items() if value is not None and key.startswith(b"i:")}
        together = b"".join(rows.values())  # most records have none, and one long text is searched in no time
        here = [key for key in keys if key.to_bytes(8, "little") in together]
        found = {key: row for key, value in rows.items() if here and (row := without_users(value, here)) is not value}
        self.before |= found
        return bool(found)

    @classmethod
    def decode(cls, key: bytes, value: bytes) -> Undo:
        """The record that `encode` wrote."""
        parts, sequence = unframe(value), int.from_bytes(key[2:], "big")
        head = parts[0] or b""
        if head.startswith(b"["):
            top, *fields = orjson.loads(head)
            return cls([Event(*row) for row in fields], _pairs(parts[1:]), sequence, top)
        count, _, last = head.partition(b" ")  # earlier versions of driftline: each event by itself, the first no top
        end = 1 + 2 * int(count)
        events = []
        for offset, raw in zip(parts[1:end:2], parts[2:end:2], strict=True):
            event = decode_event(raw or b"")
            event.offset = int(offset or 0)
            events.append(event)
        return cls(events, _pairs(parts[end:]), sequence, int(last or -1))


def _fields(event: Event) -> tuple[Any, ...]:
    """The fields in order; unknown ones as JSON already, which may be as deep by itself as orjson writes."""
    if event.extra:
        event = event.changed(extra=orjson.Fragment(orjson.dumps(event.extra)))
    return astuple(event)


def _pairs(parts: list[bytes | None]) -> dict[bytes, bytes | None]:
    return {key or b"": row for key, row in zip(parts[::2], parts[1::2], strict=True)}


class LateWindow:
    """What may still be rolled back, and where the watermark stands.

    Attributes:
        watermark_ms: the latest event time, -1 before the first event.
        floor: events up to this place can't be rolled back.
    """

    def __init__(self, late_ms: int, late_events: int) -> None:
        self.late_ms, self.late_events = late_ms, late_events
        self.watermark_ms = -1
        self._last: Order = (-1, -1)
        self.floor: Order = (-1, -1)
        self._orders: list[Order] = []
        self._undo: deque[Undo] = deque()
        self._held, self._sequence, self._saved = 0, 0, 0

    def judge(self, timestamp_ms: int, offset: int) -> Verdict:
        """Where an event belongs; one that is not too late counts as applied from here on."""
        order = (timestamp_ms, offset)
        if timestamp_ms >= self.watermark_ms:
            self.watermark_ms = timestamp_ms
            self._last = order
            self._orders.append(order)
            return "in order"
        after = len(self._orders) - bisect_right(self._orders, order)
        if timestamp_ms < self.watermark_ms - self.late_ms or after >= self.late_events or order < self.floor:
            return "too late"
        insort(self._orders, order)
        return "late"

    def room_at(self, timestamp_ms: int) -> int:
        """Events that may be applied, in time, before one of this time is too late; 0 = it is by now."""
        order = (timestamp_ms, sys.maxsize)
        if timestamp_ms < self.watermark_ms - self.late_ms or order < self.floor:
            return 0
        return max(0, self.late_events - len(self._orders) + bisect_right(self._orders, order))

    def push(self, events: list[Event], before: Callable[[], dict[bytes, bytes | None]], top: int = -1) -> Undo | None:
        """Keeps an undo record of events that are about to be applied; None when nothing may be late."""
        if not self.late_ms or not self.late_events:
            self._orders.clear()
            self.floor = self._last
            return None
        self._sequence += 1
        self._held += len(events)
        self._undo.append(Undo(events, before(), self._sequence, top))
        return self._undo[-1]

    @property
    def first_needed(self) -> int | None:
        """The offset that decides the version of the first event that may be rolled back; None = there is none."""
        return max(self._undo[0].top, self._undo[0].events[0].offset) if self._undo else None

    def take_after(self, order: Order) -> list[Undo]:
        """Removes and returns, oldest first, the records that hold an event after `order`."""
        return self._take(
            sum(1 for _ in takewhile(lambda undo: order_of(undo.events[-1]) > order, reversed(self._undo)))
        )

    def _take(self, newest: int) -> list[Undo]:
        taken = [self._undo.pop() for _ in range(newest)][::-1]
        self._held -= sum(len(undo.events) for undo in taken)
        return taken

    def drop_old(self) -> list[bytes]:
        """Drops records that no acceptable late event can need; their keys in the store."""
        dropped = []
        while self._undo:
            last, left = order_of(self._undo[0].events[-1]), self._held - len(self._undo[0].events)
            if last[0] >= self.watermark_ms - self.late_ms and left < self.late_events:
                break
            dropped.append(self._undo.popleft().store_key)
            self.floor, self._held = max(self.floor, last), left
        del self._orders[: bisect_right(self._orders, self.floor)]
        return dropped

    def unsaved(self) -> list[Undo]:
        """Records that have come since the last question and are still needed; the store is to keep them."""
        saved, self._saved = self._saved, self._sequence
        new = list(takewhile(lambda undo: undo.sequence > saved, reversed(self._undo)))  # the newest are the last ones
        return new[::-1]

    @property
    def closed(self) -> Order:
        """The last place before which no event can be put that is not too late; (-1, -1) = there is none.

        It is a matter of the log, where `floor` is one of the records, too.
        """
        orders, late = self._orders, (self.watermark_ms - self.late_ms, -1)
        first = min(len(orders), max(bisect_left(orders, late), len(orders) - self.late_events + 1))
        return max(self.floor, orders[first - 1]) if first else self.floor

    def items_of(self, user_id: str) -> set[str]:
        """Ids of the items of a user's events in the records."""
        return {event.item_id for undo in self._undo for event in undo.events if event.user_id == user_id}

    def take_from_first_of(self, user_ids: Collection[str]) -> list[Undo]:
        """Removes and returns, oldest first, the records from the first on that holds an event of some users."""
        first = next((n for n, undo in enumerate(self._undo) if undo.has(user_ids)), len(self._undo))
        return self._take(len(self._undo) - first)

    def close(self, floor: Order) -> list[bytes]:
        """Drops all records: nothing up to a place can be rolled back any more. Their keys in the store."""
        self.floor = max(self.floor, floor)
        del self._orders[: bisect_right(self._orders, self.floor)]
        return [undo.store_key for undo in self._take(len(self._undo))]

    def empty_places(self, user_ids: Collection[str]) -> list[Undo]:
        """Empties the places of users in rings of items; the records that change."""
        keys = [key64(user_id) for user_id in user_ids]
        return [undo for undo in self._undo if undo.empty_places(keys)]

    def clear(self) -> list[bytes]:
        """Drops everything: nothing up to now can be rolled back any more."""
        return self.close(self._last)

    def encode(self) -> bytes:
        """The scalars, for the store; the undo records have keys of their own."""
        return orjson.dumps([self.watermark_ms, self._last, self.floor, self._sequence])

    def load(self, scalars: bytes | None, undo: list[Undo]) -> None:
        """Takes back what `encode` and the undo records kept."""
        if scalars is None:
            return
        self.watermark_ms, last, floor, self._sequence = orjson.loads(scalars)
        self._saved = self._sequence
        self._last, self.floor = (last[0], last[1]), (floor[0], floor[1])
        self._undo, self._held = deque(undo), sum(len(record.events) for record in undo)
        self._orders = sorted(order_of(event) for record in undo for event in record.events)


def order_of(event: Event) -> Order:
    """The place of an event in the order in which events are applied."""
    return event.timestamp_ms, event.offset
