"""How records come into the Faust application: in blocks, and from where the stores say.

Faust hands records to agents one by one, through two tasks and four queues each: about 250 us a record, ten times what
applying it costs. Here the consumer hands out *blocks*, all records of one partition that a fetch brought, as if a
block were one message with the offset of its last record. Rebalancing, flow control, acknowledging and committing
stay Faust's own.

A block holds what a fetch has brought: little where events are applied as they come, up to `state.epoch_events` records
where a worker catches up, or more where the app has more room for them. One that is not full waited `state.epoch_ms`
for more.

Seeks of a partition are numbered, and a block has the number of the seek that its fetch followed. A block of an older
number is stale: the seek brings its records again, in order.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import faust
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import IllegalStateError
from aiokafka.protocol.fetch import FetchRequest
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from driftline.configs.security import READ_COMMITTED, ssl_context
from driftline.configs.settings import Broker
from driftline.serving.lull import Lull
from driftline.stream.exits import end_process
from driftline.stream.kafka.followed import note_where_reads_follow_on

BUFFERED_BLOCKS = 4
"""Blocks of a partition that wait in memory while one is applied."""


LARGE_BLOCK_S = 1.0
"""How long at most a block is filled where epochs had better be large (`Processor.room`)."""
EMPTY_FETCH_S, LONGEST_EMPTY_FETCH_S = 0.02, 0.05
"""A fetch that brought nothing takes at least so long: at first, and while nothing comes for longer."""


def calm(consumer: AIOKafkaConsumer) -> AIOKafkaConsumer:
    """Lets a consumer pause after a fetch that brought nothing.

    Kafka holds such a fetch back until something comes or its time is over. A broker that answers at once, as the
    embedded one does, would keep a core busy with asking.
    """
    send: Callable[..., Awaitable[Any]] = consumer._client.send
    lull = Lull(EMPTY_FETCH_S, LONGEST_EMPTY_FETCH_S)

    async def sent(node_id: int, request: Any, **options: Any) -> Any:
        started = time.monotonic()
        answer = await send(node_id, request, **options)
        if isinstance(request, FetchRequest):
            if any(part[-1] for _, parts in answer.topics for part in parts):
                lull.end()
            else:
                await asyncio.sleep(lull.wait_s() - (time.monotonic() - started))
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
    """Records of one partition that one fetch brought.

    Attributes:
        seeks: number of seeks before it.
        follows: all that the topic had from this offset on, up to the last record, is here; None = not known.
    """

    def __init__(self, records: list[Any], seeks: int, follows: int | None = None) -> None:
        super().__init__(records)
        self.seeks, self.follows = seeks, follows

    def join(self, more: Fetched) -> None:
        """Takes in the records of the next fetch."""
        if more.follows is None or more.follows > self[-1].offset + 1:
            self.follows = None
        self.extend(more)


class Block(ConsumerMessage):  # type: ignore[misc]
    """All records of one partition that one fetch brought.

    Attributes:
        records: as `stream/kafka/batches.py` hands them out, in order.
        end: offset after the last record that the topic had at the fetch, but for transactions that were open.
        seeks: number of the partition's seeks before the fetch.
        follows: see `Fetched`.
    """

    def __init__(self, tp: TP, records: Fetched, end: int, generation_id: int) -> None:
        last = records[-1]
        super().__init__(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000, last.timestamp_type, None, None, b"", None,
            tp=tp, generation_id=generation_id,
        )  # fmt: skip
        self.records, self.end, self.seeks, self.follows = records, end, records.seeks, records.follows

    def follows_on(self, next_offset: int) -> bool:
        """Whether what is missing between its records and `next_offset` was never handed out: it holds no records."""
        return self.follows is not None and self.follows <= next_offset


def holes_in(records: list[Any], next_offset: int) -> list[tuple[int, int]]:
    """The jumps in the offsets of a block that is to follow `next_offset`: (expected, found) of each.

    A jump is records that a rebalance made Faust drop, records that the broker deleted, or offsets that hold none, as
    after a transaction.
    """
    first, last = records[0].offset, records[-1].offset
    if first <= next_offset and last - first == len(records) - 1:
        return []
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
        self.read_to: dict[TP, int] = {}

    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> AIOKafkaConsumer:
        consumer = super()._create_consumer(loop)
        consumer._isolation_level = READ_COMMITTED  # Faust ties it to writing in transactions
        note_where_reads_follow_on()
        return calm(consumer)

    async def _seek_wait(self, consumer: AIOKafkaConsumer, partitions: dict[TP, int]) -> None:
        """What is not assigned any more is passed over: whoever owns it seeks."""
        assigned = consumer.assignment()
        here = {tp: offset for tp, offset in partitions.items() if tp in assigned}
        self.seeks.update(here.keys())
        with suppress(IllegalStateError):  # a rebalance while the client looks
            await super()._seek_wait(consumer, here)

    async def _commit(self, offsets: dict[TP, int]) -> bool:
        """What is not assigned any more is passed over: Faust would crash if nothing is left after a rebalance."""
        here = {tp: offset for tp, offset in offsets.items() if tp in self.assignment()}
        return bool(here and await super()._commit(here))

    def highwater(self, tp: TP) -> int:
        """Last known end of what may be read of a partition; 0 if it is not assigned any more."""
        consumer = self._ensure_consumer()
        if tp not in consumer.assignment():
            return 0
        stable = consumer.last_stable_offset(tp)
        return int(consumer.highwater(tp) or 0) if stable is None or stable < 0 else int(stable)

    def undecided(self, tp: TP) -> int:
        """Records that the last fetch left out, as they are of, or behind, a transaction that is not decided."""
        consumer = self._ensure_consumer()
        return int(consumer.highwater(tp) or 0) - self.highwater(tp) if tp in consumer.assignment() else 0

    async def _fetch_records(self, *args: Any, **options: Any) -> dict[TP, Fetched]:
        records = await super()._fetch_records(*args, **options)
        self.read_to.update({tp: found[-1].offset + 1 for tp, found in records.items() if found})
        return {tp: Fetched(found, self.seeks[tp], getattr(found, "follows", None)) for tp, found in records.items()}

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

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Reads on where the state is here; what is still being opened is resumed when it is."""
        super().resume_partitions({tp for tp in tps if self.app.holding.is_open(tp)})

    def is_stale(self, block: Block) -> bool:
        """Whether a seek since its fetch brings a block's records again."""
        return bool(block.seeks != self._thread.seeks[block.tp])

    def read_to(self, tp: TP) -> int:
        """Offset after the last record that was read of a partition, 0 before the first."""
        return int(self._thread.read_to.get(tp, 0))

    def undecided(self, tp: TP) -> int:
        """How many records of a partition an open transaction holds back."""
        return int(self._thread.undecided(tp))

    async def seek(self, partition: TP, offset: int) -> None:
        """Reads on from an offset; Faust's own way does not wait for the client's thread."""
        await self.seek_wait({partition: offset})

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Block]]:
        """The blocks of one fetch, as the consumer's loop asks for messages.

        What can't be fetched ends the process: Faust may go on without its fetcher, with partitions that nobody reads.
        """
        try:
            async for place, block in self._blocks(timeout):
                yield place, block
        except self.consumer_stopped_errors:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing is read any more
            end_process(error)

    async def _blocks(self, timeout: float) -> AsyncIterator[tuple[TP, Block]]:
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
            block = Block(tp, found, self.highwater(tp), generation_id)
            if block.offset < (self._read_offset[tp] or 0):
                self._read_offset[tp] = None  # Faust drops what lies below; after a seek it may be a stale block's
            yield tp, block

    async def _filled(self, records: dict[TP, Fetched], active: set[TP] | None) -> dict[TP, Fetched]:
        """Waits for more records when there are few: once, or where epochs had better be large, while more come."""
        state, large = self.app.settings.state, self.app.holding.room
        deadline = time.monotonic() + (LARGE_BLOCK_S if large > state.epoch_events else 0)
        while (room := large - sum(map(len, records.values()))) > 0:
            await asyncio.sleep(state.epoch_ms / 1000)
            fetched = await self._thread.fetched(active, room)
            for tp, more in fetched.items():
                if tp in records and records[tp].seeks == more.seeks:
                    records[tp].join(more)
                else:
                    records[tp] = more
            if not fetched or time.monotonic() >= deadline:
                break
        return records

    async def seek_to_committed(self) -> dict[TP, int]:
        """Seeks every open partition to the next offset of its store."""
        try:
            positions: dict[TP, int] = await self.app.holding.store_positions(set(self.assignment()))
            await self.seek_wait(positions)
        except Exception as error:  # noqa: BLE001 - Faust would go on without the seek
            end_process(error)
        return positions


class BlockTransport(Transport):  # type: ignore[misc]
    """A transport whose consumers are `BlockConsumer`s."""

    Consumer = BlockConsumer
