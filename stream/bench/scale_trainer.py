"""What many users cost a trainer: one is opened in a process of its own on their rows, learns, and writes a checkpoint.

The rows are those that `bench scale` writes for a worker, by hard links. The models are new ones; what they keep of
users is bounded by settings (docs/operations.md) and not in the figures, but for what the groups bring.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from driftline.configs.settings import Settings
from driftline.graph.rows import Event
from driftline.stream.events.schema import encode_event
from driftline.stream.learn.trainer import Trainer
from driftline.stream.process.processor import Record
from driftline.stream.state.store import RocksStore, partition_path

MIB = 1 << 20
GROUP_EVENTS, APART_MS = 3, 1000


def write_trainer(settings: Settings) -> None:
    """Makes the checkpoint of a trainer that has learnt nothing and has the rows of the partition in `state.root`."""
    trainer = _trainer(settings)
    trainer.checkpoint()
    trainer.close()
    (named,) = (settings.trainer.root / "rows").iterdir()
    shutil.rmtree(named)
    store = RocksStore(partition_path(settings.state.root, 0), sync=False)
    store.keep(named)
    store.close()


def measure(settings: Settings, users: int, items: int, groups: int, start_ms: int) -> dict[str, Any]:
    """Opens the trainer, learns groups of users drawn evenly with a checkpoint amid them, and writes the next one.

    Args:
        settings: with the folders of `write_trainer`.
        users, items: that groups are drawn from.
        groups: that are learnt.
        start_ms: time of the first one.

    Returns:
        The process's own figures: seconds, resident memory, groups that were learnt, and MiB that the last checkpoint
        wrote, with how much of it is its file: models and items.
    """
    torch.set_num_threads(1)
    started = time.perf_counter()
    trainer = _trainer(settings)
    open_s, process = time.perf_counter() - started, psutil.Process()
    kept = dict[int, int]()
    opened, random = process.memory_info().rss // MIB, np.random.default_rng(2)
    started = time.perf_counter()
    for number in range(groups):
        if number == groups // 2:  # the first one also has the tables that RocksDB merges of those that were just made
            trainer.checkpoint()
            kept = _files(settings.trainer.root)
        user, t_ms = f"user-{random.integers(users):07d}", start_ms + number * APART_MS
        for n, item in enumerate(random.choice(items, min(items, GROUP_EVENTS), replace=False).tolist()):
            event = Event(user, f"item-{item}", t_ms, "purchase", group_id=f"g{number}")
            trainer.take(0, Record(number * GROUP_EVENTS + n, encode_event(event), user.encode()))
    learn_s, started = time.perf_counter() - started, time.perf_counter()
    trainer.checkpoint()
    checkpoint_s = time.perf_counter() - started
    written = sum(size for inode, size in _files(settings.trainer.root).items() if inode not in kept)
    trainer.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    memory = {"opened_mb": opened, "rss_mb": process.memory_info().rss // MIB, "peak_mb": peak}
    times = {"open_s": round(open_s, 3), "learn_s": round(learn_s, 3), "checkpoint_s": round(checkpoint_s, 3)}
    file_mb = (settings.trainer.root / "checkpoint.pt").stat().st_size / MIB
    disk = {"checkpoint_mb_written": round(written / MIB, 1), "of_it_file_mb": round(file_mb, 1)}
    return {**times, **memory, "groups": trainer.closed, **disk}


def _trainer(settings: Settings) -> Trainer:
    return Trainer(settings, 1, lambda outgoing: None, None)


def _files(root: Path) -> dict[int, int]:
    """Bytes by inode of what checkpoints consist of."""
    files = [root / "checkpoint.pt", *root.glob("rows/[0-9]*/*")]
    return {path.stat().st_ino: path.stat().st_size for path in files if path.is_file()}


if __name__ == "__main__":
    print(json.dumps(measure(Settings.model_validate_json(sys.stdin.read()), **json.loads(sys.argv[1]))))
