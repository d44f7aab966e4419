"""The partitions that a worker holds: from Kafka's assignment to the first record that is read.

`stream/owned/opening.py` decides when a partition is opened and closed, `stream/owned/partitions.py` opens it; here
both meet the consumer: where reading goes on, whether the broker has what comes there, which partitions are read.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError
from faust.types import TP

from driftline.configs.faults import point
from driftline.stream.exits import end_process
from driftline.stream.owned.opening import Opener
from driftline.stream.owned.partitions import Bounds, Partitions, check_position
from driftline.stream.process.by_item import BY_ITEM
from driftline.stream.process.intake import INTERACTIONS
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor

if TYPE_CHECKING:
    from driftline.stream.epochs import Epochs

LOG = logging.getLogger(__name__)
ASK_AGAIN_S = 0.5
SAY_EVERY = 120
REBALANCE_S = 60.0
"""Members have at least so long to join after a rebalance began, however short the session is."""
LINGER_SESSIONS = 3
"""Sessions that partitions stay open after a rebalance has begun and no assignment comes; longer where one may take so
long, as members that are cut off from the broker have until then to join."""


class Holding:
    """What a worker holds now.

    Args:
        app: whose consumer reads them.
        partitions, item_partitions: of `interactions` and `interactions.by-item`.

    Attributes:
        open: the open ones.
        opener: what opens the others.
    """

    def __init__(self, app: Epochs, partitions: int, item_partitions: int) -> None:
        self._app = app
        self._lingering: asyncio.TimerHandle | None = None
        self.open = Partitions(app.settings, partitions, app.send_all, app.versions.load, item_partitions)
        self.opener = Opener(self._open, self._close, self.is_open, self._begin, app.settings.state.lock_wait_s)
        app.metrics.follow(self.open, self.opener)

    def take_over(self, assigned: Iterable[TP]) -> None:
        """Notes what Kafka has assigned; what is not open yet is opened beside everything else.

        An error ends the process: it is called back by Faust and by a timer, which would go on.
        """
        if self._lingering is not None:
            self._lingering.cancel()
        try:
            self.opener.assign(assigned)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not known any more what is held
            end_process(error)

    def give_up(self) -> None:
        """A rebalance has begun. What is open stays open: most of it comes back, but for a worker that is left out."""
        session_s = self._app.settings.broker.session_timeout_s
        linger_s = max(LINGER_SESSIONS * session_s, max(session_s, REBALANCE_S) + session_s)
        if self._lingering is not None:
            self._lingering.cancel()
        self._lingering = asyncio.get_running_loop().call_later(linger_s, self.take_over, ())

    def is_open(self, tp: TP) -> bool:
        """Whether a partition's state is here."""
        return tp.partition in self.owners(tp)

    async def _open(self, tp: TP, abandoned: threading.Event) -> bool:
        opens = self.open.open_items if self._is_by_item(tp) else self.open.open_users
        started = time.monotonic()
        opened = await opens(tp.partition, abandoned)
        if opened:
            gc.freeze()  # names of items, event ids: a collection that visits what stays holds up the heartbeats
            say(f"partition {tp.partition} of {tp.topic} is open after {time.monotonic() - started:.1f} s")
        return opened

    def _close(self, places: Iterable[TP]) -> None:
        items = [tp.partition for tp in places if self._is_by_item(tp)]
        users = [tp.partition for tp in places if not self._is_by_item(tp)]
        self.open.close(users, items)
        self._app.metrics.left(users, items)
        for tp in places:
            self._app.metrics.left_undecided(tp.topic, tp.partition)
            self._app.forget_holes(tp)

    async def _begin(self, tp: TP) -> None:
        """Reads a partition that has just been opened, from where its store stands."""
        owner = self.owners(tp)[tp.partition]
        if isinstance(owner, Processor):
            self._app.metrics.stands_at(owner)
        else:
            self._app.metrics.item_offset.labels(tp.partition).set(owner.next_offset)
        point("recovery")
        positions = await self.store_positions([tp])
        if self.opener.is_assigned(tp):
            await self._app.consumer.seek_wait(positions)
            self._app.consumer.resume_partitions([tp])

    async def store_positions(self, assigned: Iterable[TP]) -> dict[TP, int]:
        """Where reading of those partitions that are open goes on, checked against what the broker has."""
        here = [tp for tp in assigned if self.is_open(tp)]
        bounds, positions = await self.bounds(*here), {}
        for tp in here:
            if (owner := self.owners(tp).get(tp.partition)) is not None:
                check_position(tp.topic, tp.partition, owner.next_offset, bounds[tp])
                positions[tp] = max(owner.next_offset, bounds[tp].first)
        await self._topics_checked()
        return positions

    async def _topics_checked(self) -> None:
        """Holds what is open to its topics; with several partitions waits for a broker that does not say which it has.

        What is sent on to another partition names its log, and an owner that knows its own refuses what names none.
        """
        tried = 0
        while not await self._app.standing.check_topics() and self.open.counts[INTERACTIONS] > 1:
            tried += 1
            if tried % SAY_EVERY == 1:
                LOG.warning("the broker does not say which topics it has; nothing more is read before it does")
            await asyncio.sleep(ASK_AGAIN_S)

    async def bounds(self, *places: TP) -> dict[TP, Bounds]:
        """What the broker has of some partitions now; waits for a broker that is away."""
        if not places:
            return {}
        tried = 0
        while True:
            try:
                first, end = (
                    await self._app.consumer.earliest_offsets(*places),
                    await self._app.consumer.highwaters(*places),
                )
                return {tp: Bounds(first[tp], end[tp]) for tp in places}
            except KafkaError as error:
                if not (error.retriable or isinstance(error, KafkaTimeoutError | KafkaConnectionError)):
                    raise
                tried += 1
                if tried % SAY_EVERY == 1:
                    LOG.warning("the broker does not say which offsets it has: %r; asking again", error)
                await asyncio.sleep(ASK_AGAIN_S)

    def owners(self, tp: TP) -> Mapping[int, Processor | ItemProcessor]:
        """Open partitions of the same topic, by number."""
        return self.open.items if self._is_by_item(tp) else self.open.users

    @property
    def room(self) -> int:
        """Records that a block may hold: see `Processor.room`."""
        least = self._app.settings.state.epoch_events
        return max((processor.room for processor in self.open.users.values()), default=least)

    def _is_by_item(self, tp: TP) -> bool:
        return bool(tp.topic == self._app.prefix + BY_ITEM)


def say(what: str) -> None:
    """A line for people."""
    LOG.info("%s", what)
