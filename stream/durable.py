"""Files that a crash leaves as they were or as they are to be, never in between, and locks that end with a process."""

from __future__ import annotations

import fcntl
import os
import uuid
from contextlib import suppress
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
    missing = _make_folder(path)
    _write_beside(path, data).replace(path)
    for folder in (path.parent, *missing):
        _sync(folder)


def write_once(path: Path, data: bytes) -> None:
    """As `write_durably`, but a file that is there stays: of several writers the first one wins.

    Raises:
        OSError: it can't be written.
    """
    if path.exists():
        return
    missing = _make_folder(path)
    temporary = _write_beside(path, data)
    with suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()
    for folder in (path.parent, *missing):
        _sync(folder)


def _make_folder(path: Path) -> list[Path]:
    """Makes the folder of a file; the folders in which a name is new."""
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    return [folder.parent for folder in missing]


def _write_beside(path: Path, data: bytes) -> Path:
    """A synced file of a name that nobody else has, also on another host."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _sync(folder: Path) -> None:
    """Puts the names in a directory on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
