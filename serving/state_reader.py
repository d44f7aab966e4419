"""Reads user rows that a worker of this host writes: one RocksDB secondary for each partition directory.

A thread catches up with the writers every `state_poll_ms` and wakes whoever waits for a change. A directory that does
not exist yet, or is being replaced, is not an error: its users are unknown until it appears. One that may not be read
is logged, what was read last stays, and the next poll tries again. Catching up holds Python's lock for a millisecond
even where nothing is new: a directory whose logs have not grown is asked once a second, lest its file system is late.

Keys read: `u:USER`, `h:USER NUMBER` rows (graph/chunks.py) · `n:KEY64` ids of items · `i:ITEM` item rows ·
`m:offset:TOPIC:PARTITION`, `m:watermark`, `m:complete`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from heapq import nsmallest
from pathlib import Path
from types import TracebackType

from driftline.configs.errors import StateError
from driftline.graph.chunks import chunk_keys, user_key, whole
from driftline.graph.rows import UserRow, decode_item, decode_user, is_whole
from driftline.serving.errors import NotReady
from driftline.serving.owner import partition_of
from driftline.serving.rocks import open_beside, scan
from driftline.serving.scratch import Scratch

LOG = logging.getLogger(__name__)
MS_PER_DAY = 86_400_000
COMPLETE = b"m:complete"
"""Key of the wall time in ms at which a worker last knew that its store holds all that the topic has."""
_RETRY_MS = 1000
_ANYWAY_S = 1.0
"""Time between two catch-ups with a directory that looks unchanged."""
_WRITTEN = re.compile(r"\d+\.log|MANIFEST-\d+")
"""What a commit or a flush makes longer, or begins."""
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
        state_age_ms: wall time since a worker last knew that the partition holds all that the topic has, -1 = not
            known: it was not complete yet. It grows while no worker lives, and while one catches up.
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


class StateReader:
    """Read-only view of the state directories under one root, never more than about two polls old.

    Args:
        root: holds `partition-P` directories; need not exist yet.
        partitions: of `interactions`, until layout.json says it; where to look first, with a user's owner, and where an
            unknown user would be. Rows from before events were sent on to their owner may lie elsewhere and are found.
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
        self._folder = Scratch("secondary")
        self._layout_ns = -1
        self._open: dict[int, _Partition] = {}
        self._names: dict[int, str] = {}
        self._complaints: set[str] = set()
        """What was wrong in the round before: it is logged when it begins."""
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
        self._folder.close()

    @property
    def ready(self) -> bool:
        """Whether any partition can be read."""
        return bool(self._open)

    def user(self, user_id: str) -> StoredUser:
        """The row of a user; never blocks on a writer."""
        own = partition_of(user_id, self._partitions)
        found = StoredUser(None, own if self._open else -1)
        for partition in sorted(self._open, key=lambda p: p != own):
            stored = self._read(partition, user_key(user_id))
            if stored is None:
                continue
            if stored.row is not None:
                return stored
            if partition == own:
                found = stored
        return found

    def age_ms(self) -> int:
        """Age of the oldest partition, as `StoredUser.state_age_ms`; one that was never complete is at least as old as
        it was read here. -1 = there is none."""
        ages = [self._age_of(partition) for partition in list(self._open.values())]
        return max(ages, default=-1)

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
        return nsmallest(limit, scores.items(), key=lambda pair: (-pair[1], pair[0]))

    def catch_up(self) -> bool:
        """Opens directories that appeared, reads on in the others. Returns whether anything is new."""
        complaints = set[str]()
        try:
            self._read_layout()
            present = {number: (path, identity) for number, path, identity in _directories(self._root, "partition")}
        except OSError as error:
            self._complain({f"state.root {self._root} can't be read: {error!r}; what was read last stays"})
            return False
        new = False
        for number in self._open.keys() - present.keys():
            del self._open[number]
            new = True
        for number, (path, identity) in present.items():
            held = self._open.get(number)
            if held is not None and held.identity != identity:
                held = None
            try:
                if held is not None:
                    new |= held.catch_up()
                    if not held.overtaken:
                        continue
                    if held.waits:
                        complaints |= held.complaints
                        continue
            except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
                LOG.info("state directory %s is opened again: %s", path, error)
                held = None  # what it was may have been put back to an earlier one
            key = f"m:offset:{self._topic}:{number}".encode()
            scratch = self._scratch(str(number))
            try:
                opened = _Partition(path, identity, scratch, key, held)
            except Exception as error:  # noqa: BLE001 - as above; what was read last stays until the next poll
                shutil.rmtree(scratch, ignore_errors=True)
                damaged = isinstance(error, StateError) or "orruption" in str(error)
                said = {f"state directory {path} can't be read: {error}"} if damaged else set()
                complaints |= said
                LOG.debug("state directory %s can't be read yet: %s", path, error)
                if held is not None:
                    held.wait(said)
                continue
            self._open[number], new = opened, True
        self._complain(complaints)
        return new

    def _scratch(self, name: str) -> Path:
        """A folder for one secondary alone, which is deleted with it."""
        return self._folder.path / f"{name}-{time.monotonic_ns()}"

    def _read_layout(self) -> None:
        """The number of partitions that the state was made with, which is the topic's, whatever the settings say."""
        path = self._root / "layout.json"
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            changed_ns = path.stat().st_mtime_ns
            if changed_ns != self._layout_ns:
                self._partitions = max(1, int(json.loads(path.read_bytes())["partitions"]))
                self._layout_ns = changed_ns

    def _age_of(self, partition: _Partition) -> int:
        age_ms = _age_ms(partition.get([COMPLETE])[0])
        return age_ms if age_ms >= 0 else int((time.monotonic() - partition.opened_s) * 1000)

    def _follow(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                new = self.catch_up()
            except Exception as error:  # noqa: BLE001 - a reader that stands still would serve an old state for ever
                self._complain({f"catching up with the state under {self._root} failed: {error!r}"})
                continue
            if new:
                with self.changed:
                    self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def _complain(self, complaints: set[str]) -> None:
        """Logs what is wrong once, not at every poll."""
        for complaint in complaints - self._complaints:
            LOG.warning("%s", complaint)
        self._complaints = complaints

    def _item_stores(self) -> Iterator[_Partition]:
        """The stores of item rows, which exist beside several partitions; opened for one scan, never followed."""
        try:
            found = sorted(_directories(self._root, "items"))
        except OSError as error:
            LOG.info("item stores under %s can't be read: %r", self._root, error)
            return
        for number, path, identity in found:
            try:
                yield _Partition(path, identity, self._scratch(f"items-{number}"), b"")
            except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
                LOG.info("item store %s can't be read: %s", path, error)

    def _read(self, number: int, key: bytes) -> StoredUser | None:
        partition = self._open.get(number)
        if partition is None:
            return None
        value, chunks, offset, watermark, complete = partition.user(key)
        try:
            row = whole(decode_user(value), chunks) if value is not None else None
        except StateError as error:
            raise NotReady(str(error), _RETRY_MS) from None
        return StoredUser(row, number, int(offset or 0), int(watermark or -1), _age_ms(complete))

    def _watermark(self, number: int) -> int:
        partition = self._open.get(number)
        return int((partition.get([b"m:watermark"])[0] if partition else None) or -1)


class _Partition:
    """One open secondary; readers that hold it when it is replaced go on with it. Closes when nobody does."""

    def __init__(
        self, path: Path, identity: bytes, scratch: Path, offset_key: bytes, before: _Partition | None = None
    ) -> None:
        """`before` is the one of the same directory that this one is to replace; it must not show less."""
        self.identity, self.offset_key = identity, offset_key
        """Of the directory that was opened, see `_directories`."""
        self._path, self._logs, self._stands = path, _logs(path), False
        self._opened_log, self._opened_manifest = self._newest_log[0], self._manifest
        self._db = open_beside(path, scratch)
        self._sequence = int(self._db.latest_sequence_number())
        if before is not None and self._sequence < before._sequence:
            raise OSError(f"it was read up to {self._sequence}, and before up to {before._sequence}")
        self._asked_s = self._again_s = time.monotonic()
        self.complaints: set[str] = set()
        self.opened_s: float = self._asked_s if before is None else before.opened_s
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True).atexit = False

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        """The values of some keys at one point of the log.

        Raises:
            NotReady: they can't be read: data is damaged, or the writer has just deleted the file they were in.
        """
        try:
            return list(self._db.get(keys))
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            raise NotReady(f"state directory {self._path} can't be read: {error}", _RETRY_MS) from None

    def user(self, key: bytes) -> tuple[bytes | None, list[bytes | None], bytes | None, bytes | None, bytes | None]:
        """A user's head and its chunks at one point of the log, with the offset, the watermark and COMPLETE there.

        Raises:
            NotReady: as `get`.
        """
        asked, meta = list[bytes](), [self.offset_key, b"m:watermark", COMPLETE]
        while True:
            head, *chunks, offset, watermark, complete = self.get([key, *asked, *meta])
            needed = [] if head is None or is_whole(head) else chunk_keys(decode_user(head))
            if needed == asked:
                return head, chunks, offset, watermark, complete
            asked = needed  # now it is known which; again where it was changed in between

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All pairs whose key starts with a prefix, up to what can't be read."""
        try:
            yield from scan(self._db, prefix)
        except Exception as error:  # noqa: BLE001 - as above
            LOG.warning("state directory %s is damaged: %s", self._path, error)

    def catch_up(self) -> bool:
        """Reads what the writer committed since; whether there was anything."""
        logs, now_s = _logs(self._path), time.monotonic()  # before: what is written meanwhile is for the next time
        self._stands = logs == self._logs
        if self._stands and now_s - self._asked_s < _ANYWAY_S:
            return False
        self._db.try_catch_up_with_primary()
        self._logs, self._asked_s = logs, now_s
        before, self._sequence = self._sequence, int(self._db.latest_sequence_number())
        return self._sequence != before

    @property
    def overtaken(self) -> bool:
        """Whether it may have to be opened anew to show all: RocksDB shows a secondary what is no newer than the last
        record that it read from a log, and the writer may have moved newer rows to a table before they were read. The
        next record shows them, too; until there is one, the log that was begun then is empty. So it is also between
        two records of a writer that is busy: only one that is as it was at the poll before counts. A writer that
        opened the directory again begins another manifest and moves what its logs held to tables; of logs that were
        not read to their end a secondary goes on showing the rows that it read, whatever comes after."""
        number, size = self._newest_log
        return self._manifest != self._opened_manifest or (self._stands and size == 0 and number != self._opened_log)

    def wait(self, complaints: set[str]) -> None:
        """It could not be opened anew, which is not to be tried at every poll."""
        self._again_s, self.complaints = time.monotonic() + _ANYWAY_S, complaints

    @property
    def waits(self) -> bool:
        """Whether it could not be opened anew a moment ago, of which `complaints` tell."""
        return time.monotonic() < self._again_s

    @property
    def _manifest(self) -> int:
        """Number of the newest manifest, -1 where there is none."""
        return max((int(name[9:]) for name, _ in self._logs if name.startswith("MANIFEST-")), default=-1)

    @property
    def _newest_log(self) -> tuple[int, int]:
        """Number and size of the log that the writer appends to; -1, 0 where there is none."""
        logs = ((int(name[:-4]), size) for name, size in self._logs if name[:-4].isdigit())
        return max(logs, default=(-1, 0))


