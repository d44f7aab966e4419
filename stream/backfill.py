"""`driftline backfill`: what the topics hold, applied to the state of this host without Faust; then it ends.

    thread of a Kafka client   interactions, interactions.by-item --> blocks, read ahead (stream/kafka/direct.py)
    main thread                block --> the steps of an epoch (stream/epochs.py) --> state; outgoing records

It is the worker's own work but for who hands in the records: same locks, same store, same offsets, same commits, so a
worker goes on where it ends, and the other way round. Faust's group, its queues and its timers are what it leaves out,
and epochs are as large as memory allows.

1 It refuses where the workers' group has members or a worker has the lock of a partition. 2 The newest graph version
is adopted before the first epoch. 3 Every partition of `interactions` is read to the end that it has then, that one
first whose events are oldest; 4 with several partitions again, for what was sent on from one to another; 5 then those
of `interactions.by-item`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from threading import Event
from typing import Any

from aiokafka import AIOKafkaProducer
from faust.types import TP

from driftline.configs.errors import INTERRUPTED_EXIT_CODE, LockedError
from driftline.configs.faults import point
from driftline.configs.security import client_options
from driftline.configs.settings import Settings
from driftline.serving.ports import open_metrics
from driftline.stream.epochs import Epochs, collect_rarely, group_of
from driftline.stream.events.records import Outgoing
from driftline.stream.events.topics import MAX_DEAD_LETTER_BYTES, create_topics, partitions_of
from driftline.stream.kafka.direct import Reader
from driftline.stream.kafka.members import client_id, members_of, remove_dead_members
from driftline.stream.ops.metrics import COUNTS
from driftline.stream.ops.roots import note_root
from driftline.stream.owned.holding import say
from driftline.stream.process.by_item import BY_ITEM
from driftline.stream.process.intake import INTERACTIONS
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor

PASSES = 3
"""Over several partitions: records; copies for the owners of their users; requests to forget that owners sent on."""
STOP_S = 8.0
"""How long the end may take once the epoch is committed, less than containers get."""


class Backfill(Epochs):
    """One run over all partitions.

    Args:
        settings, bootstrap, partitions, item_partitions: as of `Epochs`.
    """

    who = "backfill"

    def __init__(self, settings: Settings, bootstrap: str, partitions: int, item_partitions: int) -> None:
        super().__init__(settings, bootstrap, partitions, item_partitions)
        counts = self.open.counts
        self._users = [TP(self.prefix + INTERACTIONS, number) for number in range(counts[INTERACTIONS])]
        several = len(self._users) > 1
        self._items = [TP(self.prefix + BY_ITEM, number) for number in range(counts[BY_ITEM])] if several else []
        self.consumer = self._reader = Reader(settings.broker, bootstrap, len(self._users))
        self._stopped = False
        compression = None if settings.broker.compression == "none" else settings.broker.compression
        self._options = client_options(settings.broker, bootstrap) | {
            "client_id": client_id(), "acks": "all", "compression_type": compression,
            "max_request_size": MAX_DEAD_LETTER_BYTES,
        }  # fmt: skip
        self._producer: Any = None

    async def hand_over(self, out: Outgoing) -> asyncio.Future[Any]:
        """See Epochs."""
        sent: asyncio.Future[Any] = await self._producer.send(
            self.prefix + out.topic, out.value, out.key, out.partition, None, list(out.headers)
        )
        return sent

    async def numbers_of(self, name: str) -> Collection[int]:
        """See Epochs."""
        found: set[int] = await self._producer.partitions_for(self.prefix + name)
        return found

    def stop(self) -> None:
        """Ends after the epoch that is being applied; at once where the broker does not answer by then."""
        self._stopped = True
        self._reader.end_soon()
        asyncio.get_running_loop().call_later(STOP_S, _end_now)

    async def run(self) -> dict[str, Any]:
        """Applies what there is, or as much as there is time for.

        Returns:
            What was done, ready for JSON.

        Raises:
            LockedError: a worker has a partition.
            StateError: a state does not belong to its topic, or can't be read.
        """
        self._producer = AIOKafkaProducer(**self._options)
        beside: list[asyncio.Task[None]] = []
        try:
            await self._producer.start()
            await self._reader.start([*self._users, *self._items])
            began = await self._open()
            started, cpu = time.perf_counter(), time.process_time()
            beside = [asyncio.create_task(work) for work in (self.versions.follow(), self.standing.watch())]
            await _unless(self._apply_all(), beside)
            await self.standing.look()
            self.sayings.last()
            return self._done(began, time.perf_counter() - started, time.process_time() - cpu)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._reader.stop()
            self.open.close_all()
            await self._producer.stop()
            await asyncio.to_thread(self.standing.close)

    async def _open(self) -> int:
        """Opens every partition and begins to read it; how many records they are made of."""
        for tp in [*self._users, *self._items]:
            opens = self.open.open_users if tp in self._users else self.open.open_items
            await opens(tp.partition, Event())
        point("recovery")
        places = [*self._users, *self._items]
        await self._reader.seek_wait(await self.holding.store_positions(places))
        self._reader.resume_partitions(self._users)
        return self._applied()

    async def _apply_all(self) -> None:
        await self.versions.read.wait()
        owners: list[Processor | ItemProcessor] = [*self.open.users.values(), *self.open.items.values()]
        for owner in owners:
            if self.versions.due(owner):
                await self.versions.adopt(owner)
        for _ in range(PASSES if self._items else 1):
            await self._apply_to_end(self._users, self.apply)
        if self._items:
            self._reader.resume_partitions(self._items)
            await self._apply_to_end(self._items, self.apply_by_item)

    async def _apply_to_end(self, places: Sequence[TP], apply: Callable[[Any], Awaitable[None]]) -> None:
        """Applies what partitions have now, the oldest events first, so that they go on beside each other."""
        ends = await self._reader.highwaters(*places)
        left = set(places)
        while left and not self._stopped:
            tp = min(left, key=self._reached)
            block = await self._reader.block(tp, ends[tp])
            if block is None:
                left.discard(tp)
            else:
                await apply(block)
                await asyncio.sleep(0)  # timers and signals

    def _reached(self, tp: TP) -> tuple[int, int]:
        """How far a partition is in event time, one of items in its records."""
        owner = self.holding.owners(tp)[tp.partition]
        return (owner.window.watermark_ms if isinstance(owner, Processor) else owner.next_offset), tp.partition

    def _applied(self) -> int:
        return sum(owner.next_offset for owner in self.open.users.values())

    def _done(self, began: int, seconds: float, cpu_s: float) -> dict[str, Any]:
        records = self._applied() - began
        return {
            "complete": not self._stopped,
            "records": records,
            **{name: self.metrics.totals[name] for name in COUNTS},
            "seconds": round(seconds, 3),
            "cpu_s": round(cpu_s, 3),
            "per_s": round(records / seconds) if seconds else 0,
            "next_offset": {number: owner.next_offset for number, owner in sorted(self.open.users.items())},
        }


def run_backfill(settings: Settings, bootstrap: str) -> dict[str, Any]:
    """Applies what the topics hold; SIGTERM and SIGINT end it in order, after the epoch that is being applied.

    Returns:
        Counts, rate and offsets, ready for JSON; `complete` is False where a signal ended it.

    Raises:
        LockedError: workers have the partitions.
        DriftlineError: what else a user can mend.
    """
    collect_rarely()
    create_topics(settings.broker, bootstrap)
    group = group_of(settings)
    remove_dead_members(settings.broker, bootstrap, group)
    if members := members_of(settings.broker, bootstrap, group):
        raise LockedError(
            f"the consumer group {group} has {members} member(s), workers that own the partitions: stop them first "
            f"(`driftline down`, or SIGTERM). One that was killed on another host leaves the group after "
            f"broker.session_timeout_s, {settings.broker.session_timeout_s:g} s; try again then"
        )
    if warning := note_root(settings, bootstrap):
        print(f"driftline: {warning}", file=sys.stderr, flush=True)
    partitions = [partitions_of(settings.broker, bootstrap, name) for name in (INTERACTIONS, BY_ITEM)]
    return asyncio.run(_run(Backfill(settings, bootstrap, *partitions)))


async def _run(backfill: Backfill) -> dict[str, Any]:
    if backfill.open.differences:
        say(backfill.open.differences)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, backfill.stop)
    close = open_metrics(backfill.metrics.registry, backfill.settings.metrics, "worker_port")
    try:
        return await backfill.run()
    finally:
        close()


def _end_now() -> None:
    print(f"driftline: the broker does not answer; the backfill ends after {STOP_S:.0f} s", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED_EXIT_CODE)


async def _unless(work: Awaitable[None], beside: Iterable[asyncio.Task[None]]) -> None:
    """Waits for work; an error of what runs beside it ends it."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task, *beside], return_when=asyncio.FIRST_COMPLETED)
    for other in beside:
        if other.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            other.result()
    await task
