"""The worker's dataflow: one Faust application.

    [interactions] --> apply_interactions --1 commit--> state of the partition (RocksDB)
                              |--2 send--> [interactions.dlq]      what is not an event, here or on the next topic
                              |--2 send--> [profile-requests]      users whose profile is due
                              '--2 send--> [interactions.by-item] --> apply_items --> item rows (several partitions)
    [graph-versions] --> adopt_graph: a newer trained version, from the next epoch on, for users and items

Reads `interactions`, `interactions.by-item`, `graph-versions`; writes `interactions.dlq`, `profile-requests`,
`interactions.by-item`, `graph-versions`.

Why replay is safe: an epoch's rows, next offset and outgoing records are one atomic commit (1); what goes out is sent
after it and sent again after a crash (2); Faust's own offset (3) is never used to decide where reading goes on.
A block that does not follow on the state's offset is read again. Offsets that are missing then, too, are passed over
only while the broker has what comes after the state: they hold no records, as after a transaction.
Faust loses events when an agent raises, so no agent ever raises: an unexpected error ends the process, and
`stream/supervisor.py` starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

import faust
from aiokafka.errors import MessageSizeTooLargeError
from faust.types import TP

from configs.settings import UNKNOWN_ACTION, Settings
from stream.consumer import BUFFERED_BLOCKS, Block, BlockTransport, credentials, holes_in
from stream.dlq import TOPIC as DLQ
from stream.dlq import fitting, shortened
from stream.exits import end_process
from stream.items import BY_ITEM
from stream.members import client_id
from stream.metrics import WorkerMetrics
from stream.partitions import Bounds, Partitions, check_position
from stream.records import Changes, Outgoing, Record
from stream.topics import MAX_DEAD_LETTER_BYTES
from stream.versions import GraphVersions

LOG = logging.getLogger(__name__)
INTERACTIONS = "interactions"
MOST_SAID = 20
"""Unknown actions that are named in the log."""


def group_of(settings: Settings) -> str:
    """The workers' consumer group."""
    return f"{settings.broker.prefix}worker"


OUTCOMES = {
    "too_late": "events so far are more than state.late_ms, {late_min:g} min, older than the newest one; they are "
    "counted and change no state. Produce history in order of time, before what is newer.",
    "dead": "records so far are no events and are kept as dead letters: `driftline dlq list` says why.",
}
"""What a worker says of events that did not reach the state."""


