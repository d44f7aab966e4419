"""What of the Kafka clients' own messages reaches the log, and what a trainer says of its way."""

from __future__ import annotations

import logging

import pytest

from driftline.stream.kafka.quiet import quiet_clients
from driftline.stream.learn.loop import STANDING_S, Standing


def test_a_client_without_a_broker_says_so_once_a_minute_and_other_faults_as_often_as_they_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quiet_clients()
    quiet_clients()
    for _ in range(3):
        logging.getLogger("kafka.cluster").warning("No node available for metadata refresh - backoff/retry")
        logging.getLogger("kafka.net.selector").warning("Task %r ran for %.3fs", "t", 0.3)
        group = logging.getLogger("aiokafka.consumer.group_coordinator")
        group.warning("Heartbeat failed for group %s because it is rebalancing", "g")
        group.warning("Heartbeat failed for group %s: generation id is not current", "g")
    assert caplog.text.count("no Kafka broker answers") == 1
    assert caplog.text.count("generation id") == 3
    assert len(caplog.records) == 4


def test_a_trainer_that_is_behind_says_how_fast_it_learns_and_how_long_the_rest_takes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    standing = Standing(100.0)
    for n in range(30):
        standing.took(600 - n, 100.0 + n)
    standing.tell(0, 100.0 + 40)
    assert [record.getMessage() for record in caplog.records] == ["learnt 1 records/s; 585 are left, about 548 s"]
    assert STANDING_S == 15.0
