"""Locks by name: whoever waited for a file that was deleted meanwhile locks the one that is there by now."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import IO, Any

import pytest

from driftline.configs.addresses import free_port
from driftline.configs.errors import LockedError
from driftline.configs.settings import Broker
from driftline.stream.durable import delete_folder, has_name, open_locked, write_durably
from driftline.stream.kafka.broker import EmbeddedBroker
from driftline.stream.learn import checkpoint


def test_a_lock_that_was_waited_for_is_of_the_file_that_has_the_name_by_then(tmp_path: Path, wait: Any) -> None:
    path, found = tmp_path / "folder" / "lock", list[IO[bytes] | None]()
    first = open_locked(path)
    assert first is not None
    assert open_locked(path) is None
    waiting = threading.Thread(target=lambda: found.append(open_locked(path, wait=True)))
    waiting.start()
    wait(lambda: f":{path.stat().st_ino} " in Path("/proc/locks").read_text().replace("->", ""), 10, "it waits")
    delete_folder(path.parent)
    first.close()
    waiting.join(10)
    (second,) = found
    assert second is not None
    with second:
        assert has_name(second, path)
        assert open_locked(path) is None


def test_a_trainer_that_waits_while_its_root_is_deleted_holds_the_new_one(tmp_path: Path) -> None:
    root, holds, done = tmp_path / "trainer", threading.Event(), threading.Event()

    def train() -> None:
        with checkpoint.locked(root, 30.0):
            holds.set()
            done.wait(30)

    with checkpoint.locked(root, 0.0):
        waiting = threading.Thread(target=train)
        waiting.start()
        assert not holds.wait(0.5)
        delete_folder(root)
    assert holds.wait(10)
    with pytest.raises(LockedError, match="locked by another trainer"), checkpoint.locked(root, 0.0):
        pass
    done.set()
    waiting.join(10)


def test_a_broker_is_not_started_in_a_directory_that_is_being_deleted(tmp_path: Path, wait: Any) -> None:
    settings = Broker(embedded_dir=tmp_path / "broker", embedded_port=free_port())
    settings.embedded_dir.mkdir()
    told = list[str]()

    def start() -> None:
        with EmbeddedBroker(settings) as bootstrap:
            told.append(bootstrap)

    with EmbeddedBroker(settings).unused():
        starting = threading.Thread(target=start)
        starting.start()
        starting.join(0.5)
        assert not told
        delete_folder(settings.embedded_dir)
    starting.join(30)
    assert told == [f"127.0.0.1:{settings.embedded_port}"]
    assert (settings.embedded_dir / "broker.log").exists()


def test_what_a_killed_deletion_has_left_goes_with_the_next(tmp_path: Path) -> None:
    for name in ("state", "state.deleted"):
        (tmp_path / name / "partition-0").mkdir(parents=True)
    delete_folder(tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_named_as_a_file_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe, read = tmp_path / "null", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_durably(pipe, b"rows")
    reader.join(10)
    assert read == [b"rows"]
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["null"]