class WorkerApp(faust.App):  # type: ignore[misc]
    """A Faust application over the partitions that it owns."""

    def __init__(self, settings: Settings, bootstrap: str, partitions: int) -> None:
        broker = settings.broker
        self.settings, self.prefix, self.metrics = settings, broker.prefix, WorkerMetrics()
        self.versions = GraphVersions(settings, bootstrap, self.send_all)
        self._changing = asyncio.Lock()
        self._holes: dict[TP, set[tuple[int, int]]] = defaultdict(set)
        self._gaps: set[TP] = set()
        self._said = dict.fromkeys(OUTCOMES, 0)
        self._unknown_said: set[str] = set()
        self.open = Partitions(settings, partitions, self.send_all, self.versions.load)
        super().__init__(
            group_of(settings),
            broker=[f"kafka://{address}" for address in bootstrap.split(",")],
            broker_credentials=credentials(broker),
            broker_client_id=client_id(),
            broker_session_timeout=broker.session_timeout_s,
            broker_heartbeat_interval=broker.heartbeat_s,
            broker_rebalance_timeout=broker.session_timeout_s,
            consumer_auto_offset_reset="earliest",
            producer_acks=-1,
            producer_max_request_size=MAX_DEAD_LETTER_BYTES,
            key_serializer="raw",
            value_serializer="raw",
            store="memory://",
            datadir=str(settings.state.root / "faust"),
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
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
        sending = [await self._sent(fitting(out) if out.topic == DLQ else out) for out in outgoing]
        for out, sent in zip(outgoing, await asyncio.gather(*sending, return_exceptions=True), strict=True):
            if isinstance(sent, MessageSizeTooLargeError) and out.topic == DLQ:
                await (await self._sent(shortened(out)))  # a topic that was made with a smaller limit
            elif isinstance(sent, BaseException):
                raise sent

    async def _sent(self, out: Outgoing) -> Awaitable[Any]:
        """Hands a record to the producer; what to await for its acknowledgement."""
        headers = list(out.headers)
        sent: Awaitable[Any] = await self.producer.send(
            self.prefix + out.topic, out.key, out.value, None, None, headers
        )
        return sent

    # -- partitions come and go --------------------------------------------------------------------------------

    async def take_over(self, assigned: Iterable[TP]) -> None:
        """Opens those of some partitions that are assigned and not open yet."""
        async with self._changing:
            for tp in sorted(assigned):
                opened = self.open.open_items if self._is_by_item(tp) else self.open.open_users
                if tp in self.consumer.assignment() and await opened(tp.partition):
                    say(f"partition {tp.partition} of {tp.topic} is open")
        self.metrics.partitions.set(len(self.open.users))
        for processor in self.open.users.values():
            self.metrics.stands_at(processor)
        for partition, owner in self.open.items.items():
            self.metrics.item_offset.labels(partition).set(owner.next_offset)

    async def give_up(self, revoked: Iterable[TP]) -> None:
        """Closes the partitions that Kafka took away."""
        async with self._changing:
            items = [tp.partition for tp in revoked if self._is_by_item(tp)]
            self.open.close([tp.partition for tp in revoked if not self._is_by_item(tp)], items)

    async def store_positions(self, assigned: Iterable[TP]) -> dict[TP, int]:
        """Where reading goes on, checked against what the broker has.

        Faust may ask before it has told of the assignment, and may drop the question half-way: so partitions are
        opened here, too, and opening is not cut off.
        """
        await asyncio.shield(asyncio.ensure_future(self.take_over(assigned)))
        bounds, positions = await self._bounds(*assigned), {}
        for tp in assigned:
            owners: Any = self.open.items if self._is_by_item(tp) else self.open.users
            if tp.partition in owners:
                next_offset = owners[tp.partition].next_offset
                check_position(tp.topic, tp.partition, next_offset, bounds[tp])
                positions[tp] = max(next_offset, bounds[tp].first)
        return positions

    async def _bounds(self, *places: TP) -> dict[TP, Bounds]:
        """What the broker has of some partitions now."""
        first, end = await self.consumer.earliest_offsets(*places), await self.consumer.highwaters(*places)
        return {tp: Bounds(first[tp], end[tp]) for tp in places}

    def _is_by_item(self, tp: TP) -> bool:
        return bool(tp.topic == self.prefix + BY_ITEM)

    # -- epochs ------------------------------------------------------------------------------------------------

    async def apply(self, block: Block) -> None:
        """One epoch of a partition of `interactions`."""
        processor = self.open.users.get(block.partition)
        if processor is None or await self._read_again(block, processor.next_offset):
            return
        with self.metrics.epoch(processor, block.end):
            changes = processor.apply([_record(r) for r in block.records])
            processor.commit(changes)  # 1
        await self.send_all(changes.outgoing)  # 2
        processor.acknowledged = True
        self.metrics.count(changes)
        self._say_outcomes(block.tp)
        self._say_unknown(changes.unknown_names)
        if self.open.users.get(block.partition) is processor and self.versions.due(processor):
            await self.versions.adopt(processor)

    async def apply_by_item(self, block: Block) -> None:
        """One epoch of a partition of `interactions.by-item`."""
        owner = self.open.items.get(block.partition)
        if owner is None or await self._read_again(block, owner.next_offset):
            return
        changes = owner.apply([_record(r) for r in block.records])
        await self.send_all(changes.outgoing)  # 2, before the commit: see ItemProcessor.apply
        if self.open.items.get(block.partition) is not owner:
            return  # given up meanwhile; the next owner applies and sends again
        owner.store.commit(changes.puts)  # 1
        self.metrics.item_offset.labels(block.partition).set(owner.next_offset)
        self.metrics.count(Changes(dead=changes.dead, duplicates=changes.duplicates))
        if self.versions.due(owner):
            await self.versions.adopt(owner)

    def _say_unknown(self, names: frozenset[str]) -> None:
        """Says once of each action, and of so many at most, that the configuration does not set it."""
        for name in sorted(names - self._unknown_said)[: MOST_SAID - len(self._unknown_said)]:
            self._unknown_said.add(name)
            LOG.warning(
                "action %.60r is not in the configuration: its events count as wanted, with weight %g; set it in "
                "`actions`, or mend the producer",
                name, UNKNOWN_ACTION.weight,
            )  # fmt: skip

    def _say_outcomes(self, tp: TP) -> None:
        """Says that events came too late or are none, again whenever there are ten times as many."""
        for outcome, said in self._said.items():
            total = self.metrics.totals[outcome]
            if total > 10 * said:
                self._said[outcome] = total
                words = OUTCOMES[outcome].format(late_min=self.settings.state.late_ms / 60_000)
                LOG.warning("partition %d of %s: %d %s", tp.partition, tp.topic, total, words)

    async def _read_again(self, block: Block, next_offset: int) -> bool:
        """Goes back when offsets are missing before or in a block; what is missing after that, too, holds no records.

        A stale block says nothing about what is missing: its records come again.

        Raises:
            StateError: the broker deleted what is missing, or the topic was made anew while it was read.
        """
        if self.consumer.is_stale(block):
            return True
        tp, seen = block.tp, self._holes[block.tp]
        holes = holes_in(block.records, next_offset)
        if not seen.issuperset(holes):
            seen.update(holes)
            await self.consumer.seek(tp, next_offset)
            return True
        if holes or block.offset < next_offset:
            bounds = (await self._bounds(tp))[tp]
            for position in [expected for expected, _ in holes] or [next_offset]:
                check_position(tp.topic, tp.partition, position, bounds)
            for expected, found in holes:
                self._pass_over(tp, max(expected, bounds.first), found)  # a new state starts at what is left
        seen.clear()
        return False

    def _pass_over(self, tp: TP, start: int, end: int) -> None:
        """Counts offsets that hold no records; says so once a partition, as each transaction leaves one."""
        if start < end:
            self.metrics.gap_offsets.inc(end - start)
            LOG.log(
                logging.INFO if tp in self._gaps else logging.WARNING,
                "partition %d of %s: offsets %d to %d hold no records, as after a transaction; they are passed over",
                tp.partition, tp.topic, start, end - 1,
            )  # fmt: skip
            self._gaps.add(tp)


def say(what: str) -> None:
    """A line for people."""
    print(f"worker: {what}", file=sys.stderr, flush=True)


def create_app(settings: Settings, bootstrap: str, partitions: int) -> WorkerApp:
    """The application with its agents; `partitions` is the number that `interactions` has."""
    app = WorkerApp(settings, bootstrap, partitions)
    if app.open.differences:
        say(app.open.differences)

    @app.agent(app.raw_topic(INTERACTIONS))  # type: ignore[untyped-decorator]
    async def apply_interactions(stream: Any) -> None:
        async for event in stream.noack().events():
            await _or_end(app.apply(event.message))
            event.ack()  # 3

    if partitions > 1:

        @app.agent(app.raw_topic(BY_ITEM))  # type: ignore[untyped-decorator]
        async def apply_items(stream: Any) -> None:
            async for event in stream.noack().events():
                await _or_end(app.apply_by_item(event.message))
                event.ack()

    @app.task  # type: ignore[untyped-decorator]
    async def adopt_graph() -> None:
        await _or_end(app.versions.follow())

    @app.on_partitions_assigned.connect  # type: ignore[untyped-decorator]
    async def on_assigned(_: Any, assigned: set[TP], **kwargs: Any) -> None:
        if not assigned:
            say(f"no partition is left for this worker, {INTERACTIONS} has {partitions}; standing by")
        await _or_end(app.take_over(assigned))

    @app.on_partitions_revoked.connect  # type: ignore[untyped-decorator]
    async def on_revoked(_: Any, revoked: set[TP], **kwargs: Any) -> None:
        await _or_end(app.give_up(revoked))

    return app


def _record(received: Any) -> Record:
    """A record as aiokafka brings it."""
    return Record(received.offset, received.value or b"", received.key, received.timestamp, received.headers)


async def _or_end(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001 - whatever it is, the stream must not go on past it
        end_process(error)
