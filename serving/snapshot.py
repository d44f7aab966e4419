"""Snapshots: immutable directories from which serving answers: how they are read. Knows nothing of models.

    root/CURRENT                     {"version": ..., "held": false}, renamed last
    root/0000000012-3fa9c1d2/        sequence and the first digits of its content's hash
        manifest.json                what it is, where it comes from, what it builds on, sha256, dtype and shape of all
        PART.safetensors             one file for each part: engine, sequence, graph, items, ...

A snapshot is whole, or holds what changed since others that it names (serving/delta.py). A directory appears under its
name complete or not at all; `serving.publish` writes them and moves CURRENT.
Opening maps the files into memory; arrays are read-only views of them, valid for as long as someone holds one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from driftline.configs.errors import SnapshotError
from driftline.configs.load import MODEL_SECTIONS, differences, sections_of, sections_sha256
from driftline.configs.settings import Settings
from driftline.serving.arrays import Array
from driftline.serving.delta import Verified, open_parts
from driftline.serving.manifest import chain_of, directory_of, read_manifest

Parts = Mapping[str, Mapping[str, Array]]

GATE_GROUPS = 500
"""Scored groups from which on the gate compares prequential metrics."""
LEVEL = "level"
"""Key of `Meta.extra`: counts up when the trainer takes a lasting drop as normal; the gate compares within a level."""


PARTS = "parts"
"""Key of `Meta.extra`: names of the engine's parts (model/parts.py), in order."""
GATE = "gate"
"""Key of `Meta.extra`: what each part is worth and whether it is on, as `driftline.model.standing.Standing` tells."""
SETTINGS = "settings"
"""Key of `Meta.extra`: hash of the sections that the model is rebuilt with."""
KEYS = "settings_keys"
"""Key of `Meta.extra`: what that is a hash of, by dotted key, to say which of them differ."""


@dataclass(frozen=True, slots=True)
class Meta:
    """Where a snapshot comes from and how good it was.

    Attributes:
        offsets: next offset to learn from, by "topic:partition".
        watermark_ms: largest event time learnt, -1 = none.
        metrics: prequential metrics, such as {"ndcg@10": .13}.
        config_sha256: hash of the settings that trained it.
        git_revision: revision of the code that trained it, "" = unknown.
        gate: why it may not serve; "" = it may.
        extra: what else the engine needs to be rebuilt; JSON.
    """

    offsets: Mapping[str, int] = field(default_factory=dict)
    watermark_ms: int = -1
    metrics: Mapping[str, float] = field(default_factory=dict)
    config_sha256: str = ""
    git_revision: str = ""
    gate: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An open snapshot; `parts` holds read-only arrays mapped from its files."""

    version: str
    sequence: int
    created_ms: int
    meta: Meta
    parts: dict[str, dict[str, Array]]


def model_settings(settings: Settings) -> dict[str, Any]:
    """What `Meta.extra` says of the settings that a model is rebuilt with."""
    return {SETTINGS: sections_sha256(settings, MODEL_SECTIONS), KEYS: sections_of(settings, MODEL_SECTIONS)}


def misfit(meta: Meta, settings: Settings) -> str:
    """Which settings a model is rebuilt with are not those that trained it, in words; "" = none, or it does not say."""
    if meta.extra.get(SETTINGS) in (None, sections_sha256(settings, MODEL_SECTIONS)):
        return ""
    said = differences(meta.extra[KEYS], sections_of(settings, MODEL_SECTIONS)) if KEYS in meta.extra else ""
    return said or f"something in the sections {', '.join(MODEL_SECTIONS)}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the list of snapshots.

    `state` is current, held, kept, gated or damaged; `reason` says more. `base` is the whole snapshot that it builds
    on, over `deltas` steps; "" and 0 for a whole one. `bytes` are its own.
    """

    version: str
    sequence: int
    created_ms: int
    watermark_ms: int
    bytes: int
    metrics: dict[str, float]
    state: str
    reason: str = ""
    base: str = ""
    deltas: int = 0


@dataclass(frozen=True, slots=True)
class Pointer:
    """Content of CURRENT. While `held`, publishing does not move it."""

    version: str
    held: bool = False


def gate(
    metrics: Mapping[str, float],
    reference: Mapping[str, float],
    drop: float,
    metric: str = "ndcg@10",
    groups: int = GATE_GROUPS,
) -> str:
    """Why a snapshot may not serve after the one with metrics `reference`; "" if it may.

    Args:
        metrics: of the new snapshot; "groups" says of how many scored groups they are the mean.
        reference: of the one that serves.
        drop: share of `metric` that may be lost, 0..1.
        metric: its name; a snapshot that does not measure it passes.
        groups: with fewer the metrics are noise: a reference of fewer is not compared with, and a snapshot of fewer
            does not take the place of one that has them. Metrics that don't say count as enough.
    """
    bad = [name for name, value in metrics.items() if not np.isfinite(value)]
    if bad:
        return f"{bad[0]} is {metrics[bad[0]]}"
    new, old = metrics.get(metric), reference.get(metric)
    scored, served = metrics.get("groups", groups), reference.get("groups", groups)
    if scored < groups <= served and "groups" in reference:
        return f"not enough scored groups yet: {scored:.0f}, and {groups} are needed to follow one of {served:.0f}"
    if new is None or old is None or served < groups or new >= old * (1.0 - drop):
        return ""
    return f"{metric} fell from {old:.4f} to {new:.4f}, more than {drop:.0%}"


