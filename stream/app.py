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

The steps of an epoch, and why replay is safe, stand in `stream/epochs.py`.
Faust loses events when an agent raises, so no agent ever raises: an unexpected error ends the process, and
`stream/ops/supervisor.py` starts it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import faust
from faust.types import TP

from driftline.configs.errors import StateError
from driftline.configs.faults import point
from driftline.configs.settings import Settings
from driftline.stream.epochs import Epochs, group_of
from driftline.stream.events.records import Outgoing
from driftline.stream.events.topics import MAX_DEAD_LETTER_BYTES
from driftline.stream.exits import end_process
from driftline.stream.kafka.consumer import BUFFERED_BLOCKS, BlockTransport, credentials
from driftline.stream.kafka.members import client_id
from driftline.stream.owned.holding import REBALANCE_S, say
from driftline.stream.owned.partitions import check_partitions
from driftline.stream.process.by_item import BY_ITEM
from driftline.stream.process.intake import INTERACTIONS

REQUEST_SPARE_S = 30.0
"""A request to join is answered when all have joined; it is given up later than that."""
LONGEST_OPENING_S = 7 * 86_400.0
"""A member that fetches nothing for so long is put out; one that opens its partitions fetches nothing."""


class WorkerApp(Epochs, faust.App):  # type: ignore[misc]
    """A Faust application over the partitions that it owns."""

    far_behind = (
        "`driftline backfill` applies them faster: stop the workers, run it with their settings, and start them again."
    )

    def __init__(self, settings: Settings, bootstrap: str, partitions: int, item_partitions: int = 0) -> None:
        broker = settings.broker
        Epochs.__init__(self, settings, bootstrap, partitions, item_partitions)
        faust.App.__init__(
            self,
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

    async def hand_over(self, out: Outgoing) -> asyncio.Future[Any]:
        """See Epochs."""
        sent: asyncio.Future[Any] = await self.producer.send(
            self.prefix + out.topic, out.key, out.value, out.partition, None, list(out.headers)
        )
        return sent

    async def numbers_of(self, name: str) -> Collection[int]:
        """See Epochs."""
        found: set[int] = await self.producer._ensure_producer().partitions_for(self.prefix + name)
        return found


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


async def _or_end(work: Awaitable[None], unless: Callable[[], bool] = lambda: False) -> None:
    """Ends the process on an error; what only reads may meet a client that is closed already when the worker stops."""
    try:
        await work
    except Exception as error:  # noqa: BLE001 - whatever it is, the stream must not go on past it
        if not unless():
            end_process(error)
