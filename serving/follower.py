"""Follows one topic of Kafka from its beginning, in a thread, for as long as it is open."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import suppress
from typing import Any, Protocol

from driftline.configs.addresses import addresses
from driftline.configs.security import consumer_options
from driftline.configs.settings import Broker
from driftline.serving.header_names import escape_header_names
from driftline.serving.partitions import take_in_added

LOG = logging.getLogger(__name__)
RETRY_S = 1.0
_PAUSE_S = 0.1
_PROBE_S = 2.0
BOOTSTRAP_MS = 5000
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


class Follower:
    """The thread. While the broker can't be reached, what was read stays as it is, and the thread tries again.

    Args:
        reader: takes the records.
        broker: how the client makes itself known, and the prefix of the topic.
        bootstrap: Kafka servers.
        name: of the topic, without prefix.
    """

    def __init__(self, reader: Reader, broker: Broker, bootstrap: str, name: str) -> None:
        self._reader, self._topic = reader, broker.prefix + name
        self._bootstrap, self._options = bootstrap, consumer_options(broker, bootstrap)
        self._stop, self._told = threading.Event(), threading.Event()
        self.follows = False
        """Whether everything that the topic had was read, and the broker still answers."""
        self._absent = False
        """Whether it was said that there is no topic."""
        self._thread = threading.Thread(target=self._follow, name=f"{name}-follower", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Waits until everything that the topic has is read, or can't be; whether it is."""
        self._told.wait(timeout_s)
        return self.follows

    def close(self) -> None:
        """Stops reading."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._read_until_error()
            except Exception as error:  # noqa: BLE001 - a thread that ends says nothing, and nothing is followed
                log = LOG.warning if self.follows or not self._told.is_set() else LOG.info
                log("topic %s can't be read, trying again; what was read of it holds: %r", self._topic, error)
            self.follows = False
            self._told.set()
            self._stop.wait(RETRY_S)

    def _read_until_error(self) -> None:
        from kafka import KafkaConsumer, TopicPartition

        escape_header_names()
        check_one_listens(self._bootstrap)
        consumer = KafkaConsumer(
            **self._options,
            bootstrap_timeout_ms=BOOTSTRAP_MS,
        )
        try:
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
        finally:
            consumer.close()

    def _read_on(self, consumer: Any, ends: dict[Any, int]) -> None:
        batch: dict[Any, list[Any]] = {}
        asked_s = time.monotonic()
        while not self._stop.wait(0 if batch else _PAUSE_S):
            batch = consumer.poll(timeout_ms=0, max_records=2000)  # a time limit would keep a core busy asking
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


def check_one_listens(bootstrap: str) -> None:
    """A broker that is away is found out at once, not after a client has tried for a while.

    Raises:
        OSError: nobody listens at any of the addresses.
    """
    for at in addresses(bootstrap):
        with suppress(OSError), socket.create_connection((at.host, at.port), _PROBE_S):
            return
    raise OSError(f"nobody listens at {bootstrap}")
