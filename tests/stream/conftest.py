"""Brokers and worker processes for the tests of the Kafka side, real ones; a small trainer that is fed by hand."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kafka import KafkaProducer
from tests.stream import forked
from tests.stream.forked import Forked

from driftline.configs.addresses import free_port
from driftline.configs.security import client_options
from driftline.configs.settings import Graph, Model, Ranker, Settings, Trainer
from driftline.graph.chunks import whole_users
from driftline.graph.rows import Event
from driftline.stream.events.records import record_of
from driftline.stream.events.schema import encode_event
from driftline.stream.events.topics import create_topics
from driftline.stream.kafka.broker import EmbeddedBroker, check_reachable
from driftline.stream.kafka.reading import read_all
from driftline.stream.learn.trainer import Trainer as TrainerLoop
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import MemoryStore, RocksStore, partition_path

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
T0_MS = 1_600_000_000_000
HOUR_MS = 3_600_000
ACTIONS = {"purchase": {"positive": True}, "return": {"positive": False, "weight": -1.0}}


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0, what: str = "") -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.03)
    raise AssertionError(f"not within {timeout_s} s: {what or condition}")


@dataclass
class World:
    """One broker and one place of a test: settings, topics with a prefix of their own, worker processes."""

    root: Path
    bootstrap: str
    prefix: str
    partitions: int = 1
    state: dict[str, Any] = field(default_factory=dict)
    broker: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return Settings.model_validate(self._tree())

    @property
    def config(self) -> Path:
        path = self.root / "settings.yaml"
        path.write_text(yaml.safe_dump(self._tree()))
        return path

    def _tree(self) -> dict[str, Any]:
        broker = {"bootstrap": self.bootstrap, "prefix": self.prefix, "partitions": self.partitions}
        state = {"root": str(self.root / "state"), "epoch_events": 32, "epoch_ms": 5, **self.state}
        timeouts = {"connect_timeout_s": 5.0, "session_timeout_s": 6.0, "heartbeat_s": 2.0}
        return {"broker": broker | timeouts | self.broker, "state": state}

    def create_topics(self) -> None:
        create_topics(self.settings.broker, self.bootstrap)

    def produce(self, records: list[tuple[bytes | None, bytes | None]]) -> None:
        self.create_topics()
        self.send([SimpleNamespace(topic="interactions", key=key, value=v, headers=()) for key, v in records])

    def send(self, records: list[Any]) -> None:
        options = client_options(self.settings.broker, self.bootstrap)
        producer = KafkaProducer(acks="all", linger_ms=5, **options)
        for record in records:
            producer.send(self.prefix + record.topic, key=record.key, value=record.value, headers=list(record.headers))
        producer.flush()
        producer.close()

    @contextmanager
    def worker(self, *command: str) -> Iterator[Worker]:
        """A worker's process, or what Python runs with a command and the configuration as its last argument."""
        port = free_port()
        environment = ENVIRONMENT | {"DRIFTLINE__METRICS__WORKER_PORT": str(port)}
        log = self.root / f"worker-{port}.log"
        process: Forked | subprocess.Popen[bytes]
        if command:
            words = [sys.executable, *command, str(self.config)]
            with log.open("w") as file:
                process = subprocess.Popen(words, env=environment, cwd=REPOSITORY, stdout=file, stderr=file)
        else:
            process = Forked(forked.worker, self.config, environment, log, log)
        try:
            yield Worker(process, port, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def log(self, partition: int = 0) -> list[Record]:
        """What the topic holds, as the worker sees it."""
        records = read_all(self.settings.broker, self.bootstrap, "interactions")
        return [record_of(r) for r in records if r.partition == partition]

    def expected_rows(self) -> dict[bytes, bytes]:
        """User rows (and with one partition item rows) of a processor that reads the log without a break."""
        rows: dict[bytes, bytes] = {}
        for partition in range(self.partitions):
            store = MemoryStore()
            processor = Processor(self.settings, store, partition=partition, partitions=self.partitions)
            processor.commit(processor.apply(self.log(partition)))
            rows |= self._rows_of(store)
        return rows

    def stored_rows(self) -> dict[bytes, bytes]:
        """The same rows as the workers left them; no worker may run."""
        rows: dict[bytes, bytes] = {}
        for partition in range(self.partitions):
            store = RocksStore(partition_path(self.settings.state.root, partition), lock_wait_s=0)
            rows |= self._rows_of(store)
            store.close()
        return rows

    def _rows_of(self, store: Any) -> dict[bytes, bytes]:
        rows = dict(whole_users(store))
        return rows | dict(store.scan(b"i:")) if self.partitions == 1 else rows


@dataclass
class Worker:
    process: Forked | subprocess.Popen[bytes]
    port: int
    log: Path

    def offsets(self, metric: str = "driftline_next_offset") -> dict[str, int]:
        """Next offset by partition, as the worker reports it; empty before it reports anything."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=1) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        lines = [line for line in text.splitlines() if line.startswith(metric + "{")]
        return {line.split('"')[1]: int(float(line.rsplit(" ", 1)[1])) for line in lines}

    def labelled(self, metric: str) -> list[int]:
        """Values of all series of a metric that has several labels."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=1) as answer:
                text = answer.read().decode()
        except OSError:
            return []
        return [int(float(line.rsplit(" ", 1)[1])) for line in text.splitlines() if line.startswith(metric + "{")]

    def partitions(self) -> int:
        """How many partitions the worker says it owns; 0 before it answers."""
        return self.metric("driftline_partitions")

    def metric(self, name: str) -> int:
        """A metric without labels; 0 before the worker answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=1) as answer:
                text = answer.read().decode()
        except OSError:
            return 0
        return sum(int(float(line.split()[1])) for line in text.splitlines() if line.startswith(name + " "))

    def applied(self) -> int:
        if self.process.poll() is not None:
            raise AssertionError(f"the worker ended with {self.process.returncode}: {self.log.read_text()}")
        return sum(self.offsets().values())

    def items_applied(self) -> int:
        return sum(self.offsets("driftline_item_next_offset").values())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the worker does not end: {self.log.read_text()}") from None
        assert self.process.returncode == 0, self.log.read_text()


@pytest.fixture
def wait() -> Callable[..., Any]:
    return wait_for


@pytest.fixture(scope="session")
def embedded_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings().broker.model_copy(
        update={"embedded_port": free_port(), "embedded_dir": tmp_path_factory.mktemp("broker")}
    )
    with EmbeddedBroker(settings) as bootstrap:
        yield bootstrap


@pytest.fixture
def world(embedded_bootstrap: str, tmp_path: Path) -> World:
    return World(tmp_path, embedded_bootstrap, f"t{time.time_ns()}.")


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Apache Kafka: DRIFTLINE_TEST_KAFKA, else KAFKA_HOME, else a container, else a skip that says why."""
    folder, port = tmp_path_factory.mktemp("kafka"), free_port()
    if script := os.environ.get("DRIFTLINE_TEST_KAFKA"):
        command = [script, str(folder), str(port)]
    elif home := os.environ.get("KAFKA_HOME"):
        command = _kafka_home(Path(home), folder, port)
    else:
        yield from _container()
        return
    with (folder / "broker.out").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        settings = Settings().broker.model_copy(update={"connect_timeout_s": 60.0})
        wait_for(lambda: answers(port) or process.poll() is not None, 90, "Kafka listens")
        assert process.poll() is None, (folder / "broker.out").read_text(errors="replace")[-2000:]
        check_reachable(settings, f"127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _kafka_home(home: Path, folder: Path, port: int) -> list[str]:
    """Formats a KRaft folder with the scripts of a Kafka distribution; the command that runs it."""
    listeners = f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{port + 1}"
    lines = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{port + 1}",
        "listeners": listeners,
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(folder / "data"),
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
    }
    config = folder / "server.properties"
    config.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    storage = str(home / "bin" / "kafka-storage.sh")
    made = subprocess.run([storage, "random-uuid"], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([storage, "format", "-t", made, "-c", str(config), "--standalone"], check=True, capture_output=True)
    return [str(home / "bin" / "kafka-server-start.sh"), str(config)]


def _container() -> Iterator[str]:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode:
        pytest.skip("no Apache Kafka: DRIFTLINE_TEST_KAFKA and KAFKA_HOME are not set, and no Docker engine answers")
    from testcontainers.kafka import KafkaContainer

    with KafkaContainer("apache/kafka:4.0.0") as container:
        yield container.get_bootstrap_server()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def kafka_world(kafka_bootstrap: str, tmp_path: Path) -> World:
    return World(tmp_path, kafka_bootstrap, f"t{time.time_ns()}.", partitions=4)


@pytest.fixture(params=["world", pytest.param("kafka_world", marks=pytest.mark.kafka)])
def any_world(request: pytest.FixtureRequest) -> World:
    """On the embedded broker and on Apache Kafka."""
    made: World = request.getfixturevalue(request.param)
    made.partitions = 1
    made.create_topics()
    return made


@pytest.fixture
def driftline() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command line."""

    def run(*arguments: str, timeout_s: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from driftline.stream.cli.command import main; main()", *arguments]
        return subprocess.run(
            command, env=ENVIRONMENT | environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s
        )

    return run


@pytest.fixture
def settings(tmp_path) -> Settings:
    made = Settings(
        model=Model(backbone="off"),
        graph=Graph(weights="off", memory_dim=8, message_dim=8, time_dim=4, embed_dim=8, neighbors=5),
        ranker=Ranker(members=1, hidden=8, sampled=20, recall=20, pool=60, text_dim=4),
        trainer=Trainer(root=tmp_path / "trainer", publish_s=1000, publish_events=10**9, gate_patience=3),
        actions=ACTIONS,
    )
    return made.model_copy(update={"serving": made.serving.model_copy(update={"snapshots": tmp_path / "snapshots"})})


def start(settings: Settings, encoder: Any = None, partitions: int = 1) -> TrainerLoop:
    return TrainerLoop(settings, partitions, lambda outgoing: None, encoder)


def rows(user: str, number: int, t_ms: int, items: range = range(3), action: str = "purchase") -> list[Event]:
    return [Event(user, f"i{i}", t_ms, action, f"e{number}-{i}", group_id=f"g{number}") for i in items]


def log_of(events: list[Event | bytes]) -> list[Record]:
    return [
        Record(n, event, b"x") if isinstance(event, bytes) else Record(n, encode_event(event), event.user_id.encode())
        for n, event in enumerate(events)
    ]


def feed(trainer: TrainerLoop, records: list[Record], partition: int = 0) -> TrainerLoop:
    for record in records:
        trainer.take(partition, record)
    return trainer


def flush(trainer: TrainerLoop) -> TrainerLoop:
    """As if the topic had been silent for long."""
    for number, events in trainer._open.idle(range(trainer.partitions), float("inf")):
        trainer._learn(number, events)
    return trainer


def baskets(n: int) -> list[Event]:
    return [event for g in range(n) for event in rows(f"u{g % 4}", g, T0_MS + g * HOUR_MS, range(g % 7, g % 7 + 3))]
