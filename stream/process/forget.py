"""Forgetting a user: a record of the stream, judged at its offset like an event.

    key user_id, value {"forget_user_id": "..."}

What it does at its offset, in worker and trainer alike: the user's row goes, and the user's places in the items' rings
are emptied. Undo records hold rows and events of the user, and items' rows with the user's key. So the user goes as if
at the start of the late window: from the user's first event there on, all is applied again without the user's events.
Items lose what they took from these, and events that come late find their places as before. The worker sends
tombstones for the user's profile and profile request, and with several partitions the request to every partition of
`interactions.by-item`, whose rows have rings of their own. Later events of the user start a new row.

What an item's memory, counters and popularity took from the user's events before the window (with several partitions:
from all), and what trained weights did, stays until the state is rebuilt (`driftline forget --rebuild`, from
`without_forgotten`) and the models are trained anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import orjson

from driftline.graph.rows import Event
from driftline.serving.forget import FIELD, encode_forget
from driftline.serving.owner import partition_of
from driftline.stream.events.records import EVERYWHERE, Outgoing, Record
from driftline.stream.events.schema import MAX_ID_BYTES
from driftline.stream.process.intake import is_foreign, origin_of

__all__ = ["Forgotten", "encode_forget", "forgotten_user", "tombstones", "whose", "without_forgotten"]

_MARK = b'"%s"' % FIELD.encode()
_MOST_BYTES = 6 * MAX_ID_BYTES + 1000
"""Of a request: JSON writes what is one byte of an id in six at most, and some space may stand around."""


def forgotten_user(record: Record) -> str | None:
    """The user that a record asks to forget; None if it is no such record.

    As with events the key is not read.
    """
    value = record.value
    if value is None or isinstance(value, Event) or _MARK not in value or len(value) > _MOST_BYTES:
        return None
    try:
        data = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    user_id = data.get(FIELD) if isinstance(data, dict) and len(data) == 1 else None
    if not isinstance(user_id, str) or not 0 < len(user_id.encode()) <= MAX_ID_BYTES:
        return None
    return user_id


def tombstones(user_id: str, partition: int | None = EVERYWHERE) -> Iterator[Outgoing]:
    """What takes a user out of the compacted topics, whichever partition has a record of the user.

    A topic that got more partitions may have one where the key does not lead any more. It would count again once
    compaction has taken a tombstone that lies elsewhere.
    """
    for topic in ("profile-requests", "profiles"):
        yield Outgoing(topic, user_id.encode(), None, partition=partition)


def to_items(user_id: str, partitions: int, source: bytes) -> Iterator[Outgoing]:
    """What takes a user out of the rings of items in other partitions; `source` as of the item events."""
    key, value = encode_forget(user_id)
    for partition in range(partitions):
        yield Outgoing("interactions.by-item", key, value, (("source", source),), partition)


class Forgotten:
    """Which records of a topic a log without forgotten users has.

    Of a forgotten user it has what came after the request, which is not in it either: by offset, and in another
    partition by the time at which the broker took it; of a copy those of its original count, too. A record that is left
    out takes its copies with it wherever they lie, and what has its event id: to a worker they are duplicates, and here
    they would be first ones. Offsets stay as they are.

    Args:
        records: gives all of the topic, each with its partition, in order of offsets; called twice if one is a request.
        log_id: of the topic; what names another as its origin is none of it. "" = it is not checked.
        by_id: events of one id are one event; see `state.dedupe_ids`.
        partitions: of the topic: of a request's copies that of its user's owner counts.
    """

    def __init__(
        self,
        records: Callable[[], Iterable[tuple[int, Record]]],
        log_id: str = "",
        by_id: bool = True,
        partitions: int = 1,
    ) -> None:
        self._log_id, self._by_id = log_id, by_id
        self._until: dict[str, list[tuple[int, int, int]]] = {}
        self._gone: set[tuple[str, object]] = set()
        for partition, record in records():
            user_id = forgotten_user(record)
            if user_id is not None and counts(partition, record, user_id, log_id, partitions):
                self._until.setdefault(user_id, []).append((partition, record.offset, record.timestamp_ms))
        if self._until:
            for partition, record in records():
                user_id, event_id = whose(record)
                if user_id in self._until and self._is_before_a_request(partition, record, user_id):
                    self._gone |= self._names(partition, record, user_id, event_id)

    def has(self, partition: int, record: Record) -> bool:
        """Whether a record is one of the user's, from before a request, or such a request."""
        if not self._until or is_foreign(record, self._log_id):
            return False
        if forgotten_user(record) is not None:
            return True
        user_id, event_id = whose(record)
        return user_id in self._until and not self._gone.isdisjoint(self._names(partition, record, user_id, event_id))

    def _is_before_a_request(self, partition: int, record: Record, user_id: str) -> bool:
        """By its own place or, of a copy, by that of its original, which the broker may have deleted since."""
        if is_foreign(record, self._log_id):
            return False
        origin = origin_of(record)
        places = [(partition, record.offset, record.timestamp_ms), *([origin[:3]] if origin is not None else [])]
        return any(
            offset < asked if number == at else 0 < taken_ms <= asked_ms
            for number, offset, taken_ms in places
            for at, asked, asked_ms in self._until[user_id]
        )

    def _names(self, partition: int, record: Record, user_id: str, event_id: str | None) -> set[tuple[str, object]]:
        """What the records of one event of a user have in common: where a producer put it, and its id."""
        origin = origin_of(record)
        place = (partition, record.offset) if origin is None else origin[:2]
        return {(user_id, place), (user_id, event_id)} if event_id and self._by_id else {(user_id, place)}


def counts(partition: int, record: Record, user_id: str, log_id: str, partitions: int) -> bool:
    """Whether a request to forget is one for who keeps no rows by partition: no copy, or that in the owner's."""
    if is_foreign(record, log_id):
        return False
    return origin_of(record) is None or partition == partition_of(user_id, partitions)


def without_forgotten(records: Sequence[Record], partition: int = 0) -> list[Record]:
    """A partition's log as if nobody had been there who was forgotten later."""
    forgotten = Forgotten(lambda: ((partition, record) for record in records))
    return [record for record in records if not forgotten.has(partition, record)]


def whose(record: Record) -> tuple[str | None, str | None]:
    """Whose record it is, event or not, by its content, else by its key; and the id of the event."""
    if isinstance(record.value, Event):
        return record.value.user_id, record.value.event_id
    try:
        data = orjson.loads(record.value or b"")
    except orjson.JSONDecodeError:
        data = None
    user_id, event_id = (data.get("user_id"), data.get("event_id")) if isinstance(data, dict) else (None, None)
    if isinstance(user_id, str):
        return user_id, event_id if isinstance(event_id, str) else None
    return record.key.decode(errors="replace") if record.key else None, None
