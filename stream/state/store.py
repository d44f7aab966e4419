"""The state store: one RocksDB directory for each partition, one WriteBatch for each epoch.

Keys: `u:USER` heads of user rows, `h:USER NUMBER` chunks of their histories (graph/chunks.py) · `i:ITEM` canonical rows
(graph/rows.py) · `t:TIME USER` users by their last event (stream/process/ages.py) · `n:KEY64` the id behind a 64-bit
key · `d:EVENT_ID` ids for deduplication · `w:SEQ` undo records of the late window · `o:OFFSET` outgoing records not yet
known to be sent · `a:OFFSET` versions that an item partition adopted · `m:...` offsets, watermark, count of events too
late, usual price, graph version, topics, when it was complete, whom it was rebuilt without.

Beside it lies a note of how far RocksDB's own lists go, see serving/lists.py.
"""

from __future__ import annotations

import hashlib
import heapq
import os
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

from rocksdict import BottommostLevelCompaction, Checkpoint, CompactOptions, Rdict, WriteBatch, WriteOptions

from driftline.configs.errors import LockedError, StateError
from driftline.graph.chunks import whole_users
from driftline.serving.arrays import sync as synced
from driftline.serving.lists import NAME as LISTS
from driftline.serving.lists import Lists, check_lists, encode_lists, lists_of
from driftline.serving.rocks import open_beside, scan
from driftline.stream.durable import remedy_for, write_durably
from driftline.stream.state.lock import holder
from driftline.stream.state.options import RocksOptions

DEFAULTS = RocksOptions()
ROWS = 10_000
"""Rows of a new database that are written at once."""
REBUILD = "move it away to rebuild the partition from the topic"
LOCKED = ("While lock file", "lock hold by current process")
"""What RocksDB says of a directory that another process, or this one, has open."""
Puts = Mapping[bytes, bytes | None]
"""Keys to new values of one commit; None deletes."""


class Abandoned(Exception):
    """What was being read is not wanted any more."""


class ReadableStore(Protocol):
    """A sorted map of bytes.

    Raises:
        StateError: from any read that meets damaged data.
    """

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of some keys, None where there is none."""

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All pairs whose key starts with `prefix`, in order of the keys."""


class StateStore(ReadableStore, Protocol):
    """A sorted map of bytes whose commits are atomic."""

    def commit(self, puts: Puts) -> None:
        """Applies all changes or none."""

    def close(self) -> None:
        """Releases the directory; later calls raise."""


