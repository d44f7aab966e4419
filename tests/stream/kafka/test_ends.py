"""Where the topic of events ends, asked of a real broker as the service does."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from tests.stream.conftest import wait_for

from driftline.configs.errors import BrokerError, DriftlineError
from driftline.serving.ends import Ends, EndsFollower
from driftline.serving.state_reader import StoredUser
from driftline.stream.kafka import reading
from driftline.stream.kafka.broker import admin
from driftline.stream.kafka.reading import read_all


def test_the_ends_of_a_topic_are_asked_of_its_broker_and_follow_it(world: Any) -> None:
    ends = Ends()
    follower = EndsFollower(ends, world.settings.broker, world.bootstrap)
    try:
        world.create_topics()
        wait_for(lambda: ends.after({}) == 0)
        world.produce([(b"u", b"{}")] * 5)
        wait_for(lambda: ends.after({}) == 5)
        assert ends.pending(StoredUser(None, 0, 3)) == 2
        assert ends.after({0: 4}) == 1
    finally:
        follower.close()


@pytest.mark.kafka
def test_a_topic_of_many_partitions_is_read_without_a_wait_at_each(kafka_world: Any) -> None:
    kafka_world.partitions = 12
    kafka_world.produce([(b"u%d" % n, b"{}") for n in range(120)])
    begun = time.monotonic()
    found = [record.key for record in read_all(kafka_world.settings.broker, kafka_world.bootstrap, "interactions")]
    assert sorted(found) == sorted(b"u%d" % n for n in range(120))
    assert time.monotonic() - begun < 4  # half a second each were six


@pytest.mark.kafka
@pytest.mark.parametrize("anew", [False, True])
def test_a_topic_that_goes_or_is_made_anew_while_it_is_read_is_an_error_and_no_wait_for_ever(
    kafka_world: Any, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    monkeypatch.setattr(reading, "SILENT_S", 0.5)
    kafka_world.partitions = 1
    kafka_world.produce([(b"u", b"x" * 1000)] * 10_000)
    records = read_all(kafka_world.settings.broker, kafka_world.bootstrap, "interactions")
    next(records)
    with admin(kafka_world.settings.broker, kafka_world.bootstrap) as client:
        client.delete_topics([kafka_world.prefix + "interactions"])
    if anew:
        wait_for(lambda: _made(kafka_world), 30)
    with pytest.raises(BrokerError):
        list(records)


@pytest.mark.parametrize("which", ["world", pytest.param("kafka_world", marks=pytest.mark.kafka)])
def test_records_that_are_deleted_before_they_are_read_are_an_error_and_what_went_before_is_none(
    which: str, request: pytest.FixtureRequest
) -> None:
    world: Any = request.getfixturevalue(which)
    world.partitions = 2
    world.create_topics()
    places = [TopicPartition(world.prefix + "interactions", number) for number in range(2)]
    with closing(KafkaProducer(bootstrap_servers=world.bootstrap)) as producer:
        for n in range(302):
            producer.send(places[n > 1].topic, b"y", partition=places[n > 1].partition)
    with admin(world.settings.broker, world.bootstrap) as client:
        client.delete_records({places[1]: 100})
        records = read_all(world.settings.broker, world.bootstrap, "interactions")
        assert [next(records).offset for _ in range(2)] == [0, 1]
        client.delete_records({places[1]: 150})
        with pytest.raises(BrokerError, match=r"the records from offset 100 to 150 were deleted before they were read"):
            list(records)
    found = [record.offset for record in read_all(world.settings.broker, world.bootstrap, "interactions")]
    assert found == [0, 1, *range(150, 300)]


@pytest.mark.kafka
def test_offsets_without_records_are_no_deleted_ones(kafka_world: Any) -> None:
    kafka_world.partitions = 1
    kafka_world.create_topics()
    topic = kafka_world.prefix + "interactions"
    with closing(KafkaProducer(bootstrap_servers=kafka_world.bootstrap, transactional_id=topic)) as producer:
        producer.init_transactions()
        for ends in (producer.abort_transaction, producer.commit_transaction, producer.abort_transaction):
            producer.begin_transaction()
            producer.send(topic, b"y").get(10)
            ends()
    with admin(kafka_world.settings.broker, kafka_world.bootstrap) as client:
        client.delete_records({TopicPartition(topic, 0): 1})  # at a marker
    found = [record.offset for record in read_all(kafka_world.settings.broker, kafka_world.bootstrap, "interactions")]
    assert found == [2]


def _made(world: Any) -> bool:
    try:
        world.produce([(b"u", b"{}")])
    except DriftlineError:  # what was deleted is not gone yet
        return False
    return True
