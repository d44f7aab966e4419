"""Which workers of one group run on this host, and where each keeps its state.

A worker that is started in another folder, with a relative `state.root`, takes partitions into a state that nobody
reads. Kafka knows nothing of folders, so each worker leaves a note for the others, in a folder of the host's for
temporary files: one for each broker and prefix, the worker's pid its name, the absolute root its content.

Everybody may write in the folder for temporary files: ours is used only if nobody but this user can have put anything
into it, and no link is followed. Without it a worker runs as well, and does not know of others.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from driftline.configs.settings import Settings

_PREFIX = f"driftline-workers-{os.getuid()}-"


def note_root(settings: Settings, bootstrap: str) -> str:
    """Leaves this process's note; returns a sentence if another worker of the group has another root, else "".

    A note that can't be written costs only the sentence. It goes with the process; what killed ones of any group have
    left goes now.
    """
    folder = _folder(settings, bootstrap)
    for one in folder.parent.glob(f"{_PREFIX}*"):
        _clear(one)
    atexit.register(_clear, folder, os.getpid())
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if _is_ours(folder):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(folder / str(os.getpid()), flags, 0o600), "w") as note:
                note.write(str(settings.state.root.absolute()))
    return difference(settings, bootstrap)


def difference(settings: Settings, bootstrap: str) -> str:
    """Which workers of the group on this host keep their state elsewhere than `state.root`; "" = none that is known."""
    here = settings.state.root.absolute()
    others = {pid: root for pid, root in _noted(_folder(settings, bootstrap)) if root.resolve() != here.resolve()}
    if not others:
        return ""
    where = ", ".join(f"process {pid} in {root}" for pid, root in sorted(others.items()))
    return (
        f"workers of one group keep their state in several folders: state.root is {here} here, of {where}. A service "
        "reads one of them and knows nothing of users in the others: start all of a host with one absolute state.root"
    )


def _clear(folder: Path, pid: int | None = None) -> None:
    """Removes notes of dead workers, and that of one, and the folder if it is empty then."""
    if pid is not None:
        with suppress(OSError):
            (folder / str(pid)).unlink()
    _noted(folder)
    with suppress(OSError):
        if _is_ours(folder):
            folder.rmdir()


def _noted(folder: Path) -> list[tuple[int, Path]]:
    """Live workers and their roots; notes of dead ones are removed."""
    found = []
    with suppress(OSError):
        for note in list(folder.iterdir()) if _is_ours(folder) else []:
            with suppress(OSError, ValueError):
                root = _root_of(note)
                if root is not None:
                    found.append((int(note.name), root))
                else:
                    note.unlink()
    return found


def _root_of(note: Path) -> Path | None:
    """What a note says; None if its worker runs no more, or if it is none. Raises OSError."""
    try:
        if b"driftline.stream.worker" not in Path(f"/proc/{int(note.name)}/cmdline").read_bytes():
            return None
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    with open(os.open(note, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
        return Path(file.read())


def _is_ours(folder: Path) -> bool:
    """Whether it is a directory of this user, no link, that no other may write to."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _folder(settings: Settings, bootstrap: str) -> Path:
    group = hashlib.sha256(f"{bootstrap} {settings.broker.prefix}".encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{group}"
