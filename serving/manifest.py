"""Manifests of snapshots: where they lie, and what is checked before anything else of a snapshot is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import orjson

from driftline.configs.errors import SnapshotError

SCHEMA_VERSION = 2
"""1 knew whole snapshots only, which are read as before."""
VERSION = re.compile(r"[0-9]{1,19}-[0-9a-f]{8}")
PART = re.compile(r"[a-z][a-z0-9_]{0,30}")


def directory_of(root: Path, version: str) -> Path:
    """Of a snapshot; what a file or a caller names may not lead elsewhere.

    Raises:
        SnapshotError: it is not the name of a version.
        TypeError: it is not a string.
    """
    if not VERSION.fullmatch(version):
        raise SnapshotError(
            f"{version[:60]!r} is not a snapshot; expected a name such as 0000000007-0a1b2c3d. "
            "`driftline snapshots list` shows those that are there."
        )
    return root / version


def read_manifest(directory: Path, sha256: str = "") -> dict[str, Any]:
    """The manifest of a snapshot's directory.

    Args:
        directory: its name ends with the first digits of the manifest's hash.
        sha256: the whole hash, where a later snapshot states it.

    Raises:
        SnapshotError: it is missing or damaged, or of a release that this one can't read.
    """
    version = directory.name
    try:
        body = (directory / "manifest.json").read_bytes()
    except FileNotFoundError:
        raise SnapshotError(f"snapshot {version} is missing or half-written: no manifest in {directory}.") from None
    except OSError as error:
        raise SnapshotError(f"snapshot {version} can't be read: {error}. Check serving.snapshots.") from error
    found = hashlib.sha256(body).hexdigest()
    if found[:8] != version.partition("-")[2] or sha256 not in ("", found):
        raise SnapshotError(f"snapshot {version} is damaged: its manifest does not have the hash in its name.")
    manifest = cast("dict[str, Any]", orjson.loads(body))
    if manifest["schema_version"] not in range(1, SCHEMA_VERSION + 1):
        raise SnapshotError(
            f"snapshot {version} has schema version {manifest['schema_version']}, expected {SCHEMA_VERSION}: "
            "publish it with this release."
        )
    return manifest


def chain_of(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, and hashes of their manifests, that a snapshot builds on: a whole one first; [] = it is whole."""
    return [(version, sha256) for version, sha256 in manifest.get("chain", [])]
