"""Reading topics ahead of who applies them, without a group: a Kafka client in a thread with a loop of its own.

    thread of the client   fetch --> records --> a buffer a partition, filled up to a block and one more
    thread of the caller                              '--> block() --> apply, commit

Whoever asks for a block gets a full one, as large as memory allows, or what is left before the end that is asked for.
It answers what Faust's consumer answers (`stream/epochs.py`), and its blocks and seeks are those of
`stream/kafka/consumer.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Collection, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP

from driftline.configs.security import consumer_options
from driftline.configs.settings import Broker
from driftline.stream.kafka.batches import read_as_parsed
from driftline.stream.kafka.consumer import Block, Fetched, calm
from driftline.stream.kafka.followed import note_where_reads_follow_on

BLOCK_RECORDS = 32_768
"""Records of one block of each partition together: what an epoch has in memory. More make them hardly faster."""
BLOCK_BYTES = 16 << 20
"""The same of keys and values; and what the broker sends of them at once."""
LEAST_RECORDS, LEAST_BYTES = 1024, 1 << 20
"""Of a block, however many partitions there are."""
AHEAD = 2
"""Blocks of a partition that lie in memory while one is applied."""
POLL_MS = 200

_Answer = TypeVar("_Answer")


class Buffer:
    """Records of one partition that have been read and not been asked for, in blocks of so many records and bytes."""

    def __init__(self, records: int, size: int) -> None:
        self._records, self._bytes = records, size
        self.blocks: deque[Fetched] = deque()
        self._last_bytes = 0

    def join(self, more: Fetched) -> None:
        """Takes in the records of the next read: to the last block, as long as there is room."""
        size = sum(len(record.value or b"") + len(record.key or b"") for record in more)
        fits = self.blocks and len(self.blocks[-1]) + len(more) <= self._records
        if fits and self._last_bytes + size <= self._bytes:
            self.blocks[-1].join(more)
            self._last_bytes += size
        else:
            self.blocks.append(more)
            self._last_bytes = size

    def take(self) -> Fetched | None:
        """The first block."""
        return self.blocks.popleft() if self.blocks else None


class Reader:
    """A consumer without a group; its methods may be called from any loop but that of its own thread.

    Args:
        settings: of the broker.
        bootstrap: its addresses.
        together: partitions that are read at the same time and share the memory.
    """

    def __init__(self, settings: Broker, bootstrap: str, together: int = 1) -> None:
        self._settings, self._bootstrap = settings, bootstrap
        self._most = max(LEAST_RECORDS, BLOCK_RECORDS // together)
        self._bytes = max(LEAST_BYTES, BLOCK_BYTES // together)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="reader", daemon=True)
        self._places: set[TP] = set()
        self._buffers: dict[TP, Buffer] = {}
        self._seeks: Counter[TP] = Counter()
        self._read_to: dict[TP, int] = {}
        self._came, self._room = asyncio.Event(), asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._consumer: Any = None
        self._stopping = False

    # -- for the caller ----------------------------------------------------------------------------------------

    async def start(self, places: Iterable[TP]) -> None:
        """Begins; a partition is read once it is resumed."""
        self._thread.start()
        await self._in_thread(self._start([TopicPartition(*place) for place in places]))

    async def stop(self) -> None:
        """Ends the client and its thread."""
        if self._thread.is_alive():
            await self._in_thread(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def end_soon(self) -> None:
        """Whoever waits for a block gets what there is, and nothing more."""
        self._stopping = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._came.set)

    async def block(self, tp: TP, end: int) -> Block | None:
        """The next records of a partition: a full block, or what is left before an offset; None = nothing is.

        One at a time may be asked for.

        Raises:
            KafkaError: the broker refuses.
        """
        return await self._in_thread(self._block(tp, end))

    # -- what Faust's consumer answers -------------------------------------------------------------------------

    def assignment(self) -> Collection[TP]:
        """The partitions that are read."""
        return set(self._places)

    async def seek(self, partition: TP, offset: int) -> None:
        """Reads on from an offset; blocks of before are stale from then on."""
        await self.seek_wait({partition: offset})

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Reads several partitions on from offsets."""
        await self._in_thread(self._seek(partitions))

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Begins to read partitions that have been opened and sought."""
        self._places = self._places | set(tps)
        self._loop.call_soon_threadsafe(self._room.set)

    def is_stale(self, block: Block) -> bool:
        """Whether a seek since its fetch brings a block's records again."""
        return bool(block.seeks != self._seeks[block.tp])

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        """The first offsets that the broker has."""
        return await self._in_thread(self._offsets("beginning_offsets", partitions))

    async def highwaters(self, *partitions: TP) -> dict[TP, int]:
        """The ends of what may be read."""
        return await self._in_thread(self._offsets("end_offsets", partitions))

    async def position(self, tp: TP) -> int | None:
        """Where reading goes on."""
        return await self._in_thread(self._position(tp))

    def read_to(self, tp: TP) -> int:
        """Offset after the last record that was read, 0 before the first."""
        return self._read_to.get(tp, 0)

    def undecided(self, tp: TP) -> int:
        """How many records an open transaction holds back."""
        place = TopicPartition(*tp)
        end, stable = self._consumer.highwater(place) or 0, self._consumer.last_stable_offset(place)
        return int(end - stable) if stable is not None and stable >= 0 else 0

    # -- in the thread -----------------------------------------------------------------------------------------

    async def _in_thread(self, work: Coroutine[Any, Any, _Answer]) -> _Answer:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _start(self, places: list[TopicPartition]) -> None:
        read_as_parsed()
        note_where_reads_follow_on()
        options = consumer_options(self._settings, self._bootstrap)
        self._consumer = calm(AIOKafkaConsumer(**options, max_partition_fetch_bytes=self._bytes))
        await self._consumer.start()
        self._consumer.assign(places)
        self._consumer.pause(*places)
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(lambda _: self._came.set())

    async def _stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._reading
        if self._consumer is not None:
            await self._consumer.stop()

    async def _offsets(self, which: str, partitions: Iterable[TP]) -> dict[TP, int]:
        found = await getattr(self._consumer, which)([TopicPartition(*tp) for tp in partitions])
        return {TP(*place): int(offset) for place, offset in found.items()}

    async def _position(self, tp: TP) -> int:
        return int(await self._consumer.position(TopicPartition(*tp)))

    async def _seek(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            self._seeks[tp] += 1
            self._buffers[tp] = Buffer(self._most, self._bytes)
            self._consumer.seek(TopicPartition(*tp), offset)
        self._room.set()

    async def _read(self) -> None:
        """Fills the buffers, for ever."""
        while True:
            self._room.clear()
            hungry = [tp for tp in self._places if len(self._buffers[tp].blocks) <= AHEAD]
            if not hungry:
                await self._room.wait()
                continue
            places = [TopicPartition(*tp) for tp in hungry]
            self._consumer.resume(*places)
            seeks = self._seeks.copy()
            found = await self._consumer.getmany(*places, timeout_ms=POLL_MS, max_records=self._most)
            for place, records in found.items():
                tp = TP(*place)
                if self._seeks[tp] == seeks[tp]:
                    self._read_to[tp] = records[-1].offset + 1
                    self._buffers[tp].join(Fetched(records, seeks[tp], getattr(records, "follows", None)))
            self._came.set()

    async def _block(self, tp: TP, end: int) -> Block | None:
        while True:
            self._came.clear()
            if self._stopping or len(self._buffers[tp].blocks) > 1 or await self._position(tp) >= end:
                break
            if self._reading is not None and self._reading.done():
                self._reading.result()
            await self._came.wait()
        records = None if self._stopping else self._buffers[tp].take()
        self._room.set()
        if records is None:
            return None
        return Block(tp, records, int(self._consumer.highwater(TopicPartition(*tp)) or end), 0)
