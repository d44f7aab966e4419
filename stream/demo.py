"""`make demo`: the main job end to end on the bundled shop, every part a process of its own.

    1 start broker, worker, trainer, profiler, serve     4 stream the last two weeks, paced, and watch
    2 load the history in bulk                           5 one customer buys something: before and after
    3 wait until all of it is applied and learnt         6 stop everything in order, sum up

Latencies are measured from outside, over Kafka and gRPC, in the paced part alone.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import orjson
import psutil
from kafka import KafkaProducer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from configs.errors import DriftlineError
from configs.load import load
from configs.settings import Settings
from graph.rows import Event
from serving.proto.driftline.v1 import recommendation_pb2 as pb
from serving.proto.driftline.v1 import recommendation_pb2_grpc as pb_grpc
from serving.publish import release, rollback
from stream.broker import EmbeddedBroker
from stream.events import EVENT_TYPE, encode_event
from stream.files import read_columns
from stream.produce import event_messages
from stream.reading import read_all
from stream.topics import CE_TYPE, create_topics

BUNDLED = Path(__file__).parent / "bundled"
ROOT = Path(".driftline/demo")
LOGS = ROOT / "logs"
PARTS = ("worker", "trainer", "profiler", "serve")
PACED_MS = 14 * 86_400_000
BULK_LIMIT_S = 900
MEMORY_EVERY_S = 5.0
STOP_S = 60


class DemoError(DriftlineError):
    """A part of the demo failed."""


@dataclass(slots=True)
class Measured:
    """Latencies of the paced part."""

    event_to_state_ms: list[float] = field(default_factory=list)
    event_to_snapshot_s: list[float] = field(default_factory=list)
    recommend_ms: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Sent:
    """The newest event that the broker has acknowledged."""

    user_id: str = ""
    t_ms: int = 0
    offset: int = -1
    at_s: float = 0.0


class Demo:
    """One run.

    Args:
        console: where people look; stdout stays free for `--json`.
        seconds: wall time of the paced part.
    """

    def __init__(self, console: Console, seconds: float) -> None:
        self.console, self.seconds = console, seconds
        self.settings = demo_settings()
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self.measured, self.sent = Measured(), Sent()
        self.started_s = time.monotonic()
        self.resident_bytes, self._memory_s = 0, 0.0
        address = f"{self.settings.serving.host}:{self.settings.serving.port}"
        self.stub: Any = pb_grpc.RecommendationServiceStub(grpc.insecure_channel(address))  # type: ignore[no-untyped-call]

    # -- 1 start -----------------------------------------------------------------------------------------------

    def start(self, bootstrap: str) -> None:
        """Starts every part, each with a log of its own."""
        for part in PARTS:
            self.parts[part] = self._run(part, bootstrap, [], 10 if part == "profiler" else 0)

    def _run(self, command: str, bootstrap: str, options: list[str], nice: int = 0) -> subprocess.Popen[bytes]:
        LOGS.mkdir(parents=True, exist_ok=True)
        line = ["nice", "-n", str(nice), sys.executable, "-m", "stream.cli", command, "--config", "ecommerce", *options]
        env = {**os.environ, **environment(bootstrap)}
        with (LOGS / f"{command}.log").open("wb") as log:
            return subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, env=env)

    def check(self) -> None:
        """Raises DemoError if a part has ended."""
        for part, process in self.parts.items():
            code = process.poll()
            if code is not None:
                log = LOGS / f"{part}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
                raise DemoError(f"{part} ended with exit code {code}; the end of {log}:\n{tail}")
        self._measure_memory()

    def stop(self) -> None:
        """Ends every part in order."""
        for process in self.parts.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for part, process in self.parts.items():
            try:
                code = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                raise DemoError(f"{part} did not end within {STOP_S} s of SIGTERM") from None
            if code not in (0, -signal.SIGTERM):
                raise DemoError(f"{part} ended with exit code {code} when it was asked to stop")

    def kill(self) -> None:
        """Ends whatever still runs, at once."""
        for process in self.parts.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    # -- 2, 3 bulk ---------------------------------------------------------------------------------------------

    def load(self, bootstrap: str, until_ms: int, total: int) -> None:
        """Produces the history, by `driftline produce` as a user would, and waits until it is applied and learnt."""
        options = ["--events", str(BUNDLED / "events.parquet"), "--items", str(BUNDLED / "items.parquet")]
        produce = self._run("produce", bootstrap, [*options, "--until", str(until_ms)])
        columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            tasks = [progress.add_task(name, total=total) for name in ("history applied to state", "history learnt")]
            deadline = time.monotonic() + BULK_LIMIT_S
            while self._show_positions(progress, tasks) < total:
                self.check()
                if produce.poll() not in (None, 0):
                    raise DemoError(f"driftline produce ended with exit code {produce.poll()}; see {LOGS}")
                if time.monotonic() > deadline:
                    raise DemoError(f"the history was not learnt within {BULK_LIMIT_S} s; see {LOGS}")
                time.sleep(0.5)

    def _show_positions(self, progress: Progress, tasks: list[Any]) -> int:
        applied, learnt = self.applied(), self.learnt()
        progress.update(tasks[0], completed=applied)
        progress.update(tasks[1], completed=learnt)
        return min(applied, learnt)

    def applied(self) -> int:
        """Next offset of the state, 0 while serving can't read it."""
        try:
            answer = self.stub.GetUserState(pb.GetUserStateRequest(user_id="?", history_limit=1), timeout=5)
        except grpc.RpcError:
            return 0
        return int(answer.user_state.freshness.store_offset)

    def learnt(self) -> int:
        """Next offset that the serving model has not learnt from."""
        try:
            info = self.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=5)
        except grpc.RpcError:
            return 0
        return int(sum(source.offset for source in info.source_offsets))

    # -- 4 paced -----------------------------------------------------------------------------------------------

    def stream(self, bootstrap: str, messages: list[tuple[bytes | None, bytes]]) -> None:
        """Produces the last events evenly over `seconds`, with live figures and probes from outside."""
        producer = KafkaProducer(
            bootstrap_servers=bootstrap.split(","), acks="all", linger_ms=1, compression_type="gzip"
        )
        done = threading.Event()
        probes = [threading.Thread(target=probe, args=(done,)) for probe in (self._probe_state, self._probe_model)]
        for thread in probes:
            thread.start()
        started, topic = time.monotonic(), self.settings.broker.prefix + "interactions"
        try:
            with Live(self._picture(0, len(messages)), console=self.console, refresh_per_second=2) as live:
                for n, (key, value) in enumerate(messages):
                    wait = started + self.seconds * n / len(messages) - time.monotonic()
                    if wait > 0:
                        time.sleep(wait)
                    self._send(producer, topic, key, value)
                    if n % 100 == 0:
                        self.check()
                        live.update(self._picture(n, len(messages)))
                producer.flush()
                last, deadline = self.sent.offset, time.monotonic() + 60
                while self.learnt() <= last and time.monotonic() < deadline:
                    live.update(self._picture(len(messages), len(messages)))
                    self.check()
                    time.sleep(0.3)
        finally:
            done.set()
            for thread in probes:
                thread.join()
            producer.close()

    def _send(self, producer: Any, topic: str, key: bytes | None, value: bytes) -> None:
        at_s = time.monotonic()

        def acknowledged(metadata: Any) -> None:
            data = orjson.loads(value)
            self.sent = Sent(data["user_id"], data["timestamp_ms"], metadata.offset, at_s)

        producer.send(topic, key=key, value=value, headers=[(CE_TYPE, EVENT_TYPE.encode())]).add_callback(acknowledged)

    def _probe_state(self, done: threading.Event) -> None:
        """How long until an event's user shows it, each event once; and how long a recommendation takes."""
        seen = -1
        while not done.wait(0.25):
            sent = self.sent
            if sent.offset <= seen:
                continue
            seen = sent.offset
            while not done.is_set():
                request = pb.GetUserStateRequest(user_id=sent.user_id, history_limit=1)
                version = self.stub.GetUserState(request, timeout=5).provenance.user_state_version
                if version > sent.offset:
                    self.measured.event_to_state_ms.append((time.monotonic() - sent.at_s) * 1000)
                    break
                time.sleep(0.005)
            for _ in range(3):
                options = pb.SlateOptions(request_time_ms=sent.t_ms + 1000, k=10)
                before = time.perf_counter()
                self.stub.Recommend(pb.RecommendRequest(user_id=sent.user_id, options=options), timeout=5)
                self.measured.recommend_ms.append((time.perf_counter() - before) * 1000)

    def _probe_model(self, done: threading.Event) -> None:
        """How long until a serving model has learnt an event."""
        waiting: list[Sent] = []
        while not done.wait(0.1):
            if self.sent.offset >= 0 and (not waiting or self.sent.offset > waiting[-1].offset):
                waiting.append(self.sent)
            learnt, now = self.learnt(), time.monotonic()
            while waiting and waiting[0].offset < learnt:
                self.measured.event_to_snapshot_s.append(now - waiting.pop(0).at_s)

    def _picture(self, n: int, total: int) -> Table:
        table = Table(title=f"the last two weeks, {n:,} of {total:,} events", min_width=86)
        table.add_column("what")
        table.add_column("now")
        info = self.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=5)
        table.add_row("events applied, lag", f"{self.applied():,}, {max(0, self.sent.offset + 1 - self.applied()):,}")
        metric = {m.name: m.value for m in info.metrics}.get("ndcg@10", float("nan"))
        table.add_row("model", f"{info.provenance.model_version}, prequential NDCG@10 {metric:.3f}")
        if self.sent.offset >= 0:
            state = self._state(self.sent.user_id, self.sent.t_ms).user_state
            table.add_row(f"customer {state.user_id}", f"{state.counters.events} events, {state.domain}")
            latest = ", ".join(t.title() for t in state.history.titles[:3])
            table.add_row("  bought last", latest)
            table.add_row("  profile", f"{state.profile.text or 'none yet'} [dim]{state.profile.source}[/dim]")
            answer = self._recommend(self.sent.user_id, self.sent.t_ms + 1000)
            table.add_row("  should see next", ", ".join(t.title() for t in answer.slate.titles[:4]))
        return table

    # -- 5 before and after ------------------------------------------------------------------------------------

    def buy(self, bootstrap: str, now_ms: int) -> dict[str, Any]:
        """One customer buys the new product that comes first on the list; what is recommended before and after.

        The serving model is held for the moment, so that nothing but the purchase lies between the two answers.
        """
        user_id = self._customer(bootstrap)
        snapshots = self.settings.serving.snapshots
        version = self.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=5).provenance.model_version
        rollback(snapshots, version)
        try:
            before = self._recommend(user_id, now_ms)
            bought = self._recommend(user_id, now_ms, pb.SLATE_LIST_NOVEL).slate.item_ids[0]
            event = Event(user_id, bought, now_ms - 60_000, "purchase", None, 1.0, None, "demo-basket")
            producer = KafkaProducer(bootstrap_servers=bootstrap.split(","), acks="all")
            topic = self.settings.broker.prefix + "interactions"
            sent = producer.send(topic, key=user_id.encode(), value=encode_event(event)).get(10)
            producer.close()
            deadline = time.monotonic() + 10
            while self._state(user_id, now_ms).provenance.user_state_version <= sent.offset:
                if time.monotonic() > deadline:
                    raise DemoError(f"the purchase of {user_id} did not reach the state within 10 s")
                time.sleep(0.01)
            after = self._recommend(user_id, now_ms)
        finally:
            release(snapshots)
        if before.provenance.model_version != after.provenance.model_version:
            raise DemoError("the model changed between the two answers although it was held")
        profile = self._state(user_id, now_ms).user_state.profile
        self._show_purchase(user_id, bought, before, after, profile)
        return {
            "user": user_id,
            "bought": bought,
            "profile": {
                "text": profile.text,
                "facets": {facet.name: facet.text for facet in profile.facets},
                "source": profile.source,
                "version": profile.version,
                "valid_from_ms": profile.valid_from_ms,
            },
            "model_version": before.provenance.model_version,
            "request_time_ms": before.provenance.request_time_ms,
            "recommendations_before": list(before.slate.item_ids),
            "recommendations_after": list(after.slate.item_ids),
        }

    def _customer(self, bootstrap: str) -> str:
        """The most active customer with a profile by a language model, else with any."""
        profiles = [orjson.loads(record.value) for record in read_all(self.settings.broker, bootstrap, "profiles.log")]
        by_model = [p for p in profiles if p["source"] != "template"] or profiles
        if not by_model:
            raise DemoError(f"no profile was written; see {LOGS / 'profiler.log'}")
        users = dict.fromkeys(p["user_id"] for p in by_model)
        most: str = max(users, key=lambda user: int(self._state(user, 0).user_state.counters.events))
        return most

    def _state(self, user_id: str, now_ms: int) -> Any:
        request = pb.GetUserStateRequest(user_id=user_id, request_time_ms=now_ms, history_limit=3)
        return self.stub.GetUserState(request, timeout=5)

    def _recommend(self, user_id: str, now_ms: int, which: Any = pb.SLATE_LIST_OVERALL) -> Any:
        options = pb.SlateOptions(request_time_ms=now_ms, k=10, list=which)
        return self.stub.Recommend(pb.RecommendRequest(user_id=user_id, options=options), timeout=5)

    def _show_purchase(self, user_id: str, bought: str, before: Any, after: Any, profile: Any) -> None:
        title = dict(zip(after.slate.item_ids, after.slate.titles, strict=True)).get(bought, bought)
        table = Table(title=f"customer {user_id} buys {title.title()}", caption=f"{profile.text} ({profile.source})")
        table.add_column("")
        table.add_column("recommended before")
        table.add_column("recommended after")
        old = set(before.slate.item_ids)
        for n, (a, b) in enumerate(zip(before.slate.titles, after.slate.titles, strict=False), 1):
            new = after.slate.item_ids[n - 1] not in old
            table.add_row(str(n), a.title(), f"[green]{b.title()}[/green]" if new else b.title())
        self.console.print(table)

    # -- 6 summary ---------------------------------------------------------------------------------------------

    def summary(self, bootstrap: str, purchase: Mapping[str, Any]) -> dict[str, Any]:
        """The figures of the run."""
        broker = self.settings.broker
        profiles = [orjson.loads(record.value)["source"] for record in read_all(broker, bootstrap, "profiles.log")]
        metrics = self.settings.metrics
        return {
            "events_applied": counter(metrics.worker_port, 'driftline_events_total{outcome="applied"}'),
            "dlq": sum(1 for _ in read_all(broker, bootstrap, "interactions.dlq")),
            "snapshots": counter(metrics.serving_port, r"driftline_serving_swaps_total"),
            "profiles": len(profiles),
            "llm_profiles": sum(source != "template" for source in profiles),
            "event_to_state_ms": percentiles(self.measured.event_to_state_ms),
            "event_to_snapshot_s": percentiles(self.measured.event_to_snapshot_s),
            "recommend_ms": percentiles(self.measured.recommend_ms),
            "resident_mb": round(self.resident_bytes / 1e6),
            "seconds": round(time.monotonic() - self.started_s, 1),
            **purchase,
        }

    def show(self, figures: Mapping[str, Any]) -> None:
        """The summary as a table."""
        table = Table(title="summary", show_header=False)
        for name, value in figures.items():
            if isinstance(value, int | float):
                table.add_row(name.replace("_", " "), f"{value:,}")
            elif isinstance(value, dict) and "p50" in value:
                table.add_row(name.replace("_", " "), f"p50 {value['p50']}, p99 {value['p99']}")
        self.console.print(table)

    def _measure_memory(self) -> None:
        """Notes the most that all processes together hold: a page that several share counts once, in parts."""
        if time.monotonic() - self._memory_s < MEMORY_EVERY_S:
            return
        self._memory_s = time.monotonic()
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True), *self._broker_process()]:
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        self.resident_bytes = max(self.resident_bytes, total)

    def _broker_process(self) -> list[psutil.Process]:
        running = EmbeddedBroker(self.settings.broker).running()
        process = running.process() if running is not None else None
        return [process] if process is not None else []


