"""RocksDB's own lock of a directory, held without opening the database: nobody opens it meanwhile.

It is a POSIX lock: it belongs to the process and ends when the process closes any descriptor of the file. So whoever
opens the database itself while holding it gives the lock away with the closing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from driftline.configs.errors import LockedError, StateError

NAME = "LOCK"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a directory, also where the directory is renamed meanwhile.

    Raises:
        LockedError: another process holds it.
        StateError: there is no such directory, or it can't be written.
    """
    try:
        descriptor = os.open(path / NAME, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT, 0o644)
    except OSError as error:
        raise StateError(
            f"state directory {path} can't be locked: {error}; expected a directory that this user may write"
        ) from None
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LockedError(
                f"state directory {path} is held by {holder(path)}; expected that no worker runs: stop it and try again"
            ) from None
        yield
    finally:
        os.close(descriptor)


def holder(path: Path) -> str:
    """Who holds the lock of a directory, in words; what the system does not tell stays open."""
    try:
        inode = (path / NAME).stat().st_ino
        rows = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
        pid = next(int(row[4]) for row in rows if row[5].rpartition(":")[2] == str(inode))
        return f"process {pid} ({psutil.Process(pid).status()})"
    except (OSError, StopIteration, ValueError, IndexError, psutil.Error):
        return "another process"
