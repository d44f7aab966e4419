"""Offsets: holes, logs that were cut or made anew, and partitions that are taken: told, never stepped over."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from kafka import TopicPartition
from tests.stream.test_app import shop_records

from driftline.configs.errors import StateError
from driftline.stream.app import WorkerApp
from driftline.stream.kafka.broker import admin
from driftline.stream.kafka.consumer import Block, Fetched, holes_in
from driftline.stream.owned.partitions import Bounds, check_position


def block(*offsets: int, seeks: int = 0) -> Block:
    records = [
        SimpleNamespace(topic="interactions", partition=0, offset=n, timestamp=0, timestamp_type=0) for n in offsets
    ]
    return Block(TP("interactions", 0), Fetched(records, seeks), 0, 0)


def test_offsets_that_do_not_follow_on_are_holes_wherever_they_lie() -> None:
    assert holes_in(block(5, 6, 7).records, 5) == []
    assert holes_in(block(3, 4, 5).records, 5) == []
    assert holes_in(block(6, 7).records, 5) == [(5, 6)]
    assert holes_in(block(7, 8, 11, 14).records, 5) == [(5, 7), (9, 11), (12, 14)]
    assert holes_in(block(5, 6, 5, 6, 7).records, 5) == []


class LogOfOffsets:
    """Faust's consumer as far as going back needs it: no broker leaves gaps where and when a test wants them."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end
        self.sought: list[int] = []

    def is_stale(self, block: Block) -> bool:
        return block.seeks != len(self.sought)

    async def earliest_offsets(self, *places: TP) -> dict[TP, int]:
        return dict.fromkeys(places, self.first)

    async def highwaters(self, *places: TP) -> dict[TP, int]:
        return dict.fromkeys(places, self.end)

    async def seek(self, tp: TP, offset: int) -> None:
        self.sought.append(offset)


def test_offsets_missing_twice_are_passed_over_counted_and_said_only_while_the_broker_has_what_follows(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = WorkerApp(world.settings, world.bootstrap, 1)
    log = app.consumer = LogOfOffsets(first=3, end=30)

    def reads_again(*offsets: int, next_offset: int) -> bool:
        return asyncio.run(app._read_again(block(*offsets, seeks=len(log.sought)), next_offset))

    assert reads_again(7, 8, next_offset=5)
    for _ in range(2):  # fetched before the seek
        assert asyncio.run(app._read_again(block(9, 10), 5))
        assert asyncio.run(app._read_again(block(7, 8), 5))
    assert reads_again(5, 6, 8, next_offset=5)  # the rebalance had dropped 5 and 6; 7 is another hole
    assert not reads_again(5, 6, 8, next_offset=5)
    assert reads_again(9, 11, 14, next_offset=9)
    assert not reads_again(9, 11, 14, next_offset=9)
    assert log.sought == [5, 5, 9]
    assert app.metrics.gap_offsets._value.get() == 1 + 1 + 2
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "partition 0 of interactions: offsets 7 to 7 hold no records" in said
    log.first = 18
    assert reads_again(15, 18, next_offset=15)
    with pytest.raises(StateError, match="2 records were deleted before they were applied"):
        reads_again(15, 18, next_offset=15)
    assert app.metrics.gap_offsets._value.get() == 4


def test_a_topic_made_anew_while_it_is_read_is_refused_when_its_records_come(world: Any) -> None:
    app = WorkerApp(world.settings, world.bootstrap, 1)
    app.consumer = LogOfOffsets(first=0, end=50)
    with pytest.raises(StateError, match="at offset 100, but the topic ends at 50"):
        asyncio.run(app._read_again(block(0, 1, 2), 100))
    app.consumer = LogOfOffsets(first=0, end=100)
    assert not asyncio.run(app._read_again(block(97, 98, 99), 100))  # read twice around a rebalance


def test_a_new_state_starts_at_what_is_left_of_the_topic_without_a_gap(world: Any) -> None:
    app = WorkerApp(world.settings, world.bootstrap, 1)
    app.consumer = LogOfOffsets(first=900, end=1000)
    assert asyncio.run(app._read_again(block(900, 901), 0))
    assert not asyncio.run(app._read_again(block(900, 901, seeks=1), 0))
    assert app.metrics.gap_offsets._value.get() == 0


@contextmanager
def stopped(worker: Any) -> Iterator[None]:
    """The process stands still for a while; what it has asked the broker for is answered before."""
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    yield
    worker.process.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_records_deleted_while_the_worker_runs_end_it_with_exit_code_73_instead_of_being_skipped(
    world: Any, wait: Any
) -> None:
    records = shop_records(300)
    world.produce(records[:100])
    with world.worker() as worker:
        wait(lambda: worker.applied() == 100, what="the first events are applied")
        with stopped(worker):
            world.produce(records[100:])
            with admin(world.settings.broker, world.bootstrap) as client:
                client.delete_records({TopicPartition(world.prefix + "interactions", 0): 200})
        assert worker.process.wait(timeout=30) == StateError.exit_code
        assert "is at offset 100, but the topic begins at 200: 100 records were deleted" in worker.log.read_text()


def test_a_topic_that_was_made_anew_is_refused_instead_of_skipped() -> None:
    check_position("interactions", 0, 5, Bounds(0, 5))
    with pytest.raises(StateError, match="ends at 4: it was made from another topic"):
        check_position("interactions", 0, 5, Bounds(0, 4))


def test_records_that_the_broker_deleted_before_they_were_applied_are_an_error() -> None:
    check_position("interactions", 0, 0, Bounds(100, 200))
    with pytest.raises(StateError, match="50 records were deleted"):
        check_position("interactions", 0, 50, Bounds(100, 200))
