"""Lag and age: true without a single event, for a worker that stands still, and for one that is dead."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
from tests.stream.conftest import start
from tests.stream.test_app import shop_records

from driftline.configs.settings import Settings
from driftline.serving.state_reader import StateReader
from driftline.stream.ops import doctor
from driftline.stream.ops.backlog import backlogs, read_standing
from driftline.stream.ops.doctor import examine

EVENTS = shop_records(20)


def lag_of(settings: Settings, part: str = "lag") -> str:
    (found,) = [f.detail for f in examine(settings) if f.part == part]
    return found


def test_lag_and_age_are_true_before_any_event_while_a_worker_stands_still_and_after_it_died(
    world: Any, wait: Callable[..., Any]
) -> None:
    world.create_topics()
    root = world.settings.state.root
    with world.worker() as worker, StateReader(root, poll_ms=10) as reader:

        def age_ms() -> int:
            return reader.user("nobody").state_age_ms

        wait(lambda: worker.offsets("driftline_lag") == {"0": 0}, what="lag is told though there was no epoch")
        wait(lambda: 0 <= age_ms() < 3000, what="an empty topic is complete")
        worker.process.send_signal(signal.SIGSTOP)
        world.produce(EVENTS)
        assert "20 records are not in the state (20 of partition 0 of interactions)" in lag_of(world.settings)
        wait(lambda: age_ms() > 3500, what="the state of a worker that stands still grows old")
        worker.process.send_signal(signal.SIGCONT)
        wait(lambda: worker.applied() == len(EVENTS) and 0 <= age_ms() < 3000, what="it goes on and is complete again")
        wait(lambda: worker.offsets("driftline_lag") == {"0": 0}, what="no lag is left")
        assert lag_of(world.settings) == "the state holds all that its topics have"
        worker.kill()
        world.produce(EVENTS[:3])
        died_ms = age_ms()
        wait(lambda: age_ms() > died_ms + 1000, what="the state of a dead worker grows old")
        assert reader.age_ms() >= age_ms() - 100
        assert "3 records are not in the state" in lag_of(world.settings)
        assert "; it was complete " in lag_of(world.settings)


def test_doctor_tells_how_far_the_trainers_checkpoint_is_behind(world: Any, settings: Settings) -> None:
    world.produce(EVENTS)
    here = settings.model_copy(update={"broker": world.settings.broker})
    trainer = start(here)
    trainer.offsets[0] = 5
    trainer.checkpoint()
    assert read_standing(here.trainer.root) == {0: 5}
    assert "15 records are not in the trainer's checkpoint" in lag_of(here, "trainer lag")
    trainer.offsets[0] = len(EVENTS)
    trainer.checkpoint()
    assert lag_of(here, "trainer lag") == "the trainer's checkpoint holds all that its topics have"


def test_a_partition_that_does_not_exist_has_no_backlog_and_deleted_records_are_not_missing(world: Any) -> None:
    from kafka import TopicPartition

    from driftline.stream.kafka.broker import admin

    world.produce(EVENTS)
    with admin(world.settings.broker, world.bootstrap) as client:
        client.delete_records({TopicPartition(world.prefix + "interactions", 0): 12})
    standing = {("interactions", 0): 0, ("interactions", 7): 0, ("nothing", 0): 0}
    (found,) = backlogs(world.settings.broker, world.bootstrap, standing)
    assert (found.partition, found.missing, found.undecided) == (0, 8, 0)


def test_doctor_tells_what_lies_on_a_disk_and_that_it_is_nearly_full(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "checkpoint.pt").write_bytes(b"x" * 30_000_000)
    (tmp_path / "trainer" / "the-same").hardlink_to(tmp_path / "trainer" / "checkpoint.pt")
    (found,) = [f for f in examine(settings) if f.part == "disk" and "trainer.root" in f.detail]
    assert "trainer.root 0.03 GB" in found.detail
    monkeypatch.setattr(doctor, "LITTLE_DISK_BYTES", 1 << 60)
    assert {f.state for f in examine(settings) if f.part == "disk"} == {"bad"}
