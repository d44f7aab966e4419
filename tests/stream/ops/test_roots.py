"""Workers of one group on one host that keep their states in several folders."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from driftline.configs.settings import Settings, State
from driftline.stream.ops import roots


def test_a_worker_whose_state_lies_elsewhere_is_named_while_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    here, there = (Settings(state=State(root=tmp_path / name)) for name in ("here", "there"))
    other = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()", "driftline.stream.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()  # a process has no command line while it is being executed
        monkeypatch.setattr("os.getpid", lambda: other.pid)
        assert roots.note_root(there, "kafka:9092") == ""
        said = roots.difference(here, "kafka:9092")
        assert f"process {other.pid} in {tmp_path / 'there'}" in said
        assert str(tmp_path / "here") in said
        assert roots.difference(there, "kafka:9092") == roots.difference(here, "other:9092") == ""
    finally:
        other.communicate(b"\n")
    assert roots.difference(here, "kafka:9092") == ""
    assert not list(tmp_path.glob("driftline-workers-*/*"))


def test_notes_go_with_their_process_and_those_of_killed_ones_with_the_next_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = roots._folder(Settings(state=State(root=tmp_path / "killed")), "kafka-of-before:9092")
    left.mkdir(mode=0o700)
    (left / str(2**22)).write_text("killed")
    code = (
        "from driftline.configs.settings import Settings; from driftline.stream.ops.roots import note_root;"
        "note_root(Settings(), 'kafka:9092'); import os, tempfile; print(os.listdir(tempfile.gettempdir()))"
    )
    command = [sys.executable, "-c", code, "driftline.stream.worker"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert roots._folder(Settings(), "kafka:9092").name in done.stdout
    assert left.name not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The pid of a worker that runs, which is also what this process takes for its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command = [sys.executable, "-c", "print(flush=True); input()", "driftline.stream.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        monkeypatch.setattr("os.getpid", lambda: process.pid)
        yield process.pid
        process.communicate(b"\n")


def test_no_link_that_another_user_has_laid_is_followed(tmp_path: Path, other: int) -> None:
    settings, victim = Settings(state=State(root=tmp_path / "root")), tmp_path / "victim"
    victim.write_text("precious")
    folder = roots._folder(settings, "kafka:9092")
    folder.mkdir(mode=0o700)
    (folder / str(other)).symlink_to(victim)
    assert roots.note_root(settings, "kafka:9092") == ""
    (folder / str(other)).unlink()
    folder.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / str(other)).write_text("/theirs")
    folder.symlink_to(elsewhere)
    assert roots.note_root(settings, "kafka:9092") == ""
    assert [path.read_text() for path in (victim, elsewhere / str(other))] == ["precious", "/theirs"]


def test_a_folder_in_which_others_may_write_is_not_used(
    tmp_path: Path, other: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(state=State(root=tmp_path / "root"))
    folder = roots._folder(settings, "kafka:9092")
    folder.mkdir()
    (folder / str(other)).write_text("/theirs")
    folder.chmod(0o777)
    assert roots.note_root(settings, "kafka:9092") == ""
    folder.chmod(0o755)
    assert "/theirs" in roots.difference(settings, "kafka:9092")
    uid = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: uid + 1)
    folder.rename(roots._folder(settings, "kafka:9092"))  # somebody else made it first
    assert roots.note_root(settings, "kafka:9092") == ""


def test_notes_that_are_none_keep_no_worker_from_starting(tmp_path: Path, other: int) -> None:
    settings = Settings(state=State(root=tmp_path / "root"))
    folder = roots._folder(settings, "kafka:9092")
    for name in ("a folder", str(2**22 + 1), str(other)):
        (folder / name).mkdir(parents=True)
    (folder / "dead").write_text("")
    assert roots.note_root(settings, "kafka:9092") == ""
    assert not (folder / "dead").exists()
