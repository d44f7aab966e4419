"""Speeds of the single parts: the processor, the sequence model, the language model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.settings import Settings
from llm.client import make_client
from llm.encoder import TextEncoder
from llm.generator import ProfileGenerator
from llm.request import read_request
from model.sequence import SequenceLearner
from stream.bench_ingest import machine
from stream.bundled import EVENTS, ITEMS
from stream.evaluate.inputs import catalogue_of
from stream.evaluate.log import EventLog
from stream.files import read_columns, read_items, read_messages
from stream.processor import Processor, Record
from stream.revision import git_revision
from stream.store import MemoryStore, RocksStore, StateStore, state_sha256

TARGET_PER_S = 10_000
QUERIES = 200


def bench_graph(settings: Settings, events: int) -> dict[str, Any]:
    """The processor on the first events of the bundled shop, in epochs of `state.epoch_events`.

    Returns:
        Events a second in memory (as replay runs) and in RocksDB with its syncs (as a worker runs).
    """
    torch.set_num_threads(1)
    records = [Record(n, value, key) for n, (key, value) in enumerate(islice(read_messages(EVENTS), events))]
    figures = _figures(events=len(records), target_per_s=TARGET_PER_S)
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        on_disk = RocksStore(Path(folder) / "state", settings.state.sync)
        stores: dict[str, StateStore] = {"in_memory": MemoryStore(), "in_rocksdb": on_disk}
        for name, store in stores.items():
            processor = Processor(settings, store)
            started, cpu = time.perf_counter(), time.process_time()
            for start in range(0, len(records), settings.state.epoch_events):
                processor.commit(processor.apply(records[start : start + settings.state.epoch_events]))
            figures[name] = _rate(len(records), time.perf_counter() - started, time.process_time() - cpu)
            figures["state_sha256"] = state_sha256([store])
        on_disk.close()
    figures["target_met"] = figures["in_memory"]["per_s"] >= TARGET_PER_S
    return figures


def bench_hstu(settings: Settings, groups: int = 1500) -> dict[str, Any]:
    """Training on the first groups of the bundled shop, then single queries against all items."""
    torch.set_num_threads(1)
    log = EventLog(read_columns(EVENTS, 60_000), settings.action)
    learner = SequenceLearner(settings.model)
    started, cpu, rows = time.perf_counter(), time.process_time(), 0
    histories: dict[str, list[tuple[int, int]]] = {}
    groups = min(groups, log.groups)
    for group in map(log.group, range(groups)):
        learner.learn(group)
        rows += len(group.items)
        histories.setdefault(group.user_id, []).extend((int(item), group.t_ms) for item in group.items)
    figures = _figures(groups=groups, events=rows, optimiser_steps=learner.steps)
    figures["training"] = _rate(rows, time.perf_counter() - started, time.process_time() - cpu)
    longest = sorted(histories.values(), key=len, reverse=True)[:20]
    queries = [(np.array([i for i, _ in h], np.int64), np.array([t for _, t in h], np.int64)) for h in longest]
    figures["query_ms"] = _latencies(lambda n: _query(learner, *queries[n % len(queries)]))
    return figures


def bench_llm(settings: Settings, profiles: int) -> dict[str, Any]:
    """Profiles of customers of the bundled shop by the configured client, vectors included."""
    catalogue = catalogue_of(read_items(ITEMS))
    requests = [read_request(record, catalogue, settings.profiles) for record in _requests(settings, profiles)]
    generator = ProfileGenerator(make_client(settings.llm), settings.profiles, TextEncoder(settings.encoder))
    generator.generate(requests[:1])  # loads the weights
    generator.counts.clear()
    started, cpu = time.perf_counter(), time.process_time()
    written = []
    for start in range(0, len(requests), settings.profiles.batch):
        written += generator.generate(requests[start : start + settings.profiles.batch])
    seconds = time.perf_counter() - started
    figures = _figures(client=generator.source, profiles=len(written))
    figures |= _rate(len(written), seconds, time.process_time() - cpu)
    return figures | {"by": dict(sorted(generator.counts.items())), "example": written[-1].text}


def _requests(settings: Settings, n: int) -> list[bytes]:
    """The first requests that a processor makes on the bundled shop."""
    processor, made = Processor(settings, MemoryStore()), []
    for offset, (key, value) in enumerate(read_messages(EVENTS)):
        changes = processor.apply([Record(offset, value, key)])
        processor.commit(changes)
        made += [out.value for out in changes.outgoing if out.topic == "profile-requests"]
        if len(made) >= n:
            break
    return made[:n]


def _query(learner: SequenceLearner, items: Any, t_ms: Any) -> None:
    vector = learner.encode([(items, t_ms)], [int(t_ms[-1]) + 1000])[0]
    np.argpartition(-(learner.item_matrix() @ vector), 100)


def _latencies(call: Callable[[int], None]) -> dict[str, float]:
    times_ms = np.empty(QUERIES)
    for n in range(QUERIES):
        started = time.perf_counter()
        call(n)
        times_ms[n] = (time.perf_counter() - started) * 1000
    return {f"p{q}": round(float(np.percentile(times_ms, q)), 3) for q in (50, 99)}


def _figures(**facts: Any) -> dict[str, Any]:
    return {"machine": machine(), "commit": git_revision(), **facts}


def _rate(n: int, seconds: float, cpu_s: float) -> dict[str, Any]:
    return {"per_s": round(n / seconds, 2), "per_cpu_s": round(n / cpu_s, 2), "seconds": round(seconds, 3)}
