"""What goes into a processor and what comes out: records, the changes of an epoch, the outbox in the store."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from driftline.graph.rows import Event
from driftline.stream.events.frames import frame, unframe
from driftline.stream.events.schema import InvalidEvent, encode_event

FIRST_BROKER_MS = 1_293_840_000_000
"""January 2011, when Kafka was first released: no record was taken by a broker before it."""
LOG_APPEND_TIME = 1
"""Timestamp type of a record that the broker stamped; else the producer did."""


EVERYWHERE = -1
"""Partition of an outgoing record that all partitions of its topic are to have."""


@dataclass(slots=True)
class Record:
    """One record of a partition. `value` may already be an Event (files, tests); None is a record without one."""

    offset: int
    value: bytes | Event | None
    key: bytes | None = None
    timestamp_ms: int = -1
    """When the broker took it, as far as that can be believed; -1 = unknown."""
    headers: Sequence[tuple[str, bytes | None]] = ()


def record_of(received: Any) -> Record:
    """A record as aiokafka and kafka-python bring it."""
    taken_ms = believed_ms(received.timestamp, getattr(received, "timestamp_type", None), int(time.time() * 1000))
    return Record(received.offset, received.value, received.key, taken_ms, received.headers)


def records_of(received: Sequence[Any]) -> list[Record]:
    """Records as aiokafka's parser made them (stream/kafka/batches.py)."""
    now_ms, stamped = int(time.time() * 1000), LOG_APPEND_TIME
    return [
        Record(
            one.offset,
            one.value,
            one.key,
            one.timestamp if one.timestamp_type == stamped else believed_ms(one.timestamp, one.timestamp_type, now_ms),
            one.headers,
        )
        for one in received
    ]


def believed_ms(timestamp_ms: int | None, timestamp_type: int | None, now_ms: int) -> int:
    """When a broker took a record, unix milliseconds.

    A broker's own stamp is believed. A producer's is, unless no broker can have taken a record then: before there were
    any, or after it is read here (`now_ms`). Such a record was taken by now, and that is all that is known of it.
    """
    stamp_ms = -1 if timestamp_ms is None else timestamp_ms
    if timestamp_type == LOG_APPEND_TIME or FIRST_BROKER_MS <= stamp_ms <= now_ms:
        return stamp_ms
    return now_ms


@dataclass(slots=True)
class Outgoing:
    """A record that has to be sent after the commit, at least once."""

    topic: str
    key: bytes | None
    value: bytes | None
    """None is a tombstone: what the compacted topic has of the key goes."""
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int | None = None
    """Where it goes; None = where its key says, EVERYWHERE = to all partitions that the topic has."""

    def to_each(self, partitions: Iterable[int]) -> list[Outgoing]:
        """What is to be sent of one that goes everywhere, or of any other."""
        if self.partition != EVERYWHERE:
            return [self]
        return [replace(self, partition=number) for number in sorted(partitions)]


@dataclass(slots=True)
class Changes:
    """What one epoch changed; the owner of the state commits `puts`, the driver sends `outgoing`."""

    next_offset: int = 0
    watermark_ms: int = -1
    puts: dict[bytes, bytes | None] = field(default_factory=dict)
    outgoing: list[Outgoing] = field(default_factory=list)
    applied: int = 0
    forwarded: int = 0
    duplicates: int = 0
    dead: int = 0
    late: int = 0
    again: int = 0
    too_late: int = 0
    forgotten: int = 0
    users_anew: int = 0
    users_swept: int = 0
    items_anew: int = 0
    items_swept: int = 0
    unknown_actions: int = 0
    unknown_names: frozenset[str] = frozenset()
    below_zero: frozenset[str] = frozenset()


def dead_letter(topic: str, partition: int, record: Record, refusal: InvalidEvent) -> Outgoing:
    """A refused record of a topic as it came, with the reason beside it."""
    value = encode_event(record.value) if isinstance(record.value, Event) else record.value
    headers = (
        ("reason", refusal.reason.encode()),
        ("detail", refusal.detail.encode(errors="backslashreplace")),
        ("source", f"{partition}:{record.offset}".encode()),
        ("topic", topic.encode()),
    )
    return Outgoing("interactions.dlq", record.key, value, headers)


def pack(outgoing: Sequence[Outgoing]) -> bytes:
    """Outgoing records as bytes for the store."""
    parts: list[bytes | None] = []
    for out in outgoing:
        headers = [[name, value.hex()] for name, value in out.headers]
        more = headers if out.partition is None else {"headers": headers, "partition": out.partition}
        parts += (out.topic.encode(), out.key, out.value, orjson.dumps(more))
    return frame(parts)


def unpack(data: bytes) -> list[Outgoing]:
    """The records that `pack` joined."""
    parts = unframe(data)
    outgoing = []
    for topic, key, value, packed in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
        more = orjson.loads(packed or b"[]")
        headers, partition = (more["headers"], more["partition"]) if isinstance(more, dict) else (more, None)
        pairs = tuple((name, bytes.fromhex(text)) for name, text in headers)
        outgoing.append(Outgoing((topic or b"").decode(), key, value, pairs, partition))
    return outgoing
