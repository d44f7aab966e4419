"""The publisher of one trainer: decides for each snapshot whether it is written whole or by what changed.

It knows what it published last, and builds on nothing else: a new process begins with a whole snapshot. A whole one is
written again when the chain is long or large; it is put together from the files of the last one and what changed since,
so the trainer gives no more for it than for any other, and a chain that was damaged on disk is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.configs.errors import SnapshotError
from driftline.serving.arrays import Array
from driftline.serving.delta import Change, change_of, laid_over, open_tables
from driftline.serving.manifest import directory_of, read_manifest
from driftline.serving.publish import Shapes, publish_changes
from driftline.serving.snapshot import Meta

Rows = tuple[NDArray[np.int64], Array]
"""Row numbers [k] and rows [k, ...]."""


class BrokenChainError(SnapshotError):
    """What was published last can't be built on any more; the next snapshot has to be given whole."""


@dataclass(slots=True)
class Taken:
    """What a trainer publishes: one consistent state, most of it as what changed.

    Attributes:
        shapes: of all arrays.
        rows: arrays that change by rows: the changed ones in the order in which they were taken, of equal rows the last
            counts; all of them where the publisher is not `ready`.
        whole: the other arrays; never written to again.
    """

    shapes: dict[str, dict[str, tuple[np.dtype[Any], tuple[int, ...]]]]
    rows: dict[str, dict[str, list[Rows]]]
    whole: dict[str, dict[str, Array]]


class Publisher:
    """Publishes one state after another to one directory.

    Args:
        root: directory of the snapshots.
        keep: as `publish`.
        longest: deltas that build on a whole snapshot.
        largest: their bytes together, as a share of the whole one's.

    Attributes:
        bytes: of the last snapshot, as it was written.
        deltas: how many the last snapshot's chain has; 0 = it is whole.
    """

    def __init__(self, root: Path, keep: int, longest: int, largest: float) -> None:
        self._root, self._keep, self._longest, self._largest = root, keep, longest, largest
        self._chain: list[tuple[str, str]] = []
        self._whole: Mapping[str, Mapping[str, Array]] = {}
        self._bytes = [0, 0]  # of the whole snapshot, of the deltas on it
        self.bytes = self.deltas = 0

    @property
    def ready(self) -> bool:
        """Whether it knows a snapshot to build on."""
        return bool(self._chain)

    def publish(self, taken: Taken, meta: Meta, anew: bool = False) -> str:
        """Writes a snapshot; its version. After an error it is not `ready`, so nothing that was taken is missed.

        Args:
            taken: what to publish.
            meta: where it comes from.
            anew: it shares no file with those before: something is not to stay in them.

        Raises:
            BrokenChainError: what it builds on can't be read; the snapshot was not written.
            SnapshotError: the directory can't be written.
        """
        (chain, self._chain), (before, self._whole) = (self._chain, []), (self._whole, {})
        changes = _changes(taken, before)
        size = sum(change.nbytes for of in changes.values() for change in of.values())
        full = anew or not chain or len(chain) > self._longest
        if full or self._bytes[1] + size > self._largest * self._bytes[0] or not self._stand(chain):
            if chain:
                changes = self._joined(chain[-1][0], changes, taken.shapes)
            chain, size = [], sum(change.nbytes for of in changes.values() for change in of.values())
            _check_whole(changes, taken.shapes)
        version = publish_changes(self._root, changes, taken.shapes, meta, self._keep, chain)
        self._bytes = [self._bytes[0], self._bytes[1] + size] if chain else [size, 0]
        self._whole = taken.whole
        self.bytes, self.deltas = size, len(chain)
        self._chain = [*chain, (version, self._sha256(version))]
        return version

    def _stand(self, chain: list[tuple[str, str]]) -> bool:
        return all((directory_of(self._root, version) / "manifest.json").exists() for version, _ in chain)

    def _sha256(self, version: str) -> str:
        return hashlib.sha256((directory_of(self._root, version) / "manifest.json").read_bytes()).hexdigest()

    def _joined(self, last: str, changes: dict[str, dict[str, Change]], shapes: Shapes) -> dict[str, dict[str, Change]]:
        """All arrays whole: those of the last snapshot with what changed since."""
        try:
            tables = open_tables(self._root, last, read_manifest(directory_of(self._root, last)), None, private=True)
            joined: dict[str, dict[str, Change]] = {}
            for part, named in shapes.items():
                before, changed, joined[part] = tables.get(part, {}), changes.get(part, {}), {}
                for name, (_, shape) in named.items():
                    array = laid_over(before.get(name), changed[name]) if name in changed else before[name]
                    joined[part][name] = Change(array[: shape[0]] if shape else array, None, shape)
        except (SnapshotError, OSError, KeyError, ValueError) as error:
            raise BrokenChainError(f"{error} The next snapshot is written whole.") from error
        return joined


def _changes(taken: Taken, before: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, Change]]:
    """What changed of each part."""
    out: dict[str, dict[str, Change]] = {}
    for part, shapes in taken.shapes.items():
        rows, whole, old, out[part] = taken.rows.get(part, {}), taken.whole.get(part, {}), before.get(part, {}), {}
        for name, (dtype, shape) in shapes.items():
            change = _merged(rows[name], dtype, shape) if name in rows else change_of(old.get(name), whole[name])
            if change is not None:
                out[part][name] = change
    return out


def _merged(pieces: list[Rows], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Change | None:
    """One change of pieces in order."""
    if not pieces and shape[0]:
        return None
    if sum(len(at) for at, _ in pieces) < shape[0]:
        numbers, places = np.unique(np.concatenate([at for at, _ in pieces])[::-1], return_index=True)
        values = np.concatenate([values for _, values in pieces])[::-1][places]
        return Change(values, numbers.astype(np.uint32), shape)
    table, held = np.zeros(shape, dtype), np.zeros(shape[0], np.bool_)
    while pieces:  # each is freed as soon as it has its place
        at, values = pieces.pop(0)
        table[at] = values
        held[at] = True
    if held.all():
        return Change(table, None, shape)
    numbers = np.flatnonzero(held).astype(np.uint32)
    return Change(table[numbers], numbers, shape)


def _check_whole(changes: Mapping[str, Mapping[str, Change]], shapes: Shapes) -> None:
    """Raises BrokenChainError unless every array is there with all its rows."""
    for part, named in shapes.items():
        for name in named:
            change = changes[part].get(name)
            if change is None or change.at is not None:
                raise BrokenChainError(f"array {name!r} of part {part!r} is not whole. The next snapshot is.")
