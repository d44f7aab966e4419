"""Batches that are compressed by any codec, written by any client: read by the worker and by everything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import Producer
from kafka.admin import NewTopic
from pydantic import ValidationError

from driftline.configs.settings import Broker, Settings
from driftline.stream.events.dlq import read_dlq
from driftline.stream.events.produce import outlet, sender
from driftline.stream.events.records import Outgoing
from driftline.stream.kafka.broker import admin
from driftline.stream.kafka.codecs import CODECS, unreadable
from driftline.stream.kafka.reading import read_all
from driftline.stream.ops.doctor import examine

T0_MS = 1_600_000_000_000
EACH = 200


def event(codec: str, number: int) -> bytes:
    named = {"user_id": f"{codec}{number % 10}", "item_id": f"i{number % 25}", "timestamp_ms": T0_MS + number * 1000}
    return json.dumps({**named, "action": "purchase", "note": "x" * 300}).encode()


def foreign_events(bootstrap: str, topic: str) -> None:
    """Batches of librdkafka by each codec and by none, with a record in each that is no event."""
    for codec in ("none", *CODECS):
        producer = Producer({"bootstrap.servers": bootstrap, "compression.type": codec, "linger.ms": 200})
        for number in range(EACH):
            broken = number == EACH // 2
            producer.produce(topic, value=b"{broken" if broken else event(codec, number))
        assert producer.flush(30) == 0


@pytest.mark.kafka
def test_batches_of_every_codec_reach_state_dead_letters_and_readers(kafka_world: Any, wait: Any) -> None:
    kafka_world.partitions = 1
    kafka_world.broker["compression"] = "zstd"  # of the dead letters
    kafka_world.create_topics()
    topic = kafka_world.prefix + "interactions"
    foreign_events(kafka_world.bootstrap, topic)
    expected = 5 * EACH
    assert len(list(read_all(kafka_world.settings.broker, kafka_world.bootstrap, "interactions"))) == expected
    with kafka_world.worker() as worker:
        wait(lambda: worker.applied() == expected, what="everything is applied")
        worker.stop()
    assert kafka_world.stored_rows() == kafka_world.expected_rows()
    assert len(list(read_dlq(kafka_world.settings.broker, kafka_world.bootstrap))) == 5


@pytest.mark.kafka
def test_batches_that_the_broker_compressed_anew_are_read_by_both_clients(kafka_world: Any) -> None:
    """A topic with a codec of its own holds what Kafka's Java code wrote, whose frames differ from librdkafka's."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from driftline.configs.security import consumer_options

    broker, bootstrap = kafka_world.settings.broker, kafka_world.bootstrap

    async def by_aiokafka(place: TopicPartition) -> list[bytes | None]:
        consumer = AIOKafkaConsumer(**consumer_options(broker, bootstrap))
        await consumer.start()
        try:
            consumer.assign([place])
            values: list[bytes | None] = []
            while len(values) < EACH:
                values += [r.value for r in (await consumer.getmany(timeout_ms=2000)).get(place, [])]
            return values
        finally:
            await consumer.stop()

    import asyncio

    sent = [event("java", number) for number in range(EACH)]
    for codec in CODECS:
        topic = f"{broker.prefix}{codec}"
        with admin(broker, bootstrap) as client:
            client.create_topics([NewTopic(topic, 1, 1, topic_configs={"compression.type": codec})])
        with sender(broker, bootstrap) as to_kafka:
            to_kafka.send(codec, [(None, value) for value in sent])
        assert [r.value for r in read_all(broker, bootstrap, codec)] == sent
        assert asyncio.run(by_aiokafka(TopicPartition(topic, 0))) == sent


@pytest.mark.parametrize("codec", ["none", *CODECS])
def test_what_driftline_writes_is_compressed_as_set(world: Any, codec: str) -> None:
    world.broker["compression"] = codec
    world.create_topics()
    broker, bootstrap = world.settings.broker, world.bootstrap
    sent = [event(codec, n) for n in range(20)]
    with sender(broker, bootstrap) as to_kafka:
        to_kafka.send("interactions", [(None, value) for value in sent])
    assert [r.value for r in read_all(broker, bootstrap, "interactions")] == sent
    with outlet(broker, bootstrap, "test") as send:
        send([Outgoing("profiles.log", b"u", b"p" * 5000)])
    assert [r.value for r in read_all(broker, bootstrap, "profiles.log")] == [b"p" * 5000]


def test_a_codec_that_is_none_is_refused_when_the_settings_are_read() -> None:
    with pytest.raises(ValidationError, match="'none', 'gzip', 'snappy', 'lz4' or 'zstd'"):
        Broker(compression="brotli")  # type: ignore[arg-type]


def test_doctor_names_a_codec_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = [f for f in examine(Settings()) if f.part == "codecs"]
    assert found.state == "ok"
    monkeypatch.setattr("kafka.codec.zstd", None)
    assert [fault.split()[0] for fault in unreadable()] == ["zstd"]
    (found,) = [f for f in examine(Settings()) if f.part == "codecs"]
    assert found.state == "bad"
    assert "zstandard" in found.remedy
