"""What a record of `interactions` is to the partition that it lies in, one rule for all who read the topic.

    a user's event in its owner's partition          applied
    a user's event in any other partition            sent on to the owner, once: the copy says which record it is of
    a copy in its owner's partition                  applied, if none of that record was before
    a request to forget, applied by its owner        sent on to all others: a part of the row may lie there
    any other copy                                   dropped: its event is applied elsewhere

The owner is `serving.owner.partition_of`. The key is not read: producers leave it empty, write ids as JSON or numbers,
join them with a tenant or key by session; whose event it is stands in the event.

Who reads all partitions and keeps no rows by partition (trainer, replay of a topic) takes events where producers put
them and passes over every copy, so it needs no worker to see an event, and sees each once.
"""

from __future__ import annotations

import re

import orjson

from driftline.configs.settings import Settings
from driftline.graph.rows import Event
from driftline.serving.forget import encode_forget
from driftline.serving.owner import partition_of
from driftline.stream.events.records import Outgoing, Record
from driftline.stream.events.schema import InvalidEvent, encode_event, parse_event
from driftline.stream.state.store import StateStore

INTERACTIONS = "interactions"
FORWARDED = "driftline-forwarded"
"""Header of a copy: "partition:offset:taken_ms:log" of the record that a producer sent; log is its topic's id."""
FOREIGN = "foreign_copy"
_PLACE = re.compile(rb"(\d{1,9}):(\d{1,18}):(-?\d{1,18})(?::([^:]{0,80}))?")
_ORIGIN = b"m:topics"
"""Where a store notes which topics it is made from (stream/state/origin.py)."""


def is_copy(record: Record) -> bool:
    """Whether a worker wrote this record: the same event stands in another partition as its producer sent it."""
    return origin_of(record) is not None


def origin_of(record: Record) -> tuple[int, int, int, str] | None:
    """(partition, offset, when the broker took it, topic's id) of the record that this one is a copy of, or None."""
    for name, value in record.headers:
        if name == FORWARDED:
            found = _PLACE.fullmatch(value or b"")
            if found is None:
                return None
            return int(found[1]), int(found[2]), int(found[3]), (found[4] or b"").decode(errors="replace")
    return None


def is_foreign(record: Record, log_id: str) -> bool:
    """Whether a record is a copy of one of another log than this one; False where this one's id is not known, ""."""
    origin = origin_of(record) if record.headers and log_id else None
    return origin is not None and origin[3] != log_id


def log_id_of(store: StateStore) -> str:
    """The id of the `interactions` that a store was made from; "" where it does not say."""
    (origin,) = store.get([_ORIGIN])
    known = orjson.loads(origin).get(INTERACTIONS, {}) if origin else {}
    return str(known.get("topic_id", ""))


class Intake:
    """What the records of one partition are.

    Args:
        settings: the whole configuration.
        partition, partitions: of `interactions`.

    Attributes:
        owns_all: there is no other partition: what is no copy is ours.
        log_id: of the topic; "" = not known.
    """

    def __init__(self, settings: Settings, partition: int = 0, partitions: int = 1) -> None:
        self.settings, self.partition, self.partitions = settings, partition, partitions
        self._future_ms, self.owns_all = settings.state.future_ms, (partition, partitions) == (0, 1)
        self._copied: dict[int, int] = {}
        self.log_id = ""
        self._pending: dict[bytes, bytes | None] = {}

    def load(self, store: StateStore) -> None:
        """Takes back which copies were applied."""
        self._copied = {int(key[9:]): int(value) for key, value in store.scan(b"m:copied:")}

    def validated(self, record: Record) -> Event:
        """The record as an event with its offset. Raises InvalidEvent if it is none."""
        value, origin, future_ms = record.value, origin_of(record) if record.headers else None, self._future_ms
        if origin is not None and self.log_id and origin[3] != self.log_id:
            raise InvalidEvent(
                FOREIGN,
                f"header {FORWARDED} names a record of topic {origin[3]!r:.80}, this one is {self.log_id}: it was "
                "copied here with its headers. What it is a copy of is sent on anew if it lies here, too",
            )
        event = parse_event(value) if value is None or isinstance(value, bytes) else value
        event.offset = record.offset
        taken_ms = record.timestamp_ms if origin is None else origin[2]
        if 0 < taken_ms < event.timestamp_ms - future_ms:  # it would hold the watermark hostage
            raise InvalidEvent(
                "from_the_future",
                f"timestamp_ms is {event.timestamp_ms}, {event.timestamp_ms - taken_ms} ms after {taken_ms}, when the "
                f"broker took it; expected at most state.future_ms, {future_ms}",
            )
        return event

    def note_log(self, store: StateStore) -> None:
        """Takes the id of the log from what the store was made from, once it is known there; "" = it is not checked."""
        if not self.log_id and self.partitions > 1:
            self.log_id = log_id_of(store)

    def owner(self, event: Event) -> int:
        """The partition that owns the user of an event."""
        return 0 if self.partitions == 1 else partition_of(event.user_id, self.partitions)

    def is_ours(self, record: Record, event: Event) -> bool:
        """Whether an event is to be applied here; a copy counts as applied from here on."""
        origin = origin_of(record) if record.headers else None
        if origin is None:
            return self.owns_all or self.owner(event) == self.partition
        source, offset, _, _ = origin
        if source == self.partition or source >= self.partitions or self.owner(event) != self.partition:
            return False
        if offset <= self._copied.get(source, -1):
            return False  # sent twice by a worker that crashed between committing and sending
        self._copied[source] = offset
        self._pending[b"m:copied:%d" % source] = b"%d" % offset
        return True

    def take_pending(self) -> dict[bytes, bytes | None]:
        """What the next commit has to keep."""
        taken, self._pending = self._pending, {}
        return taken

    def copy(self, record: Record, event: Event) -> Outgoing | None:
        """The record for the owner of an event that lies here; None for what is itself a copy: it goes no further."""
        if origin_of(record) is not None:
            return None
        value = encode_event(event) if isinstance(record.value, Event) else record.value
        return Outgoing(INTERACTIONS, event.user_id.encode(), value, self._place(record), self.owner(event))

    def to_others(self, record: Record, user_id: str) -> list[Outgoing]:
        """A request to forget, for the partitions that may have a part of the row from before events were sent on."""
        (key, value), place = encode_forget(user_id), self._place(record)
        others = [number for number in range(self.partitions) if number != self.partition]
        return [Outgoing(INTERACTIONS, key, value, place, number) for number in others]

    def _place(self, record: Record) -> tuple[tuple[str, bytes]]:
        return ((FORWARDED, f"{self.partition}:{record.offset}:{record.timestamp_ms}:{self.log_id}".encode()),)