def open_snapshot(root: Path, version: str | None = None, verified: Verified | None = None) -> Snapshot:
    """Opens a snapshot memory-mapped after checking every sum, dtype and shape, of what it builds on, too.

    Args:
        root: directory of the snapshots.
        version: which one; None = the one that CURRENT names.
        verified: files that were read through before, as whoever opens one version after another keeps them.

    Raises:
        SnapshotError: there is none, it or what it builds on is damaged or half-written, or its gate refused it.
    """
    if version is None:
        pointer = current(root)
        if pointer is None:
            raise SnapshotError(f"no snapshot in {root}: the trainer has not published one yet.")
        version = pointer.version
    manifest = read_manifest(directory_of(root, version))
    meta = Meta(**manifest["meta"])
    if meta.gate:
        raise SnapshotError(f"snapshot {version} is refused by its gate: {meta.gate}. The one before keeps serving.")
    try:
        parts = open_parts(root, version, manifest, verified)
    except OSError as error:
        raise SnapshotError(
            f"snapshot {version} can't be read: {error}. It was pruned meanwhile, or the server may not read it."
        ) from error
    return Snapshot(version, manifest["sequence"], manifest["created_ms"], meta, parts)


def read_meta(root: Path, version: str) -> Meta:
    """Where a snapshot comes from, without opening its parts.

    Raises:
        SnapshotError: there is none of this version, or its manifest is damaged.
    """
    return Meta(**read_manifest(directory_of(root, version))["meta"])


def list_snapshots(root: Path) -> list[Entry]:
    """The snapshots in a directory, newest first; sums are not checked here, and one pruned meanwhile is left out.

    Raises:
        SnapshotError: the directory can't be read.
    """
    pointer = None
    with contextlib.suppress(SnapshotError):  # a broken pointer names none of them
        pointer = current(root)
    try:
        names = sorted(versions(root), reverse=True)
    except OSError as error:
        raise SnapshotError(f"{root} can't be read: {error}. Check serving.snapshots.") from error
    return [entry for name in names if (entry := _entry(root / name, pointer)) is not None]


def current(root: Path) -> Pointer | None:
    """What CURRENT names, None before the first snapshot.

    Raises:
        SnapshotError: CURRENT is not a pointer.
    """
    try:
        data = (root / "CURRENT").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SnapshotError(f"{root / 'CURRENT'} can't be read: {error}. Check serving.snapshots.") from error
    try:
        pointer = Pointer(**orjson.loads(data))
        directory_of(root, pointer.version)
    except (orjson.JSONDecodeError, TypeError, SnapshotError):
        raise SnapshotError(f"{root / 'CURRENT'} holds {data[:60]!r}; expected a version. Roll back to one.") from None
    return pointer


def versions(root: Path) -> Iterator[str]:
    """Names of all snapshots on disk, in no order, damaged and gated ones too."""
    if root.is_dir():
        yield from (p.name for p in root.iterdir() if p.is_dir() and p.name.split("-")[0].isdigit())


def _entry(directory: Path, pointer: Pointer | None) -> Entry | None:
    """A line of the list, None if the directory is gone."""
    version, size = directory.name, 0
    try:
        size = sum(_on_disk(file.stat()) for file in directory.iterdir())
        manifest = read_manifest(directory)
    except (OSError, SnapshotError) as error:
        if not os.path.exists(directory):  # unlike Path.exists, no error where nothing may be looked at
            return None
        return Entry(version, int(version.split("-")[0]), -1, -1, size, {}, "damaged", str(error))
    meta = Meta(**manifest["meta"])
    state = "gated" if meta.gate else "kept"
    if pointer is not None and pointer.version == version:
        state = "held" if pointer.held else "current"
    return Entry(
        version,
        manifest["sequence"],
        manifest["created_ms"],
        meta.watermark_ms,
        size,
        dict(meta.metrics),
        state,
        meta.gate,
        *_base(manifest),
    )


def _on_disk(stat: os.stat_result) -> int:
    """Bytes of a file without the holes that arrays have to grow into."""
    return min(stat.st_size, stat.st_blocks * 512 or stat.st_size)


def _base(manifest: Mapping[str, Any]) -> tuple[str, int]:
    chain = chain_of(manifest)
    return (chain[0][0], len(chain)) if chain else ("", 0)