def run_demo(keep: bool, seconds: float) -> dict[str, Any]:
    """Runs the demo; returns its figures.

    Raises:
        DemoError: a part failed, or the figures are not those of a working engine.
    """
    console = Console(stderr=True, highlight=False)
    shutil.rmtree(ROOT, ignore_errors=True)
    demo = Demo(console, seconds)
    times = read_columns(BUNDLED / "events.parquet").t_ms
    last_ms = int(times.max())
    history = int((times < last_ms - PACED_MS).sum())
    with ExitStack() as stack:
        bootstrap = stack.enter_context(EmbeddedBroker(demo.settings.broker))
        create_topics(demo.settings.broker, bootstrap)
        stack.callback(demo.kill)
        demo.start(bootstrap)
        demo.load(bootstrap, last_ms - PACED_MS, history)
        demo.stream(bootstrap, list(event_messages(BUNDLED / "events.parquet", last_ms - PACED_MS)))
        purchase = demo.buy(bootstrap, last_ms + 3_600_000)
        figures = demo.summary(bootstrap, purchase)
        demo.show(figures)
        check_figures(figures, len(times) + 1)
        if keep:
            wait_for_interrupt(console, demo.settings)
        demo.stop()
    return figures


def demo_settings() -> Settings:
    """The e-commerce preset with folders and ports of the demo's own."""
    return load("ecommerce", OVERRIDES).settings


