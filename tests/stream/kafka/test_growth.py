"""Partitions that are added to a topic while it is read: refused where ids hash to them, else read like the others."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from tests.stream.conftest import start

from driftline.configs import security
from driftline.configs.errors import StateError
from driftline.configs.settings import Settings
from driftline.graph.profile import Profile
from driftline.serving import follower as follower_module
from driftline.serving.partitions import take_in_added
from driftline.serving.profiles import ProfileFollower, ProfileStore
from driftline.stream.kafka.broker import admin
from driftline.stream.kafka.identity import Identities
from driftline.stream.kafka.reading import consumer, places, polled
from driftline.stream.learn.loop import check_topic
from driftline.stream.owned.partitions import check_partitions

pytestmark = pytest.mark.kafka


def grow(world: Any, name: str, partitions: int) -> None:
    with admin(world.settings.broker, world.bootstrap) as client:
        client.create_partitions({world.prefix + name: partitions})


def send(world: Any, name: str, partition: int, key: bytes, value: bytes) -> None:
    with closing(KafkaProducer(bootstrap_servers=world.bootstrap)) as producer:
        producer.send(world.prefix + name, key=key, value=value, partition=partition).get(10)


def test_a_trainer_ends_with_73_when_the_topic_gets_partitions_and_does_not_start_again_on_them(
    kafka_world: Any, settings: Settings
) -> None:
    kafka_world.partitions = 2
    kafka_world.create_topics()
    with closing(Identities(kafka_world.settings.broker, kafka_world.bootstrap)) as identities:
        trainer = start(settings, partitions=2)
        check_topic(trainer, identities)
        trainer.checkpoint()
        start(settings, partitions=2)
        grow(kafka_world, "interactions", 3)
        with pytest.raises(StateError, match="interactions has 3 partitions, it had 2: ids hash to partitions"):
            check_topic(trainer, identities)
    with pytest.raises(StateError, match="interactions has 3 partitions, it had 2"):
        start(settings, partitions=3)
    with pytest.raises(StateError, match="is of 2 partitions of interactions, the topic has 1"):
        start(settings, partitions=1)
    assert StateError.exit_code == 73


def test_the_topic_of_item_events_may_not_get_partitions_either() -> None:
    before = {"interactions": 4, "interactions.by-item": 2}
    check_partitions("t.", before, before)
    with pytest.raises(StateError, match=r"topic t\.interactions\.by-item has 3 partitions, it had 2"):
        check_partitions("t.", before | {"interactions.by-item": 3}, before)
    check_partitions("t.", before | {"interactions.by-item": 8}, before | {"interactions.by-item": 8})


def test_serving_reads_partitions_that_topics_of_profiles_and_items_get(
    kafka_world: Any, wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "_ASK_S", 0.2)
    monkeypatch.setattr(security, "METADATA_MS", 500)
    kafka_world.partitions = 1
    kafka_world.create_topics()

    def record(user: str) -> bytes:
        return Profile(user, {"crowd": "gardener"}, "A gardener.", "template", {}, 1, 1, 1).to_json()

    send(kafka_world, "profiles", 0, b"ann", record("ann"))
    store = ProfileStore()
    with closing(ProfileFollower(store, kafka_world.settings.broker, kafka_world.bootstrap)) as follower:
        wait(lambda: follower.follows and len(store) == 1, what="what there is is read")
        grow(kafka_world, "profiles", 2)
        wait(lambda: send_to_new(kafka_world, record("bob")), what="the broker has the partition")
        wait(lambda: len(store) == 2, 30, "the new partition is read")
        assert follower.follows


def send_to_new(world: Any, value: bytes) -> bool:
    from kafka.errors import KafkaError

    try:
        send(world, "profiles", 1, b"bob", value)
    except (KafkaError, AssertionError, ValueError):
        return False
    return True


def test_who_takes_in_new_partitions_reads_on_where_it_stood_in_the_others(kafka_world: Any, wait: Any) -> None:
    kafka_world.partitions = 1
    kafka_world.create_topics()
    send(kafka_world, "profiles", 0, b"ann", b"1")
    broker = kafka_world.settings.broker
    read: list[bytes] = []
    with consumer(broker, kafka_world.bootstrap) as reader:
        reader.assign(places(reader, broker, ["items", "profiles"]))
        reader.seek_to_beginning()

        def poll() -> bool:
            take_in_added(reader, reader.assignment())
            read.extend(record.value for records in polled(reader, 100).values() for record in records)
            return len(read) == expected

        expected = 1
        wait(poll, what="the first record")
        grow(kafka_world, "profiles", 2)
        wait(lambda: send_to_new(kafka_world, b"2"), what="the broker has the partition")
        send(kafka_world, "profiles", 0, b"ann", b"3")
        expected = 3
        wait(poll, 30, "the records of both partitions")
        assert sorted(read) == [b"1", b"2", b"3"]
        assert reader.position(TopicPartition(kafka_world.prefix + "profiles", 0)) == 2
