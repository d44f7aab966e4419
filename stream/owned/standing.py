"""Where a worker's partitions stand against their topics: asked of the broker by a timer, whether events come or not.

Each look: how many records are not applied, what open transactions hold back, and whether the topics are still those
that the state was made from. A partition that lacks nothing is noted as complete in its store, with the time, so that
whoever reads the state knows how old it may be, also when no worker lives.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from faust.types import TP

from driftline.configs.errors import BrokerError
from driftline.serving.state_reader import COMPLETE
from driftline.stream.headway import Headway
from driftline.stream.kafka.identity import Identities, Identity, Place
from driftline.stream.owned.partitions import check_partitions
from driftline.stream.process.by_item import BY_ITEM
from driftline.stream.state.origin import hold_to_origin, merged, origin_of

LOG = logging.getLogger(__name__)
EVERY_S = 1.0
TOPICS_EVERY = 3
"""Looks between two questions for the topics themselves."""
ANSWER_S = 10.0
FAR_BEHIND = 1_000_000
"""Records that take a worker about a minute."""
UNDECIDED_S = 30.0
"""A transaction that holds back records for longer is worth a word."""


class Standing:
    """The timer of one worker.

    Args:
        app: the Faust application, with its open partitions.
        bootstrap: of the broker.
    """

    def __init__(self, app: Any, bootstrap: str) -> None:
        self._app, self._metrics = app, app.metrics
        self._identities = Identities(app.settings.broker, bootstrap)
        self._asking = asyncio.Lock()
        self._began: dict[tuple[TP, Any], int] = {}
        """Offsets at which the open partitions stood when they were first looked at."""
        self._headway = Headway(app.who, "records")
        self._held_since_s: dict[TP, tuple[int, float]] = {}
        self._said: set[object] = set()
        self._seen: dict[Place, Identity | None] = {}

    def close(self) -> None:
        """Ends the clients that it asks with."""
        self._identities.close()

    async def watch(self) -> None:
        """Looks for ever.

        Raises:
            StateError: a topic was made anew.
        """
        looks = 0
        while True:
            await asyncio.sleep(EVERY_S)
            looks += 1
            try:
                async with asyncio.timeout(ANSWER_S):  # wait_for may take a cancellation for an answer
                    await self.look()
            except Exception as error:  # noqa: BLE001 - a broker that is away, a rebalance: the next look tells
                LOG.debug("where partitions stand is not known: %r", error)
            if looks % TOPICS_EVERY == 0:
                await self.check_topics()

    async def look(self) -> None:
        """Brings the metrics up to date, and notes which partitions are complete."""
        assigned = self._app.consumer.assignment()
        owners = [(tp, owner) for tp, owner in self._owners() if tp in assigned]
        if not owners:
            return
        now_ms = time.time_ns() // 1_000_000
        ends = await self._app.consumer.highwaters(*[tp for tp, _ in owners])
        behind = 0
        for tp, owner in owners:
            position = await self._app.consumer.position(tp)
            if (tp, owner) not in self._owners():
                continue  # given up meanwhile
            seen = self._app.consumer.read_to(tp)
            passed = position is not None and position >= ends[tp] and owner.next_offset >= seen
            lag = 0 if passed else max(0, ends[tp] - owner.next_offset)  # what is passed holds no records
            gauge = self._metrics.item_lag if self._is_by_item(tp) else self._metrics.lag
            gauge.labels(tp.partition).set(lag)
            behind += lag
            if lag == 0:
                owner.store.note(COMPLETE, b"%d" % now_ms)
            self._look_at_transactions(tp, ends[tp])
        self._look_at_headway(owners, behind)

    async def check_topics(self) -> bool:
        """Holds the partitions that are open, and those that were, to the topics that they were made from.

        Returns:
            Whether the broker says which it has.

        Raises:
            StateError: a topic was made anew.
        """
        async with self._asking:
            stores = [(tp, owner) for tp, owner in self._owners()]
            for tp, owner in stores:
                known = origin_of(owner.store)
                self._seen |= {place: known.get(place[0]) for place in self._places(tp)}
            counts = self._app.open.counts
            asked = dict(self._seen)  # also of those that Kafka took away because their topic went
            if not asked:
                return True
            if counts["interactions"] > 1:  # who owns users alone sends to its partitions, too
                asked.setdefault((BY_ITEM, 0))
            try:
                found = await asyncio.to_thread(self._identities.of, list(asked), asked.values())
            except BrokerError as error:
                LOG.debug("%s", error)
                return False
        check_partitions(self._app.prefix, self._identities.partitions, counts)
        for (name, partition), known_one in asked.items():
            if known_one is not None and (name, partition) in found:
                whose = f"the state of partition {partition} of {self._app.prefix}{name}"
                merged(self._app.settings, whose, {name: known_one}, {name: found[name, partition]})
            words = f"topic {self._app.prefix}{name} is not there any more: restore it; a new one is refused"
            self._once((name, partition) not in found, ("gone", name), words)
        for tp, owner in stores:
            if (tp, owner) in self._owners():
                now = {place[0]: found[place] for place in self._places(tp) if place in found}
                whose = f"the state of partition {tp.partition} of {tp.topic}"
                held = hold_to_origin(self._app.settings, whose, owner.store, now)
                self._seen |= {place: held.get(place[0]) for place in self._places(tp)}
        return True

    def _owners(self) -> list[tuple[TP, Any]]:
        """Open partitions with their place."""
        opened, prefix = self._app.open, self._app.prefix
        users = [(TP(f"{prefix}interactions", partition), owner) for partition, owner in opened.users.items()]
        return users + [(TP(prefix + BY_ITEM, partition), owner) for partition, owner in opened.items.items()]

    def _places(self, tp: TP) -> list[Place]:
        """Whose offsets a store holds: that of items also those of the events that came through other partitions."""
        both = ["interactions", BY_ITEM] if self._is_by_item(tp) else ["interactions"]
        return [(name, tp.partition) for name in both]

    def _is_by_item(self, tp: TP) -> bool:
        return bool(tp.topic == self._app.prefix + BY_ITEM)

    def _look_at_headway(self, owners: list[tuple[TP, Any]], behind: int) -> None:
        self._began = {place: self._began.get(place, place[1].next_offset) for place in owners}
        applied = sum(owner.next_offset - began for (_, owner), began in self._began.items())
        self._headway.tell(applied, behind)
        far = bool(self._app.far_behind) and behind >= FAR_BEHIND
        self._once(far, "far", f"{behind:,} records are not applied yet. {self._app.far_behind}")
        left_s = self._headway.left_s
        self._metrics.backlog_s.set(float("nan") if left_s is None else left_s)

    def _look_at_transactions(self, tp: TP, stable: int) -> None:
        undecided = self._app.consumer.undecided(tp)
        self._metrics.undecided.labels(tp.topic, tp.partition).set(undecided)
        since = self._held_since_s.get(tp)
        if not undecided or since is None or since[0] != stable:
            self._held_since_s[tp] = since = (stable, time.monotonic())
        held = bool(undecided) and time.monotonic() - since[1] > UNDECIDED_S
        words = (
            f"partition {tp.partition} of {tp.topic}: a transaction that is neither committed nor aborted holds back "
            f"{undecided} records from offset {stable} on. The broker ends it after the producer's "
            "transaction.timeout.ms; `kafka-transactions.sh find-hanging` names one that it does not end"
        )
        self._once(held, ("held", tp), words)

    def _once(self, holds: bool, key: object, words: str) -> None:
        """Says something when it begins to hold."""
        if holds and key not in self._said:
            LOG.warning("%s", words)
        (self._said.add if holds else self._said.discard)(key)
