"""A header name is bytes to Kafka: one that is no UTF-8 stops no reader."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.record.memory_records import MemoryRecords as Compiled
from kafka import KafkaProducer
from kafka.record import MemoryRecords, MemoryRecordsBuilder
from tests.stream.test_app import shop_records

from driftline.configs.security import client_options
from driftline.stream.kafka.batches import TolerantRecords, read_as_parsed
from driftline.stream.kafka.reading import read_all


class NoText(str):
    """A name that goes to the wire as bytes that are no UTF-8."""

    def encode(self, *_: Any, **__: Any) -> bytes:
        return b"na\xffme"


def batches() -> bytes:
    """Two batches, the first of three records with such a name in the middle one."""
    raw = b""
    for first in (0, 3):
        builder = MemoryRecordsBuilder(magic=2, compression_type=1, batch_size=1 << 20, offset=first)
        for n in range(3):
            name = NoText("x") if (first, n) == (0, 1) else "plain"
            builder.append(timestamp=n, key=b"k", value=b"%d" % (first + n), headers=[(name, b"v")])
        builder.close()
        raw += builder.buffer()
    return raw


def read(records: Any) -> list[tuple[bytes, list[tuple[str, bytes]]]]:
    found = []
    while (batch := records.next_batch()) is not None:
        assert batch.validate_crc()
        found += [(record.value, list(record.headers)) for record in batch]
    return found


def test_both_clients_read_such_a_name_with_escapes_and_everything_around_it() -> None:
    read_as_parsed()
    wanted = [(b"%d" % n, [("na\\xffme" if n == 1 else "plain", b"v")]) for n in range(6)]
    with pytest.raises(UnicodeDecodeError):
        read(Compiled(batches()))
    assert read(TolerantRecords(batches())) == wanted
    assert read(MemoryRecords(batches())) == wanted


def test_an_event_under_such_a_name_is_applied_and_the_stream_goes_on(world: Any, wait: Any) -> None:
    records = shop_records(100)
    world.produce(records[:50])
    producer = KafkaProducer(**client_options(world.settings.broker, world.bootstrap))
    key, value = records[50]
    producer.send(world.prefix + "interactions", key=key, value=value, headers=[(NoText("x"), b"v")]).get(10)
    producer.close()
    world.send([SimpleNamespace(topic="interactions", key=k, value=v, headers=()) for k, v in records[51:]])
    with world.worker() as worker:
        wait(lambda: worker.applied() == 100, what="everything is applied")
        worker.stop()
    assert world.stored_rows() == world.expected_rows()
    assert len(list(read_all(world.settings.broker, world.bootstrap, "interactions"))) == 100
