"""Follows one topic of Kafka from its beginning, in a thread, for as long as it is open."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Protocol

from driftline.configs.settings import Broker
from driftline.serving.asking import Asking
from driftline.serving.lull import Lull, look
from driftline.serving.partitions import take_in_added

LOG = logging.getLogger(__name__)
_PAUSES_S = 0.1, 0.5
_ASK_S = 5.0
"""How often the broker is asked whether it is still there: reading alone does not tell."""


class Reader(Protocol):
    """What takes the records of a topic: begin, then take ..., taken, take ..., taken, until begin comes again."""

    def begin(self, bounds: dict[int, tuple[int, int]]) -> None:
        """Reading starts at the beginning; first offset and present end by partition."""

    def take(self, key: bytes | None, value: bytes | None, partition: int, t_ms: int) -> None:
        """One record, where it stood, and when the broker had it."""

    def taken(self, at_end: bool) -> None:
        """After the records of a poll, perhaps none; `at_end`: everything up to the ends of `begin` was taken."""


class Follower(Asking):
    """The thread. While the broker can't be reached, what was read stays as it is, and the thread tries again.

    Args:
        reader: takes the records.
        broker, bootstrap, name: see `Asking`.
    """

    def __init__(self, reader: Reader, broker: Broker, bootstrap: str, name: str) -> None:
        self._reader, self._told = reader, threading.Event()
        self.follows = False
        """Whether everything that the topic had was read, and the broker still answers."""
        self._absent = False
        """Whether it was said that there is no topic."""
        super().__init__(broker, bootstrap, name, f"{name}-follower")

    def wait(self, timeout_s: float) -> bool:
        """Waits until everything that the topic has is read, or can't be; whether it is."""
        self._told.wait(timeout_s)
        return self.follows

    def _ask(self, consumer: Any) -> None:
        from kafka import TopicPartition

        partitions = consumer.partitions_for_topic(self._topic)
        if not partitions:
            if not self._absent:
                LOG.info("topic %s does not exist yet; it is read once it does", self._topic)
            self._absent = True
            return
        assigned = [TopicPartition(self._topic, number) for number in sorted(partitions)]
        consumer.assign(assigned)
        consumer.seek_to_beginning(*assigned)
        first, ends = consumer.beginning_offsets(assigned), consumer.end_offsets(assigned)
        self._reader.begin({place.partition: (first[place], ends[place]) for place in assigned})
        self._read_on(consumer, ends)

    def _ended(self, error: Exception | None) -> None:
        if error is not None:
            log = LOG.warning if self.follows or not self._told.is_set() else LOG.info
            log("topic %s can't be read, trying again; what was read of it holds: %r", self._topic, error)
        self.follows = False
        self._told.set()

    def _read_on(self, consumer: Any, ends: dict[Any, int]) -> None:
        batch: dict[Any, list[Any]] = {}
        asked_s, lull = time.monotonic(), Lull(*_PAUSES_S)
        while not self._stop.wait(0 if batch else lull.wait_s()):
            batch = look(consumer, 2000)
            if batch:
                lull.end()
            for records in batch.values():
                for record in records:
                    self._reader.take(record.key, record.value, record.partition, record.timestamp)
            at_end = self.follows or all(consumer.position(place) >= end for place, end in ends.items())
            self._reader.taken(at_end)
            if at_end and not self.follows:
                self.follows = True
                self._told.set()
            if time.monotonic() - asked_s > _ASK_S:
                asked_s = time.monotonic()
                assigned = consumer.assignment()
                consumer.end_offsets(list(assigned))
                take_in_added(consumer, assigned)
