"""Files to Kafka: events and items in the order of the file, with a rate and, if wanted, a pace.

Keys are user_id and item_id, so that the events of one user stay in order. Records carry the broker's time.
Sending is idempotent and waits for all replicas: what `produce` counts as sent is in the log, once.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

from driftline.configs.errors import BrokerError, InputError
from driftline.configs.security import producer_options
from driftline.configs.settings import Broker, Settings
from driftline.graph.arrays import Int64
from driftline.serving.scratch import Scratch
from driftline.serving.unclosed import close_producer
from driftline.stream.events.dlq import TOPIC as DLQ
from driftline.stream.events.dlq import fitting, shortened
from driftline.stream.events.files import item_counts, read_items, read_messages
from driftline.stream.events.ids import Join
from driftline.stream.events.records import EVERYWHERE, Outgoing
from driftline.stream.events.schema import InvalidEvent, decode_event, encode_item
from driftline.stream.events.sort import sorted_rows
from driftline.stream.events.topics import MAX_DEAD_LETTER_BYTES
from driftline.stream.kafka.broker import check_reachable
from driftline.stream.kafka.reading import newest

LOG = logging.getLogger(__name__)

Message = tuple[bytes | None, bytes]
"""(key, JSON value)"""

REPORT_EVERY = 500
SORTED_AT_ONCE = 16_384
LAST_RECORDS = 10_000
SPOTS = 16
"""Of each partition, its last records and so many of those before are looked at for how far it has come."""
LATE_S = 1.0
"""How much longer than its own time limit a producer may take to say that a record was not taken."""
LINGER_MS = 20
"""How long an event may wait for others to go with: one by one 400 a second cost producer and broker most of a core."""
INTERRUPTED_S = 5.0
"""How long a sender that ends waits for a batch that it has handed over."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What one call of `send` did."""

    records: int
    bytes: int
    seconds: float

    @property
    def per_s(self) -> float:
        """Records in a second."""
        return self.records / self.seconds if self.seconds > 0 else 0.0


