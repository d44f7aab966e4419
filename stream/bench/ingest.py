"""How fast events are taken in: worker and backfill, broker to committed state, beside a peer in the same run.

Each is a process of its own on the same records, with a new state; the backfill is `driftline backfill`. The peer is a
plain Faust agent on raw bytes that does nothing (`async for`). What the worker loses to it is ours, what it wins is the
blocks of `stream/kafka/consumer.py`. All are timed from their first event to their last; starting up is not counted.
All events lie there before: it is a backlog, which a worker takes in epochs of `state.epoch_events`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import yaml

from driftline.configs.addresses import free_port
from driftline.configs.errors import DriftlineError
from driftline.configs.keys import SECRETS
from driftline.configs.load import load_settings
from driftline.configs.settings import Broker, Settings
from driftline.stream.bundled import EVENTS
from driftline.stream.events.files import read_messages
from driftline.stream.events.produce import sender
from driftline.stream.events.topics import TOPICS, create_topics
from driftline.stream.kafka.broker import admin, broker
from driftline.stream.kafka.consumer import credentials
from driftline.stream.ops.revision import git_revision
from driftline.stream.ops.scrape import scraped

LONGEST_S = 300.0
TARGETS = {"worker": 15_000, "direct": 30_000}
"""Events a second of wall time on two idle cores, from Apache Kafka."""
STDERR = 2
"""Where a measured process writes what is not its result: Faust moves the cursor even where nobody looks."""
RESULT = b'{"seconds"'
Tell = Callable[[str], None]


class BenchError(DriftlineError):
    """A measured process ended early."""


def bench_ingest(settings: Settings, events: int = 100_000, tell: Tell = lambda text: None) -> dict[str, Any]:
    """Produces the first events of the bundled shop, then times backfill, worker and peer one after the other.

    Args:
        settings: the worker's; directories and ports are the bench's own, and on a broker of yours (`broker.bootstrap`)
            the topics, which are deleted at the end.
        events: how many.
        tell: is given a line for each step.

    Returns:
        Rates in events a second of wall time and of processor time, ready for JSON.
    """
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as folder:
        own = _own(settings, Path(folder))
        with broker(own.broker) as bootstrap, _without_topics_at_the_end(own.broker, bootstrap):
            tell(f"producing {events:,} events")
            create_topics(own.broker, bootstrap)
            with sender(own.broker, bootstrap) as to_kafka:
                sent = to_kafka.send("interactions", islice(read_messages(EVENTS), events))
            tell("timing the backfill")
            direct = _time_backfill(own, bootstrap, Path(folder))
            tell("timing the worker")
            worker = _time_worker(own, bootstrap, Path(folder), sent.records)
            tell("timing an empty Faust agent")
            peer = _time_peer(own, bootstrap, Path(folder), sent.records)
    return {
        "machine": machine(),
        "commit": git_revision(),
        "events": sent.records,
        "produce": {"per_s": round(sent.per_s)},
        "direct": direct,
        "worker": worker,
        "empty_faust_agent": peer,
        "target_per_s": TARGETS,
        "target_met": worker["per_s"] >= TARGETS["worker"] and direct["per_s"] >= TARGETS["direct"],
    }


def _own(settings: Settings, folder: Path) -> Settings:
    data = settings.model_dump(mode="json")
    data["broker"] |= {"embedded_dir": folder / "broker", "embedded_port": free_port()}
    data["broker"] |= {"prefix": f"bench-{uuid.uuid4().hex[:8]}.", "partitions": 1, "replication": 1}
    data["state"]["root"] = folder / "state"
    data["metrics"] |= {"worker_port": free_port()}
    return Settings.model_validate(data)


def _time_worker(settings: Settings, bootstrap: str, folder: Path, events: int) -> dict[str, Any]:
    command, port = ["-m", "driftline.stream.worker", _config(settings, folder)], settings.metrics.worker_port
    with _process(command, _at(settings, bootstrap)) as process:
        first = _until(process, lambda: _applied(port))
        started, cpu = time.perf_counter(), _cpu_s(process)
        _until(process, lambda: _applied(port) == events)
        return _rates(events - first, time.perf_counter() - started, _cpu_s(process) - cpu)


def _time_backfill(settings: Settings, bootstrap: str, folder: Path) -> dict[str, Any]:
    environment = _at(settings, bootstrap) | {"DRIFTLINE__STATE__ROOT": str(folder / "direct")}
    command = ["-m", "driftline.stream.cli", "backfill", "--json", "--config", _config(settings, folder)]
    with _process(command, environment, subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=LONGEST_S)
    if process.returncode:
        raise BenchError(f"the backfill ended with {process.returncode}; its messages above say why")
    told = json.loads(out)
    return _rates(told["records"], told["seconds"], told["cpu_s"])


def _at(settings: Settings, bootstrap: str) -> dict[str, str]:
    password = settings.broker.sasl_password
    secret = {"DRIFTLINE__BROKER__SASL_PASSWORD": password} if password else {}
    return {"DRIFTLINE__BROKER__BOOTSTRAP": bootstrap} | secret


def _config(settings: Settings, folder: Path) -> str:
    """A file of the settings, without what is secret: that comes by the environment."""
    config = folder / "settings.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json", exclude=SECRETS)))
    return str(config)


def _time_peer(settings: Settings, bootstrap: str, folder: Path, events: int) -> dict[str, Any]:
    command = ["-m", "driftline.stream.bench.ingest", _config(settings, folder), str(events)]
    environment = _at(settings, bootstrap) | {"TMPDIR": str(folder)}
    with _process(command, environment, subprocess.PIPE) as process:
        for line in process.stdout or ():
            if (at := line.find(RESULT)) >= 0:  # Faust may have moved the cursor on the same line
                result = json.loads(line[at:])
                return _rates(events, result["seconds"], result["cpu_s"])
    raise BenchError("the empty agent ended without a result; its messages above say why")


def machine() -> dict[str, Any]:
    """What figures were measured on, and how busy it was."""
    cores, load = len(os.sched_getaffinity(0)), round(os.getloadavg()[0], 1)
    return {"cpus": cores, "processor": platform.machine(), "python": platform.python_version(), "load": load}


def run_peer(config: str, events: int) -> None:
    """The peer's process: prints its times after the last event."""
    import faust

    settings = load_settings(config).broker
    topic = settings.prefix + "interactions"
    app = faust.App(
        topic, broker=[f"kafka://{address}" for address in settings.bootstrap.split(",")],
        broker_credentials=credentials(settings), value_serializer="raw", key_serializer="raw", store="memory://",
        consumer_auto_offset_reset="earliest", topic_allow_declare=False, topic_disable_leader=True, web_enabled=False,
        datadir=tempfile.gettempdir(), broker_max_poll_records=512,
    )  # fmt: skip
    seen = [0.0, 0.0, 0.0]  # events, wall and processor time at the first

    @app.agent(app.topic(topic, value_type=bytes, key_type=bytes))  # type: ignore[untyped-decorator]
    async def count(stream: Any) -> None:
        async for _ in stream:
            if seen[0] == 0:
                seen[1:] = [time.perf_counter(), time.process_time()]
            seen[0] += 1
            if seen[0] == events:
                times = {"seconds": time.perf_counter() - seen[1], "cpu_s": time.process_time() - seen[2]}
                sys.stdout.write(json.dumps(times) + "\n")
                sys.stdout.flush()
                os._exit(0)

    faust.Worker(app, loglevel="WARN", redirect_stdouts=False, quiet=True).execute_from_commandline()


