"""What producers get wrong on a real broker: clocks, units, and the stamps of their records."""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer
from kafka.admin import NewTopic

from driftline.graph.rows import Event
from driftline.serving.owner import partition_of
from driftline.serving.state_reader import StateReader
from driftline.stream.cli.topic import topic_file
from driftline.stream.events.dlq import read_dlq
from driftline.stream.events.schema import encode_event
from driftline.stream.kafka.broker import admin
from driftline.stream.kafka.reading import read_all
from driftline.stream.ops.doctor import examine

HOUR_MS = 3_600_000


def event_at(user: str, t_ms: int) -> bytes:
    return encode_event(Event(user, f"i{t_ms % 7}", t_ms, "view"))


def make_unstamped(world: Any) -> None:
    """The topic as brokers make it by default: records carry their producer's time."""
    settings = world.settings.broker
    with admin(settings, world.bootstrap) as client:
        client.create_topics([NewTopic(settings.prefix + "interactions", world.partitions, 1)])
    world.create_topics()


@pytest.mark.parametrize("stamped_by", ["broker", "producer"])
def test_one_clock_six_hours_ahead_costs_its_own_events_and_no_other(world: Any, wait: Any, stamped_by: str) -> None:
    if stamped_by == "producer":
        make_unstamped(world)
    else:
        world.create_topics()
    now = int(time.time() * 1000)
    producer = KafkaProducer(bootstrap_servers=world.bootstrap, linger_ms=5)
    topic = world.prefix + "interactions"
    producer.send(topic, key=b"fast", value=event_at("fast", now + 6 * HOUR_MS), timestamp_ms=now + 6 * HOUR_MS)
    producer.send(topic, key=b"fast", value=event_at("fast", now + 6 * HOUR_MS))
    for n, stamp_ms in enumerate([0, 1, now // 1000, now - 3 * HOUR_MS * 24 * 365 * 20, now, None] * 10):
        producer.send(topic, key=b"u", value=event_at("u", now + n), timestamp_ms=stamp_ms)
    producer.send(topic, key=b"u", value=event_at("u", 789_652_009_000))
    producer.close()
    with world.worker() as worker:
        expected = {"applied": 60, "dead": 2, "too_late": 1}
        wait(lambda: worker.offsets("driftline_events_total") == expected, what="everything is taken")
        worker.stop()
    letters = list(read_dlq(world.settings.broker, world.bootstrap))
    assert [letter.reason for letter in letters] == ["from_the_future"] * 2
    stamps = {record.timestamp_type for record in read_all(world.settings.broker, world.bootstrap, "interactions")}
    assert stamps == {1 if stamped_by == "broker" else 0}
    notes = [finding.remedy for finding in examine(world.settings) if finding.part == "clocks"]
    assert [("message.timestamp.type=LogAppendTime" in note) for note in notes] == [True] * (stamped_by == "producer")


def murmur2(user: str) -> int:
    return partition_of(user, 4)


def crc32(user: str) -> int:
    return zlib.crc32(user.encode()) % 4


def anywhere(user: str) -> int:
    return int(np.random.default_rng(time.monotonic_ns()).integers(4))


@pytest.mark.parametrize("kind", ["world", pytest.param("kafka_world", marks=[pytest.mark.kafka, pytest.mark.slow])])
def test_events_of_a_user_by_java_librdkafka_and_without_a_key_end_in_one_row_and_are_learnt_once(
    request: pytest.FixtureRequest, wait: Any, tmp_path: Path, kind: str
) -> None:
    world = request.getfixturevalue(kind)
    world.partitions = 4
    world.create_topics()
    topic, t0, users = world.prefix + "interactions", 1_600_000_000_000, [f"user{n}" for n in range(12)]
    producer = KafkaProducer(bootstrap_servers=world.bootstrap, linger_ms=2)
    sent: list[bytes] = []

    def produce(events: int) -> None:
        for _ in range(events):
            n = len(sent)
            user, partitioner = users[n % 12], (murmur2, crc32, anywhere)[n % 3 if n < 200 else 2]
            key = None if partitioner is anywhere else user.encode()
            sent.append(encode_event(Event(user, f"i{n % 9}", t0 + 1000 * n, "view", f"e{n}")))
            producer.send(topic, key=key, value=sent[-1], partition=partitioner(user))
        producer.flush()

    def rows() -> dict[str, int]:
        found = [reader.user(user) for user in users]
        at_home = [s for s in found if s.row is not None and s.partition == partition_of(s.row.user_id, 4)]
        return {stored.row.user_id: stored.row.events for stored in at_home if stored.row is not None}

    with StateReader(world.settings.state.root, 4) as reader:
        produce(300)
        with world.worker() as worker:
            wait(lambda: sum(rows().values()) > 50, 60, "some events are applied")
            worker.kill()
        produce(300)
        with world.worker() as worker:
            wait(lambda: rows() == dict.fromkeys(users, 50), 60, "each user has all 50 events in its owner's partition")
            assert worker.offsets("driftline_events_total")["forwarded"] > 100
            worker.stop()
            said = worker.log.read_text()
    assert "events so far came in another partition than their user's" in said
    assert said.count("events so far came in another partition") < 4
    notes = {finding.part: finding.detail for finding in examine(world.settings)}
    assert "came in another partition than their user's" in notes["producers"]
    assert len(list(read_all(world.settings.broker, world.bootstrap, "interactions"))) > 800
    copied = topic_file(world.settings, "interactions", tmp_path / "events.jsonl").read_bytes().splitlines()
    assert sorted(copied) == sorted(sent)
    assert not list(read_dlq(world.settings.broker, world.bootstrap))


def test_a_producer_that_is_50_minutes_late_costs_few_epochs_more_and_the_state_is_that_of_replay(
    world: Any, wait: Any
) -> None:
    rng, n, t0 = np.random.default_rng(2), 6000, 1_600_000_000_000
    times = t0 + 700 * np.arange(n)
    order = np.argsort(times + np.where(rng.random(n) < 0.1, HOUR_MS * 5 // 6, 0), kind="stable")
    world.produce([(b"u%d" % (at % 50), event_at(f"u{at % 50}", int(times[at]))) for at in order])
    with world.worker() as worker:
        wait(lambda: worker.applied() == n, what="everything is applied")
        again = worker.metric("driftline_events_applied_again_total")
        wait(lambda: worker.offsets("driftline_events_total").get("late", 0) > 0.08 * n, what="it is counted")
        worker.stop()
    assert 2000 < again < 2 * n  # 32 events an epoch would apply some 4,000 again each
    assert world.stored_rows() == world.expected_rows()


@pytest.mark.kafka
@pytest.mark.slow
def test_apache_kafka_stamps_what_producers_stamped_wrongly(kafka_world: Any) -> None:
    kafka_world.partitions = 1
    kafka_world.create_topics()
    now = int(time.time() * 1000)
    producer = KafkaProducer(bootstrap_servers=kafka_world.bootstrap)
    for stamp_ms in (0, now // 1000, now + 6 * HOUR_MS):
        producer.send(kafka_world.prefix + "interactions", value=event_at("u", now), timestamp_ms=stamp_ms)
    producer.close()
    found = list(read_all(kafka_world.settings.broker, kafka_world.bootstrap, "interactions"))
    assert [record.timestamp_type for record in found] == [1, 1, 1]
    assert all(abs(record.timestamp - now) < HOUR_MS / 10 for record in found)
