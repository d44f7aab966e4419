"""Publishing snapshots: all that changes their directory; a new one, a rollback, a release, and pruning.

A snapshot is written under a temporary name, synced and renamed, and CURRENT after it in the same way. Whoever looks
meanwhile, or after a crash between any two steps, finds whole snapshots and a CURRENT that names one.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np
import orjson
from safetensors.numpy import save_file

from configs.errors import SnapshotError
from serving.arrays import DTYPES, file_sha256, sync
from serving.snapshot import SCHEMA_VERSION, Meta, Parts, Pointer, current, open_snapshot, read_meta, versions

LOG = logging.getLogger(__name__)
_ABANDONED_S = 600.0


def publish(root: Path, parts: Parts, meta: Meta, keep: int = 5) -> str:
    """Writes a snapshot and makes it the current one, unless it is gated or an operator holds another.

    Args:
        root: directory of the snapshots, made if missing.
        parts: arrays of each part by name; dtypes that safetensors knows (strings: `serving.arrays.pack_strings`).
        meta: where it comes from.
        keep: newest snapshots that stay on disk, and as many that may serve; the current one always does.

    Returns:
        Its version.

    Raises:
        SnapshotError: the directory can't be written, or an array has a dtype that can't be stored.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = root / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
        try:
            version = _write(root, temporary, parts, meta)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
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
    open_snapshot(root, version)
    _point(root, Pointer(version, held=True))


def release(root: Path) -> str:
    """Ends a hold: the newest snapshot that may serve is current again. Returns its version.

    Raises:
        SnapshotError: there is none.
    """
    for version in sorted(versions(root), reverse=True):
        with contextlib.suppress(SnapshotError):
            open_snapshot(root, version)
            _point(root, Pointer(version))
            return version
    raise SnapshotError(f"no snapshot in {root} may serve: wait for the trainer to publish one.")


def _write(root: Path, temporary: Path, parts: Parts, meta: Meta) -> str:
    stated = {}
    for name, arrays in parts.items():  # 1 the parts
        file = temporary / f"{name}.safetensors"
        plain = {key: np.asarray(array, order="C") for key, array in arrays.items()}
        wrong = [key for key, array in plain.items() if array.dtype not in DTYPES.values()]
        if wrong:
            raise SnapshotError(
                f"array {wrong[0]!r} of part {name!r} has dtype {plain[wrong[0]].dtype}, expected one of "
                f"{', '.join(dtype.name for dtype in DTYPES.values())}; strings: serving.arrays.pack_strings."
            )
        save_file(plain, file)
        sync(file)
        stated[name] = {
            "sha256": file_sha256(file),
            "arrays": {k: [a.dtype.str, list(a.shape)] for k, a in plain.items()},
        }
    sequence = 1 + max((int(version.split("-")[0]) for version in versions(root)), default=0)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "sequence": sequence,
        "created_ms": time.time_ns() // 1_000_000,
        "meta": asdict(meta),
        "parts": stated,
    }
    body = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    version = f"{sequence:010d}-{hashlib.sha256(body).hexdigest()[:8]}"
    (temporary / "manifest.json").write_bytes(body)  # 2 the manifest
    sync(temporary / "manifest.json")
    sync(temporary)
    temporary.rename(root / version)  # 3 its name
    sync(root)
    return version


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
    temporary.replace(root / "CURRENT")
    sync(root)


def _may_serve(root: Path, version: str) -> bool:
    try:
        return not read_meta(root, version).gate
    except SnapshotError:
        return False


def _prune(root: Path, keep: int) -> None:
    pointer, newest = _pointer(root), sorted(versions(root), reverse=True)
    stay = {*newest[:keep], *[version for version in newest if _may_serve(root, version)][:keep]}
    for version in newest:
        if version not in stay and (pointer is None or version != pointer.version):
            leaving = root / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"  # whole or gone, never half, for who looks
            with contextlib.suppress(OSError):
                (root / version).rename(leaving)
                shutil.rmtree(leaving, ignore_errors=True)
    for left in root.glob(".tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
