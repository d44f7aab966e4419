"""What of the Kafka clients' own messages reaches the log."""

from __future__ import annotations

import logging

import pytest

from driftline.stream.kafka.quiet import quiet_clients


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
