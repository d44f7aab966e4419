"""Files that a crash leaves as they were or as they are to be, never in between, and locks that end with a process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, Any


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
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    for folder in (path.parent, *(folder.parent for folder in missing)):
        _sync(folder)


def _sync(folder: Path) -> None:
    """Puts the names in a directory on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
