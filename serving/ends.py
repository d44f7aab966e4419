"""Where the topic of events ends, so that answers can say how many of its records state and model are behind.

A thread asks the broker every second. While it can't be reached nothing is known, and answers say that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from driftline.configs.settings import Broker
from driftline.serving.asking import Asking
from driftline.serving.state_reader import StoredUser

LOG = logging.getLogger(__name__)
ASK_S = 1.0
_KNOWN_S = 10.0
"""How long what the broker said counts."""


class Ends:
    """What the broker said last. Told by one thread, asked by all others."""

    def __init__(self) -> None:
        self._ends: dict[int, tuple[int, int, float]] = {}
        self._told_s = float("-inf")

    def tell(self, bounds: Mapping[int, tuple[int, int]]) -> None:
        """First offset and end of each partition, as they are now."""
        now_s, before = time.monotonic(), self._ends
        self._ends = {
            partition: (first, end, before[partition][2] if before.get(partition, ())[1:2] == (end,) else now_s)
            for partition, (first, end) in bounds.items()
        }
        self._told_s = now_s

    def after(self, offsets: Mapping[int, int]) -> int:
        """Records past some offsets by partition, 0 where one is missing; -1 = not known."""
        if time.monotonic() - self._told_s > _KNOWN_S:
            return -1
        return sum(max(0, end - max(first, offsets.get(p, 0))) for p, (first, end, _) in self._ends.items())

    def pending(self, stored: StoredUser) -> int:
        """Records of a user's partition that its state has not applied, of all where there is no state; -1 = not known.

        A state that was complete since the partition has ended where it does has applied all: at the end may stand
        marks of transactions, which have offsets and are no records.
        """
        if stored.partition < 0:
            return self.after({})
        now_s = time.monotonic()
        known = self._ends.get(stored.partition)
        if known is None or now_s - self._told_s > _KNOWN_S:
            return -1
        first, end, since_s = known
        if 0 <= stored.state_age_ms < (now_s - since_s) * 1000:
            return 0
        return max(0, end - max(first, stored.store_offset))


class EndsFollower(Asking):
    """The thread.

    Args:
        ends: is told.
        broker, bootstrap, name: see `Asking`.
    """

    def __init__(self, ends: Ends, broker: Broker, bootstrap: str, name: str = "interactions") -> None:
        self._ends, self._complaint = ends, ""
        super().__init__(broker, bootstrap, name, "ends-follower")

    def _ask(self, consumer: Any) -> None:
        from kafka import TopicPartition

        while not self._stop.is_set():
            numbers = sorted(consumer.partitions_for_topic(self._topic) or ())
            places = [TopicPartition(self._topic, number) for number in numbers]
            first, ends = consumer.beginning_offsets(places), consumer.end_offsets(places)
            self._ends.tell({place.partition: (first[place], ends[place]) for place in places})
            self._complaint = ""
            self._stop.wait(ASK_S)

    def _ended(self, error: Exception | None) -> None:
        if error is not None and type(error).__name__ != self._complaint:
            LOG.info("the end of topic %s can't be asked, trying again: %r", self._topic, error)
            self._complaint = type(error).__name__