def _rates(events: int, seconds: float, cpu_s: float) -> dict[str, Any]:
    return {
        "per_s": round(events / seconds),
        "per_cpu_s": round(events / cpu_s) if cpu_s else None,
        "seconds": round(seconds, 3),
    }


@contextmanager
def _without_topics_at_the_end(settings: Broker, bootstrap: str) -> Iterator[None]:
    try:
        yield
    finally:
        if settings.bootstrap:
            with admin(settings, bootstrap) as client:
                client.delete_topics([settings.prefix + topic.name for topic in TOPICS])


@contextmanager
def _process(
    arguments: list[str], environment: dict[str, str], stdout: int = STDERR
) -> Iterator[subprocess.Popen[bytes]]:
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-P", *arguments], env={**os.environ, **threads, **environment}, stdout=stdout
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _until(process: subprocess.Popen[bytes], condition: Callable[[], int]) -> int:
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"the measured process ended with {process.returncode}; its messages above say why")
        if result := condition():
            return result
        time.sleep(0.05)  # asking costs the worker a millisecond
    raise BenchError(f"the measured process did not come to its end within {LONGEST_S:g} s")


def _applied(port: int) -> int:
    try:
        lines = scraped(port).splitlines()
    except OSError:
        return 0
    return next((int(float(line.split()[1])) for line in lines if line.startswith("driftline_next_offset{")), 0)


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    run_peer(sys.argv[1], int(sys.argv[2]))
