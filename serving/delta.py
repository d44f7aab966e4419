"""Snapshots by delta: what changed from one snapshot to the next, and how a chain of them is laid over a whole one.

    whole   PART.safetensors: every array, large ones with empty rows behind them to grow into
    delta   PART.safetensors: NAME, the rows that changed, and NAME@, their numbers; or NAME alone, taken as it is

The files of the whole one are mapped privately (MAP_PRIVATE): a row that a delta changes makes a copy of its page,
all others stay the file's own, in memory once for however many versions and processes. Each version has a mapping of
its own, so nothing changes under a request. A chain is named link by link with the hash of each manifest, and each
manifest names the hash of its files: a link that is missing, changed or out of place is found before anything serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.configs.errors import SnapshotError
from driftline.serving.arrays import Array, file_sha256, map_arrays, room_for
from driftline.serving.manifest import PART, chain_of, directory_of, read_manifest

AT = "@"
"""After an array's name: the numbers of its rows."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one array.

    Attributes:
        values: rows [k, ...], or all of it.
        at: [k] uint32 ascending row numbers; None = all of it.
        shape: of the whole array.
    """

    values: Array
    at: NDArray[np.uint32] | None
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a file."""
        return self.values.nbytes + (0 if self.at is None else self.at.nbytes)


def change_of(old: Array | None, new: Array) -> Change | None:
    """What makes an array of another; None if they are equal to the bit."""
    if new is old:
        return None
    whole = Change(new, None, new.shape)
    if old is not None and (old.dtype, old.shape, old.tobytes()) == (new.dtype, new.shape, new.tobytes()):
        return None
    if old is None or not (old.size and new.ndim) or (old.dtype, old.shape[1:]) != (new.dtype, new.shape[1:]):
        return whole
    if len(old) > len(new):
        return whole
    same_size = np.dtype(f"u{new.itemsize}")
    differs = new[: len(old)].view(same_size) != old.view(same_size)
    rows = np.flatnonzero(differs.reshape(len(old), -1).any(1) if len(old) else differs)
    at = np.concatenate((rows, np.arange(len(old), len(new)))).astype(np.uint32)
    by_rows = Change(new[at], at, new.shape)
    return by_rows if by_rows.nbytes < whole.nbytes else whole


def laid_over(old: Array | None, change: Change) -> Array:
    """The array after a change, with room to grow; written in place where `old` has the room.

    Raises:
        ValueError: the change does not fit to the array.
    """
    if change.at is None:
        return change.values
    n = change.shape[0]
    row = change.values.shape[1:]
    if old is None or old.dtype != change.values.dtype or not old.shape[1:] == change.shape[1:] == row:
        raise ValueError(f"rows of shape {row} for an array of {None if old is None else old.shape}")
    if len(change.at) and int(change.at.max()) >= n:
        raise ValueError(f"row {int(change.at.max())} of {n}")
    if len(old) < n:
        larger = np.empty((room_for(np.broadcast_to(old[:1], change.shape)), *old.shape[1:]), old.dtype)
        larger[: len(old)] = old
        old = larger
    old[change.at] = change.values
    return old


@dataclass
class Verified:
    """Files whose sums held, by what the file system says of them: each is read through once, not at each adoption."""

    files: dict[Path, tuple[int, ...]] = field(default_factory=dict)

    def check(self, file: Path, sha256: str) -> bool:
        """Whether a file has its sum."""
        stat = file.stat()
        mark = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, int(sha256[:15], 16))
        if self.files.get(file) == mark:
            return True
        held = file_sha256(file) == sha256
        if held:
            self.files[file] = mark
        return held

    def keep_only(self, versions: set[str]) -> None:
        """Forgets the files of other versions."""
        self.files = {file: mark for file, mark in self.files.items() if file.parent.name in versions}


def open_parts(
    root: Path, version: str, manifest: Mapping[str, Any], verified: Verified | None = None
) -> dict[str, dict[str, Array]]:
    """The arrays of a snapshot as read-only views; arguments and errors as `open_tables`."""
    parts = open_tables(root, version, manifest, verified, bool(chain_of(manifest)))
    for part, arrays in parts.items():
        stated = manifest["parts"][part]["arrays"]
        for name, array in arrays.items():
            arrays[name] = array[: stated[name][1][0]] if array.ndim else array.view()
            arrays[name].flags.writeable = False
    return parts


def open_tables(
    root: Path, version: str, manifest: Mapping[str, Any], verified: Verified | None, private: bool
) -> dict[str, dict[str, Array]]:
    """The arrays of a snapshot, checked link by link, with the room that they have to grow.

    Args:
        root: directory of the snapshots.
        version: whose manifest it is.
        manifest: what `read_manifest` gave.
        verified: what was read through before.
        private: they may be written to.

    Raises:
        SnapshotError: a link of the chain is missing or damaged.
        OSError: a file can't be read.
    """
    verified = Verified() if verified is None else verified
    chain = chain_of(manifest)
    links = [(name, _link(root, version, name, sha256)) for name, sha256 in chain] + [(version, manifest)]
    parts: dict[str, dict[str, Array]] = {}
    for number, (name, link) in enumerate(links):
        if bool(link.get("chain")) != bool(number) or chain_of(link) != chain[:number]:
            raise SnapshotError(
                f"snapshot {version} is damaged: {name} is not the link of its chain that it stands for."
            )
        parts = {
            part: _opened(directory_of(root, name), part, stated, parts.get(part, {}), verified, private)
            for part, stated in link["parts"].items()
        }
    verified.keep_only({name for name, _ in links})
    return parts


def _link(root: Path, version: str, name: str, sha256: str) -> dict[str, Any]:
    try:
        return read_manifest(directory_of(root, name), sha256)
    except SnapshotError as error:
        raise SnapshotError(f"snapshot {version} builds on another: {error}") from error.__cause__


def _opened(
    directory: Path,
    part: str,
    stated: Mapping[str, Any],
    before: Mapping[str, Array],
    verified: Verified,
    private: bool,
) -> dict[str, Array]:
    """Arrays of a part after one link, with their room."""
    file, damaged = directory / f"{part}.safetensors", f"snapshot {directory.name} is damaged:"
    if not PART.fullmatch(part):
        raise SnapshotError(f"{damaged} {part[:60]!r} is not the name of a part.")
    if not file.is_file():
        raise SnapshotError(f"{damaged} {file.name} is missing.")
    if not verified.check(file, stated["sha256"]):
        raise SnapshotError(f"{damaged} {file.name} does not have its sha256.")
    held, after = map_arrays(file, private), {}
    for name, (_, shape) in stated["arrays"].items():
        try:
            if name not in held:
                after[name] = before[name]
            else:
                after[name] = laid_over(
                    before.get(name), Change(held.pop(name), held.pop(name + AT, None), tuple(shape))
                )
        except (KeyError, ValueError) as error:
            raise SnapshotError(f"{damaged} the arrays of {file.name} differ from the manifest ({error}).") from None
    fits = all(_has(after[name], dtype, tuple(shape)) for name, (dtype, shape) in stated["arrays"].items())
    if held or not fits:
        raise SnapshotError(f"{damaged} the arrays of {file.name} differ from the manifest.")
    return after


def _has(array: Array, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether an array is of a dtype and shape, room to grow left aside."""
    rows = not shape or len(array) >= shape[0] if array.ndim == len(shape) else False
    return array.dtype.str == dtype and rows and array.shape[1:] == shape[1:]
