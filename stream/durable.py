"""Files that a crash leaves as they were or as they are to be, never in between, and locks that end with a process."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def try_lock(file: IO[Any]) -> bool:
    """Takes the exclusive lock of an open file if nobody else holds one; whether it did."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file beside its place, syncs and renames it; on return file and name are on disk.

    Raises:
        OSError: it can't be written.
    """
    missing = _make_folder(path)
    with _written_beside(path, data) as temporary:
        temporary.replace(path)
    for folder in (path.parent, *missing):
        _sync(folder)


def write_once(path: Path, data: bytes) -> None:
    """As `write_durably`, but a file that is there stays: of several writers the first one wins.

    On a file system without hard links the last one of those that write at the same moment does.

    Raises:
        OSError: it can't be written.
    """
    if path.exists():
        return
    missing = _make_folder(path)
    with _written_beside(path, data) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            temporary.replace(path)
    for folder in (path.parent, *missing):
        _sync(folder)


def _make_folder(path: Path) -> list[Path]:
    """Makes the folder of a file; the folders in which a name is new."""
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    return [folder.parent for folder in missing]


@contextmanager
def _written_beside(path: Path, data: bytes) -> Iterator[Path]:
    """A synced file of a name that nobody else has, also on another host; gone at the end."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Puts the names in a directory on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
