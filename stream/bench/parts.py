"""Speeds of the single parts: the language model; what all benches say of themselves."""

from __future__ import annotations

import time
from typing import Any

from driftline.configs.settings import Settings
from driftline.llm.clients import make_client
from driftline.llm.encoder import TextEncoder
from driftline.llm.generator import ProfileGenerator
from driftline.llm.request import read_request
from driftline.stream.bench.ingest import machine
from driftline.stream.bundled import EVENTS, ITEMS
from driftline.stream.events.files import read_items, read_messages
from driftline.stream.ops.revision import git_revision
from driftline.stream.process.processor import Processor, Record
from driftline.stream.replay.inputs import catalogue_of
from driftline.stream.state.store import MemoryStore


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
    figures = figures_of(client=generator.source, profiles=len(written))
    figures |= rate(len(written), seconds, time.process_time() - cpu)
    return figures | {"by": dict(sorted(generator.counts.items())), "example": written[-1].text}


def _requests(settings: Settings, n: int) -> list[bytes]:
    """The first requests that a processor makes on the bundled shop."""
    processor, made = Processor(settings, MemoryStore()), []
    for offset, (key, value) in enumerate(read_messages(EVENTS)):
        changes = processor.apply([Record(offset, value, key)])
        processor.commit(changes)
        made += [out.value for out in changes.outgoing if out.topic == "profile-requests" and out.value]
        if len(made) >= n:
            break
    return made[:n]


def figures_of(**facts: Any) -> dict[str, Any]:
    """The facts behind the machine and the commit that they were measured on."""
    return {"machine": machine(), "commit": git_revision(), **facts}


def rate(n: int, seconds: float, cpu_s: float) -> dict[str, Any]:
    """So many things in a time, by the clock and by the processor."""
    return {"per_s": round(n / seconds, 2), "per_cpu_s": round(n / cpu_s, 2), "seconds": round(seconds, 3)}
