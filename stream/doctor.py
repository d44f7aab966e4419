"""What is installed, reachable and healthy, and what to do about what is not."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.errors import DriftlineError
from configs.load import MODEL_SECTIONS
from configs.settings import Broker, Settings

State = Literal["ok", "note", "bad"]
PACKAGES = (
    "torch", "faust-streaming", "aiokafka", "kafka-python", "rocksdict", "grpcio", "transformers", "noida-db",
)  # fmt: skip
LITTLE_DISK_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: ok, a note that needs nothing, or bad with a remedy."""

    part: str
    state: State
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order of the way of an event."""
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        _python, _packages, _disk, _broker, _state, _snapshots, _serving, _models, _llm,
    )  # fmt: skip
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check(settings)
        except DriftlineError as error:
            findings.append(Finding(check.__name__.strip("_"), "bad", str(error)))
    return findings


def _python(settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info[:2] == (3, 11)
    yield Finding("python", "ok" if good else "bad", version, "" if good else "use Python 3.11")
    cores = len(os.sched_getaffinity(0))
    remedy = "" if cores > 1 else "worker, trainer and serving want a core each"
    yield Finding("cores", "ok" if cores > 1 else "note", str(cores), remedy)


def _packages(settings: Settings) -> Iterator[Finding]:
    missing = []
    for name in PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("packages", "bad", f"missing: {', '.join(missing)}", "make setup")
    else:
        yield Finding("packages", "ok", f"{len(PACKAGES)} found")
    if (Path(__file__).parents[1] / "tests" / "graph" / "__init__.py").exists():
        yield Finding("packages", "bad", "tests/graph/__init__.py shadows the graph package", "delete that file")


def _disk(settings: Settings) -> Iterator[Finding]:
    root = settings.state.root.absolute()
    while not root.exists():
        root = root.parent
    free = shutil.disk_usage(root).free
    enough, writable = free > LITTLE_DISK_BYTES, os.access(root, os.W_OK)
    yield Finding(
        "disk", "ok" if enough and writable else "bad", f"{free / 1e9:.1f} GB free in {root}",
        "" if enough and writable else "make room, or set state.root to a directory that can be written",
    )  # fmt: skip


def _broker(settings: Settings) -> Iterator[Finding]:
    from stream.broker import EmbeddedBroker

    if settings.broker.bootstrap:
        yield from _topics(settings.broker, settings.broker.bootstrap, f"answers at {settings.broker.bootstrap}")
        return
    running = EmbeddedBroker(settings.broker).running()
    if running is not None:
        what = f"embedded, runs on port {running.port} (process {running.pid})"
        yield from _topics(settings.broker, f"127.0.0.1:{running.port}", what)
    elif _listens(settings.broker.embedded_port):
        yield Finding(
            "broker", "bad", f"port {settings.broker.embedded_port} is taken by another process",
            "set broker.embedded_port to a free port, or broker.bootstrap to that broker",
        )  # fmt: skip
    elif EmbeddedBroker(settings.broker).orphaned():
        yield Finding(
            "broker", "bad", "embedded, gone while processes use it", "end them and start them again; see broker.log"
        )
    else:
        yield Finding("broker", "note", "embedded, not running", "every command that needs it starts it")


def _topics(broker: Broker, bootstrap: str, what: str) -> Iterator[Finding]:
    from stream.broker import admin
    from stream.topics import TOPICS

    with admin(broker, bootstrap) as client:
        yield Finding("broker", "ok", what)
        existing = set(client.list_topics())
    missing = [t.name for t in TOPICS if broker.prefix + t.name not in existing]
    yield (
        Finding("topics", "note", f"missing: {', '.join(missing)}", "produce and worker create them")
        if missing
        else Finding("topics", "ok", f"{len(TOPICS)} found")
    )


def _state(settings: Settings) -> Iterator[Finding]:
    from stream.layout import differences, read_layout, unusable
    from stream.live_state import count_too_late

    root = settings.state.root
    partitions = sorted(root.glob("partition-*"))
    if not partitions:
        yield Finding("state", "note", f"none in {root} yet", "`driftline worker` makes it from the topic")
        return
    yield Finding("state", "ok", f"{len(partitions)} partitions in {root}")
    made_with = read_layout(root)
    if misfit := unusable(settings, made_with):
        yield Finding("state", "bad", misfit, "start the worker with the settings that the state was made with")
    elif changed := differences(settings, made_with):
        yield Finding("state", "note", changed)
    if too_late := count_too_late(root):
        yield Finding(
            "late events", "note", f"{too_late:,} so far came too late: they are counted, but changed no state",
            "produce history in order of time, before what is newer; state.late_ms says how late an event may be",
        )  # fmt: skip


def _snapshots(settings: Settings) -> Iterator[Finding]:
    from serving.snapshot import current, fits, open_snapshot

    root = settings.serving.snapshots
    pointer = current(root)
    if pointer is None:
        yield Finding("snapshots", "note", f"none in {root} yet", "`driftline trainer` publishes them")
        return
    snapshot = open_snapshot(root)
    held = ", held" if pointer.held else ""
    yield Finding("snapshots", "ok", f"{snapshot.version} is current{held}; its sums hold")
    if not fits(snapshot.meta, settings):
        yield Finding(
            "snapshots", "bad", f"{snapshot.version} was trained with other {', '.join(MODEL_SECTIONS)} than these",
            "start trainer and serve with the same --config; serve refuses it with this one",
        )  # fmt: skip


def _serving(settings: Settings) -> Iterator[Finding]:
    port = settings.serving.port
    if port and _listens(port):
        yield Finding("serving", "ok", f"listens on port {port}")
    else:
        yield Finding("serving", "note", f"nothing listens on port {port}", "`driftline serve` starts it")


def _models(settings: Settings) -> Iterator[Finding]:
    from llm.fetch import MINILM, SMOLLM, model_directory

    needed = [SMOLLM, MINILM] if settings.llm.client == "smollm" else [MINILM]
    for name in needed:
        try:
            yield Finding("models", "ok", f"{name} in {model_directory(name)}")
        except DriftlineError as error:
            yield Finding("models", "bad", str(error), "make setup")


def _llm(settings: Settings) -> Iterator[Finding]:
    from llm.openai import OpenAIClient

    if settings.llm.client != "openai":
        return
    client = OpenAIClient(settings.llm)
    try:
        yield Finding("llm", "ok", client.check())
    finally:
        client.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
