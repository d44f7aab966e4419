"""What the state has to be: one thread that reads the topics from their beginning and follows the adoptions.

    compare(settings, bootstrap, stream) -> Verdict

It reads what the broker holds, not what was sent, so it judges the workers alone; that nothing is lost on the way to
the broker is judged by the counts of the users' events.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from driftline.configs.settings import Settings
from driftline.graph.chunks import whole_users
from driftline.graph.rows import UserRow, decode_item, decode_user, encode_user
from driftline.stream.chaos.troubles import TroubledStream
from driftline.stream.events.dlq import read_dlq
from driftline.stream.events.records import Record, record_of
from driftline.stream.kafka.reading import read_all
from driftline.stream.owned.versions import GraphVersion, decode_version
from driftline.stream.process.processor import Processor
from driftline.stream.replay.adoptions import announced
from driftline.stream.state.store import MemoryStore, RocksStore, StateStore, partition_path

Rows = dict[bytes, bytes]
EPOCH = 16_384
"""Records of one epoch; how a log is cut changes nothing, and large ones apply little again where many are late."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the state of the workers differs from what it has to be.

    Attributes:
        events: distinct events that were sent.
        lost, doubled: events that a user's row misses, or has too often.
        too_late: of those that it misses, events that are counted as too late.
        state_equal: user rows (with one partition item rows, too) are those of one thread, bit for bit.
        items_equal: each item's row has counted its events once, in whichever partition it lies.
        clean_equal: user rows are those of the same events in order, without any trouble; None = adoptions came in
            between, at other places than they would have.
        dlq_expected, dlq_found, dlq_wrong: dead letters that there must be, of those there are, and others.
        adoptions: graph versions that partitions changed to.
        different: users whose rows differ from those of one thread, the first few.
    """

    events: int
    lost: int
    too_late: int
    doubled: int
    state_equal: bool
    items_equal: bool
    clean_equal: bool | None
    dlq_expected: int
    dlq_found: int
    dlq_wrong: int
    adoptions: int
    different: tuple[str, ...]
    state_sha256: str


def compare(settings: Settings, bootstrap: str, partitions: int, stream: TroubledStream) -> Verdict:
    """Judges the state on disk; no worker may run.

    Raises:
        StateError, BrokerError: state or topics can't be read.
    """
    stored = stored_rows(settings, partitions)
    expected, adoptions = oracle_rows(settings, bootstrap, partitions)
    keys = stored.keys() | expected.keys()
    different = sorted(key[2:].decode() for key in keys if stored.get(key) != expected.get(key))
    wanted = Counter(event.user_id for event in stream.events)
    have = {row.user_id: row.events for row in _users(stored)}
    letters = {(x.key, x.value) for x in read_dlq(settings.broker, bootstrap)}
    due = set(stream.letters)  # each has bytes of its own
    clean = None if adoptions else _plain(stored) == _plain(clean_rows(settings, partitions, stream))
    return Verdict(
        events=len(stream.events),
        lost=sum(max(0, n - have.get(user, 0)) for user, n in wanted.items()),
        too_late=sum(row.too_late for row in _users(stored)),
        doubled=sum(max(0, n - wanted.get(user, 0)) for user, n in have.items()),
        state_equal=not different,
        items_equal=item_counts(settings, partitions) == Counter(event.item_id for event in stream.events),
        clean_equal=clean,
        dlq_expected=len(due),
        dlq_found=len(letters & due),
        dlq_wrong=len(letters - due),
        adoptions=adoptions,
        different=tuple(different[:5]),
        state_sha256=hashlib.sha256(b"".join(k + v for k, v in sorted(stored.items()))).hexdigest(),
    )


def stored_rows(settings: Settings, partitions: int) -> Rows:
    """Rows as the workers left them."""
    rows: Rows = {}
    for partition in range(partitions):
        store = RocksStore(partition_path(settings.state.root, partition), lock_wait_s=settings.state.lock_wait_s)
        try:
            rows |= _rows_of(store, partitions)
        finally:
            store.close()
    return rows


def item_counts(settings: Settings, partitions: int) -> Counter[str]:
    """Events that each item's row has counted."""
    root, counts = settings.state.root, Counter[str]()
    paths = [root / f"items-{n}" for n in range(partitions)] if partitions > 1 else [partition_path(root, 0)]
    for path in paths:
        store = RocksStore(path, lock_wait_s=settings.state.lock_wait_s)
        try:
            for _, value in store.scan(b"i:"):
                row = decode_item(value)
                counts[row.item_id] += row.count
        finally:
            store.close()
    return counts


def oracle_rows(settings: Settings, bootstrap: str, partitions: int) -> tuple[Rows, int]:
    """Rows of one thread that reads the topics, and how many adoptions it followed."""
    versions: dict[str, GraphVersion] = {}
    places: dict[int, list[tuple[int, GraphVersion]]] = defaultdict(list)
    for line in announced(settings, bootstrap):
        if "weights" in line:
            versions[line["sha256"]] = decode_version(settings, base64.b64decode(line["weights"]))
        places[line["partition"]].append((line["offset"], versions[line["sha256"]]))
    logs: dict[int, list[Record]] = defaultdict(list)
    for r in read_all(settings.broker, bootstrap, "interactions"):
        logs[r.partition].append(record_of(r))
    rows: Rows = {}
    for partition in range(partitions):
        store = MemoryStore()
        processor = Processor(settings, store, partition=partition, partitions=partitions)
        _follow(processor, logs[partition], places[partition])
        rows |= _rows_of(store, partitions)
    return rows, sum(map(len, places.values()))


def clean_rows(settings: Settings, partitions: int, stream: TroubledStream) -> Rows:
    """Rows of the stream's events in order; each user's events are in one partition whatever their number."""
    store = MemoryStore()
    processor = Processor(settings, store, partitions=partitions)
    _follow(processor, [Record(n, event.changed()) for n, event in enumerate(stream.events)], [])
    return _rows_of(store, partitions)


def _follow(processor: Processor, records: list[Record], places: list[tuple[int, GraphVersion]]) -> None:
    waiting, epoch = list(places), list[Record]()

    def apply() -> None:
        processor.commit(processor.apply(epoch))
        epoch.clear()

    def adopt_up_to(offset: int) -> None:
        while waiting and waiting[0][0] <= offset:
            apply()
            version = waiting.pop(0)[1]
            processor.commit(processor.adopt(version.model, None if processor.local_items else version.item_vectors))

    for record in records:
        adopt_up_to(record.offset)
        epoch.append(record)
        if len(epoch) == EPOCH:
            apply()
    apply()
    adopt_up_to(processor.next_offset)


def _rows_of(store: StateStore, partitions: int) -> Rows:
    rows = dict(whole_users(store))
    return rows | dict(store.scan(b"i:")) if partitions == 1 else rows


def _users(rows: Rows) -> Iterable[UserRow]:
    return (decode_user(value) for key, value in rows.items() if key.startswith(b"u:"))


def _plain(rows: Rows) -> Rows:
    """User rows without the number of their last change, which is an offset."""
    return {row.user_id.encode(): encode_user(replace(row, version=0)) for row in _users(rows)}
