"""How records come into the Faust application: in blocks, and from where the stores say.

Faust hands records to agents one by one, through two tasks and four queues each: about 250 us a record, ten times what
applying it costs. Here the consumer hands out *blocks*, all records of one partition that a fetch brought, as if a
block were one message with the offset of its last record. Rebalancing, flow control, acknowledging and committing
stay Faust's own.

A block never holds more than `state.epoch_events` records; a smaller one waited `state.epoch_ms` for more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from faust.transport.drivers.aiokafka import Consumer, Transport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from stream.exits import end_process

BUFFERED_BLOCKS = 4
"""Blocks of a partition that wait in memory while one is applied."""


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


def hole_in(records: list[Any], next_offset: int) -> tuple[int, int] | None:
    """The first jump in the offsets of a block that is to follow `next_offset`: (expected, found); None = no jump.

    A jump is either records that a rebalance made Faust drop, or offsets that hold none, as after a transaction.
    """
    for record in records:
        if record.offset > next_offset:
            return next_offset, record.offset
        next_offset = max(next_offset, record.offset + 1)
    return None


class BlockConsumer(Consumer):  # type: ignore[misc]
    """Faust's consumer, but for what it hands out and where it starts to read."""

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
        if sum(map(len, records.values())) < state.epoch_events:
            await asyncio.sleep(state.epoch_ms / 1000)
            for tp, more in (await self._getmany(active_partitions=active, timeout=0.0)).items():
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
