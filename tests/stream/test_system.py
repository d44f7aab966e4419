"""`driftline up` and what belongs to it: one log, no process left however it ends, no other's folder deleted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from driftline.client import Client
from driftline.configs.addresses import free_port
from driftline.configs.errors import LockedError
from driftline.configs.settings import Broker, Metrics, Serving, Settings, State, Trainer
from driftline.serving.ports import open_metrics
from driftline.stream.cli import app
from driftline.stream.durable import delete_folder
from driftline.stream.kafka.broker import EmbeddedBroker
from driftline.stream.ops.metrics import TrainerMetrics, WorkerMetrics
from driftline.stream.process.processor import Changes
from driftline.stream.state.store import RocksStore, partition_path
from driftline.stream.system import (
    Note,
    Process,
    Standing,
    claimed,
    end_left_over,
    ports_of,
    read_note,
    running,
    standing,
    starting,
    with_ports,
)

pytestmark = pytest.mark.slow


class System:
    """A folder with a system of its own, on the embedded broker, without the parts that load a language model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "DRIFTLINE__BROKER__EMBEDDED_PORT": str(free_port()),
            "DRIFTLINE__SERVING__PORT": str(free_port()),
        }
        self.settings = Settings(
            state=State(root=folder / ".driftline/state"),
            broker=Broker(embedded_dir=folder / ".driftline/broker"),
            trainer=Trainer(root=folder / ".driftline/trainer"),
        )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", "driftline.stream.cli.command", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=200
        )

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return found

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[bytes]]:
        command = self.command("up", "--without", "profiler", "--without", "trainer")
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def everything(self) -> list[psutil.Process]:
        """The parts and the broker, those that live."""
        note = read_note(self.settings)
        assert note is not None
        broker = EmbeddedBroker(self.settings.broker).running()
        found = [part.find() for part in note.children] + [broker.process() if broker else None]
        return [process for process in found if process is not None]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path)
    yield made
    made.run("down")


def test_up_runs_everything_until_a_signal_and_status_says_how_it_is(system: System, wait: Any) -> None:
    with system.up() as process:
        wait(lambda: "answers on" in system.log(), 180, "it answers")
        wait(lambda: "partition 0 of interactions is open" in system.log(), 180, "the worker is up")
        events = system.folder / "events.jsonl"
        events.write_text('{"user_id": "u1", "item_id": "i1", "timestamp_ms": 1600000000000}\n')
        assert system.run("produce", "--events", str(events)).returncode == 0
        wait(lambda: system.status()["applied"] == 1, 60, "the event is applied")
        found = system.status()
        assert {part["name"] for part in found["parts"] if part["runs"]} == {"worker", "service"}
        assert (found["state_behind"], found["model_behind"]) == (0, None)
        again = system.run("up")
        assert again.returncode == 75
        assert f"process {process.pid}" in again.stderr
        assert system.run("reset", "--yes").returncode == 75
        parts = system.everything()
        assert len(parts) == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, system.log()
    assert not psutil.wait_procs(parts, timeout=10)[1]
    assert running(system.settings) is None
    assert system.run("status").returncode == 1
    assert all(
        line.split("|")[0].strip() in ("up", "worker", "serve") for line in system.log().splitlines() if "|" in line
    )


def test_after_sigkill_nothing_of_it_is_left_once_down_was_said(system: System, wait: Any) -> None:
    with system.up() as process:
        wait(lambda: "partition 0 of interactions is open" in system.log(), 180, "the worker is up")
        parts = system.everything()
        process.kill()
    wait(lambda: sum(part.is_running() for part in parts) == 1, 5, "the parts end with it")
    assert system.run("down").returncode == 0
    assert not psutil.wait_procs(parts, timeout=10)[1]
    done = system.run("reset", "--yes")
    assert done.returncode == 0, done.stderr
    assert not system.settings.state.root.exists()
    assert not system.settings.broker.embedded_dir.exists()


def test_nothing_is_deleted_or_emptied_under_a_system_that_is_just_starting(system: System) -> None:
    log = system.settings.state.root / "up.log"
    with claimed(system.settings) as write:
        log.write_text("a day of lines\n")
        for command in (["up", "-d"], ["reset", "--yes"]):
            refused = system.run(*command)
            assert refused.returncode == 75, refused.stderr
            assert "runs on state.root" in refused.stderr
        assert log.read_text() == "a day of lines\n"
        write(starting(system.settings))
        assert f"a system is starting, process {os.getpid()}" in system.run("status").stdout
    assert running(system.settings) is None


