"""Snapshots by delta at size: bytes of a whole one and of what changed, and how long learning waits for them.

The real trainer learns a synthetic stream over a full catalogue. What a trainer has after long learning and this one
not, a running mean for each item vector of the sequence model, is filled in.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from driftline.configs.settings import Settings
from driftline.graph.rows import Event
from driftline.serving.delta import Verified
from driftline.serving.publish import publish
from driftline.serving.snapshot import Meta, list_snapshots, open_snapshot
from driftline.stream.bench.parts import figures_of
from driftline.stream.events.records import Record
from driftline.stream.learn.trainer import Trainer

USERS, BASKET, ZIPF = 400, 4, 1.0
HISTORY_GROUPS = 4000
"""Learnt before anything is published, so that users have a past and items partners: counted, not trained on."""
START_MS, EVERY_MS = 1_700_000_000_000, 60_000
MB = 1e6
TARGET = {"delta_share": 0.05, "pause_ms": 50.0}


def bench_publish(settings: Settings, items: int, groups: int, rounds: int) -> dict[str, Any]:
    """Publishes a whole snapshot, then one after every few groups, as a trainer does every few seconds.

    Args:
        settings: the models; folders, pace and gate are the bench's own.
        items: of the catalogue, all with a text vector.
        groups: baskets learnt between two snapshots.
        rounds: snapshots by delta.

    Returns:
        publish: MB of the whole snapshot and of the median delta; the longest that learning waited at once.
        whole: what a copy of everything, and its way to the disk, would have cost.
        adopt: the last delta opened by a server that has opened the one before, and how far the chain then goes.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        root = Path(folder)
        trainer = _trainer(settings, root, items, groups)
        baskets = _baskets(items)
        trainer.lag = 1 << 40  # while it lags it only counts
        for _ in range(HISTORY_GROUPS):
            _take(trainer, next(baskets))
        trainer.lag = 0
        _used_by_steps(trainer)
        whole = _whole(trainer, root / "elsewhere")
        pauses: list[float] = []
        seconds: list[float] = []
        versions: list[str] = []
        started = time.perf_counter()
        while len(versions) <= rounds:
            _take(trainer, next(baskets))
            if (version := trainer.publish_if_due()) is not None:
                versions.append(version)
                pauses.append(_metric(trainer, "publish_pause_seconds") * 1000)
                seconds.append(_metric(trainer, "publish_seconds"))
        learnt_s = time.perf_counter() - started
        entries = {entry.version: entry for entry in list_snapshots(trainer.settings.serving.snapshots)}
        sizes = [entries[version].bytes / MB for version in versions[1:]]
        first = open_snapshot(trainer.settings.serving.snapshots, versions[0])
        full_mb = sum(array.nbytes for of in first.parts.values() for array in of.values()) / MB
        figures = figures_of(items=items, groups_between=groups, rounds=rounds, target=TARGET)
        figures["publish"] = {
            "full_mb": round(full_mb, 1),
            "delta_mb": round(median(sizes), 2),
            "largest_delta_mb": round(max(sizes), 2),
            "share": round(median(sizes) / full_mb, 4),
            "pause_ms": round(max(pauses), 1),
            "first_pause_ms": round(pauses[0], 1),
            "seconds": round(median(seconds[1:]), 2),
        }
        figures["whole"] = whole
        figures["adopt"] = _adopted(trainer.settings.serving.snapshots, versions)
        figures["groups_per_s"] = round(len(versions) * groups / learnt_s, 1)
        figures["target_met"] = median(sizes) <= TARGET["delta_share"] * full_mb and max(pauses) <= TARGET["pause_ms"]
        return figures


def _trainer(settings: Settings, root: Path, items: int, groups: int) -> Trainer:
    pace = {"root": root / "trainer", "publish_s": 1e9, "publish_events": groups * BASKET, "gate_drop": 1.0}
    own = settings.model_copy(
        update={
            "trainer": settings.trainer.model_copy(update=pace),
            "serving": settings.serving.model_copy(update={"snapshots": root / "snapshots", "keep": 1000}),
        }
    )
    trainer = Trainer(own, 1, lambda outgoing: None, None)
    random, width = np.random.default_rng(0), own.ranker.text_dim
    ids = [f"item-{n}" for n in range(items)]
    trainer.learner.add_items(ids)
    for first in range(0, items, 10_000):
        vectors = random.standard_normal((min(10_000, items - first), width), np.float32)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        for item_id, vector in zip(ids[first : first + 10_000], vectors, strict=True):
            trainer.learner.set_text(item_id, vector)
    gc.freeze()  # as the trainer's loop does
    return trainer


def _baskets(items: int) -> Iterator[list[Event]]:
    """Baskets of users with a taste: a run of neighbours in an order of popularity of their own, now and then any."""
    random = np.random.default_rng(1)
    chance = 1 / np.arange(1, items + 1) ** ZIPF
    cumulated = np.cumsum(chance / chance.sum())
    homes = np.minimum(np.searchsorted(cumulated, random.random(USERS)), items - 1)
    number = 0
    while True:
        user = int(random.integers(USERS))
        near = homes[user] + random.integers(0, 200, BASKET // 2)
        drawn = np.searchsorted(cumulated, random.random(BASKET - BASKET // 2))
        taken = np.unique(np.concatenate((near, drawn)) % items)
        t_ms = START_MS + number * EVERY_MS
        yield [
            Event(f"u{user}", f"item-{n}", t_ms, "purchase", f"{number}-{n}", 1.0, 9.5, group_id=f"g{number}")
            for n in taken.tolist()
        ]
        number += 1


def _take(trainer: Trainer, basket: list[Event]) -> None:
    for event in basket:
        trainer.take(0, Record(trainer.offsets[0], event, event.user_id.encode()))


def _used_by_steps(trainer: Trainer) -> None:
    """Gives every item vector the running mean that it has once a step has drawn it."""
    sequence = trainer.learner.sequence
    if sequence is not None:
        rows = torch.arange(len(trainer.learner.table))
        sequence.items.grow(len(rows))
        sequence.average.update(sequence.backbone, rows, sequence.items.vectors())


def _whole(trainer: Trainer, root: Path) -> dict[str, Any]:
    arrays = trainer.learner.arrays()
    started = time.perf_counter()
    copies = {part: {name: array.copy() for name, array in of.items()} for part, of in arrays.items()}
    copied = time.perf_counter()
    publish(root, copies, Meta())
    return {
        "mb": round(sum(array.nbytes for of in copies.values() for array in of.values()) / MB, 1),
        "copy_ms": round((copied - started) * 1000, 1),
        "publish_s": round(time.perf_counter() - copied, 2),
    }


def _metric(trainer: Trainer, name: str) -> float:
    value = trainer.metrics.registry.get_sample_value(f"driftline_trainer_{name}")
    assert value is not None
    return value


def _adopted(root: Path, versions: list[str]) -> dict[str, Any]:
    verified = Verified()
    open_snapshot(root, versions[-2], verified)
    before, started = _private_mb(), time.perf_counter()
    snapshot = open_snapshot(root, versions[-1], verified)
    seconds = time.perf_counter() - started
    chain = next(entry.deltas for entry in list_snapshots(root) if entry.version == snapshot.version)
    return {"ms": round(seconds * 1000, 1), "own_mb": round(_private_mb() - before, 1), "deltas": chain}


def _private_mb() -> float:
    """Memory that this process shares with no file or other process, 0 where the system does not say."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024 / MB
