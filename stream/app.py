"""The worker's dataflow: one Faust application.

    [interactions] --> apply_interactions --2 commit--> state of the partition (RocksDB)
                              |--3 send--> [interactions.dlq]      what is not an event, here or on the next topic
                              |--3 send--> [profile-requests]      users whose profile is due
                              |--3 send--> [profile-requests], [profiles]  tombstones of who is forgotten
                              |--3 send--> [interactions]          what belongs to another partition, once
                              '--3 send--> [interactions.by-item] --> apply_items --> item rows (several partitions)
    [graph-versions] --> adopt_graph: a newer trained version, from the next epoch on, for users and items

Reads `interactions`, `interactions.by-item`, `graph-versions`; writes `interactions.dlq`, `profile-requests`,
`profiles`, `interactions`, `interactions.by-item`, `graph-versions`.

Why replay is safe: an epoch is 1 applied in memory, 2 committed as one batch of rows, next offset and outgoing
records, 3 sent, and 4 cleared out of the store with the next batch. A crash before 2 changed nothing; one after it
sends again. Faust's own offset is never used to decide where reading goes on.
Offsets that are missing hold no records, as after a transaction, where the block follows on the state's offset: the
client read on without a break. A block that does not is read again, and what is missing then, too, is passed over only
while the broker has what comes after the state.
Faust loses events when an agent raises, so no agent ever raises: an unexpected error ends the process, and
`stream/ops/supervisor.py` starts it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import faust
from aiokafka.errors import MessageSizeTooLargeError
from faust.types import TP

from driftline.configs.errors import StateError
from driftline.configs.faults import point
from driftline.configs.settings import Settings
from driftline.stream.events.dlq import TOPIC as DLQ
from driftline.stream.events.dlq import fitting, shortened
from driftline.stream.events.records import EVERYWHERE, Outgoing, records_of
from driftline.stream.events.topics import MAX_DEAD_LETTER_BYTES
from driftline.stream.exits import end_process
from driftline.stream.kafka.consumer import BUFFERED_BLOCKS, Block, BlockTransport, credentials, holes_in
from driftline.stream.kafka.members import client_id
from driftline.stream.ops.metrics import WorkerMetrics
from driftline.stream.ops.sayings import Sayings
from driftline.stream.owned.holding import Holding, say
from driftline.stream.owned.partitions import check_partitions, check_position
from driftline.stream.owned.standing import Standing
from driftline.stream.owned.versions import GraphVersions
from driftline.stream.process.by_item import BY_ITEM

LOG = logging.getLogger(__name__)
INTERACTIONS = "interactions"
REBALANCE_S = 60.0
"""Members have at least so long to join after a rebalance began, however short the session is."""
REQUEST_SPARE_S = 30.0
"""A request to join is answered when all have joined; it is given up later than that."""
LONGEST_OPENING_S = 7 * 86_400.0
"""A member that fetches nothing for so long is put out; one that opens its partitions fetches nothing."""


def group_of(settings: Settings) -> str:
    """The workers' consumer group."""
    return f"{settings.broker.prefix}worker"


