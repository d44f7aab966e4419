"""Reads user rows that a worker of this host writes: one RocksDB secondary for each partition directory.

A thread catches up with the writers every `state_poll_ms` and wakes whoever waits for a change. A directory that does
not exist yet, or is being replaced, is not an error: its users are unknown until it appears. One that may not be read
is logged, what was read last stays, and the next poll tries again.

Keys read: `u:USER` rows · `n:KEY64` ids of items · `i:ITEM` item rows · `m:offset:TOPIC:PARTITION`, `m:watermark`.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kafka.partitioner.default import murmur2
from rocksdict import AccessType, Options, Rdict

from graph.rows import UserRow, decode_item, decode_user
from serving.errors import NotReady
from serving.rocks import scan

LOG = logging.getLogger(__name__)
MS_PER_DAY = 86_400_000
_RETRY_MS = 1000
_POPULAR_ROWS = 200_000
"""Item rows scanned at most for the popularity that answers while no model serves."""


@dataclass(frozen=True, slots=True)
class StoredUser:
    """A user's row with where and how fresh it is.

    Attributes:
        row: None for a user without a row.
        partition: directory that holds the row, or would; -1 = no directory exists.
        store_offset: next offset that the partition will apply, 0 = none yet.
        watermark_ms: largest event time applied, -1 = none.
        state_age_ms: wall time since the last catch-up with the writer, -1 = never.
    """

    row: UserRow | None
    partition: int = -1
    store_offset: int = 0
    watermark_ms: int = -1
    state_age_ms: int = -1

    @property
    def version(self) -> int:
        """Offset after the newest event in the row, 0 without one."""
        return self.row.version if self.row is not None else 0


def partition_of(user_id: str, partitions: int) -> int:
    """The partition to which Kafka's default partitioner (Java, kafka-python) sends a user's events."""
    return int((murmur2(user_id.encode()) & 0x7FFFFFFF) % partitions)


class StateReader:
    """Read-only view of the state directories under one root, never more than about a poll old.

    Args:
        root: holds `partition-P` directories; need not exist yet.
        partitions: of `interactions`; says where to look first. Producers with another partitioner are found, too.
        topic: whose offset the stores carry.
        poll_ms: wall time between two catch-ups.
        half_life_ms: of the popularity in item rows.
    """

    def __init__(
        self,
        root: Path,
        partitions: int = 1,
        topic: str = "interactions",
        poll_ms: int = 50,
        half_life_ms: float = MS_PER_DAY,
    ) -> None:
        self._root, self._partitions, self._topic = root, partitions, topic
        self._poll_s, self._half_life_ms = poll_ms / 1000, half_life_ms
        self._scratch = Path(tempfile.mkdtemp(prefix="driftline-secondary-"))
        self._open: dict[int, _Partition] = {}
        self._names: dict[int, str] = {}
        self._complaint = ""
        self._stop = threading.Event()
        self.changed = threading.Condition()
        """Notified after every catch-up that brought something new."""
        self.catch_up()
        self._thread = threading.Thread(target=self._follow, name="state-reader", daemon=True)
        self._thread.start()

    def __enter__(self) -> StateReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stops following and closes the secondaries."""
        self._stop.set()
        self._thread.join()
        self._open = {}
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def ready(self) -> bool:
        """Whether any partition can be read."""
        return bool(self._open)

    def user(self, user_id: str) -> StoredUser:
        """The row of a user; never blocks on a writer."""
        first = partition_of(user_id, self._partitions)
        found = StoredUser(None)
        for partition in sorted(self._open, key=lambda p: p != first):
            stored = self._read(partition, b"u:" + user_id.encode())
            if stored is None:
                continue
            if stored.row is not None:
                return stored
            if partition == first or found.partition < 0:
                found = stored
        return found

    def item_id(self, key: int) -> str:
        """The id behind a 64-bit key of an item, "" if no store here names it."""
        name = self._names.get(key, "")
        if not name:
            for partition in list(self._open.values()):
                value = partition.get([b"n:" + key.to_bytes(8, "big")])[0]
                if value:
                    name = self._names[key] = value.decode()
                    break
        return name

    def popular(self, limit: int = 1000) -> list[tuple[str, float]]:
        """Items with their decayed popularity, best first: what to say while no model serves."""
        scores: dict[str, float] = {}
        newest = max((self._watermark(p) for p in list(self._open)), default=-1)
        for partition in [*self._open.values(), *self._item_stores()]:
            for _, (_, value) in zip(range(_POPULAR_ROWS), partition.scan(b"i:"), strict=False):
                item = decode_item(value)
                age_ms = max(0, newest - item.last_update_ms)
                score = item.popularity * 0.5 ** (age_ms / self._half_life_ms)
                scores[item.item_id] = scores.get(item.item_id, 0.0) + score
        return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:limit]

    def catch_up(self) -> bool:
        """Opens directories that appeared, reads on in the others. Returns whether anything is new."""
        try:
            present = dict(_directories(self._root, "partition"))
        except OSError as error:
            self._complain(f"state.root {self._root} can't be read: {error!r}; what was read last stays")
            return False
        self._complaint = ""
        new = False
        for number in self._open.keys() - present.keys():
            del self._open[number]
            new = True
        for number, path in present.items():
            held = self._open.get(number)
            try:
                if held is not None and not held.replaced():
                    new |= held.catch_up()
                    continue
            except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
                LOG.info("state directory %s is opened again: %s", path, error)
            try:
                key = f"m:offset:{self._topic}:{number}".encode()
                self._open[number] = _Partition(path, self._scratch / f"{number}-{time.monotonic_ns()}", key)
                new = True
            except Exception as error:  # noqa: BLE001 - as above; what was read last stays until the next poll
                if "orruption" in str(error):
                    self._complain(f"state directory {path} can't be read: {error}")
                LOG.debug("state directory %s can't be read yet: %s", path, error)
        return new

    def _follow(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                new = self.catch_up()
            except Exception as error:  # noqa: BLE001 - a reader that stands still would serve an old state for ever
                self._complain(f"catching up with the state under {self._root} failed: {error!r}")
                continue
            if new:
                with self.changed:
                    self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def _complain(self, complaint: str) -> None:
        """Logs what is wrong once, not at every poll."""
        if complaint != self._complaint:
            LOG.warning("%s", complaint)
        self._complaint = complaint

    def _item_stores(self) -> Iterator[_Partition]:
        """The stores of item rows, which exist beside several partitions; opened for one scan, never followed."""
        try:
            found = sorted(_directories(self._root, "items"))
        except OSError as error:
            LOG.info("item stores under %s can't be read: %r", self._root, error)
            return
        for number, path in found:
            try:
                yield _Partition(path, self._scratch / f"items-{number}", b"")
            except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
                LOG.info("item store %s can't be read: %s", path, error)

    def _read(self, number: int, key: bytes) -> StoredUser | None:
        partition = self._open.get(number)
        if partition is None:
            return None
        value, offset, watermark = partition.get([key, partition.offset_key, b"m:watermark"])
        return StoredUser(
            decode_user(value) if value is not None else None,
            number,
            int(offset or 0),
            int(watermark or -1),
            int((time.monotonic() - partition.caught_up_s) * 1000),
        )

    def _watermark(self, number: int) -> int:
        partition = self._open.get(number)
        return int((partition.get([b"m:watermark"])[0] if partition else None) or -1)


class _Partition:
    """One open secondary; readers that hold it when it is replaced go on with it. Closes when nobody does."""

    def __init__(self, path: Path, scratch: Path, offset_key: bytes) -> None:
        self.offset_key = offset_key
        self._path, self._identity = path, _identity(path)
        self._db = Rdict(str(path), Options(raw_mode=True), access_type=AccessType.secondary(str(scratch)))
        self._sequence = int(self._db.latest_sequence_number())
        self.caught_up_s = time.monotonic()

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of some keys at one point of the log.

        Raises:
            NotReady: they can't be read: data is damaged, or the writer has just deleted the file they were in.
        """
        try:
            return list(self._db.get(keys))
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            raise NotReady(f"state directory {self._path} can't be read: {error}", _RETRY_MS) from None

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All pairs whose key starts with a prefix, up to what can't be read."""
        try:
            yield from scan(self._db, prefix)
        except Exception as error:  # noqa: BLE001 - as above
            LOG.warning("state directory %s is damaged: %s", self._path, error)

    def catch_up(self) -> bool:
        """Reads what the writer committed since; whether there was anything."""
        self._db.try_catch_up_with_primary()
        self.caught_up_s = time.monotonic()
        before, self._sequence = self._sequence, int(self._db.latest_sequence_number())
        return self._sequence != before

    def replaced(self) -> bool:
        """Whether the directory is not the one that was opened."""
        return _identity(self._path) not in (None, self._identity)


def _directories(root: Path, kind: str) -> Iterator[tuple[int, Path]]:
    """Whole databases only: opening one puts a file of rocksdict's into its directory, even a vanishing one.

    Raises:
        OSError: the root can't be read.
    """
    try:
        paths = list(root.iterdir())
    except FileNotFoundError:
        return
    for path in paths:
        name, _, number = path.name.rpartition("-")
        if name == kind and number.isdigit() and os.path.exists(path / "CURRENT") and _identity(path):
            yield int(number), path


def _identity(path: Path) -> bytes | None:
    try:
        return (path / "IDENTITY").read_bytes()
    except OSError:
        return None
