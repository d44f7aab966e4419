"""A topic as a file of events, for `driftline replay --from-kafka`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from driftline.configs.settings import Settings
from driftline.stream.cli.common import err

if TYPE_CHECKING:
    from driftline.stream.process.processor import Record


def topic_file(
    settings: Settings, topic: str, path: Path, records: list[Record] | None = None, limit: int | None = None
) -> Path:
    """The events of a topic that a worker accepts as a JSONL file; the others are counted on stderr.

    Those of users who were forgotten later are not among them; those that a worker finds too late are, and are counted.

    Args:
        records: gets every record as a worker sees it, valid or not.
        limit: events to read at most.

    Raises:
        InputError: the topic holds no event, or several partitions whose records were asked for.
    """
    from driftline.configs.errors import InputError
    from driftline.stream.events.records import record_of
    from driftline.stream.events.schema import InvalidEvent, encode_event
    from driftline.stream.kafka.broker import broker
    from driftline.stream.kafka.reading import read_all
    from driftline.stream.process.forget import Forgotten
    from driftline.stream.process.intake import is_copy
    from driftline.stream.process.late import LateWindow
    from driftline.stream.process.processor import Processor
    from driftline.stream.state.store import MemoryStore

    validated = Processor(settings, MemoryStore()).validated
    windows = defaultdict[int, LateWindow](lambda: LateWindow(settings.state.late_ms, settings.state.late_events))
    written = invalid = too_late = 0
    with broker(settings.broker) as bootstrap, path.open("wb") as file:

        def produced() -> Iterator[tuple[int, Record]]:
            found = ((one.partition, record_of(one)) for one in read_all(settings.broker, bootstrap, topic))
            return ((partition, record) for partition, record in found if not is_copy(record))

        forgotten = Forgotten(produced, by_id=settings.state.dedupe_ids > 0)
        for received in read_all(settings.broker, bootstrap, topic):
            if written == limit:
                break
            record = record_of(received)
            if forgotten.has(received.partition, record):
                continue
            if records is not None:
                if received.partition:
                    raise InputError(f"topic {topic!r} has several partitions; --adoptions follows a log of one")
                records.append(record)
            if is_copy(record):
                continue
            try:
                event = validated(record)
            except InvalidEvent:
                invalid += 1
                continue
            file.write(encode_event(event) + b"\n")
            written += 1
            window = windows[received.partition]
            if window.judge(event.timestamp_ms, record.offset) == "too late":
                too_late += 1
            else:
                window.push([event], dict)
                window.drop_old()
    if invalid:
        err.print(f"{invalid:,} records of {topic} are not events and are left out")
    if too_late:
        err.print(
            f"{too_late:,} of {written:,} events came too late for a worker (state.late_ms, "
            f"{settings.state.late_ms / 60_000:g} min), whose state they do not change; this replay has them",
            soft_wrap=True,
        )
    if not written:
        raise InputError(f"topic {topic!r} holds no event; check --from-kafka and broker.prefix")
    return path


def without_prefix(settings: Settings, topic: str) -> str:
    """The name of a topic as driftline's code has it, whether it was given with `broker.prefix` or without."""
    from driftline.stream.events.topics import TOPICS

    return topic if topic in {known.name for known in TOPICS} else topic.removeprefix(settings.broker.prefix)
