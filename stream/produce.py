"""Files to Kafka: events and items in the order of the file, with a rate and, if wanted, a pace.

Keys are user_id and item_id, so that the events of one user stay in order. Records carry the broker's time.
Sending is idempotent and waits for all replicas: what `produce` counts as sent is in the log, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import orjson
from kafka import KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from configs.errors import BrokerError, InputError
from configs.security import client_options
from configs.settings import Broker
from stream.broker import check_reachable
from stream.events import EVENT_TYPE, ITEM_TYPE, encode_item
from stream.file_checks import SECONDS_BELOW_MS
from stream.files import read_items, read_messages
from stream.records import Outgoing
from stream.topics import CE_TYPE

Message = tuple[bytes | None, bytes]
"""(key, JSON value)"""

REPORT_EVERY = 500
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
        kind: str,
        messages: Iterable[Message],
        rate_per_s: float | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> Sent:
        """Sends all messages and waits for the last acknowledgement.

        Args:
            topic: name without prefix.
            kind: value of the `ce_type` header.
            messages: key and value of each record.
            rate_per_s: send no faster than this; None = as fast as the broker takes them.
            on_progress: gets the number of records sent so far, every few hundred and at the end; after an error
                or Ctrl-C it may be one too many.

        Raises:
            InputError: of `messages`, with how many were sent before it.
        """
        name, headers = self._settings.prefix + topic, [(CE_TYPE, kind.encode())]
        records = size = 0
        start = time.perf_counter()
        try:
            for key, value in messages:
                if rate_per_s:
                    _wait_until(start + records / rate_per_s)
                records, size = records + 1, size + len(value)
                self._send(name, key, value, headers)
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

    def _send(self, topic: str, key: bytes | None, value: bytes, headers: list[tuple[str, bytes]]) -> None:
        try:
            self._producer.send(topic, key=key, value=value, headers=headers).add_errback(self._failed)
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
        **client_options(settings, bootstrap),
        acks="all",
        compression_type="gzip",
        linger_ms=5,
        batch_size=131_072,
        max_block_ms=int(settings.connect_timeout_s * 1000),
        client_id="driftline-produce",
    )
    try:
        yield Sender(settings, producer)
    finally:
        with suppress(KafkaTimeoutError):
            producer.close(INTERRUPTED_S)


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
        **client_options(settings, bootstrap),
        acks="all",
        max_block_ms=3 * timeout_ms,
        request_timeout_ms=timeout_ms,
        delivery_timeout_ms=3 * timeout_ms,
        enable_idempotence=False,  # with it the batches after one that expired never do; twice does no harm here
        max_in_flight_requests_per_connection=1,  # in order all the same
        client_id=client_id,
    )

    def send(outgoing: Sequence[Outgoing]) -> None:
        try:
            sent = [
                producer.send(settings.prefix + out.topic, key=out.key, value=out.value, headers=list(out.headers))
                for out in outgoing
            ]
            for acknowledged in sent:  # `flush` counts a record that failed as done
                acknowledged.get()
        except KafkaError as error:
            topics = ", ".join(sorted({out.topic for out in outgoing}))
            raise BrokerError(f"the broker did not take a record of {topics}: {error!r:.300}; start it again") from None

    try:
        yield send
    finally:
        producer.close()


def event_messages(path: Path, since_ms: int = 0, until_ms: int | None = None) -> Iterator[Message]:
    """Events of a file in its order, those of a span of event time if one is given.

    Raises:
        InputError: the file can't be read, a cell is wrong, or the first time looks like seconds: taken as
            milliseconds, seconds are days of January 1970.
    """
    whole = not since_ms and until_ms is None
    for row, (key, value) in enumerate(read_messages(path)):
        if row and whole:
            yield key, value
            continue
        t_ms = orjson.loads(value)["timestamp_ms"]
        if row == 0 and t_ms < SECONDS_BELOW_MS:
            raise InputError(
                f"{path}: the first timestamp_ms is {t_ms}, which looks like seconds; expected unix milliseconds, "
                "which is 1,000 times that. Nothing was sent."
            )
        if t_ms >= since_ms and (until_ms is None or t_ms < until_ms):
            yield key, value


def item_messages(path: Path) -> Iterator[Message]:
    """Items of a file, the last row of each id.

    Raises:
        InputError: the file can't be read, or a cell is wrong.
    """
    for item_id, item in read_items(path).items():
        yield item_id.encode(), encode_item(item)


def send_files(
    sender: Sender,
    events: Path,
    items: Path | None = None,
    rate_per_s: float | None = None,
    since_ms: int = 0,
    until_ms: int | None = None,
    on_progress: Callable[[str, int], None] = lambda _topic, _sent: None,
) -> tuple[Sent, Sent]:
    """Items first, then events; returns what was sent of each.

    Raises:
        InputError: a file is wrong; nothing was sent if it is the first event.
        BrokerError: a record could not be sent.
    """
    messages = event_messages(events, since_ms, until_ms)
    first = list(islice(messages, 1))
    if not first and not since_ms and until_ms is None:
        raise InputError(f"{events}: there is no row; expected events. Nothing was sent.")
    sent_items = Sent(0, 0, 0.0)
    if items is not None:
        sent_items = sender.send("items", ITEM_TYPE, item_messages(items), None, lambda n: on_progress("items", n))
    report = lambda n: on_progress("interactions", n)  # noqa: E731
    return sender.send("interactions", EVENT_TYPE, chain(first, messages), rate_per_s, report), sent_items


def _wait_until(when: float) -> None:
    delay_s = when - time.perf_counter()
    if delay_s > 0:
        time.sleep(delay_s)
