"""What goes into a processor and what comes out: records, the changes of an epoch, the outbox in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from graph.rows import Event
from stream.events import InvalidEvent, encode_event
from stream.frames import frame, unframe


@dataclass(slots=True)
class Record:
    """One record of a partition. `value` may already be an Event (files, tests)."""

    offset: int
    value: bytes | Event
    key: bytes | None = None
    timestamp_ms: int = -1
    """When the broker took it; -1 = unknown."""
    headers: Sequence[tuple[str, bytes | None]] = ()


@dataclass(slots=True)
class Outgoing:
    """A record that has to be sent after the commit, at least once."""

    topic: str
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(slots=True)
class Changes:
    """What one epoch changed; the owner of the state commits `puts`, the driver sends `outgoing`."""

    next_offset: int = 0
    watermark_ms: int = -1
    puts: dict[bytes, bytes | None] = field(default_factory=dict)
    outgoing: list[Outgoing] = field(default_factory=list)
    applied: int = 0
    duplicates: int = 0
    dead: int = 0
    late: int = 0
    too_late: int = 0
    unknown_actions: int = 0
    unknown_names: frozenset[str] = frozenset()


def dead_letter(topic: str, partition: int, record: Record, refusal: InvalidEvent) -> Outgoing:
    """A refused record of a topic as it came, with the reason beside it."""
    value = record.value if isinstance(record.value, bytes) else encode_event(record.value)
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
        headers = orjson.dumps([[name, value.hex()] for name, value in out.headers])
        parts += (out.topic.encode(), out.key, out.value, headers)
    return frame(parts)


def unpack(data: bytes) -> list[Outgoing]:
    """The records that `pack` joined."""
    parts = unframe(data)
    outgoing = []
    for topic, key, value, headers in zip(parts[::4], parts[1::4], parts[2::4], parts[3::4], strict=True):
        pairs = tuple((name, bytes.fromhex(text)) for name, text in orjson.loads(headers or b"[]"))
        outgoing.append(Outgoing((topic or b"").decode(), key, value or b"", pairs))
    return outgoing
