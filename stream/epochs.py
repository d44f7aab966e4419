"""The steps of an epoch, one object for all who read Kafka's records into the states of this host.

    records --1 apply--> changes --2 commit--> state of the partition (RocksDB) --3 send--> topics --4 clear the outbox

The Faust application of a worker (`stream/app.py`) and `driftline backfill` (`stream/backfill.py`) hand it blocks; it
opens the partitions, says where reading goes on, and holds all to the topics that they were made from.

Why replay is safe: an epoch is 1 applied in memory, 2 committed as one batch of rows, next offset and outgoing
records, 3 sent, and 4 cleared out of the store with the next batch. A crash before 2 changed nothing; one after it
sends again. Kafka's own offset of the group is never used to decide where reading goes on.
Offsets that are missing hold no records, as after a transaction, where the block follows on the state's offset: the
client read on without a break. A block that does not is read again, and what is missing then, too, is passed over only
while the broker has what comes after the state.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import defaultdict
from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from aiokafka.errors import MessageSizeTooLargeError
from faust.types import TP

from driftline.configs.faults import point
from driftline.configs.settings import Settings
from driftline.stream.events.dlq import TOPIC as DLQ
from driftline.stream.events.dlq import fitting, shortened
from driftline.stream.events.records import EVERYWHERE, Outgoing, records_of
from driftline.stream.exits import end_process
from driftline.stream.kafka.consumer import Block, holes_in
from driftline.stream.ops.metrics import WorkerMetrics
from driftline.stream.ops.sayings import Sayings
from driftline.stream.owned.holding import Holding
from driftline.stream.owned.partitions import check_position
from driftline.stream.owned.standing import Standing
from driftline.stream.owned.versions import GraphVersions
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor

LOG = logging.getLogger(__name__)


def collect_rarely() -> None:
    """Lets Python look for garbage in circles as often as an epoch or two are over: events and rows are in none.

    By default it looks after 700 new objects, which was a quarter of a backfill.
    """
    gc.set_threshold(200_000, 20, 20)


def group_of(settings: Settings) -> str:
    """The workers' consumer group."""
    return f"{settings.broker.prefix}worker"


_Owner = TypeVar("_Owner", Processor, ItemProcessor)


class Consumer(Protocol):
    """What is asked of whoever reads the records."""

    def assignment(self) -> Collection[TP]:
        """The partitions that are read."""

    async def seek(self, partition: TP, offset: int) -> None:
        """Reads on from an offset; blocks of before are stale from then on."""

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Reads several partitions on from offsets."""

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Begins to read partitions that have been opened."""

    def is_stale(self, block: Block) -> bool:
        """Whether a seek since its fetch brings a block's records again."""

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """The first offsets that the broker has."""

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """The ends of what may be read."""

    async def position(self, tp: TP) -> int | None:
        """Where reading goes on."""

    def read_to(self, tp: TP) -> int:
        """Offset after the last record that was read, 0 before the first."""

    def undecided(self, tp: TP) -> int:
        """How many records an open transaction holds back."""