class MemoryStore:
    """A store that lives and dies with its process: replay, tests."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See StateStore."""
        return [self.data.get(key) for key in keys]

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See StateStore."""
        return iter(sorted((k, v) for k, v in self.data.items() if k.startswith(prefix)))

    def commit(self, puts: Puts) -> None:
        """See StateStore."""
        for key, value in puts.items():
            if value is None:
                self.data.pop(key, None)
            else:
                self.data[key] = value

    def close(self) -> None:
        """Nothing to release."""


class RocksStore:
    """One partition's RocksDB directory, locked while open.

    Args:
        path: of the directory.
        sync: fsync each commit.
        lock_wait_s: how long to wait for the lock.
        options: of RocksDB.
        abandoned: once set, a scan that is under way ends with `Abandoned`: nobody wants the partition any more.
        lasting: False = nobody opens the directory after this process. Then nothing is logged or noted for who would,
            and what lasts is what `keep` makes.
        remedy: what people are to do where it is damaged.

    Raises:
        LockedError: another process still held the lock after `lock_wait_s`.
        StateError: the directory can't be opened, or is damaged.
    """

    def __init__(
        self,
        path: Path,
        sync: bool = True,
        lock_wait_s: float = 10.0,
        options: RocksOptions = DEFAULTS,
        abandoned: threading.Event | None = None,
        lasting: bool = True,
        remedy: str = REBUILD,
    ) -> None:
        self.path = path
        self._abandoned = abandoned or threading.Event()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open = partial(_open, path, options, lock_wait_s, remedy)
        self._db = self._open()
        self._lasting, self._remedy = lasting, remedy
        self._write_options = WriteOptions()
        self._write_options.sync = sync and lasting
        self._write_options.disable_wal = not lasting
        self._unsynced = WriteOptions()
        self._listed: Lists | None = None
        self._note_lists()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See StateStore."""
        return _get(self._db, keys, self._remedy)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See StateStore. Raises Abandoned."""
        for pair in _scan(self._db, prefix, self._remedy):
            if self._abandoned.is_set():
                raise Abandoned(str(self.path))
            yield pair

    def commit(self, puts: Puts) -> None:
        """See StateStore; durable on return when the store syncs.

        Raises:
            StateError: it is damaged, or one that does not last can't be written.
        """
        batch = WriteBatch(raw_mode=True)
        for key, value in puts.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        try:
            self._db.write(batch, self._write_options)
        except Exception as error:
            if "orruption" in str(error):  # met while files were merged in the background
                raise _damaged(self._db, error, self._remedy) from None
            if not self._lasting:
                raise StateError(f"{self.path} can't be written: {error}; {remedy_for(error, 'move it')}") from None
            raise
        self._note_lists()

    def keep(self, path: Path) -> None:
        """Makes a database of what was committed, whole and on disk on return; it shares its files with this one.

        Args:
            path: of a directory that does not exist.

        Raises:
            OSError: it can't be written, as where the disk is full.
        """
        try:
            self._db.flush()
            Checkpoint(self._db).create_checkpoint(str(path))
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            raise OSError(f"{path}: {error}") from None
        write_durably(path / LISTS, encode_lists(lists_of(path)))
        for made in (*path.glob("[!r]*"), path, path.parent):  # but for the note of rocksdict, which nobody reads
            synced(made)

    def scrub(self, user_ids: Collection[str]) -> None:
        """Takes what was deleted or replaced out of the files: all of these users, and of what is not by user.

        RocksDB's list of its files, which names first and last keys, is begun anew.

        Raises:
            OSError: it can't be written.
        """
        users = [user_id.encode() for user_id in user_ids]
        first, last = min(users), max(users)
        fully = CompactOptions()
        fully.set_bottommost_level_compaction(BottommostLevelCompaction.force())
        histories, heads = (b"h:" + first, b"h:" + last + b"\xff" * 4), (b"u:" + first, b"u:" + last)
        try:
            self._db.flush()
            for begin, end in ((None, b"h:"), histories, (b"i:", b"u:"), heads, (b"v", None)):
                self._db.compact_range(begin, end, fully)
            self._db.close()
            self._db = self._open()
        except StateError:
            raise
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            raise OSError(f"{self.path}: {error}") from None

    def note(self, key: bytes, value: bytes) -> None:
        """Writes what may be lost in a crash: readers see it at once, the disk when it suits."""
        self._db.put(key, value, write_opt=self._unsynced)
        self._note_lists()

    def close(self) -> None:
        """Closes the database and releases its lock."""
        self._note_lists()
        self._db.close()

    def _note_lists(self) -> None:
        """Notes how far RocksDB's lists go, if they have changed since: its threads write files in the background."""
        if not self._lasting:
            return
        listed = self._listed
        with suppress(OSError):  # the list was begun anew, or the disk is full: the next commit notes it
            if listed is None or (self.path / listed.manifest).stat().st_size != listed.bytes:
                self._listed = None
                now = lists_of(self.path)
                write_durably(self.path / LISTS, encode_lists(now))
                self._listed = now


