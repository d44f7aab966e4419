"""How records come into the Faust application: in blocks, and from where the stores say.

Faust hands records to agents one by one, through two tasks and four queues each: about 250 us a record, ten times what
applying it costs. Here the consumer hands out *blocks*, all records of one partition that a fetch brought, as if a
block were one message with the offset of its last record. Rebalancing, flow control, acknowledging and committing
stay Faust's own.

A block never holds more than `state.epoch_events` records; a smaller one waited `state.epoch_ms` for more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.protocol.fetch import FetchRequest
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from stream.exits import end_process

BUFFERED_BLOCKS = 4
"""Blocks of a partition that wait in memory while one is applied."""


EMPTY_FETCH_S = 0.02
"""A fetch that brought nothing takes at least so long."""


def calm(consumer: AIOKafkaConsumer) -> AIOKafkaConsumer:
    """Lets a consumer pause after a fetch that brought nothing.

    Kafka holds such a fetch back until something comes or its time is over. A broker that answers at once, as the
    embedded one does, would keep a core busy with asking.
    """
    send: Callable[..., Awaitable[Any]] = consumer._client.send

    async def sent(node_id: int, request: Any, **options: Any) -> Any:
        started = time.monotonic()
        answer = await send(node_id, request, **options)
        if isinstance(request, FetchRequest) and not any(part[-1] for _, parts in answer.topics for part in parts):
            await asyncio.sleep(EMPTY_FETCH_S - (time.monotonic() - started))
        return answer

    consumer._client.send = sent
    return consumer


class Block(ConsumerMessage):  # type: ignore[misc]
    """All records of one partition that one fetch brought.

    Attributes:
        records: aiokafka records with `offset`, `key`, `value`, `headers`, `timestamp`, in order.
        end: offset after the last record that the topic had at the fetch.
    """

    def __init__(self, tp: TP, records: list[Any], end: int, generation_id: int) -> None:
        last = records[-1]
        super().__init__(
            last.topic, last.partition, last.offset, last.timestamp / 1000, last.timestamp_type, None, None, b"", None,
            tp=tp, generation_id=generation_id,
        )  # fmt: skip
        self.records, self.end = records, end


def holes_in(records: list[Any], next_offset: int) -> list[tuple[int, int]]:
    """The jumps in the offsets of a block that is to follow `next_offset`: (expected, found) of each.

    A jump is records that a rebalance made Faust drop, records that the broker deleted, or offsets that hold none, as
    after a transaction.
    """
    holes = []
    for record in records:
        if record.offset > next_offset:
            holes.append((next_offset, record.offset))
        next_offset = max(next_offset, record.offset + 1)
    return holes


class CalmThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust's thread around the Kafka client, but for the pause after an empty fetch."""

    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> AIOKafkaConsumer:
        return calm(super()._create_consumer(loop))

    async def fetched(self, active: set[TP] | None, at_most: int) -> dict[TP, list[Any]]:
        """Records that have come by now; what goes past `at_most` stays with the client, for the next poll."""
        records: dict[TP, list[Any]] = await self.call_thread(
            self._fetch_records, self._ensure_consumer(), active, timeout=0.0, max_records=at_most
        )
        return records


class BlockConsumer(Consumer):  # type: ignore[misc]
    """Faust's consumer, but for what it hands out and where it starts to read."""

    def _new_consumer_thread(self) -> CalmThread:
        return CalmThread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Block]]:
        """The blocks of one fetch, as the consumer's loop asks for messages."""
        records, active = await self._wait_next_records(timeout)
        generation_id = self.app.consumer_generation_id
        if records and self.flow_active:
            records = await self._filled(records, active)
        if not self.flow_active:
            await self.perform_seek()
            return
        for tp, block in (records or {}).items():
            if self.should_stop or not self.flow_active or self.app.consumer_generation_id != generation_id:
                return  # the seek at the end of the rebalance brings these records again
            yield tp, Block(tp, block, self.highwater(tp) or 0, generation_id)

    async def _filled(self, records: dict[TP, list[Any]], active: set[TP] | None) -> dict[TP, list[Any]]:
        """Waits once for more records when there are few."""
        state = self.app.settings.state
        room = state.epoch_events - sum(map(len, records.values()))
        if room > 0:
            await asyncio.sleep(state.epoch_ms / 1000)
            for tp, more in (await self._thread.fetched(active, room)).items():
                records.setdefault(tp, []).extend(more)
        return records

    async def seek_to_committed(self) -> dict[TP, int]:
        """Seeks every assigned partition to the next offset of its store."""
        try:
            positions: dict[TP, int] = await self.app.store_positions(set(self.assignment()))
            await self.seek_wait(positions)
        except Exception as error:  # noqa: BLE001 - Faust would go on without the seek
            end_process(error)
        return positions


class BlockTransport(Transport):  # type: ignore[misc]
    """A transport whose consumers are `BlockConsumer`s."""

    Consumer = BlockConsumer
