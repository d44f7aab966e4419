"""Publishing snapshots: all that changes their directory; a new one, a rollback, a release, and pruning.

A snapshot is written under a temporary name, synced and renamed, and CURRENT after it in the same way. Whoever looks
meanwhile, or after a crash between any two steps, finds whole snapshots and a CURRENT that names one. Moving CURRENT
and pruning happen under a lock of the directory, so that nothing prunes what a rollback goes back to.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson

from driftline.configs.errors import SnapshotError
from driftline.configs.faults import point
from driftline.configs.permissions import as_opened
from driftline.serving.arrays import DTYPES, Array, file_sha256, sync, write_arrays
from driftline.serving.delta import AT, Change
from driftline.serving.manifest import SCHEMA_VERSION, chain_of, directory_of, read_manifest
from driftline.serving.snapshot import Meta, Parts, Pointer, current, open_snapshot, read_meta, versions

LOG = logging.getLogger(__name__)
_ABANDONED_S = 600.0

Changes = Mapping[str, Mapping[str, Change]]
"""Of each part by name."""
Shapes = Mapping[str, Mapping[str, tuple[np.dtype[np.generic], tuple[int, ...]]]]
"""dtype and shape of each array of each part."""


def publish(root: Path, parts: Parts, meta: Meta, keep: int = 5) -> str:
    """Writes a whole snapshot and makes it the current one, unless it is gated or an operator holds another.

    Args:
        root: directory of the snapshots, made if missing.
        parts: arrays of each part by name; dtypes that safetensors knows (strings: `serving.arrays.pack_strings`).
        meta: where it comes from.
        keep: newest snapshots that stay on disk, and as many that may serve; the current one always does, and so
            does what one of these builds on.

    Returns:
        Its version.

    Raises:
        SnapshotError: the directory can't be written, or an array has a dtype that can't be stored.
    """
    plain = {part: {name: np.asarray(array, order="C") for name, array in of.items()} for part, of in parts.items()}
    changes = {part: {k: Change(a, None, a.shape) for k, a in arrays.items()} for part, arrays in plain.items()}
    shapes = {part: {k: (a.dtype, a.shape) for k, a in arrays.items()} for part, arrays in plain.items()}
    return publish_changes(root, changes, shapes, meta, keep, [])


def publish_changes(
    root: Path, changes: Changes, shapes: Shapes, meta: Meta, keep: int, chain: Sequence[tuple[str, str]]
) -> str:
    """`publish` of what changed since other snapshots.

    Args:
        root, meta, keep: as there.
        changes: contiguous arrays that are not as before.
        shapes: of all arrays that the snapshot has.
        chain: what it builds on (`serving.manifest.chain_of`); empty = on nothing.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = root / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            version = _write(root, temporary, changes, shapes, meta, chain)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        point("publish")
        with _locked(root):
            pointer = _pointer(root)
            if not meta.gate and not (pointer and pointer.held):
                _point(root, Pointer(version))
            _prune(root, keep)
    except OSError as error:
        raise SnapshotError(
            f"snapshot can't be written to {root}: {error}. Make room or set serving.snapshots."
        ) from error
    return version


def rollback(root: Path, version: str) -> None:
    """Makes an older snapshot current and holds it: publishing goes on, but does not move CURRENT until `release`.

    Raises:
        SnapshotError: it may not serve.
    """
    directory_of(root, version)
    with _locked(root):
        open_snapshot(root, version)
        _point(root, Pointer(version, held=True))