class ReadOnlyStore:
    """One partition's RocksDB directory as of its last commit before the opening, whether or not a worker holds it.

    Args:
        path: of the directory.
        scratch: a folder for what RocksDB notes about this reader; may be deleted after `close`.

    Raises:
        StateError: the directory can't be read.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        try:
            self._db = open_beside(path, scratch)
        except StateError:
            raise
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            expected = f"try again, a worker may just be making it; if that does not help, {REBUILD}"
            raise StateError(
                f"state directory {path} can't be read: {error}. Expected a RocksDB directory of `driftline worker`; "
                f"{remedy_for(error, expected)}."
            ) from None

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See StateStore."""
        return _get(self._db, keys)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See StateStore."""
        return _scan(self._db, prefix)

    def close(self) -> None:
        """Closes the reader."""
        self._db.close()


def write_database(path: Path, rows: Iterable[tuple[bytes, bytes]], sync: bool = True) -> None:
    """Makes a database of pairs, or leaves nothing.

    Raises:
        OSError: it can't be written, as where the disk is full.
        StateError: of `rows`, or the directory can't be made.
    """
    try:
        made = RocksStore(path, sync)
        try:
            fill(made, rows)
        finally:
            made.close()
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, StateError) or not isinstance(error, Exception):
            raise
        raise OSError(f"{path}: {error}") from None  # rocksdict raises bare Exception


def fill(store: StateStore, rows: Iterable[tuple[bytes, bytes]]) -> None:
    """Commits pairs, some at a time."""
    left = iter(rows)
    while some := dict(islice(left, ROWS)):
        store.commit(some)


def partition_path(root: Path, partition: int) -> Path:
    """The directory of one partition of `interactions`."""
    return root / f"partition-{partition}"


def state_directories(root: Path) -> list[Path]:
    """The whole databases under a root, of users and of items: opening another one would make it."""
    found = (path.parent for path in root.glob("*-*/CURRENT"))
    return sorted(path for path in found if path.name.rpartition("-")[2].isdigit())


def state_sha256(stores: Sequence[ReadableStore]) -> str:
    """Hash of the state: all user rows, whole, in order of their ids, then, with one partition, the item rows."""
    users = heapq.merge(*map(whole_users, stores))
    digest = hashlib.sha256()
    for key, value in chain(users, stores[0].scan(b"i:") if len(stores) == 1 else ()):
        digest.update(len(key).to_bytes(4, "little") + key + len(value).to_bytes(4, "little") + value)
    return digest.hexdigest()


def _get(db: Rdict, keys: Sequence[bytes], remedy: str = REBUILD) -> list[bytes | None]:
    try:
        return list(db.get(list(keys))) if keys else []
    except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
        raise _damaged(db, error, remedy) from None


def _scan(db: Rdict, prefix: bytes, remedy: str = REBUILD) -> Iterator[tuple[bytes, bytes]]:
    try:
        yield from scan(db, prefix)
    except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
        raise _damaged(db, error, remedy) from None


def _damaged(db: Rdict, error: Exception, remedy: str) -> StateError:
    return StateError(f"state directory {db.path()} is damaged: {error}; {remedy}")


def _drop_config(path: Path) -> None:
    """Lets rocksdict write its note of the options, which nobody reads, to nowhere.

    It writes it at every opening, a reader's too: serving could not read a directory that it may not write to.
    """
    note = path / "rocksdict-config.json"
    if not note.is_symlink():
        link = note.with_suffix(".link")
        link.unlink(missing_ok=True)
        link.symlink_to(os.devnull)
        link.replace(note)


def _open(path: Path, options: RocksOptions, lock_wait_s: float, remedy: str) -> Rdict:
    deadline = time.monotonic() + lock_wait_s
    while True:
        try:
            check_lists(path)
            db = Rdict(str(path), options.build())
            _drop_config(path)
            return db
        except StateError:
            raise
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            if not any(words in str(error) for words in LOCKED):
                raise StateError(
                    f"state directory {path} can't be opened: {error}. Expected a RocksDB directory that this user "
                    f"may write; {remedy_for(error, remedy)}."
                ) from None
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"state directory {path} is locked by {holder(path)}. A partition has one worker at a time: stop "
                    "the other one, or give this one a state.root of its own."
                ) from None
            time.sleep(0.2)