def _logs(path: Path) -> frozenset[tuple[str, int]]:
    """Names and sizes of what a commit or a flush writes to: each makes one of them longer, or a new one."""
    found = set()
    with os.scandir(path) as entries:
        for entry in entries:
            if _WRITTEN.fullmatch(entry.name):
                with suppress(OSError):  # deleted since it was listed
                    found.add((entry.name, entry.stat().st_size))
    return frozenset(found)


def _directories(root: Path, kind: str) -> Iterator[tuple[int, Path, bytes]]:
    """Number, path and what tells one from another, of whole databases: opening one puts a file of rocksdict's into its
    directory, even a vanishing one.

    Raises:
        OSError: the root can't be read.
    """
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return
    for name in names:
        of, _, number = name.rpartition("-")
        if of == kind and number.isdigit() and os.path.exists(f"{root}/{name}/CURRENT"):
            with suppress(OSError), open(f"{root}/{name}/IDENTITY", "rb") as file:
                if identity := file.read():
                    found = os.fstat(file.fileno())  # a copy that takes the directory's place says the same
                    yield int(number), root / name, b"%s %d %d" % (identity, found.st_ino, found.st_ctime_ns)


def _age_ms(complete: bytes | None) -> int:
    return max(0, time.time_ns() // 1_000_000 - int(complete)) if complete else -1