WORKS = """
import sys, time
from pathlib import Path
from driftline.stream.state.store import RocksStore
store = RocksStore(Path(sys.argv[1]))
print("works", flush=True)
time.sleep(120)
"""


def test_reset_deletes_nothing_under_a_worker_that_began_while_it_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, workers = tmp_path / "state", list[subprocess.Popen[str]]()
    RocksStore(partition_path(root, 0)).close()
    tree = {"state": {"root": str(root)}, "trainer": {"root": str(tmp_path / "trainer")}}
    tree |= {"broker": {"bootstrap": "127.0.0.1:1"}, "serving": {"snapshots": str(tmp_path / "snapshots")}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))

    def asked(*_: object, **__: object) -> bool:
        command = [sys.executable, "-c", WORKS, str(partition_path(root, 1))]  # a partition that was not here before
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert workers[0].stdout is not None
        assert workers[0].stdout.readline() == "works\n"
        return True

    monkeypatch.setattr("typer.confirm", asked)
    try:
        result = CliRunner().invoke(app, ["reset", "--config", str(tmp_path / "own.yaml")])
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert isinstance(result.exception, LockedError), result.output
    assert "partition-1 is held by process" in str(result.exception)
    assert (partition_path(root, 0) / "CURRENT").exists()


def test_reset_leaves_the_note_of_a_system_that_began_once_it_had_deleted(tmp_path: Path) -> None:
    settings = Settings(state=State(root=tmp_path / "state"))
    with claimed(settings):
        delete_folder(settings.state.root)
        with claimed(settings) as write:  # another process may by now
            write(starting(settings))
            note = read_note(settings)
            assert note is not None
        assert read_note(settings) is None
        write(note)
    assert read_note(settings) == note


def test_up_in_the_background_begins_its_log_anew_and_keeps_the_last_one(system: System) -> None:
    log = system.settings.state.root / "up.log"
    log.parent.mkdir(parents=True)
    log.write_text("an earlier system\n")
    started = system.run("up", "-d", "--without", "trainer", "--without", "profiler", "--without", "serve")
    assert started.returncode == 0, started.stderr
    assert log.with_name("up.log.1").read_text() == "an earlier system\n"
    assert "up: starting worker" in log.read_text()
    assert "an earlier system" not in log.read_text()


def test_up_in_the_background_returns_once_the_service_answers_a_call(system: System) -> None:
    started = system.run("up", "-d", "--without", "trainer", "--without", "profiler")
    assert started.returncode == 0, started.stderr
    with Client(f"127.0.0.1:{system.environment['DRIFTLINE__SERVING__PORT']}") as client:
        assert client.health() == "SERVING"
        assert not client.user_state("nobody").user_state.known


def test_status_shows_how_a_system_in_the_background_has_ended(system: System) -> None:
    log = system.settings.state.root / "up.log"
    log.parent.mkdir(parents=True)
    log.write_text("worker   | driftline: the model is not there\nup: ended with code 66; the lines above say why\n")
    told = system.run("status")
    assert told.returncode == 1
    said = "worker   | driftline: the model is not there\nup: ended with code 66"
    assert said in told.stdout
    assert said in system.run("down").stdout
    log.write_text("up: ended with code 66; the lines above say why\nup: everything has ended\n")
    assert "ended" not in system.run("status").stdout


def test_parts_get_ports_for_their_metrics_that_nobody_has() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, free = other.getsockname()[1], free_port()
        metrics = Metrics(worker_port=taken, trainer_port=free, profiler_port=0, serving_port=free_port())
        with with_ports(Settings(metrics=metrics)) as with_free:
            found = ports_of(with_free)
    assert found["trainer"] == free
    assert found["serving"] == metrics.serving_port
    assert found["worker"] not in (0, taken)
    assert found["profiler"]


def test_two_systems_that_start_at_the_same_time_get_ports_of_their_own() -> None:
    port = free_port()
    settings = Settings(metrics=Metrics(serving_port=port), serving=Serving(processes=2))
    with with_ports(settings) as first:
        with with_ports(settings) as second:
            assert not {port, port + 1} & {second.metrics.serving_port, second.metrics.serving_port + 1}
        assert first.metrics.serving_port == port
    with with_ports(settings) as third:
        assert third.metrics.serving_port == port


