"""The late window: undo records of the last epochs, so that a late event can be put where it belongs.

An event is late when an earlier offset carried a later time. It is merged by one rollback to its place and one
re-apply, as long as it lies within `late_ms` of the watermark and fewer than `late_events` applied events come after
it; else it is too late and only counted. The verdict depends on the log up to the event, not on its cuts.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import orjson

from graph.rows import Event
from stream.events import decode_event, encode_event
from stream.frames import frame, unframe

Order = tuple[int, int]
"""(timestamp_ms, offset)"""

Verdict = Literal["in order", "late", "too late"]


@dataclass(slots=True)
class Undo:
    """One applied run of events and the rows from before it.

    Attributes:
        events: in order.
        before: stored values of the rows that they touch, None = there was none.
        sequence: number of the record, counting up.
    """

    events: list[Event]
    before: dict[bytes, bytes | None]
    sequence: int

    @property
    def store_key(self) -> bytes:
        """Where the store keeps it."""
        return b"w:" + self.sequence.to_bytes(8, "big")

    def encode(self) -> bytes:
        """Bytes for the store."""
        events = [part for e in self.events for part in (b"%d" % e.offset, encode_event(e))]
        rows = [part for pair in self.before.items() for part in pair]
        return frame([b"%d" % len(self.events), *events, *rows])

    @classmethod
    def decode(cls, key: bytes, value: bytes) -> Undo:
        """The record that `encode` wrote."""
        parts = unframe(value)
        end = 1 + 2 * int(parts[0] or 0)
        events = []
        for offset, raw in zip(parts[1:end:2], parts[2:end:2], strict=True):
            event = decode_event(raw or b"")
            event.offset = int(offset or 0)
            events.append(event)
        before = {key or b"": row for key, row in zip(parts[end::2], parts[end + 1 :: 2], strict=True)}
        return cls(events, before, int.from_bytes(key[2:], "big"))


class LateWindow:
    """What may still be rolled back, and where the watermark stands.

    Attributes:
        watermark_ms: the latest event time, -1 before the first event.
    """

    def __init__(self, late_ms: int, late_events: int) -> None:
        self.late_ms, self.late_events = late_ms, late_events
        self.watermark_ms = -1
        self._last: Order = (-1, -1)
        self._floor: Order = (-1, -1)
        self._orders: list[Order] = []
        self._undo: deque[Undo] = deque()
        self._sequence = 0

    def judge(self, timestamp_ms: int, offset: int) -> Verdict:
        """Where an event belongs; one that is not too late counts as applied from here on."""
        order = (timestamp_ms, offset)
        if timestamp_ms >= self.watermark_ms:
            self.watermark_ms = timestamp_ms
            self._last = order
            self._orders.append(order)
            return "in order"
        after = len(self._orders) - bisect_right(self._orders, order)
        if timestamp_ms < self.watermark_ms - self.late_ms or after >= self.late_events or order < self._floor:
            return "too late"
        insort(self._orders, order)
        return "late"

    def push(self, events: list[Event], before: Callable[[], dict[bytes, bytes | None]]) -> Undo | None:
        """Keeps an undo record of events that are about to be applied; None when nothing may be late."""
        if not self.late_ms or not self.late_events:
            self._orders.clear()
            self._floor = self._last
            return None
        self._sequence += 1
        self._undo.append(Undo(events, before(), self._sequence))
        return self._undo[-1]

    def take_after(self, order: Order) -> list[Undo]:
        """Removes and returns, oldest first, the records that hold an event after `order`."""
        taken: deque[Undo] = deque()
        while self._undo and order_of(self._undo[-1].events[-1]) > order:
            taken.appendleft(self._undo.pop())
        return list(taken)

    def drop_old(self) -> list[bytes]:
        """Drops records that no acceptable late event can need; their keys in the store."""
        dropped = []
        held = sum(len(undo.events) for undo in self._undo)
        while self._undo:
            last = order_of(self._undo[0].events[-1])
            held -= len(self._undo[0].events)
            if last[0] >= self.watermark_ms - self.late_ms and held < self.late_events:
                break
            dropped.append(self._undo.popleft().store_key)
            self._floor = max(self._floor, last)
        del self._orders[: bisect_right(self._orders, self._floor)]
        return dropped

    def clear(self) -> list[bytes]:
        """Drops everything: nothing up to now can be rolled back any more."""
        keys = [undo.store_key for undo in self._undo]
        self._undo.clear()
        self._orders.clear()
        self._floor = self._last
        return keys

    def encode(self) -> bytes:
        """The scalars, for the store; the undo records have keys of their own."""
        return orjson.dumps([self.watermark_ms, self._last, self._floor, self._sequence])

    def load(self, scalars: bytes | None, undo: list[Undo]) -> None:
        """Takes back what `encode` and the undo records kept."""
        if scalars is None:
            return
        self.watermark_ms, last, floor, self._sequence = orjson.loads(scalars)
        self._last, self._floor = (last[0], last[1]), (floor[0], floor[1])
        self._undo = deque(undo)
        self._orders = sorted(order_of(event) for record in undo for event in record.events)


def order_of(event: Event) -> Order:
    """The place of an event in the order in which events are applied."""
    return event.timestamp_ms, event.offset
