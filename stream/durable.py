"""Files that a crash leaves as they were or as they are to be, never in between, and locks that end with a process."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from driftline.serving.arrays import sync

NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def try_lock(file: IO[Any]) -> bool:
    """Takes the exclusive lock of an open file if nobody else holds one; whether it did."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def durable_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write beside its place, synced and renamed at the end: then file and name are on disk.

    Raises:
        OSError: it can't be written.
    """
    with _placed(path, Path.replace) as file:
        yield file


def write_durably(path: Path, data: bytes) -> None:
    """Writes a whole `durable_file`.

    Raises:
        OSError: it can't be written.
    """
    with durable_file(path) as file:
        file.write(data)


def write_once(path: Path, data: bytes) -> None:
    """As `write_durably`, but a file that is there stays: of several writers the first one wins.

    On a file system without hard links the last one of those that write at the same moment does.

    Raises:
        OSError: it can't be written.
    """
    if not path.exists():
        with _placed(path, _link) as file:
            file.write(data)


def _link(temporary: Path, path: Path) -> None:
    """Gives a file its name if nobody has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        temporary.replace(path)


@contextmanager
def _placed(path: Path, place: Callable[[Path, Path], object]) -> Iterator[IO[bytes]]:
    """A file of a name that nobody else has, also on another host; synced and placed at the end, gone otherwise."""
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for folder in (path.parent, *(folder.parent for folder in missing)):
        sync(folder)  # its names