def test_how_far_a_system_is_comes_from_its_own_processes_alone() -> None:
    trainer, port = TrainerMetrics(), free_port()
    close = open_metrics(trainer.registry, Metrics(trainer_port=port), "trainer_port")
    trainer.lag.set(12_000)
    other = standing(Settings(), {"trainer": port}, [os.getpid() + 1])
    assert (other.model_behind, other.model_s) == (None, None)
    unknown = standing(Settings(), {"trainer": port}, [os.getpid()])
    assert (unknown.model_behind, unknown.model_groups) == (12_000, None)
    assert "model: 12,000 events behind" in unknown.sentence()
    trainer.behind(4000, 20.0, 200.0)
    known = standing(Settings(), {"trainer": port}, [os.getpid()])
    close()
    assert (known.model_groups, known.model_groups_per_s, known.model_s) == (4000, 20.0, 200.0)
    assert "model: 12,000 events behind, about 4,000 groups at 20.0/s: 3 min" in known.sentence()


def test_a_system_without_events_is_told_as_one() -> None:
    new = Standing(read=0, state_behind=0, trains=True, model_behind=0, model_sequence=0)
    assert "model: none yet, no event was read yet (driftline produce sends some)" in new.sentence()
    new.read = 5
    assert "model: none yet, the texts of the items are encoded" in new.sentence()


def test_what_a_worker_of_before_read_is_told_and_what_did_not_reach_the_state() -> None:
    worker, port = WorkerMetrics(), free_port()
    close = open_metrics(worker.registry, Metrics(worker_port=port), "worker_port")
    assert "state: no partition is open yet" in standing(Settings(), {"worker": port}, [os.getpid()]).sentence()
    for partition, offset in ((0, 24_000), (1, 700)):
        worker.offset.labels(partition).set(offset)
    begun = standing(Settings(), {"worker": port}, [os.getpid()])
    assert "state: 24,700 records read, 0 events applied by this worker, nothing behind" in begun.sentence()
    assert begun.losses() == ""
    worker.count(Changes(applied=3, dead=6, duplicates=7, too_late=1, unknown_actions=2, late=5))
    now = standing(Settings(), {"worker": port}, [os.getpid()])
    close()
    assert "24,700 records read, 3 events applied by this worker" in now.sentence()
    assert now.losses() == (
        "since this worker began: 6 records refused (`driftline dlq list`), 7 events a second time, by event_id or "
        "place, and dropped, 1 events too late to change the state (`driftline doctor`), 2 events with an action that "
        "is not in the configuration (the worker's log)"
    )


def test_a_part_that_outlived_a_killed_system_is_ended_and_a_number_that_another_process_has_is_not(
    tmp_path: Path,
) -> None:
    settings = Settings(state=State(root=tmp_path))
    with subprocess.Popen(["sleep", "60"]) as mine, subprocess.Popen(["sleep", "60"]) as other:
        created = psutil.Process(mine.pid).create_time()
        note = Note(
            Process("up", 2**22, 0.0), "", "", {}, [Process("a", mine.pid, created), Process("b", other.pid, 1.0)]
        )
        from msgspec.json import encode

        (tmp_path / "up.json").write_bytes(encode(note))
        assert [process.name for process in end_left_over(settings)] == ["a"]
        assert mine.poll() is not None  # psutil has reaped it
        assert other.poll() is None
        other.kill()


def test_reset_deletes_nothing_unless_told_and_no_folder_that_holds_other_things(system: System) -> None:
    system.settings.trainer.root.mkdir(parents=True)
    asked = system.run("reset")
    assert asked.returncode == 1
    assert "trainer.root" in asked.stderr
    assert system.settings.trainer.root.exists()
    system.environment["DRIFTLINE__TRAINER__ROOT"] = "."
    assert system.run("reset", "--yes").returncode == 65
    assert system.settings.trainer.root.exists()


def test_reset_keeps_the_vectors_of_texts_and_says_so_unless_they_are_to_go(system: System) -> None:
    cache = system.folder / ".driftline/encodings.sqlite"
    system.settings.trainer.root.mkdir(parents=True)
    cache.write_bytes(b"vectors")
    kept = system.run("reset", "--yes")
    assert kept.returncode == 0, kept.stderr
    assert f"encoder.cache stays, 0.0 MB in {cache}" in kept.stderr
    assert cache.exists()
    assert not system.settings.trainer.root.exists()
    deleted = system.run("reset", "--yes", "--encodings", "--json")
    assert json.loads(deleted.stdout)["deleted"][-1] == str(cache), deleted.stderr
    assert not cache.exists()


def test_what_up_and_status_import_before_they_answer_is_light() -> None:
    names = "driftline.stream.system, driftline.stream.ops.supervisor, sys"
    code = f"import {names}; print({{'torch', 'faust'}} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