def release(root: Path) -> str:
    """Ends a hold: the newest snapshot that may serve is current again. Returns its version.

    Raises:
        SnapshotError: there is none.
    """
    with _locked(root):
        for version in sorted(versions(root), reverse=True):
            with contextlib.suppress(SnapshotError):
                open_snapshot(root, version)
                _point(root, Pointer(version))
                return version
    raise SnapshotError(f"no snapshot in {root} may serve: wait for the trainer to publish one.")


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Nobody else moves CURRENT or prunes.

    Raises:
        SnapshotError: there is no such directory.
    """
    try:
        handle = os.open(root, os.O_RDONLY)
    except OSError as error:
        raise SnapshotError(f"no snapshot in {root}: it can't be opened, {error}. Check serving.snapshots.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(
    root: Path, temporary: Path, changes: Changes, shapes: Shapes, meta: Meta, chain: Sequence[tuple[str, str]]
) -> str:
    stated = {}
    for part, named in shapes.items():  # 1 the parts
        file = temporary / f"{part}.safetensors"
        _check_dtypes(part, {name: dtype for name, (dtype, _) in named.items()})
        write_arrays(file, _stored(changes.get(part, {})), room=not chain)
        as_opened(file)
        sync(file)
        point("publish-part")
        stated[part] = {
            "sha256": file_sha256(file),
            "arrays": {name: [dtype.str, list(shape)] for name, (dtype, shape) in named.items()},
        }
    sequence = 1 + max((int(version.split("-")[0]) for version in versions(root)), default=0)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "sequence": sequence,
        "created_ms": time.time_ns() // 1_000_000,
        "meta": asdict(meta),
        "chain": list(chain),
        "parts": stated,
    }
    body = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    version = f"{sequence:010d}-{hashlib.sha256(body).hexdigest()[:8]}"
    (temporary / "manifest.json").write_bytes(body)  # 2 the manifest
    sync(temporary / "manifest.json")
    sync(temporary)
    point("publish-name")
    temporary.rename(root / version)  # 3 its name
    sync(root)
    return version


def _check_dtypes(part: str, dtypes: Mapping[str, np.dtype[np.generic]]) -> None:
    for name, dtype in dtypes.items():
        if dtype not in DTYPES.values():
            raise SnapshotError(
                f"array {name!r} of part {part!r} has dtype {dtype}, expected one of "
                f"{', '.join(dtype.name for dtype in DTYPES.values())}; strings: serving.arrays.pack_strings."
            )


def _stored(changes: Mapping[str, Change]) -> dict[str, Array]:
    """Arrays of a part's file."""
    stored = {name: change.values for name, change in changes.items()}
    return stored | {name + AT: change.at for name, change in changes.items() if change.at is not None}


def _pointer(root: Path) -> Pointer | None:
    """What CURRENT names; None if it can't be read: the next snapshot that may serve is the cure."""
    try:
        return current(root)
    except SnapshotError as error:
        LOG.warning("%s A snapshot that may serve takes its place; a version that was held is not any more.", error)
        return None


def _point(root: Path, pointer: Pointer) -> None:
    temporary = root / f".CURRENT-{os.getpid()}"
    temporary.write_bytes(orjson.dumps(asdict(pointer)))
    sync(temporary)
    point("publish-pointer")
    temporary.replace(root / "CURRENT")
    sync(root)


def _may_serve(root: Path, version: str) -> bool:
    try:
        return not read_meta(root, version).gate
    except SnapshotError:
        return False


def _built_on(root: Path, version: str) -> set[str]:
    try:
        return {name for name, _ in chain_of(read_manifest(directory_of(root, version)))}
    except SnapshotError:
        return set()


def _prune(root: Path, keep: int) -> None:
    pointer, newest = _pointer(root), sorted(versions(root), reverse=True)
    stay = {*newest[:keep], *[version for version in newest if _may_serve(root, version)][:keep]}
    if pointer is not None:
        stay.add(pointer.version)
    stay = stay.union(*(_built_on(root, version) for version in stay))
    for version in newest:
        if version not in stay:
            leaving = root / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"  # whole or gone, never half, for who looks
            with contextlib.suppress(OSError):
                (root / version).rename(leaving)
                point("publish-prune")
                shutil.rmtree(leaving, ignore_errors=True)
    for left in root.glob(".tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
