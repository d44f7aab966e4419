"""Forgetting a user: a record of the stream, judged at its offset like an event.

    key user_id, value {"forget_user_id": "..."}

What it does at its offset, in worker and trainer alike: the user's row goes, the user's key leaves the items' rings,
and what could be rolled back is closed, since undo records hold rows and events of the user. The worker sends
tombstones for the user's profile and profile request, and with several partitions the request to every partition of
`interactions.by-item`, whose rows have rings of their own. Later events of the user start a new row.

What an item's memory, counters and popularity, and trained weights, took from the user's events stays until the state
is rebuilt (`driftline forget --rebuild`, from `without_forgotten`) and the models are trained anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import orjson

from driftline.graph.rows import Event
from driftline.serving.forget import FIELD, encode_forget
from driftline.stream.events.records import Outgoing, Record
from driftline.stream.events.schema import MAX_ID_BYTES

__all__ = ["Forgotten", "encode_forget", "forgotten_user", "tombstones", "user_of", "without_forgotten"]

_MARK = b'"%s"' % FIELD.encode()


def forgotten_user(record: Record) -> str | None:
    """The user that a record asks to forget; None if it is no such record.

    As with events the key is not read.
    """
    value = record.value
    if value is None or isinstance(value, Event) or _MARK not in value or len(value) > 2 * MAX_ID_BYTES + 1000:
        return None
    try:
        data = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    user_id = data.get(FIELD) if isinstance(data, dict) and len(data) == 1 else None
    if not isinstance(user_id, str) or not 0 < len(user_id.encode()) <= MAX_ID_BYTES:
        return None
    return user_id


def tombstones(user_id: str) -> Iterator[Outgoing]:
    """What takes a user out of the compacted topics."""
    for topic in ("profile-requests", "profiles"):
        yield Outgoing(topic, user_id.encode(), None)


def to_items(user_id: str, partitions: int, source: bytes) -> Iterator[Outgoing]:
    """What takes a user out of the rings of items in other partitions; `source` as of the item events."""
    key, value = encode_forget(user_id)
    for partition in range(partitions):
        yield Outgoing("interactions.by-item", key, value, (("source", source),), partition)


class Forgotten:
    """Which records of a topic a log without forgotten users has. Note all records first, then ask.

    Of a forgotten user it has what came after the request, which is not in it either: by offset, and in another
    partition by the time at which the broker took it. Offsets stay as they are.
    """

    def __init__(self, noted: Iterable[tuple[int, Record]] = ()) -> None:
        self._until: dict[str, list[tuple[int, int, int]]] = {}
        for partition, record in noted:
            self.note(partition, record)

    def note(self, partition: int, record: Record) -> None:
        """Takes in a record, in order of the offsets of its partition."""
        user_id = forgotten_user(record)
        if user_id is not None:
            self._until.setdefault(user_id, []).append((partition, record.offset, record.timestamp_ms))

    def has(self, partition: int, record: Record) -> bool:
        """Whether a record is one of the user's, from before a request, or such a request."""
        if not self._until:
            return False
        if forgotten_user(record) is not None:
            return True
        return any(
            record.offset < offset if at == partition else 0 < record.timestamp_ms <= taken_ms
            for at, offset, taken_ms in self._until.get(user_of(record) or "", ())
        )


def without_forgotten(records: Sequence[Record], partition: int = 0) -> list[Record]:
    """A partition's log as if nobody had been there who was forgotten later."""
    forgotten = Forgotten((partition, record) for record in records)
    return [record for record in records if not forgotten.has(partition, record)]


def user_of(record: Record) -> str | None:
    """Whose record it is, event or not: by its content, else by its key."""
    if isinstance(record.value, Event):
        return record.value.user_id
    try:
        data = orjson.loads(record.value or b"")
    except orjson.JSONDecodeError:
        data = None
    found = data.get("user_id") if isinstance(data, dict) else None
    if isinstance(found, str):
        return found
    return record.key.decode(errors="replace") if record.key else None
