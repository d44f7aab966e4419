"""Where the topic of events ends, asked of a real broker as the service does."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.stream.conftest import wait_for

from driftline.serving.ends import Ends, EndsFollower
from driftline.serving.state_reader import StoredUser
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
