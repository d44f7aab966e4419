"""The worker against Apache Kafka: four partitions, a killed worker, a second one, equal user rows, items once."""

from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kafka import KafkaProducer
from tests.stream.test_app import by_item

from driftline.graph.rows import Event
from driftline.stream.chaos.oracle import item_counts
from driftline.stream.events.dlq import read_dlq
from driftline.stream.events.schema import encode_event

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def records(n: int, users: int = 60) -> list[tuple[bytes | None, bytes | None]]:
    """Events in order of time, one in a hundred of them broken."""
    rng = np.random.default_rng(3)
    now, made = 1_600_000_000_000, []
    for number in range(n):
        now += int(rng.integers(0, 30_000))
        user = f"u{rng.integers(users)}"
        event = Event(user, f"i{rng.integers(50)}", now, "view", f"e{number}")
        made.append((user.encode(), b"{broken" if number % 100 == 50 else encode_event(event)))
    return made


def test_killed_restarted_and_joined_by_a_second_worker_the_user_rows_are_those_of_an_unbroken_run(
    kafka_world: Any, wait: Any
) -> None:
    log = records(6000)
    kafka_world.produce(log[:3000])
    with kafka_world.worker() as first:
        wait(lambda: first.applied() > 800, 90, "the first worker applies events")
        first.kill()
    with kafka_world.worker() as again, kafka_world.worker() as second:
        wait(lambda: again.partitions() and second.partitions(), 90, "both workers own partitions")
        kafka_world.produce(log[3000:])
        wait(lambda: _everything(kafka_world, again, second), 90, "everything is applied")
        wait(lambda: _items_applied(again, second) == len(by_item(kafka_world)), 90, "also by the items")
        again.stop()
        second.stop()
    assert kafka_world.stored_rows() == kafka_world.expected_rows()
    once = Counter(json.loads(value or b"")["item_id"] for _, value in log if value != b"{broken")
    assert item_counts(kafka_world.settings, 4) == once
    letters = list(read_dlq(kafka_world.settings.broker, kafka_world.bootstrap))
    assert {letter.reason for letter in letters} == {"not_json"}
    assert len({letter.source for letter in letters}) == 60
    assert {letter.value for letter in letters} == {b"{broken"}


def test_the_marker_that_each_transaction_leaves_is_passed_over_and_counted(kafka_world: Any, wait: Any) -> None:
    kafka_world.partitions = 1
    kafka_world.create_topics()
    log = records(300)
    producer = KafkaProducer(bootstrap_servers=kafka_world.bootstrap, transactional_id=kafka_world.prefix)
    producer.init_transactions()
    for start in range(0, 300, 100):
        producer.begin_transaction()
        for key, value in log[start : start + 100]:
            producer.send(kafka_world.prefix + "interactions", key=key, value=value)
        producer.commit_transaction()
    kafka_world.send([SimpleNamespace(topic="interactions", key=key, value=v, headers=()) for key, v in log[:1]])
    producer.close()
    with kafka_world.worker() as worker:
        wait(lambda: worker.applied() == 304, what="everything is applied, past three markers")
        assert worker.metric("driftline_gap_offsets_total") == 3
        worker.stop()
    assert kafka_world.stored_rows() == kafka_world.expected_rows()
    assert worker.log.read_text().count("hold no records") == 1


def test_topics_have_their_partitions_and_policies(kafka_world: Any, wait: Any) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    from driftline.stream.events.topics import TOPICS, create_topics, partitions_of
    from driftline.stream.kafka.broker import admin

    broker = kafka_world.settings.broker
    assert len(create_topics(broker, kafka_world.bootstrap)) == len(TOPICS)
    assert create_topics(broker, kafka_world.bootstrap) == []
    assert partitions_of(broker, kafka_world.bootstrap, "interactions") == 4
    assert partitions_of(broker, kafka_world.bootstrap, "interactions.dlq") == 1
    with admin(broker, kafka_world.bootstrap) as client:
        resources = [ConfigResource(ConfigResourceType.TOPIC, broker.prefix + topic.name) for topic in TOPICS]
        compact = sum(topic.compact for topic in TOPICS)
        wait(lambda: json.dumps(client.describe_configs(resources), default=str).count("compact") >= compact)


def _everything(world: Any, *workers: Any) -> bool:
    reached = {}
    for worker in workers:
        worker.applied()
        for partition, offset in worker.offsets().items():
            reached[partition] = max(offset, reached.get(partition, 0))
    return sum(reached.values()) == 6000


def _items_applied(*workers: Any) -> int:
    reached: dict[str, int] = {}
    for worker in workers:
        reached |= worker.offsets("driftline_item_next_offset")
    return sum(reached.values())


def test_partitions_that_are_added_while_a_worker_runs_end_it_with_73_before_an_event_of_theirs_is_lost(
    kafka_world: Any, wait: Any
) -> None:
    from driftline.stream.kafka.broker import admin

    kafka_world.partitions = 2
    kafka_world.produce(records(50))
    topic = f"{kafka_world.prefix}interactions"
    with kafka_world.worker() as worker:
        wait(lambda: worker.partitions() == 2, 60, "both partitions are open")
        with admin(kafka_world.settings.broker, kafka_world.bootstrap) as client:
            client.create_partitions({topic: 4})
        assert worker.process.wait(timeout=40) == 73
    assert f"topic {topic} has 4 partitions, it had 2" in worker.log.read_text()
