"""What goes on `interactions.by-item`: applied events on their way to the item rows, many in one record.

A *frame* holds what one epoch has for one partition of items, cut where it would grow large: columns of its events in
order of their offsets, and the memory of each event's user from before the event's group. Header `frame` is
"version:check sum"; there is no key. A frame comes whole or not at all: what is wrong in it makes all of it a dead
letter.

    partition, offsets, users, items, times, actions, values, prices     as msgspec writes them (MessagePack)
    memories                                                             [n, M] float32, little-endian
    log                                                                  topic id of `interactions`, "" = not known

Frames of version 1 name no log. Releases before there were frames sent each event by itself, keyed by item: its JSON,
with headers `source` (partition:offset) and `user_memory`. All are read. Requests to forget a user still go so, with
the log in `source`, too.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Annotated, TypeVar

import msgspec
import numpy as np
import xxhash
from msgspec import Meta, Struct

from driftline.graph.arrays import Float32
from driftline.graph.rows import MAX_ACTION_BYTES, MAX_ID_BYTES, MAX_NUMBER, MAX_TIMESTAMP_MS, Event
from driftline.serving.owner import partition_of
from driftline.stream.events.records import Outgoing, Record
from driftline.stream.events.schema import InvalidEvent, decode_event

BY_ITEM = "interactions.by-item"
FRAME_EVENTS = 512
"""Events of a frame at most."""
FRAME_BYTES = 786_432
"""Of a frame at most: under what a broker takes by default."""
_EVENT_BYTES = 2 * MAX_ID_BYTES + MAX_ACTION_BYTES + 64
"""Of an event in a frame at most, but for the memory."""
_VERSION, _VERSIONS = b"2", (b"1", b"2")
_SOURCE = re.compile(rb"(\d{1,9}):(\d{1,18})(?::([^:]{0,80}))?")

_Text = Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES)]
_Number = Annotated[float, Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]


class _Frame(Struct, array_like=True, forbid_unknown_fields=True):
    """The body of a frame."""

    partition: Annotated[int, Meta(ge=0)]
    offsets: list[Annotated[int, Meta(ge=0)]]
    users: list[_Text]
    items: list[_Text]
    times: list[Annotated[int, Meta(ge=0, le=MAX_TIMESTAMP_MS)]]
    actions: list[_Text]
    values: list[_Number | None]
    prices: list[_Number | None]
    memories: bytes
    log: Annotated[str, Meta(max_length=80)] = ""


_AnyRecord = TypeVar("_AnyRecord", Record, Outgoing)
_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(_Frame).decode


@dataclass(frozen=True, slots=True)
class Sent:
    """Events of one partition of `interactions`, at least one.

    Attributes:
        partition: where they lie.
        events: with their offsets there, which rise; of a frame only what item rows are made from.
        memories: [n, M] float32 of their users.
        log: topic id of that `interactions`; "" = not known.
    """

    partition: int
    events: Sequence[Event]
    memories: Float32
    log: str = ""

    def after(self, offset: int) -> Sent:
        """What comes after an offset."""
        first = bisect_right(self.events, offset, key=attrgetter("offset"))
        return self if first == 0 else self.some(slice(first, None))

    def some(self, which: slice | list[int]) -> Sent:
        """Some of the events, by their places here."""
        events = self.events[which] if isinstance(which, slice) else [self.events[n] for n in which]
        return replace(self, events=events, memories=self.memories[which])


def framed(
    partition: int, events: Sequence[Event], memories: Float32, partitions: int, log: str = ""
) -> Iterator[Outgoing]:
    """The records that take applied events on to their items.

    Args:
        partition: of `interactions`, where the events lie.
        events: in order of their offsets.
        memories: [n, M] of their users from before their groups.
        partitions: of `interactions.by-item`.
        log: see `Sent`.
    """
    whole = Sent(partition, events, memories, log)
    parts: dict[int, list[int]] = {}
    for n, event in enumerate(events):
        parts.setdefault(partition_of(event.item_id, partitions), []).append(n)
    size = min(FRAME_EVENTS, FRAME_BYTES // (4 * memories.shape[1] + _EVENT_BYTES))
    for target, part in sorted(parts.items()):
        for start in range(0, len(part), size):
            yield _outgoing(whole.some(part[start : start + size]), target)


def sent(record: Record | Outgoing, memory_dim: int = 0) -> Sent:
    """The events of a record, with memories of `memory_dim` numbers; 0 = as many as there are.

    Raises:
        InvalidEvent: it is none of ours.
    """
    headers = dict(record.headers)
    if "frame" in headers:
        return _of_frame(record, headers["frame"] or b"", memory_dim)
    partition, offset, log = source_of(record)
    event = record.value if isinstance(record.value, Event) else decode_event(record.value or b"")
    if record.key is not None and record.key != event.item_id.encode():
        raise InvalidEvent("key_mismatch", f"key is {record.key!r:.80}, expected item_id {event.item_id!r:.80}")
    event.offset = offset
    return Sent(
        partition, [event], _vectors(headers.get("user_memory") or b"", 1, memory_dim, "header user_memory"), log
    )


def check_log(log: str, ours: str) -> None:
    """Returns where what is sent on comes from this log, as far as both are known.

    Raises:
        InvalidEvent: it was copied here with another; its offsets would hide what is of this one.
    """
    if log and ours and log != ours:
        raise InvalidEvent("foreign_copy", f"it came of topic {log!r:.80}, the items here are made from {ours}")


def source_of(record: Record | Outgoing) -> tuple[int, int, str]:
    """(partition, offset, topic's id) in `interactions` of what a record that is no frame came of.

    Raises:
        InvalidEvent: it does not say.
    """
    value = dict(record.headers).get("source") or b""
    found = _SOURCE.fullmatch(value)
    if found is None:
        raise InvalidEvent("no_source", f"header source is {value!r:.80}, expected partition:offset")
    return int(found[1]), int(found[2]), (found[3] or b"").decode(errors="replace")


def sources(record: Record | Outgoing) -> list[tuple[int, int]]:
    """(partition, offset) in `interactions` of all that a record came of; none of one that is not ours."""
    try:
        if "frame" not in dict(record.headers):
            return [source_of(record)[:2]]
        read = sent(record)
    except InvalidEvent:
        return []
    return [(read.partition, event.offset) for event in read.events]


def without(record: _AnyRecord, places: Collection[tuple[int, int]]) -> _AnyRecord | None:
    """A record without what came of some places of `interactions`; None if nothing is left of it."""
    found = sources(record)
    stay = [n for n, place in enumerate(found) if place not in places]
    if len(stay) == len(found):
        return record
    if not stay:
        return None
    read = sent(record)
    out = _outgoing(read.some(stay), 0)
    return replace(record, value=out.value, headers=out.headers)


def _of_frame(record: Record | Outgoing, header: bytes, memory_dim: int) -> Sent:
    version, _, check_sum = header.partition(b":")
    if version not in _VERSIONS:
        expected = f"expected {b' or '.join(_VERSIONS).decode()}: a later release sent it"
        raise InvalidEvent("unknown_frame", f"header frame is {header!r:.80}, {expected}")
    raw = record.value if isinstance(record.value, bytes) else b""
    if xxhash.xxh3_64_hexdigest(raw).encode() != check_sum:
        raise InvalidEvent("bad_frame", f"{len(raw)} bytes do not have the check sum of header frame, {header!r:.80}")
    try:
        frame = _decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidEvent("bad_frame", f"{error}; expected the columns of a frame") from None
    columns = (frame.users, frame.items, frame.times, frame.actions, frame.values, frame.prices)
    n = len(frame.offsets)
    if not n or any(len(column) != n for column in columns) or sorted(set(frame.offsets)) != frame.offsets:
        raise InvalidEvent("bad_frame", f"{n} offsets; expected columns of one length, and offsets that rise")
    memories = _vectors(frame.memories, n, memory_dim, "the frame")
    events = [
        Event(user, item, t_ms, action, None, value, price, offset=offset)
        for user, item, t_ms, action, value, price, offset in zip(*columns, frame.offsets, strict=True)
    ]
    return Sent(frame.partition, events, memories, frame.log)


def _vectors(raw: bytes, n: int, memory_dim: int, where: str) -> Float32:
    width = 4 * (memory_dim or len(raw) // (4 * n))
    memories = np.frombuffer(raw, "<f4") if len(raw) == n * width else np.array([np.nan], np.float32)
    if not np.isfinite(memories).all():
        expected = f"expected {n * width} of finite float32"
        raise InvalidEvent("no_user_memory", f"{where} has {len(raw)} bytes of memories, {expected}")
    return memories.reshape(n, -1)


def _outgoing(part: Sent, target: int) -> Outgoing:
    events = part.events
    body = _encode(
        _Frame(
            part.partition,
            [event.offset for event in events],
            [event.user_id for event in events],
            [event.item_id for event in events],
            [event.timestamp_ms for event in events],
            [event.action for event in events],
            [event.value for event in events],
            [event.price for event in events],
            part.memories.astype("<f4").tobytes(),
            part.log,
        )
    )
    header = b"%s:%s" % (_VERSION, xxhash.xxh3_64_hexdigest(body).encode())
    return Outgoing(BY_ITEM, None, body, (("frame", header),), target)
