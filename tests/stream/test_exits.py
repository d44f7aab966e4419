"""The exit code of a process, and what it says when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer
from kafka import KafkaAdminClient, KafkaProducer

from driftline.configs.addresses import free_port
from driftline.configs.errors import BrokerError, ConfigError
from driftline.serving.unclosed import close_what_is_dropped
from driftline.stream.exits import report


def by_aiokafka(address: str) -> None:
    async def started() -> None:
        consumer = AIOKafkaConsumer(bootstrap_servers=address)
        try:
            await consumer.start()
        finally:
            await consumer.stop()

    asyncio.run(started())


def by_producer(address: str) -> None:
    KafkaProducer(bootstrap_servers=address, bootstrap_timeout_ms=200)


def by_admin(address: str) -> None:
    KafkaAdminClient(bootstrap_servers=address, bootstrap_timeout_ms=200)


@pytest.mark.parametrize("client", [by_aiokafka, by_producer, by_admin])
def test_a_broker_that_no_client_finds_is_no_unexpected_error(
    client: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    close_what_is_dropped()
    with pytest.raises(Exception) as raised:
        client(f"127.0.0.1:{free_port()}")
    assert report(raised.value) == BrokerError.exit_code
    assert capsys.readouterr().err.startswith("driftline: the broker can't be reached: ")


def test_an_error_of_ours_is_one_line_and_any_other_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ConfigError("mend it")) == ConfigError.exit_code
    assert capsys.readouterr().err == "driftline: mend it\n"
    assert report(ZeroDivisionError("why")) == 70
    said = capsys.readouterr().err
    assert "ZeroDivisionError: why" in said
    assert said.endswith("driftline: ends on an unexpected error\n")