def environment(bootstrap: str) -> dict[str, str]:
    """Environment of the parts: the demo's settings and one thread for each library."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**OVERRIDES, **threads, "DRIFTLINE__BROKER__BOOTSTRAP": bootstrap}


OVERRIDES = {
    f"DRIFTLINE__{name}": str(value)
    for name, value in {
        "BROKER__EMBEDDED_DIR": ROOT / "broker",
        "BROKER__EMBEDDED_PORT": 19392,
        "STATE__ROOT": ROOT / "state",
        "TRAINER__ROOT": ROOT / "trainer",
        "SERVING__SNAPSHOTS": ROOT / "snapshots",
        "SERVING__PORT": 50651,
        "METRICS__WORKER_PORT": 19393,
        "METRICS__SERVING_PORT": 19394,
        "TRAINER__CHECKPOINT_S": 3600,  # a run of minutes needs none but the last
        "TRAINER__PUBLISH_EVENTS": 1_000_000,  # by time alone
        "TRAINER__CATCH_UP_SHARE": 0.05,
        "PROFILES__MAX_PER_MINUTE": 40,
        "PROFILES__BATCH": 4,
    }.items()
}


def percentiles(values: list[float]) -> dict[str, float]:
    """The median and the 99th percentile."""
    if not values:
        return {"p50": float("nan"), "p99": float("nan")}
    return {f"p{q}": round(float(np.percentile(values, q)), 2) for q in (50, 99)}


def counter(port: int, name: str) -> int:
    """A counter of a part's `/metrics`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else 0


