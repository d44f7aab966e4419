"""What `driftline up -d` waits for, what it says meanwhile, and when it gives up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from driftline.configs.errors import StateError
from driftline.configs.settings import Settings, State
from driftline.stream.cli import common, detached
from driftline.stream.cli.detached import STILL_S, Lag, Life, Log, lag_of
from driftline.stream.system import Note, Process, Standing, claimed

PARTS = ("worker", "trainer", "profiler", "serve")


def process(name: str, pid: int) -> Process:
    return Process(name, pid, psutil.Process(pid).create_time())


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=State(root=tmp_path / "state"))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    path = tmp_path / "up.log"
    path.write_text("worker   | of an earlier system\n")
    return Log(path)


@pytest.fixture
def sleeper() -> Iterator[Process]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield process("service", child.pid)
        child.kill()


def test_what_is_waited_for_is_the_first_thing_that_does_not_answer(settings: Settings) -> None:
    me = process("up", os.getpid())
    assert (found := lag_of(None, Standing(), settings, PARTS)) is not None
    assert found.what == "the process that starts the parts"
    assert (found := lag_of(Note(me, "", "", {}), Standing(), settings, PARTS)) is not None
    assert found.what == "the embedded broker"
    note = Note(me, "b", "a", {"worker": 1}, [process("service", os.getpid())])
    assert (found := lag_of(note, Standing(), settings, PARTS)) is not None
    assert found == Lag("the trainer, the worker and the service to answer", "serve", note.children)
    assert (found := lag_of(note, Standing(state_behind=0, trains=True), settings, PARTS)) is not None
    assert found.what == "the service to answer"
    refusing = Standing(model_sequence=0, serving=True, state_behind=0)  # the trainer may refuse its checkpoint yet
    assert (found := lag_of(note, refusing, settings, PARTS)) is not None
    assert found.what == "the trainer to answer"
    empty = Standing(model_sequence=0, serving=False, state_behind=0, trains=True)
    assert (found := lag_of(note, empty, settings, PARTS)) is not None
    assert (found.what, found.part) == ("a state or a model that the service can answer from", "worker")
    assert lag_of(note, empty, settings, ("trainer", "serve")) is None  # nothing else is to come for a while
    there = Standing(model_sequence=0, serving=True, state_behind=0, trains=True)
    assert lag_of(note, there, settings, PARTS) is None
    assert lag_of(note, Standing(state_behind=3, trains=True), settings, ("worker", "trainer")) is None
    assert lag_of(note, Standing(), settings, ("profiler",)) is None


def test_the_last_line_is_of_the_part_that_lags_and_of_this_system(log: Log) -> None:
    assert log.last_of("worker") == ""
    with log.path.open("a") as file:
        file.write("worker   | opens partition 0\nserve    | loads\n")
    assert log.last_of("worker") == "opens partition 0"
    log.path.rename(log.path.with_name("up.log.1"))
    log.path.write_text("worker   | begins anew\n")
    assert log.lines() == ["worker   | begins anew"]
    assert log.last_of("") == "begins anew"


def test_a_silent_part_stands_still_once_it_does_not_work_either(log: Log, sleeper: Process) -> None:
    waits, life = Lag("the service to answer", "serve", [sleeper]), Life(0.0)
    assert not life.stands_still(1.0, waits, log)
    assert not life.stands_still(STILL_S, waits, log)
    assert life.stands_still(1.0 + STILL_S, waits, log)
    with log.path.open("a") as file:
        file.write("worker   | another part speaks\n")
    assert life.stands_still(1.0 + 2 * STILL_S, waits, log)
    with log.path.open("a") as file:
        file.write("serve    | goes on\n")
    assert not life.stands_still(1.0 + 3 * STILL_S, waits, log)


def test_a_silent_part_that_computes_goes_on(log: Log) -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as child:
        waits, life = Lag("the service to answer", "serve", [process("service", child.pid)]), Life(0.0)
        life.stands_still(0.0, waits, log)
        while psutil.Process(child.pid).cpu_times().user < 0.01 * STILL_S + 1.0:
            time.sleep(0.1)
        assert not life.stands_still(STILL_S + 1.0, waits, log)
        child.kill()


def test_a_part_that_is_started_again_and_again_is_named() -> None:
    life = Life(0.0)
    for pid in range(6):
        assert life.failing([Process("worker", 1, 0.0), Process("trainer", 100 + pid, 0.0)]) == ""
    assert life.failing([Process("worker", 1, 0.0), Process("trainer", 200, 0.0)]) == "trainer"


ANSWERS = """
import sys, time
from driftline.configs.load import load_settings
from driftline.stream.system import Note, Process, claimed, starting
with claimed(load_settings(None)) as write:
    write(starting(load_settings(None)))
    print("worker   | a line of the worker", file=sys.stderr, flush=True)
    time.sleep(60)
"""


def test_it_says_what_it_waits_for_and_shows_the_end_of_the_log_when_it_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRIFTLINE__STATE__ROOT", str(tmp_path / "state"))
    monkeypatch.setattr(common, "TELL_S", 0.5)
    monkeypatch.setattr(detached, "STILL_S", 12.0)
    settings, path = Settings(state=State(root=tmp_path / "state")), tmp_path / "up.log"
    with claimed(settings), path.open("ab") as file:
        log = Log(path)
    with path.open("ab") as file, subprocess.Popen([sys.executable, "-c", ANSWERS], stderr=file) as child:
        try:
            with pytest.raises(StateError) as given_up:
                detached._wait(settings, PARTS, child, log)
        finally:
            child.kill()
    assert "waited for the embedded broker, and nothing went on for 12 s" in str(given_up.value)
    assert str(given_up.value).endswith("worker   | a line of the worker")
    assert "waits for the embedded broker" in capfd.readouterr().err
