"""Where the topic of events ends, asked of a real broker as the service does."""

from __future__ import annotations

from typing import Any

from tests.stream.conftest import wait_for

from driftline.serving.ends import Ends, EndsFollower
from driftline.serving.state_reader import StoredUser


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
