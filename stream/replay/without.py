"""One partition's state of a log from which the records of forgotten users are left out, made in memory.

    interactions          records that `LeftOut` names are stepped over, versions change where they were adopted
    interactions.by-item  the same with the item events that those records became

What a worker had not read yet when it stopped it has not sent either: of that, and of what it had committed but not
sent, all that is not of a forgotten user comes into the outbox.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from driftline.configs.errors import StateError
from driftline.configs.settings import Settings
from driftline.graph.arrays import Float32
from driftline.graph.chunks import user_key
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event
from driftline.stream.events.records import Changes, Outgoing, Record, pack, unpack
from driftline.stream.owned.parts import TOPIC
from driftline.stream.owned.versions import GraphVersion, adopted
from driftline.stream.process.by_item import BY_ITEM, without
from driftline.stream.process.forget import Forgotten, forgotten_user, tombstones, whose
from driftline.stream.process.intake import FORWARDED, INTERACTIONS, is_copy
from driftline.stream.process.items import ADOPTED, ItemProcessor
from driftline.stream.process.processor import Processor
from driftline.stream.state.store import MemoryStore, ReadableStore

_PLACE = re.compile(rb"(\d{1,9}):(\d{1,18})")
Places = Sequence[tuple[int, str]]
"""Offsets at which a partition changed graph versions, rising, each with the sha256."""


def nowhere(sha256: str) -> GraphVersion:
    """Where there are no versions."""
    raise StateError(f"graph version {sha256[:12]} is not known; expected that it lies in the topic {TOPIC}")


def weights_of(version: GraphVersion) -> tuple[GraphMemory, dict[str, Float32]]:
    """As a processor takes them."""
    return version.model, version.item_vectors


@dataclass(frozen=True, slots=True)
class Log:
    """What the topics hold.

    Attributes:
        users: records of `interactions` by partition, all partitions.
        items: records of `interactions.by-item` by partition (several partitions only).
        adoptions: by partition of `interactions`, as announced.
        version_of: a version by sha256. Raises StateError if it is nowhere.
        first: by (topic, partition) the first offset that the broker still has; 0 where it is not named.
    """

    users: Mapping[int, Sequence[Record]]
    items: Mapping[int, Sequence[Record]] = field(default_factory=dict)
    adoptions: Mapping[int, Places] = field(default_factory=dict)
    version_of: Callable[[str], GraphVersion] = nowhere
    first: Mapping[tuple[str, int], int] = field(default_factory=dict)


class LeftOut:
    """Which records a log without the forgotten users does not have.

    Args:
        log: what the topics hold.
        log_id, by_id: see `Forgotten`.

    Attributes:
        places: (partition, offset) in `interactions`.
        users: who is forgotten.
        known: those of them who had a record before their request, as far back as the log goes.
        ends: by partition, the offset up to which requests were looked for.
    """

    def __init__(self, log: Log, log_id: str = "", by_id: bool = True) -> None:
        self._log, self._log_id, self._by_id = log, log_id, by_id
        forgotten = self._of(lambda: _numbered(log))
        gone = [(partition, record) for partition, record in _numbered(log) if forgotten.has(partition, record)]
        self.places = {(partition, record.offset) for partition, record in gone}
        asked = [forgotten_user(record) for _, record in gone]
        self.users = {user_id for user_id in asked if user_id is not None}
        self.known = {
            user_id
            for (_, record), request in zip(gone, asked, strict=True)
            if request is None and (user_id := whose(record)[0]) is not None
        }
        self.ends = {partition: records[-1].offset + 1 for partition, records in log.users.items() if records}

    def without_what_was(self, left_out: Mapping[int, int]) -> set[tuple[int, int]]:
        """The places that a state still has which was made without those of the requests up to some offsets."""
        known = [(at, record) for at, record in _numbered(self._log) if record.offset < left_out.get(at, 0)]
        asked = {(at, record.offset) for at, record in known if forgotten_user(record) is not None}
        earlier, places = self._of(lambda: known), self.places - asked
        return {
            (at, record.offset)
            for at, record in _numbered(self._log)
            if (at, record.offset) in places
            and (
                record.offset >= left_out.get(at, 0)
                or forgotten_user(record) is not None
                or not earlier.has(at, record)
            )
        }

    def _of(self, records: Callable[[], Iterable[tuple[int, Record]]]) -> Forgotten:
        return Forgotten(records, self._log_id, self._by_id, len(self._log.users))

    def kept(self, outgoing: Iterable[Outgoing], rows: MemoryStore) -> Iterator[Outgoing]:
        """What is none of a forgotten user's among the records that wait to be sent."""
        for out in outgoing:
            if out.topic == "profile-requests" and out.value is not None:
                user_id = (out.key or b"").decode(errors="replace")
                if user_id not in self.users or user_key(user_id) in rows.data:
                    yield out
            elif forgotten_user(Record(0, out.value, out.key)) is not None:
                yield out  # a request on its way to the owner of its user
            elif out.topic == BY_ITEM:
                if (left := without(out, self.places)) is not None:
                    yield left
            elif _came_of(out) not in self.places:
                yield out


