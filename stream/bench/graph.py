"""How fast state is made of events: the whole processor, and the graph's memories beside PyG's TGN."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch

from driftline.configs.settings import Settings
from driftline.stream.bench.parts import figures_of, rate
from driftline.stream.bench.peer import beside_pyg, wrong_last_k
from driftline.stream.bundled import EVENTS
from driftline.stream.events.files import read_messages
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import MemoryStore, RocksStore, StateStore, state_sha256

TARGETS = {"in_memory": 60_000, "in_rocksdb": 40_000}
"""Events a second on two idle cores."""
START_MS, EVERY_MS = 1_600_000_000_000, 400
LATE_SHARE, LATE_MS = 0.1, 50 * 60_000


def bench_graph(settings: Settings, events: int) -> dict[str, Any]:
    """The processor on the first events of the bundled shop, in epochs of `state.epoch_events`, and the graph alone.

    Returns:
        Events a second in memory (as replay runs) and in RocksDB with its syncs (as a worker runs); in RocksDB also
        those of logs with times of their own, in order and not. Then those of the graph's memories beside PyG's, see
        `stream.bench.peer`.
    """
    torch.set_num_threads(1)
    messages = list(islice(read_messages(EVENTS), events))
    figures = figures_of(events=len(messages), target_per_s=TARGETS)
    records = [Record(n, value, key) for n, (key, value) in enumerate(messages)]
    for name in ("in_memory", "in_rocksdb"):
        figures[name], figures["state_sha256"] = _applied(settings, records, name == "in_rocksdb")
    figures["target_met"] = all(figures[name]["per_s"] >= target for name, target in TARGETS.items())
    for name, log in _disordered(messages).items():
        figures[name], figures[f"{name}_state_sha256"] = _applied(settings, log, True)
    return figures | beside_pyg(settings.graph, events) | {"wrong_last_k": wrong_last_k(settings, events // 2)}


def _applied(settings: Settings, records: list[Record], on_disk: bool) -> tuple[dict[str, Any], str]:
    """Rate and state_sha256 of a log in epochs as a worker that is behind takes them."""
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder, ExitStack() as stack:
        store: StateStore = MemoryStore()
        if on_disk:
            store = RocksStore(Path(folder) / "state", settings.state.sync)
            stack.callback(store.close)
        processor, done, counts = Processor(settings, store), 0, Counter[str]()
        started, cpu = time.perf_counter(), time.process_time()
        while done < len(records):
            changes = processor.apply(records[done : (done := done + processor.room)])
            processor.commit(changes)
            counts.update({"late": changes.late, "too_late": changes.too_late, "again": changes.again})
        figures = rate(len(records), time.perf_counter() - started, time.process_time() - cpu)
        return figures | {name: n for name, n in counts.items() if n}, state_sha256([store])


def _disordered(messages: list[tuple[bytes, bytes]]) -> dict[str, list[Record]]:
    """Logs of the same events, EVERY_MS apart where baskets are: in order, one in ten LATE_MS late, and backwards."""
    events = [orjson.loads(value) for _, value in messages]
    times: list[int] = []
    for n, event in enumerate(events):
        same = n > 0 and all(event.get(name) == events[n - 1].get(name) for name in ("user_id", "timestamp_ms"))
        times.append(times[-1] if same else START_MS + EVERY_MS * n)
    rng = np.random.default_rng(0)
    slow = np.array(times) + np.where(rng.random(len(times)) < LATE_SHARE, LATE_MS, 0)
    arrivals = {
        "ordered": [(n, times[n]) for n in range(len(times))],
        "tenth_late": [(n, times[n]) for n in np.argsort(slow, kind="stable").tolist()],
        "backwards": [(n, START_MS - (times[n] - START_MS) // 100) for n in range(len(times))],
    }
    return {
        name: [
            Record(offset, orjson.dumps(events[n] | {"timestamp_ms": t_ms}), messages[n][0])
            for offset, (n, t_ms) in enumerate(arrival)
        ]
        for name, arrival in arrivals.items()
    }
