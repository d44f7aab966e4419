"""Files that a crash leaves as they were or as they are to be, never in between, and locks that end with a process."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from driftline.configs.errors import InputError
from driftline.serving.arrays import sync

_NOT_MINE = "this user may not: give it to the one that driftline runs as, or run as the one whose it is"
_FULL = "make room on that disk"
REFUSALS = {
    errno.EROFS: "the file system is read-only: mount it to be written, and see in the log whether the disk fails",
    errno.EACCES: _NOT_MINE,
    errno.EPERM: _NOT_MINE,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: f"{_FULL}, or raise the limit of file sizes (`ulimit -f`)",
}
"""What to do where a disk refuses."""
NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def remedy_for(error: BaseException, otherwise: str) -> str:
    """What people are to do about an error: where a disk refuses, nothing is wrong with what lies on it.

    Args:
        error: of the system, or of RocksDB, which has the system's words in its own.
        otherwise: the remedy for any other error.
    """
    said = str(error)
    return next((what for code, what in REFUSALS.items() if os.strerror(code) in said), otherwise)


def make_folder(out: Path, called: str = "--out") -> None:
    """Makes a folder for results, before the work that they take.

    Args:
        called: what the user gave it as.

    Raises:
        InputError: it can't be made, or nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(
            f"{out}: can't be made or written: {error.strerror}; expected a folder for results, choose another {called}"
        ) from None


def try_lock(file: IO[Any]) -> bool:
    """Takes the exclusive lock of an open file if nobody else holds one; whether it did."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_locked(path: Path, wait: bool = False) -> IO[bytes] | None:
    """The file of a name, made with its folder where there is none, with its exclusive lock; closing it gives that up.

    Whoever holds the lock may delete the file; who waited for it then locks the one that has the name by now.

    Args:
        path: of the file.
        wait: until nobody else holds it; else None is returned where somebody does.

    Raises:
        OSError: it can't be made.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("ab")
        except FileNotFoundError:
            continue  # the folder was deleted meanwhile
        try:
            if wait:
                fcntl.flock(file, fcntl.LOCK_EX)
            elif not try_lock(file):
                file.close()
                return None
        except BaseException:
            file.close()
            raise
        if has_name(file, path):
            return file
        file.close()


def has_name(file: IO[Any], path: Path) -> bool:
    """Whether an open file is the one at a place, and not one that was deleted or moved away."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def delete_folder(path: Path) -> None:
    """Deletes a folder whose locks the caller holds: at once for all who come meanwhile, as it loses its name first."""
    aside = path.with_name(f"{path.name}.deleted")
    with suppress(FileNotFoundError):
        shutil.rmtree(aside)  # of one who was killed before the end
    if not path.is_symlink():
        with suppress(OSError):  # what another file system is mounted on keeps its name
            path = path.rename(aside)
    shutil.rmtree(path)


def put_aside(path: Path) -> None:
    """Keeps a file beside its place, as `.old`: another one is about to take its name."""
    path.replace(path.with_name(path.name + ".old"))


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
    """A file of a name that nobody else has, also on another host; synced and placed at the end, gone otherwise.

    What is no file, as /dev/null or a pipe, is written to: placing one there would take it from everybody.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as device:
            yield device
        return
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
