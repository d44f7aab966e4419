"""Reading topics with kafka-python: all that is there now, or on and on, from offsets that the reader keeps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from driftline.configs.errors import BrokerError
from driftline.configs.security import READ_COMMITTED, bootstrap_ms, consumer_options
from driftline.configs.settings import Broker
from driftline.serving.header_names import escape_header_names
from driftline.serving.lull import Lull, look
from driftline.stream.kafka.broker import check_reachable

AT_ONCE = 2000
"""Records that are taken out of what was fetched, at most."""
PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.2
"""Between two looks at a topic that has nothing new: at first, and at most for who reads on and on."""
SILENT_S = 5.0
"""After so long without a record that should be there the broker is asked whether it still is."""
END_WAIT_MS = 20
"""How long a fetch behind the end of one partition may hold up the next one, where nothing new is waited for."""


@contextmanager
def consumer(
    settings: Broker, bootstrap: str, isolation: str = READ_COMMITTED, skips: bool = True, wait_ms: int = 500
) -> Iterator[Any]:
    """A consumer without a group: the caller assigns and seeks. End offsets go as far as `isolation` lets one read.

    Args:
        skips: goes on with the first record that there is where the broker has deleted the next one; else `poll` raises
            kafka-python's OffsetOutOfRangeError, which has the offset of each such place.
        wait_ms: how long the broker holds a fetch that has nothing; it answers nothing else on that connection then.

    Raises:
        BrokerError: nothing answers.
    """
    check_reachable(settings, bootstrap)
    escape_header_names()
    reader = KafkaConsumer(
        **consumer_options(settings, bootstrap)
        | {"isolation_level": isolation, "auto_offset_reset": "earliest" if skips else "none"},
        bootstrap_timeout_ms=bootstrap_ms(settings),
        max_poll_records=AT_ONCE,
        fetch_max_wait_ms=wait_ms,
    )
    try:
        yield reader
    except KafkaError as error:
        raise BrokerError(f"reading from {bootstrap} failed: {error!r:.300}; check the broker and try again") from None
    finally:
        reader.close()


def polled(
    reader: Any, timeout_ms: int, max_records: int | None = None, lull: Lull | None = None
) -> dict[TopicPartition, list[Any]]:
    """What came within a time, at once when something is there. `poll` with a time limit would ask all the time.

    Args:
        lull: of who follows a topic and asks again: the longer nothing comes the rarer are looks, and one pause may go
            past the time; None = looks are as frequent as at first, and the last one is at the end of the time.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        once = lull is None or not timeout_ms
        batch = reader.poll(timeout_ms=0, max_records=max_records) if once else look(reader, max_records)
        if batch and lull is not None:
            lull.end()
        if batch or time.monotonic() >= deadline:
            return batch
        time.sleep(PAUSE_S if lull is None else lull.wait_s())
        if lull is not None and time.monotonic() >= deadline:
            return batch  # whoever asks again looks at once


def of_a_follower() -> Lull:
    """The pauses of who follows a topic, for `polled`."""
    return Lull(PAUSE_S, LONGEST_PAUSE_S)


def places(reader: Any, settings: Broker, names: Mapping[str, object] | list[str]) -> list[TopicPartition]:
    """All partitions of some topics that exist; names without prefix."""
    found = []
    for name in names:
        topic = settings.prefix + name
        found += [TopicPartition(topic, number) for number in sorted(reader.partitions_for_topic(topic) or ())]
    return found


def read_all(settings: Broker, bootstrap: str, name: str, first: int = 0) -> Iterator[Any]:
    """Every record that a topic holds as reading begins, partition by partition, in order of the offsets.

    Args:
        name: without prefix.
        first: offset to start at.

    Raises:
        BrokerError: the topic can't be read, or records of it were deleted before they were.
    """
    with consumer(settings, bootstrap, skips=False, wait_ms=END_WAIT_MS) as reader:
        found = places(reader, settings, [name])
        starts, ends = reader.beginning_offsets(found), reader.end_offsets(found)
        for place in found:
            yield from _read_partition(reader, place, max(first, starts[place]), ends[place])


def newest(settings: Broker, bootstrap: str, name: str, n: int, spots: int = 0) -> dict[int, list[Any]]:
    """At most the last `n` records that a topic holds in each partition, in order of the offsets.

    Args:
        spots: of the records before those, so many at even distances come first.

    Raises:
        BrokerError: the topic can't be read.
    """
    with consumer(settings, bootstrap, wait_ms=END_WAIT_MS) as reader:
        found = places(reader, settings, [name])
        starts, ends = reader.beginning_offsets(found), reader.end_offsets(found)
        held: dict[int, list[Any]] = {}
        for place in found:
            start, end = starts[place], ends[place]
            last = max(start, end - n)
            step = max(1, -(-(last - start) // max(1, spots)))
            before = range(last - 1, start - 1, -step)[:spots]
            held[place.partition] = [
                *(one for offset in before[::-1] for one in _read_partition(reader, place, offset, offset + 1)),
                *_read_partition(reader, place, last, end),
            ]
        return held


def first_offsets(settings: Broker, bootstrap: str, name: str) -> dict[int, int]:
    """The first offset that the broker still has, by partition of a topic.

    Raises:
        BrokerError: the topic can't be read.
    """
    with consumer(settings, bootstrap) as reader:
        found = reader.beginning_offsets(places(reader, settings, [name]))
        return {place.partition: int(offset) for place, offset in found.items()}


def _read_partition(reader: Any, place: TopicPartition, start: int, end: int) -> Iterator[Any]:
    if start >= end:
        return
    reader.assign([place])
    reader.seek(place, start)
    position, moved_s = start, time.monotonic()
    while position < end:
        try:
            records = polled(reader, 500, min(AT_ONCE, end - position)).get(place, [])
        except OffsetOutOfRangeError as error:  # offsets that only hold no records are none of those
            raise _gone(reader, place, error.args[0][place], end) from None
        for record in records:
            if record.offset >= end:
                return
            yield record
        before, position = position, reader.position(place)
        if position != before:
            moved_s = time.monotonic()
        elif time.monotonic() - moved_s > SILENT_S:
            if reader.end_offsets([place])[place] < end:
                raise _gone(reader, place, position, end)
            moved_s = time.monotonic()


def _gone(reader: Any, place: TopicPartition, position: int, end: int) -> BrokerError:
    """Why what began as reading began, and comes next, is not there any more."""
    first, now = reader.beginning_offsets([place])[place], reader.end_offsets([place])[place]
    name = f"partition {place.partition} of {place.topic}"
    if position < first and end <= now:
        return BrokerError(
            f"{name}: the records from offset {position} to {first} were deleted before they were read; run this again "
            "for what is left, or let the topic keep them for longer (retention.ms, retention.bytes)"
        )
    return BrokerError(
        f"{name} ended at {end} as reading began and ends at {now} now: it was made anew, or lost records; "
        "run this again"
    )
