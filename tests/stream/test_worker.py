"""The worker's process: how it ends."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.stream.conftest import World
from tests.stream.test_app import shop_records

from driftline.configs.addresses import free_port
from driftline.configs.settings import Settings
from driftline.stream.kafka.broker import EmbeddedBroker
from driftline.stream.ops.scrape import series


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


SLOW = """
import os, sys, time
os.environ["DRIFTLINE__STATE__EPOCH_EVENTS"] = "64"
from driftline.stream import headway
from driftline.stream.owned import standing
from driftline.stream.process.processor import Processor
from driftline.stream.worker import main
headway.FIRST_S, standing.FAR_BEHIND, commit = 0.0, 300, Processor.commit
Processor.commit = lambda *words: (time.sleep(0.5), commit(*words))
main(sys.argv[1])
"""


def test_a_worker_that_catches_up_says_how_fast_how_long_the_rest_takes_and_what_is_faster(
    tmp_path: Path, wait: Any
) -> None:
    own = Settings().broker.model_copy(update={"embedded_port": free_port(), "embedded_dir": tmp_path / "broker"})
    with EmbeddedBroker(own) as bootstrap:
        world = World(tmp_path, bootstrap, "t.")
        world.produce(shop_records(600))
        with world.worker("-c", SLOW) as worker:
            wait(lambda: "worker: nothing is left, " in worker.log.read_text(), 120, "it has caught up")
            assert series(worker.port)["driftline_backlog_seconds"] == 0
            said = worker.log.read_text()
            worker.stop()
    (line,) = re.findall(r"worker: ([\d,]+) records/s; (\d+) are left, about \d+ s\n", said)
    assert 20 < int(line[0]) < 400
    assert 0 < int(line[1]) < 600
    (hint,) = re.findall(r"(\d+) records are not applied yet. `driftline backfill` applies them faster", said)
    assert 300 <= int(hint) <= 600
