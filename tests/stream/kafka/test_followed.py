"""Holes in the offsets that hold no records cost no second read; records that may be missing do."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import kafka
from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP
from tests.stream.kafka.test_offsets import LogOfOffsets
from tests.stream.kafka.test_transactions import Shop, purchase

from driftline.configs.security import consumer_options
from driftline.stream.app import WorkerApp
from driftline.stream.kafka.broker import admin
from driftline.stream.kafka.consumer import Block, Fetched
from driftline.stream.kafka.followed import note_where_reads_follow_on


async def reads(world: Any, *, until: int, at_most: int, between: Any = None) -> list[Any]:
    """What a consumer hands out of a partition, read by read; `between` runs after the first."""
    note_where_reads_follow_on()
    place = TopicPartition(world.prefix + "interactions", 0)
    found: list[Any] = []
    async with AIOKafkaConsumer(**consumer_options(world.settings.broker, world.bootstrap)) as consumer:
        consumer.assign([place])
        consumer.seek(place, 0)
        while await consumer.position(place) < until:
            batch = (await consumer.getmany(timeout_ms=100, max_records=at_most)).get(place)
            if batch:
                found.append(batch)
                if between is not None and len(found) == 1:
                    consumer.pause(place)
                    await asyncio.sleep(0.6)  # a fetch that is under way ends
                    await asyncio.to_thread(between)
                    consumer.resume(place)
    return found


def written(world: Any) -> int:
    """Offset after three transactions, the second of which was aborted: 0 1 | 2 aborted ... | then two more."""
    shop = Shop(world)
    for number, end in enumerate((shop.commit, shop.abort, shop.commit)):
        shop.write("interactions", purchase("a", 2 * number), purchase("b", 2 * number + 1))
        end()
    return 8  # after the last record; three records each, with the marker


def test_a_read_follows_on_the_record_before_it_over_markers_and_what_was_aborted(any_world: Any) -> None:
    end = written(any_world)
    for at_most in (1, 2, 100):
        found = asyncio.run(reads(any_world, until=end, at_most=at_most))
        assert [record.offset for read in found for record in read] == [0, 1, 6, 7]
        next_offset = 0
        for read in found:
            assert read.follows == next_offset
            next_offset = read[-1].offset + 1


def test_a_read_after_records_were_deleted_does_not_follow_on(any_world: Any) -> None:
    any_world.produce([purchase(f"i{n}", n) for n in range(20)])

    def delete() -> None:
        any_world.produce([purchase(f"j{n}", 20 + n) for n in range(20)])
        with admin(any_world.settings.broker, any_world.bootstrap) as client:
            client.delete_records({kafka.TopicPartition(any_world.prefix + "interactions", 0): 30})

    found = asyncio.run(reads(any_world, until=40, at_most=100, between=delete))
    assert [(read.follows, read[0].offset, read[-1].offset) for read in found] == [(0, 0, 19), (30, 30, 39)]


class NoQuestions:
    """Faust's consumer where nothing may be asked."""

    def is_stale(self, block: Block) -> bool:
        return False


def test_a_block_that_follows_on_the_state_is_applied_without_a_question_whatever_its_holes_and_another_is_not(
    world: Any,
) -> None:
    def block(follows: int | None, *offsets: int) -> Block:
        records = [
            SimpleNamespace(topic="interactions", partition=0, offset=n, timestamp=0, timestamp_type=0) for n in offsets
        ]
        return Block(TP("interactions", 0), Fetched(records, 0, follows), 0, 0)

    app = WorkerApp(world.settings, world.bootstrap, 1)
    app.consumer = NoQuestions()
    assert not asyncio.run(app._read_again(block(5, 7, 8, 11), 5))
    assert app.metrics.gap_offsets._value.get() == 2 + 2
    assert not asyncio.run(app._read_again(block(3, 3, 4, 11, 13), 12))  # begins with what is applied
    assert app.metrics.gap_offsets._value.get() == 2 + 2 + 1
    for follows in (6, None):
        log = app.consumer = LogOfOffsets(first=0, end=30)
        assert asyncio.run(app._read_again(block(follows, 7, 8), 5))
        assert log.sought == [5]
        app.forget_holes(TP("interactions", 0))
    joined = Fetched(block(5, 7, 8).records, 0, 5)
    joined.join(Fetched(block(9, 11).records, 0, 9))
    assert joined.follows == 5
    joined.join(Fetched(block(20, 20).records, 0, 20))
    assert joined.follows is None