def _came_of(out: Outgoing) -> tuple[int, int] | None:
    """The record of `interactions` that the headers of a copy or a dead letter name."""
    headers = dict(out.headers)
    if headers.get("topic", INTERACTIONS.encode()) != INTERACTIONS.encode():
        return None  # a dead letter of another topic
    found = _PLACE.match(headers.get(FORWARDED if out.topic == INTERACTIONS else "source", b""))
    return (int(found[1]), int(found[2])) if found else None


def users_without(
    settings: Settings, log: Log, left_out: LeftOut, partition: int, start: MemoryStore, now: ReadableStore
) -> None:
    """Brings a store of user rows to the end of a log without the forgotten users.

    Args:
        settings: as the worker has them.
        log: of all partitions.
        left_out: of it.
        partition: of `interactions`.
        start: an empty store, or one from before the first record that is left out; takes the new state.
        now: the store that the new one is to take the place of.
    """
    partitions, records = len(log.users), log.users[partition]
    at = adopted(start)
    version = log.version_of(at[0]) if at[0] else None
    processor = Processor(
        settings,
        start,
        partition=partition,
        partitions=partitions,
        model=version.model if version else None,
        item_vectors=version.item_vectors if version else None,
        version_of=lambda sha256: weights_of(log.version_of(sha256)),
        item_partitions=len(log.items),
    )
    processor.intake.note_log(start)  # what is sent on names it, also where no record was applied before
    (sent_to,) = now.get([f"m:offset:interactions:{partition}".encode()])
    driver = _Driver(processor, sent_to, after(user_places(log, partition, now), at) or [], log, 1)
    for record in (record for record in records if record.offset >= processor.next_offset):
        driver.up_to(record.offset)
        if (partition, record.offset) not in left_out.places:
            driver.take(record)
            continue
        driver.step_over(record)
        if record.offset >= driver.sent_to:
            driver.outgoing += _of_request(processor, record)
    driver.finish(records)
    waiting = [out for _, value in now.scan(b"o:") for out in unpack(value)]
    outgoing = [*left_out.kept(waiting, start), *driver.outgoing]
    for key in [key for key in start.data if key.startswith(b"o:")]:
        del start.data[key]
    if outgoing:
        start.data[b"o:" + processor.next_offset.to_bytes(8, "big")] = pack(outgoing)


def items_without(
    settings: Settings, log: Log, left_out: LeftOut, partition: int, start: MemoryStore, now: ReadableStore
) -> list[Outgoing]:
    """As `users_without`, for a store of item rows; returns the dead letters that are still to be sent."""
    records = log.items.get(partition, ())
    at = adopted(start)
    processor = ItemProcessor(settings, start, partition, log.version_of(at[0]).model if at[0] else None)
    (sent_to,) = now.get([f"m:offset:{BY_ITEM}:{partition}".encode()])
    driver = _Driver(processor, sent_to, after(item_places(now), at) or [], log, settings.state.epoch_events)
    for record in (record for record in records if record.offset >= processor.next_offset):
        driver.up_to(record.offset)
        if (kept := without(record, left_out.places)) is not None:
            driver.take(kept)
    driver.finish(records)
    return driver.outgoing


