"""The state store: one RocksDB directory for each partition, one WriteBatch for each epoch.

Keys: `u:USER` and `i:ITEM` canonical rows (graph/rows.py) · `n:KEY64` the id behind a 64-bit key · `d:EVENT_ID` ids
for deduplication · `w:SEQ` undo records of the late window · `o:OFFSET` outgoing records not yet known to be sent ·
`m:...` offsets, watermark, count of events too late, usual price, graph version.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rocksdict import AccessType, DBRecoveryMode, Options, Rdict, WriteBatch, WriteOptions

from configs.errors import LockedError, StateError
from serving.rocks import scan

Puts = Mapping[bytes, bytes | None]
"""Keys to new values of one commit; None deletes."""


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
    """A store that lives and dies with its process: replay, the trainer, tests."""

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

    Raises:
        LockedError: another process still held the lock after `lock_wait_s`.
        StateError: the directory can't be opened.
    """

    def __init__(self, path: Path, sync: bool = True, lock_wait_s: float = 10.0) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = _open(path, lock_wait_s)
        self._write_options = WriteOptions()
        self._write_options.sync = sync

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See StateStore."""
        return _get(self._db, keys)

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See StateStore."""
        return _scan(self._db, prefix)

    def commit(self, puts: Puts) -> None:
        """See StateStore; durable on return when the store syncs."""
        batch = WriteBatch(raw_mode=True)
        for key, value in puts.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        self._db.write(batch, self._write_options)

    def close(self) -> None:
        """Closes the database and releases its lock."""
        self._db.close()


class ReadOnlyStore:
    """One partition's RocksDB directory as of its last commit before the opening, whether or not a worker holds it.

    Args:
        path: of the directory.
        scratch: a folder for what RocksDB notes about this reader; may be deleted after `close`.

    Raises:
        StateError: the directory can't be read.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        options = Options(raw_mode=True)
        try:
            self._db = Rdict(str(path), options, access_type=AccessType.secondary(str(scratch)))
            self._db.try_catch_up_with_primary()
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            raise StateError(
                f"state directory {path} can't be read: {error}. Expected a RocksDB directory of `driftline worker`; "
                "try again, a worker may just be making it; if that does not help, move it away to rebuild the "
                "partition from the topic."
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


def partition_path(root: Path, partition: int) -> Path:
    """The directory of one partition of `interactions`."""
    return root / f"partition-{partition}"


def state_directories(root: Path) -> list[Path]:
    """The whole databases under a root, of users and of items: opening another one would make it."""
    found = (path.parent for path in root.glob("*-*/CURRENT"))
    return sorted(path for path in found if path.name.rpartition("-")[2].isdigit())


def state_sha256(stores: Sequence[ReadableStore]) -> str:
    """Hash of the state: all user rows in order of their ids, then, with one partition, the item rows."""
    rows = [pair for store in stores for pair in store.scan(b"u:")]
    rows.sort()
    if len(stores) == 1:
        rows += stores[0].scan(b"i:")
    digest = hashlib.sha256()
    for key, value in rows:
        digest.update(len(key).to_bytes(4, "little") + key + len(value).to_bytes(4, "little") + value)
    return digest.hexdigest()


def _get(db: Rdict, keys: Sequence[bytes]) -> list[bytes | None]:
    try:
        return list(db.get(list(keys))) if keys else []
    except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
        raise _damaged(db, error) from None


def _scan(db: Rdict, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    try:
        yield from scan(db, prefix)
    except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
        raise _damaged(db, error) from None


def _damaged(db: Rdict, error: Exception) -> StateError:
    return StateError(
        f"state directory {db.path()} is damaged: {error}; move it away to rebuild the partition from the topic"
    )


def _open(path: Path, lock_wait_s: float) -> Rdict:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_max_total_wal_size(64 << 20)
    options.set_keep_log_file_num(3)
    options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())  # of a crash; else it is damaged
    deadline = time.monotonic() + lock_wait_s
    while True:
        try:
            return Rdict(str(path), options)
        except Exception as error:  # noqa: BLE001 - rocksdict raises bare Exception
            if "lock" not in str(error).lower():
                raise StateError(
                    f"state directory {path} can't be opened: {error}. Expected a RocksDB directory that this user "
                    "may write; move it away to rebuild the partition from the topic."
                ) from None
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"state directory {path} is locked by another process; waited {lock_wait_s:g} s. A partition "
                    "has one worker at a time: stop the other one, or give this one a state.root of its own."
                ) from None
            time.sleep(0.2)