class Epochs:
    """What a process does with the records of the partitions that it owns.

    Args:
        settings: the whole configuration.
        bootstrap: addresses of brokers.
        partitions, item_partitions: of `interactions` and `interactions.by-item`; 0 = as many as of the first.

    Attributes:
        consumer: who reads the records.
        who: names the process to people.
        far_behind: what to tell them of a worker that has very much to apply, "" = nothing.
    """

    consumer: Consumer | Any
    who, far_behind = "worker", ""

    def __init__(self, settings: Settings, bootstrap: str, partitions: int, item_partitions: int = 0) -> None:
        self.settings, self.prefix, self.metrics = settings, settings.broker.prefix, WorkerMetrics()
        self.versions = GraphVersions(settings, bootstrap, self.send_all)
        self._holes: dict[TP, set[tuple[int, int]]] = defaultdict(set)
        self._gaps: set[TP] = set()
        self.sayings = Sayings(self.metrics, settings.state.late_ms)
        self.holding = Holding(self, partitions, item_partitions)
        self.open = self.holding.open
        self.standing = Standing(self, bootstrap)

    # -- sending -----------------------------------------------------------------------------------------------

    async def hand_over(self, out: Outgoing) -> asyncio.Future[Any]:
        """Hands a record to the producer; what to await for its acknowledgement."""
        raise NotImplementedError

    async def numbers_of(self, name: str) -> Collection[int]:
        """The partitions of a topic, by its name without prefix."""
        raise NotImplementedError

    async def send_all(self, outgoing: Sequence[Outgoing]) -> None:
        """Sends records; returns when all are acknowledged."""
        each = [one for out in outgoing for one in await self._to_each(out)]
        sending = [await self._sent(fitting(out) if out.topic == DLQ else out) for out in each]
        for out, sent in zip(each, await asyncio.gather(*sending, return_exceptions=True), strict=True):
            if isinstance(sent, MessageSizeTooLargeError) and out.topic == DLQ:
                await (await self._sent(shortened(out)))  # a topic that was made with a smaller limit
            elif isinstance(sent, BaseException):
                raise sent

    async def _to_each(self, out: Outgoing) -> list[Outgoing]:
        if out.partition != EVERYWHERE:
            return [out]
        return out.to_each(await self.numbers_of(out.topic))

    async def _sent(self, out: Outgoing) -> Awaitable[Any]:
        """As `hand_over`; what the broker does not take ends the process."""
        sent = await self.hand_over(out)
        sent.add_done_callback(_end_if_refused)
        return sent

    # -- epochs ------------------------------------------------------------------------------------------------

    async def apply(self, block: Block) -> None:
        """One epoch of a partition of `interactions`."""
        processor = await self._owner_of(block, self.open.users)
        if processor is None:
            return
        with self.metrics.epoch(processor, block.end):
            changes = processor.apply(records_of(block.records))  # 1
            point("before-batch")
            processor.commit(changes)  # 2
        point("after-batch")
        await self.send_all(changes.outgoing)  # 3
        point("before-ack")
        processor.acknowledged = True  # 4, in the batch of the next epoch
        self.metrics.count(changes)
        self.sayings.outcomes(block.tp)
        self.sayings.unknown(changes.unknown_names)
        self.sayings.below_zero(changes.below_zero)
        if self.open.users.get(block.partition) is processor and self.versions.due(processor):
            await self.versions.adopt(processor)

    async def apply_by_item(self, block: Block) -> None:
        """One epoch of a partition of `interactions.by-item`."""
        owner = await self._owner_of(block, self.open.items)
        if owner is None:
            return
        changes = owner.apply(records_of(block.records))  # 1
        await self.send_all(changes.outgoing)  # 3, before the commit: see ItemProcessor.apply
        if self.open.items.get(block.partition) is not owner:
            return  # given up meanwhile; the next owner applies and sends again
        point("by-item-batch")
        owner.commit(changes)  # 2
        self.metrics.item_offset.labels(block.partition).set(owner.next_offset)
        self.metrics.count(replace(changes, applied=0))  # they were counted where their users are
        if self.versions.due(owner):
            await self.versions.adopt(owner)

    async def _owner_of(self, block: Block, owners: Mapping[int, _Owner]) -> _Owner | None:
        """Who applies a block; None where nobody does, or it is to be read again first."""
        owner = owners.get(block.partition)
        if owner is None or await self._read_again(block, owner.next_offset):
            return None
        return owner if owners.get(block.partition) is owner else None  # given up while the broker was asked

    async def _read_again(self, block: Block, next_offset: int) -> bool:
        """Goes back when records may be missing before a block; what is missing after that, too, holds no records.

        Nor does what is missing in a block that follows on the state: transactions leave such holes in every epoch, so
        that costs no question. Where the broker deleted what comes next, the client began anew behind it, and the block
        does not follow on. A stale block says nothing about what is missing: its records come again.

        Raises:
            StateError: the broker deleted what is missing, or the topic was made anew while it was read.
        """
        if self.consumer.is_stale(block):
            return True
        tp, seen = block.tp, self._holes[block.tp]
        holes = holes_in(block.records, next_offset)
        first, follows_on = 0, block.follows_on(next_offset)
        if not (follows_on or seen.issuperset(holes)):
            seen.update(holes)
            await self.consumer.seek(tp, next_offset)
            return True
        if (holes and not follows_on) or block.offset < next_offset:
            bounds = (await self.holding.bounds(tp))[tp]
            await self.standing.check_topics()
            for position in [expected for expected, _ in holes] or [next_offset]:
                check_position(tp.topic, tp.partition, position, bounds)
            first = bounds.first  # a new state starts at what is left
        for expected, found in holes:
            self._pass_over(tp, max(expected, first), found)
        seen.clear()
        return False

    def forget_holes(self, tp: TP) -> None:
        """A partition has gone: what was missing in it is asked for anew when it comes back."""
        self._holes.pop(tp, None)

    def _pass_over(self, tp: TP, start: int, end: int) -> None:
        """Counts offsets that hold no records; says so once a partition, as each transaction leaves one."""
        if start < end:
            self.metrics.gap_offsets.inc(end - start)
            LOG.log(
                logging.DEBUG if tp in self._gaps else logging.WARNING,
                "partition %d of %s: offsets %d to %d hold no records, as after a transaction or in a compacted topic; "
                "they are passed over",
                tp.partition, tp.topic, start, end - 1,
            )  # fmt: skip
            self._gaps.add(tp)


def _end_if_refused(sent: asyncio.Future[Any]) -> None:
    """Ends the process before the producer goes on to the next batch.

    Whoever takes copies and item events remembers how far they came: one that came after a lost one would hide it.
    """
    error = None if sent.cancelled() else sent.exception()
    if error is not None and not isinstance(error, MessageSizeTooLargeError):
        end_process(error)