class _Driver:
    """Applies and adopts in the order of offsets; keeps what is to be sent of the records from `sent_to` on."""

    def __init__(
        self, processor: Processor | ItemProcessor, sent_to: bytes | None, places: Places, log: Log, size: int
    ) -> None:
        self._processor, self._log, self._size = processor, log, size
        self.sent_to, self._places = int(sent_to or 0), list(places)
        self._epoch: list[Record] = []
        self.outgoing: list[Outgoing] = []

    def take(self, record: Record) -> None:
        """Takes a record of the log in."""
        self._epoch.append(record)
        if len(self._epoch) >= max(self._size, getattr(self._processor, "room", 0)):
            self._apply()

    def step_over(self, record: Record) -> None:
        """Passes a record that is left out, of users; copies count as seen in the order of their offsets."""
        if isinstance(self._processor, Processor) and is_copy(record):
            self._apply()
            self._processor.step_over(record)

    def up_to(self, offset: int) -> None:
        """Changes versions up to an offset, and ends the epoch where what comes was not sent yet."""
        while self._places and self._places[0][0] <= offset:
            self._apply()
            place, sha256 = self._places.pop(0)
            version = self._log.version_of(sha256)
            self._commit(self._processor.pass_to(place))
            if isinstance(self._processor, ItemProcessor):
                self._commit(self._processor.adopt(version.model))
            else:
                vectors = None if self._processor.local_items else version.item_vectors
                self._commit(self._processor.adopt(version.model, vectors))
        if self._epoch and self._epoch[0].offset < self.sent_to <= offset:
            self._apply()

    def finish(self, records: Sequence[Record]) -> None:
        """Steps to the end of the log, over what is left out."""
        end = max(records[-1].offset + 1 if records else 0, self.sent_to)
        self.up_to(end)
        self._apply()
        self._commit(self._processor.pass_to(end))

    def _apply(self) -> None:
        if not self._epoch:
            return
        changes = self._processor.apply(self._epoch)
        self._commit(changes)
        if self._epoch[0].offset >= self.sent_to:
            self.outgoing += changes.outgoing
        self._epoch = []

    def _commit(self, changes: Changes) -> None:
        self._processor.commit(changes)


def after(places: Places, at: tuple[str, int]) -> Places | None:
    """The places that come after the one at which a store stands, as `adopted` names it; None if it is none of them."""
    sha256, offset = at
    if not sha256:
        return places
    return places[places.index((offset, sha256)) + 1 :] if (offset, sha256) in places else None


def user_places(log: Log, partition: int, now: ReadableStore) -> Places:
    """Where a partition of users changed versions."""
    return _with_own(list(log.adoptions.get(partition, ())), now)


def item_places(now: ReadableStore) -> Places:
    """Where a partition of items changed versions, as its store says."""
    return _with_own([(int.from_bytes(key[2:], "big"), value.decode()) for key, value in now.scan(ADOPTED)], now)


def _with_own(places: list[tuple[int, str]], now: ReadableStore) -> Places:
    """Places with the last one, which the store itself names: it may not be announced yet."""
    sha256, offset = adopted(now)
    return places if not sha256 or (offset, sha256) in places else [*places, (offset, sha256)]


def _numbered(log: Log) -> Iterator[tuple[int, Record]]:
    return ((partition, record) for partition, records in sorted(log.users.items()) for record in records)


def _of_request(processor: Processor, record: Record) -> list[Outgoing]:
    """What a worker sends when it reads a request, and nothing for any other record."""
    user_id = forgotten_user(record)
    if user_id is None:
        return []
    asked = Event(user_id, "", 0)
    if processor.intake.owner(asked) == processor.partition:
        others = processor.intake.to_others(record, user_id)
        return [
            *tombstones(user_id),
            *processor.to_items(user_id, record.offset),
            *others,
        ]  # other hosts have items, too
    copy = processor.intake.copy(record, asked)
    return [copy] if copy is not None else []