class WorkerApp(faust.App):  # type: ignore[misc]
    """A Faust application over the partitions that it owns."""

    def __init__(self, settings: Settings, bootstrap: str, partitions: int, item_partitions: int = 0) -> None:
        broker = settings.broker
        self.settings, self.prefix, self.metrics = settings, broker.prefix, WorkerMetrics()
        self.versions = GraphVersions(settings, bootstrap, self.send_all)
        self._holes: dict[TP, set[tuple[int, int]]] = defaultdict(set)
        self._gaps: set[TP] = set()
        self._sayings = Sayings(self.metrics, settings.state.late_ms)
        self.holding = Holding(self, partitions, item_partitions)
        self.open = self.holding.open
        self.standing = Standing(self, bootstrap)
        super().__init__(
            group_of(settings),
            broker=[f"kafka://{address}" for address in bootstrap.split(",")],
            broker_credentials=credentials(broker),
            broker_client_id=client_id(),
            broker_session_timeout=broker.session_timeout_s,
            broker_heartbeat_interval=broker.heartbeat_s,
            broker_rebalance_timeout=max(broker.session_timeout_s, REBALANCE_S),
            broker_request_timeout=max(broker.session_timeout_s, REBALANCE_S) + REQUEST_SPARE_S,
            broker_max_poll_interval=LONGEST_OPENING_S,
            consumer_auto_offset_reset="earliest",
            producer_acks=-1,
            producer_compression_type=None if broker.compression == "none" else broker.compression,
            producer_max_request_size=MAX_DEAD_LETTER_BYTES,
            key_serializer="raw",
            value_serializer="raw",
            store="memory://",
            datadir=str(settings.state.root / "faust"),
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            table_standby_replicas=0,  # there are no tables; with standbys some workers get no partition: 2, 2, 0 of 4
            stream_wait_empty=False,
            broker_max_poll_records=settings.state.epoch_events,
            stream_buffer_maxsize=BUFFERED_BLOCKS,
        )

    def _new_transport(self) -> BlockTransport:
        return BlockTransport(self.conf.broker_consumer, self)

    def raw_topic(self, name: str) -> Any:
        """A topic of bytes, by its name without prefix."""
        return self.topic(self.prefix + name, key_type=bytes, value_type=bytes, allow_empty=True)

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
        return out.to_each(await self.producer._ensure_producer().partitions_for(self.prefix + out.topic))

    async def _sent(self, out: Outgoing) -> Awaitable[Any]:
        """Hands a record to the producer; what to await for its acknowledgement."""
        headers = list(out.headers)
        sent: asyncio.Future[Any] = await self.producer.send(
            self.prefix + out.topic, out.key, out.value, out.partition, None, headers
        )
        sent.add_done_callback(_end_if_refused)
        return sent

    # -- epochs ------------------------------------------------------------------------------------------------

    async def apply(self, block: Block) -> None:
        """One epoch of a partition of `interactions`."""
        processor = self.open.users.get(block.partition)
        if processor is None or await self._read_again(block, processor.next_offset):
            return
        if self.open.users.get(block.partition) is not processor:
            return  # given up while the broker was asked
        with self.metrics.epoch(processor, block.end):
            changes = processor.apply(records_of(block.records))  # 1
            point("before-batch")
            processor.commit(changes)  # 2
        point("after-batch")
        await self.send_all(changes.outgoing)  # 3
        point("before-ack")
        processor.acknowledged = True  # 4, in the batch of the next epoch
        self.metrics.count(changes)
        self._sayings.outcomes(block.tp)
        self._sayings.unknown(changes.unknown_names)
        if self.open.users.get(block.partition) is processor and self.versions.due(processor):
            await self.versions.adopt(processor)

    async def apply_by_item(self, block: Block) -> None:
        """One epoch of a partition of `interactions.by-item`."""
        owner = self.open.items.get(block.partition)
        if owner is None or await self._read_again(block, owner.next_offset):
            return
        if self.open.items.get(block.partition) is not owner:
            return  # given up while the broker was asked
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


def create_app(settings: Settings, bootstrap: str, partitions: int, item_partitions: int = 0) -> WorkerApp:
    """The application with its agents.

    Args:
        settings: the whole configuration.
        bootstrap: addresses of brokers.
        partitions, item_partitions: of `interactions` and `interactions.by-item`; 0 = as many as of the first.
    """
    app = WorkerApp(settings, bootstrap, partitions, item_partitions)
    if app.open.differences:
        say(app.open.differences)

    @app.agent(app.raw_topic(INTERACTIONS))  # type: ignore[untyped-decorator]
    async def apply_interactions(stream: Any) -> None:
        async for event in stream.noack().events():
            await _or_end(app.apply(event.message))
            event.ack()

    if partitions > 1:

        @app.agent(app.raw_topic(BY_ITEM))  # type: ignore[untyped-decorator]
        async def apply_items(stream: Any) -> None:
            async for event in stream.noack().events():
                await _or_end(app.apply_by_item(event.message))
                event.ack()

    @app.task  # type: ignore[untyped-decorator]
    async def adopt_graph() -> None:
        await _or_end(app.versions.follow())

    @app.task  # type: ignore[untyped-decorator]
    async def open_partitions() -> None:
        await _or_end(app.holding.opener.run(), unless=lambda: app.should_stop)

    @app.task  # type: ignore[untyped-decorator]
    async def look_at_standing() -> None:
        await _or_end(app.standing.watch(), unless=lambda: app.should_stop)

    @app.on_partitions_assigned.connect  # type: ignore[untyped-decorator]
    async def on_assigned(_: Any, assigned: set[TP], **kwargs: Any) -> None:
        if not assigned:
            say(f"no partition is left for this worker, {INTERACTIONS} has {partitions}; standing by")
        try:
            most = {tp.topic.removeprefix(app.prefix): tp.partition + 1 for tp in sorted(assigned)}
            check_partitions(app.prefix, most, app.open.counts)
        except StateError as error:
            end_process(error)
        point("rebalance")
        app.holding.take_over(assigned)

    @app.on_partitions_revoked.connect  # type: ignore[untyped-decorator]
    async def on_revoked(_: Any, revoked: set[TP], **kwargs: Any) -> None:
        app.holding.give_up()

    return app


def _end_if_refused(sent: asyncio.Future[Any]) -> None:
    """Ends the process before the producer goes on to the next batch.

    Whoever takes copies and item events remembers how far they came: one that came after a lost one would hide it.
    """
    error = None if sent.cancelled() else sent.exception()
    if error is not None and not isinstance(error, MessageSizeTooLargeError):
        end_process(error)


async def _or_end(work: Awaitable[None], unless: Callable[[], bool] = lambda: False) -> None:
    """Ends the process on an error; what only reads may meet a client that is closed already when the worker stops."""
    try:
        await work
    except Exception as error:  # noqa: BLE001 - whatever it is, the stream must not go on past it
        if not unless():
            end_process(error)
