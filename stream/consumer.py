"""How records come into the Faust application: in blocks, and from where the stores say.

Faust hands records to agents one by one, through two tasks and four queues each: about 250 us a record, ten times what
applying it costs. Here the consumer hands out *blocks*, all records of one partition that a fetch brought, as if a
block were one message with the offset of its last record. Rebalancing, flow control, acknowledging and committing
stay Faust's own.

A block never holds more than `state.epoch_events` records; a smaller one waited `state.epoch_ms` for more.

Seeks of a partition are numbered, and a block has the number of the seek that its fetch followed. A block of an older
number is stale: the seek brings its records again, in order.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer
from aiokafka.protocol.fetch import FetchRequest
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from configs.security import ssl_context
from configs.settings import Broker
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


def credentials(broker: Broker) -> Any:
    """What `broker` says of TLS and SASL, in Faust's terms; None for a plain listener."""
    context = ssl_context(broker) if broker.security.endswith("SSL") else None
    if not broker.security.startswith("SASL"):
        return context
    return faust.SASLCredentials(
        mechanism=broker.sasl_mechanism,
        username=broker.sasl_username,
        password=broker.sasl_password,
        ssl_context=context,
    )


class Fetched(list[Any]):
    """Records of one partition that one fetch brought; `seeks` is the number of seeks before it."""

    def __init__(self, records: list[Any], seeks: int) -> None:
        super().__init__(records)
        self.seeks = seeks


class Block(ConsumerMessage):  # type: ignore[misc]
    """All records of one partition that one fetch brought.

    Attributes:
        records: aiokafka records with `offset`, `key`, `value`, `headers`, `timestamp`, in order.
        end: offset after the last record that the topic had at the fetch.
        seeks: number of the partition's seeks before the fetch.
    """

    def __init__(self, tp: TP, records: Fetched, end: int, generation_id: int) -> None:
        last = records[-1]
        super().__init__(
            last.topic, last.partition, last.offset, last.timestamp / 1000, last.timestamp_type, None, None, b"", None,
            tp=tp, generation_id=generation_id,
        )  # fmt: skip
        self.records, self.end, self.seeks = records, end, records.seeks


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
    """Faust's thread around the Kafka client, but for the pause after an empty fetch and for numbered seeks.

    Seeks and fetches run in the thread's own loop, neither within the other, so the numbers are exact.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seeks: Counter[TP] = Counter()

    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> AIOKafkaConsumer:
        return calm(super()._create_consumer(loop))

    async def _seek_wait(self, consumer: AIOKafkaConsumer, partitions: dict[TP, int]) -> None:
        self.seeks.update(partitions.keys())
        await super()._seek_wait(consumer, partitions)

    async def _fetch_records(self, *args: Any, **options: Any) -> dict[TP, Fetched]:
        records = await super()._fetch_records(*args, **options)
        return {tp: Fetched(found, self.seeks[tp]) for tp, found in records.items()}

    async def fetched(self, active: set[TP] | None, at_most: int) -> dict[TP, Fetched]:
        """Records that have come by now; what goes past `at_most` stays with the client, for the next poll."""
        records: dict[TP, Fetched] = await self.call_thread(
            self._fetch_records, self._ensure_consumer(), active, timeout=0.0, max_records=at_most
        )
        return records


class BlockConsumer(Consumer):  # type: ignore[misc]
    """Faust's consumer, but for what it hands out and where it starts to read."""

    def _new_consumer_thread(self) -> CalmThread:
        return CalmThread(self, loop=self.loop, beacon=self.beacon)

    def is_stale(self, block: Block) -> bool:
        """Whether a seek since its fetch brings a block's records again."""
        return bool(block.seeks != self._thread.seeks[block.tp])

    async def seek(self, partition: TP, offset: int) -> None:
        """Reads on from an offset; Faust's own way does not wait for the client's thread."""
        await self.seek_wait({partition: offset})

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Block]]:
        """The blocks of one fetch, as the consumer's loop asks for messages."""
        records, active = await self._wait_next_records(timeout)
        generation_id = self.app.consumer_generation_id
        if records and self.flow_active:
            records = await self._filled(records, active)
        if not self.flow_active:
            await self.perform_seek()
            return
        for tp, found in (records or {}).items():
            if self.should_stop or not self.flow_active or self.app.consumer_generation_id != generation_id:
                return  # the seek at the end of the rebalance brings these records again
            block = Block(tp, found, self.highwater(tp) or 0, generation_id)
            if block.offset < (self._read_offset[tp] or 0):
                self._read_offset[tp] = None  # Faust drops what lies below; after a seek it may be a stale block's
            yield tp, block

    async def _filled(self, records: dict[TP, Fetched], active: set[TP] | None) -> dict[TP, Fetched]:
        """Waits once for more records when there are few."""
        state = self.app.settings.state
        room = state.epoch_events - sum(map(len, records.values()))
        if room > 0:
            await asyncio.sleep(state.epoch_ms / 1000)
            for tp, more in (await self._thread.fetched(active, room)).items():
                if tp in records and records[tp].seeks == more.seeks:
                    records[tp].extend(more)
                else:
                    records[tp] = more
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
