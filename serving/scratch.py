"""Folders for what a process needs while it runs: they go with it, or, where it was killed, with the next one.

TMPDIR/driftline-secondary-x7f2/     named when its lock is held, which the kernel drops with the process
TMPDIR/driftline-secondary-x7f2/.lock
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

LOCK = ".lock"
BEGINS, MADE_S = ".driftline-begins-", 60
"""How a folder is called until it has its lock, and how long that may take before it counts as left."""


class Scratch:
    """A temporary folder of this process; as a context, its path. What dead processes left beside it goes first.

    Args:
        what: it is for, a part of its name.
        beside: the folder that it lies in; None = that of the host for temporary files.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, what: str, beside: Path | None = None) -> None:
        parent = Path(tempfile.gettempdir()) if beside is None else beside
        prefix = f"driftline-{what}-" if beside is None else f".driftline-{what}-"
        _sweep(parent, prefix)
        _sweep(parent, BEGINS, before_s=time.time() - MADE_S)
        made = Path(tempfile.mkdtemp(prefix=BEGINS, dir=parent))
        self._lock = os.open(made / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        name = made.name.removeprefix(BEGINS)
        self.path = made.rename(parent / f"{prefix}{name}")

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Deletes it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _sweep(parent: Path, prefix: str, before_s: float = math.inf) -> None:
    """Deletes folders of this user whose process is gone, those that changed before a time; one that can't be looked
    at is left."""
    with suppress(OSError):
        for folder in list(parent.glob(f"{prefix}*")):
            with suppress(OSError):
                found = folder.lstat()
                if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and found.st_mtime < before_s:
                    _delete_if_left(folder)


def _delete_if_left(folder: Path) -> None:
    if folder.name.startswith(BEGINS):
        with suppress(OSError):  # it has its lock, or more, by now
            folder.rmdir()
            return
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)  # a folder without one is none of ours
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
