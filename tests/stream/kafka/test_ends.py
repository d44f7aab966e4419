"""Where the topic of events ends, asked of a real broker as the service does."""

from __future__ import annotations

import time
from typing import Any

import pytest
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


def _made(world: Any) -> bool:
    try:
        world.produce([(b"u", b"{}")])
    except DriftlineError:  # what was deleted is not gone yet
        return False
    return True