class Sender:
    """Sends records to one topic after another.

    Raises:
        BrokerError: a record could not be sent; the first fault ends the sending.
    """

    def __init__(self, settings: Broker, producer: Any) -> None:
        self._settings, self._producer = settings, producer
        self._error: BaseException | None = None

    def send(
        self,
        topic: str,
        messages: Iterable[tuple[bytes | None, bytes | None]],
        rate_per_s: float | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Sent:
        """Sends all messages and waits for the last acknowledgement.

        Args:
            topic: name without prefix.
            messages: key and value of each record.
            rate_per_s: send no faster than this; None = as fast as the broker takes them.
            on_progress: gets the number of records sent so far, every few hundred and at the end; after an error
                or Ctrl-C it may be one too many.

        Raises:
            InputError: of `messages`, with how many were sent before it.
        """
        name = self._settings.prefix + topic
        records = size = 0
        start = time.perf_counter()
        try:
            for key, value in messages:
                if rate_per_s:
                    _wait_until(start + records / rate_per_s)
                records, size = records + 1, size + len(value or b"")
                self._send(name, key, value)
                if records % REPORT_EVERY == 0 or rate_per_s:
                    on_progress(records)
            self.flush()
        except InputError as error:
            self.flush()
            if not records:
                raise
            raise InputError(
                f"{error}. {records:,} records were sent before it and stay in {name}: mend the file and send it "
                "again if its events have an event_id, which is not applied twice, else only what comes after them"
            ) from None
        finally:
            on_progress(records)
        return Sent(records, size, time.perf_counter() - start)

    def flush(self) -> None:
        """Waits until everything is acknowledged."""
        try:
            self._producer.flush()
        except KafkaError as error:
            self._error = self._error or error
        if self._error is not None:
            raise BrokerError(f"the broker did not take a record: {self._error!r:.300}; those before it are sent")

    def _send(self, topic: str, key: bytes | None, value: bytes | None) -> None:
        try:
            self._producer.send(topic, key=key, value=value).add_errback(self._failed)
        except KafkaError as error:
            self._failed(error)
        if self._error is not None:
            self.flush()

    def _failed(self, error: BaseException) -> None:
        self._error = self._error or error


@contextmanager
def sender(settings: Broker, bootstrap: str) -> Iterator[Sender]:
    """A sender whose connection is closed at the end.

    Raises:
        BrokerError: nothing answers at the address.
    """
    check_reachable(settings, bootstrap)
    producer = KafkaProducer(
        **producer_options(settings, bootstrap),
        linger_ms=LINGER_MS,
        batch_size=131_072,
        max_block_ms=int(settings.connect_timeout_s * 1000),
        client_id="driftline-produce",
    )
    try:
        yield Sender(settings, producer)
    finally:
        close_producer(producer, INTERRUPTED_S)


@contextmanager
def outlet(settings: Broker, bootstrap: str, client_id: str) -> Iterator[Callable[[Sequence[Outgoing]], None]]:
    """How a process sends records: each call returns when the broker has acknowledged all of them.

    A broker that is away is waited for three times `connect_timeout_s`.

    Raises:
        BrokerError: nothing answers at the address; from a call: a record was not taken, others of it may have been.
    """
    check_reachable(settings, bootstrap)
    timeout_ms = int(settings.connect_timeout_s * 1000)
    producer = KafkaProducer(
        **producer_options(settings, bootstrap),
        max_block_ms=3 * timeout_ms,
        request_timeout_ms=timeout_ms,
        delivery_timeout_ms=3 * timeout_ms,
        enable_idempotence=True,
        max_in_flight_requests_per_connection=1,
        client_id=client_id,
        max_request_size=MAX_DEAD_LETTER_BYTES,
    )

    def one(out: Outgoing) -> Any:
        return producer.send(
            settings.prefix + out.topic,
            key=out.key,
            value=out.value,
            headers=list(out.headers),
            partition=out.partition,
        )

    def spread(out: Outgoing) -> list[Outgoing]:
        return out.to_each(producer.partitions_for(settings.prefix + out.topic) if out.partition == EVERYWHERE else ())

    def acknowledged(out: Outgoing, sent: Any) -> None:
        wait_s = 3 * settings.connect_timeout_s + LATE_S  # batches after a lost one never end
        try:
            sent.get(wait_s)  # `flush` counts a record that failed as done
        except MessageSizeTooLargeError:
            if out.topic != DLQ:
                raise
            one(shortened(out)).get(wait_s)  # a topic that was made with a smaller limit

    def send(outgoing: Sequence[Outgoing]) -> None:
        try:
            fit = [fitting(each) if each.topic == DLQ else each for out in outgoing for each in spread(out)]
            for out, sent in [(out, one(out)) for out in fit]:
                acknowledged(out, sent)
        except KafkaError as error:
            topics = ", ".join(sorted({out.topic for out in outgoing}))
            raise BrokerError(f"the broker did not take a record of {topics}: {error!r:.300}; start it again") from None

    try:
        yield send
    finally:
        close_producer(producer, INTERRUPTED_S)


def event_messages(
    path: Path,
    since_ms: int = 0,
    until_ms: int | None = None,
    watch: Callable[[pa.RecordBatch], None] | None = None,
    sort: bool = False,
) -> Iterator[Message]:
    """Events of a file in its order, those of a span of event time if one is given.

    Args:
        watch: see `read_messages`.
        sort: in order of time instead, by way of a temporary folder.

    Raises:
        InputError: the file can't be read, or a cell is wrong.
    """
    whole = not since_ms and until_ms is None
    messages: Iterable[tuple[bytes, bytes]] = read_messages(path, watch)
    if sort:
        messages = _sorted(messages)
    for key, value in messages:
        if whole:
            yield key, value
            continue
        t_ms = orjson.loads(value)["timestamp_ms"]
        if t_ms >= since_ms and (until_ms is None or t_ms < until_ms):
            yield key, value


def _sorted(messages: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Messages in order of event time, those of one time in the order in which they come."""
    with Scratch("sorted") as folder:
        for table in sorted_rows(_batches(messages), folder):
            yield from zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True)


def _batches(messages: Iterable[tuple[bytes, bytes]]) -> Iterator[pa.RecordBatch]:
    rest = iter(messages)
    while rows := list(islice(rest, SORTED_AT_ONCE)):
        keys, values = zip(*rows, strict=True)
        times = [orjson.loads(value)["timestamp_ms"] for value in values]
        columns = {
            "timestamp_ms": pa.array(times, pa.int64()),
            "key": pa.array(keys, pa.binary()),
            "value": pa.array(values, pa.binary()),
        }
        yield pa.RecordBatch.from_pydict(columns)


def newest_event_ms(settings: Settings, bootstrap: str) -> Int64:
    """The latest event time among the last records of each partition of the topic [partitions], -1 = there is no event.

    An older file may have been sent after a newer one: so records at even distances in what lies before count, too.

    Raises:
        BrokerError: the topic can't be read.
    """
    ahead_ms = time.time() * 1000 + settings.state.future_ms
    held = newest(settings.broker, bootstrap, "interactions", LAST_RECORDS, SPOTS)
    times = ([_time_of(record.value) for record in held[number]] for number in sorted(held))
    return np.array([max((t_ms for t_ms in of if t_ms < ahead_ms), default=-1) for of in times], np.int64)


def _time_of(value: bytes | None) -> int:
    """The event time of a record, -1 = it is no event."""
    try:
        return decode_event(value or b"").timestamp_ms
    except InvalidEvent:
        return -1


def item_messages(path: Path) -> Iterator[Message]:
    """Items of a file, the last row of each id.

    Raises:
        InputError: the file can't be read, or a cell is wrong.
    """
    for item_id, item in read_items(path).items():
        yield item_id.encode(), encode_item(item)


def send_files(
    sender: Sender,
    events: Path | None,
    items: Path | None = None,
    rate_per_s: float | None = None,
    since_ms: int = 0,
    until_ms: int | None = None,
    on_progress: Callable[[str, int], None] = lambda _topic, _sent: None,
    sort: bool = False,
) -> tuple[Sent, Sent]:
    """Items first, then events, in the order of the file or sorted by time; returns what was sent of each.

    Without events: items alone.

    Raises:
        InputError: a file is wrong; nothing was sent if it is the first event.
        BrokerError: a record could not be sent.
    """
    if events is None:
        assert items is not None
        return Sent(0, 0, 0.0), sender.send("items", item_messages(items), None, lambda n: on_progress("items", n))
    watch = ItemWatch(items) if items is not None else None
    messages = event_messages(events, since_ms, until_ms, None if watch is None else watch.see, sort)
    first = list(islice(messages, 1))
    if not first and not since_ms and until_ms is None:
        raise InputError(f"{events}: there is no row; expected events. Nothing was sent.")
    sent_items = Sent(0, 0, 0.0)
    if items is not None:
        sent_items = sender.send("items", item_messages(items), None, lambda n: on_progress("items", n))
    report = lambda n: on_progress("interactions", n)  # noqa: E731
    sent = sender.send("interactions", chain(first, messages), rate_per_s, report)
    if watch is not None:
        watch.end()
    return sent, sent_items


class ItemWatch:
    """Tells of an items file that does not belong to the events: of the first rows before any is sent, and at the end.

    Raises:
        InputError: the items file can't be read, or a cell is wrong.
    """

    def __init__(self, items: Path) -> None:
        self._ids = read_items(items).keys()
        self._rows: Counter[str] = Counter()
        self._told = False

    def see(self, batch: pa.RecordBatch) -> None:
        """Counts the items of some rows."""
        is_first = not self._rows
        self._rows.update(item_counts(batch))
        if is_first:
            self.end()

    def end(self) -> None:
        """Tells of what was seen so far, once."""
        problem = Join.of(self._rows, self._ids).problem()
        if problem and not self._told:
            self._told = True
            LOG.warning("%s", problem)


def _wait_until(when: float) -> None:
    delay_s = when - time.perf_counter()
    if delay_s > 0:
        time.sleep(delay_s)
