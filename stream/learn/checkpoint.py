"""Checkpoints of the trainer: one file, written beside its place, synced and renamed; one process that writes them.

A file is MAGIC, a tree of plain values (stream/learn/tree.py) and the XXH3 hash of both. It holds data only: whoever
can write to it can spoil what is learned, but not run code. A damaged one is refused before it is decoded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import xxhash

from driftline.configs.errors import LockedError, StateError
from driftline.configs.faults import point
from driftline.configs.load import differences
from driftline.stream.durable import durable_file, open_locked, remedy_for
from driftline.stream.learn.tree import read_tree, write_tree

MAGIC = b"driftline checkpoint 2\n"
PICKLE = b"\x80"
"""First byte of what earlier versions wrote."""
SUM_BYTES = 16
CHUNK_BYTES = 1 << 20


@contextmanager
def locked(root: Path, wait_s: float) -> Iterator[None]:
    """Holds a trainer's directory, made if missing, for this process alone; the lock ends with the process.

    Raises:
        LockedError: another process still held it after `wait_s`.
        StateError: the directory can't be written.
    """
    deadline = time.monotonic() + wait_s
    try:
        while (file := open_locked(root / "lock")) is None:
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"directory {root} is locked by another trainer; waited {wait_s:g} s. It has one trainer at a "
                    "time: stop the other one, or give this one a trainer.root of its own."
                )
            time.sleep(0.2)
    except OSError as error:
        raise StateError(f"directory {root} can't be written: {error}; make room or set trainer.root") from None
    with file:
        for left in root.glob("*.tmp"):  # of one that was killed while it wrote
            left.unlink(missing_ok=True)
        yield


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes a state so that a reader sees the old one or the new one.

    Raises:
        StateError: the directory can't be written.
    """
    try:
        with durable_file(path) as file:
            summed = _Summed(file)
            summed.write(MAGIC)
            write_tree(summed, state)  # type: ignore[arg-type]
            file.write(summed.hash.digest())
            point("checkpoint")
    except OSError as error:
        raise StateError(f"checkpoint {path} can't be written: {error}; make room or set trainer.root") from None


def read_checkpoint(path: Path, settings_sha256: str, keys: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """The last checkpoint, None if there is none.

    Args:
        path: of its file.
        settings_sha256: of the settings that it has to be of.
        keys: these settings, as `sections_of` has them, to say which differ.

    Raises:
        StateError: it is damaged, was made under other settings, or is of a release that wrote pickles.
    """
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            _check(file)
            state = read_tree(file)
    except (OSError, ValueError, MemoryError) as error:
        raise StateError(
            f"checkpoint {path} can't be read: {str(error) or repr(error):.200}; "
            f"{remedy_for(error, 'move it away to learn from the start')}"
        ) from None
    if not isinstance(state, dict):
        raise StateError(
            f"checkpoint {path} holds a {type(state).__name__}, expected what a trainer wrote; move it away to learn "
            "from the start"
        )
    if state.get("settings") != settings_sha256:
        which = differences(state["keys"], keys) if keys and "keys" in state else ""
        raise StateError(
            f"checkpoint {path} was made under other settings{f': {which}' if which else ''}; set back what was "
            "changed, by you or in a preset by a release (CHANGELOG.md), set trainer.root to a new directory, or move "
            "it away to learn from the start"
        )
    return state


class _Summed:
    """A file to write to, and the hash of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.hash = file, xxhash.xxh3_128()

    def write(self, data: bytes) -> int:
        """See io.RawIOBase."""
        self.hash.update(data)
        return self._file.write(data)


def _check(file: IO[bytes]) -> None:
    """Returns after the magic of a file whose last bytes are the hash of the others.

    Raises:
        ValueError: they are not, or the file is of another kind.
    """
    begins = file.read(len(MAGIC))
    if begins != MAGIC and begins.startswith(PICKLE):
        raise ValueError(
            "an earlier version of driftline wrote it as a pickle, which can run code when it is read, so it is not"
        )
    if begins != MAGIC:
        raise ValueError(f"it begins with {begins[:8]!r}, a checkpoint with {MAGIC!r}")
    left, found = file.seek(0, os.SEEK_END) - SUM_BYTES, xxhash.xxh3_128()
    file.seek(0)
    while left > 0 and (chunk := file.read(min(left, CHUNK_BYTES))):
        found.update(chunk)
        left -= len(chunk)
    if file.read() != found.digest():
        raise ValueError("its check sum does not hold")
    file.seek(len(MAGIC))