def check_figures(figures: Mapping[str, Any], events: int) -> None:
    """Raises DemoError if something did not happen that must."""
    facts = {
        f"all {events:,} events were applied": figures["events_applied"] == events,
        "no event went to the dead-letter topic": figures["dlq"] == 0,
        "serving adopted several snapshots": figures["snapshots"] >= 2,
        "a language model wrote profiles": figures["llm_profiles"] >= 1,
        "the purchase changed the recommendations": figures["recommendations_before"]
        != figures["recommendations_after"],
        "ten items were recommended": len(figures["recommendations_after"]) == 10,
        "latencies were measured": all(
            np.isfinite(figures[name]["p99"]) for name in ("event_to_state_ms", "event_to_snapshot_s", "recommend_ms")
        ),
    }
    failed = [fact for fact, holds in facts.items() if not holds]
    if failed:
        raise DemoError(f"expected that {'; that '.join(failed)}; the figures are {dict(figures)}")


def wait_for_interrupt(console: Console, settings: Settings) -> None:
    """Leaves everything running until Ctrl-C, and says how to ask."""
    exports = [f"{name}={value}" for name, value in OVERRIDES.items() if "PORT" in name or "ROOT" in name]
    console.print(
        "everything keeps running; in another terminal:\n"
        f"  export {' '.join(exports)}\n"
        "  driftline query user 17841\n  driftline recommend 17841 -k 5\n  driftline similar 85123A\n"
        "Ctrl-C ends it."
    )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.print("ending")
