"""The worker's process: how it ends."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.stream.conftest import World
from tests.stream.test_app import shop_records

from driftline.configs.addresses import free_port
from driftline.configs.settings import Settings
from driftline.stream.kafka.broker import EmbeddedBroker


def test_a_worker_whose_broker_is_gone_ends_when_it_is_told_to(tmp_path: Path, wait: Any) -> None:
    own = Settings().broker.model_copy(update={"embedded_port": free_port(), "embedded_dir": tmp_path / "broker"})
    with ExitStack() as running:
        with EmbeddedBroker(own) as bootstrap:
            world = World(tmp_path, bootstrap, "t.")
            world.produce(shop_records(200))
            expected = world.expected_rows()
            worker = running.enter_context(world.worker())
            wait(lambda: worker.applied() == 200, 60, "everything is applied")
        begun = time.monotonic()
        worker.stop()
        assert time.monotonic() - begun < 20
        assert "the broker does not answer" in worker.log.read_text()
    assert world.stored_rows() == expected
