"""What many users cost a worker: a partition of them is opened in a process of its own and goes on with events. A
trainer with the same rows does so in another one, see scale_trainer.py.

The state is written row by row, as the events themselves would take hours: memories and histories are random, and many
users have the same. The events that follow are of users drawn evenly, so nearly each reads a row that is not in memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from driftline.configs.settings import Settings
from driftline.graph.chunks import cut, user_key
from driftline.graph.rows import EVENT_DTYPE, Event, UserRow, action_code, encode_user, key64
from driftline.stream.bench.ingest import BenchError
from driftline.stream.bench.parts import figures_of, rate
from driftline.stream.events.schema import encode_event
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import RocksStore, partition_path

START_MS, EVERY_MS = 1_600_000_000_000, 60_000
USERS_AT_ONCE, TEMPLATES = 500, 256
_NOBODY = b"user-_______"
MIB = 1 << 20
Tell = Callable[[str], None]


def bench_scale(
    settings: Settings,
    users: int,
    history: int,
    items: int,
    events: int,
    groups: int,
    tell: Tell = lambda text: None,
) -> dict[str, Any]:
    """Writes the state of a partition, then opens it in a process of its own, and a trainer that has it in another.

    Args:
        settings: the worker's and trainer's; the directories are the bench's own.
        users, history: rows, and events in each.
        items: that histories are drawn from.
        events: that come after the opening.
        groups: that the trainer learns.
        tell: is given a line for each step.

    Returns:
        Seconds of the opening and resident memory before it, after it and at most, in MiB; the rate of the events.
        Under "trainer" the same of a trainer, and what a checkpoint takes.
    """
    from driftline.stream.bench.scale_trainer import write_trainer  # a worker has none of what it imports

    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        tell(f"writing {users:,} users of {history:,} events")
        settings = _within(settings, Path(folder))
        _write(settings, users, history, items)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        write_trainer(settings)
        tell(f"opening them, then {events:,} events")
        drawn = {"users": users, "items": items}
        measured = _measured("scale", settings, drawn | {"events": events})
        tell(f"opening a trainer, then {groups:,} groups and a checkpoint")
        trainer = _measured("scale_trainer", settings, drawn | {"groups": groups, "start_ms": START_MS})
    facts = figures_of(users=users, history=history, items=items, cache_users=settings.state.cache_users)
    return facts | {"state_mb": size // MIB} | measured | {"trainer": trainer}


def _within(settings: Settings, folder: Path) -> Settings:
    """Settings whose worker and trainer work in a folder."""
    state = settings.state.model_copy(update={"root": folder / "state"})
    trainer = settings.trainer.model_copy(update={"root": folder / "trainer"})
    serving = settings.serving.model_copy(update={"snapshots": folder / "snapshots"})
    return settings.model_copy(update={"state": state, "trainer": trainer, "serving": serving})


def _measured(module: str, settings: Settings, asked: dict[str, int]) -> dict[str, Any]:
    """Figures of a process of its own. Raises BenchError if it fails."""
    command = [sys.executable, "-P", "-m", f"driftline.stream.bench.{module}", json.dumps(asked)]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, input=settings.model_dump_json(), env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise BenchError(f"the measured process ended with {done.returncode}; its messages above say why")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _write(settings: Settings, users: int, history: int, items: int) -> None:
    """User rows with histories up to START_MS; TEMPLATES different ones, as making each anew would take minutes."""
    random, keys = np.random.default_rng(0), np.array([key64(f"item-{n}") for n in range(items)], np.uint64)
    templates = [_rows(settings, keys, history, random) for _ in range(TEMPLATES)]
    store = RocksStore(partition_path(settings.state.root, 0), sync=False)
    store.commit({b"n:" + key64(f"item-{n}").to_bytes(8, "big"): f"item-{n}".encode() for n in range(items)})
    for start in range(0, users, USERS_AT_ONCE):
        puts = dict[bytes, bytes | None]()
        for number in range(start, min(start + USERS_AT_ONCE, users)):
            user_id, rows = _user(number).encode(), templates[number % TEMPLATES]
            puts |= {key.replace(_NOBODY, user_id): value.replace(_NOBODY, user_id) for key, value in rows.items()}
        store.commit(puts)
    store.close()


def _user(number: int) -> str:
    return f"user-{number:07d}"


def _rows(settings: Settings, keys: np.ndarray[Any, Any], n: int, random: np.random.Generator) -> dict[bytes, bytes]:
    """Keys and values of one user's row, whose id is _NOBODY."""
    vectors = random.standard_normal((2, settings.graph.memory_dim)).astype(np.float32)
    events = np.zeros(n, EVENT_DTYPE)
    events["item"], events["t"] = keys[random.integers(len(keys), size=n)], START_MS - EVERY_MS * np.arange(n, 0, -1)
    events["weight"], events["value"], events["price"], code = 1, 1, np.nan, action_code("view")
    events["action"], first_ms, last_ms = code, int(events["t"][0]), int(events["t"][-1])
    row = UserRow(
        _NOBODY.decode(), vectors[0], vectors[1], np.zeros(settings.graph.message_dim, np.float32),
        events=n, actions={code: n}, history=bytearray(events.tobytes()), first_ms=first_ms, last_update_ms=last_ms,
    )  # fmt: skip
    chunks = cut(row, settings.state.history)
    return {user_key(row.user_id): encode_user(row)} | {key: value for key, value in chunks.items() if value}


def measure(settings: Settings, users: int, items: int, events: int) -> dict[str, Any]:
    """Opens the partition and applies events; the process's own figures."""
    process, before = psutil.Process(), psutil.Process().memory_info().rss // MIB
    started = time.perf_counter()
    store = RocksStore(partition_path(settings.state.root, 0), settings.state.sync)
    processor = Processor(settings, store)
    open_s, opened = time.perf_counter() - started, process.memory_info().rss // MIB
    started, cpu, done = time.perf_counter(), time.process_time(), 0
    for epoch in _epochs(settings.state.epoch_events, users, items, events):
        processor.commit(processor.apply(epoch))
        done += len(epoch)
    figures = rate(done, time.perf_counter() - started, time.process_time() - cpu)
    store.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    memory = {"before_mb": before, "opened_mb": opened, "rss_mb": process.memory_info().rss // MIB, "peak_mb": peak}
    return {"open_s": round(open_s, 3), **memory, "events": figures}


def _epochs(size: int, users: int, items: int, events: int) -> Iterator[list[Record]]:
    random = np.random.default_rng(1)
    for start in range(0, events, size):
        n = min(size, events - start)
        drawn = zip(random.integers(users, size=n).tolist(), random.integers(items, size=n).tolist(), strict=True)
        found = [Event(_user(u), f"item-{i}", START_MS + start + k, "view") for k, (u, i) in enumerate(drawn)]
        yield [Record(start + k, encode_event(event), event.user_id.encode()) for k, event in enumerate(found)]


if __name__ == "__main__":
    print(json.dumps(measure(Settings.model_validate_json(sys.stdin.read()), **json.loads(sys.argv[1]))))
