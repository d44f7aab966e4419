"""What trainer and profiler send: a call that returns has been acknowledged, and one that was not says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from driftline.configs.addresses import free_port
from driftline.configs.errors import BrokerError
from driftline.configs.settings import Broker
from driftline.stream.events.produce import outlet
from driftline.stream.events.topics import MAX_DEAD_LETTER_BYTES, create_topics
from driftline.stream.kafka.broker import EmbeddedBroker
from driftline.stream.kafka.reading import read_all
from driftline.stream.process.processor import Outgoing

SENDER = """
import sys
from driftline.configs.settings import Broker
from driftline.stream.process.processor import Outgoing
from driftline.stream.events.produce import outlet

with outlet(Broker.model_validate_json(sys.argv[1]), sys.argv[2], "test") as send:
    for _ in sys.stdin:
        send([Outgoing("profiles", b"u", b"1"), Outgoing("profiles.log", b"u", b"1")])
        print("acknowledged", flush=True)
"""


def test_what_was_sent_is_in_the_topic_and_a_record_that_is_too_large_is_an_error(world: Any) -> None:
    settings, bootstrap = world.settings.broker, world.bootstrap
    world.create_topics()
    with outlet(settings, bootstrap, "test") as send:
        send([Outgoing("profiles.log", b"u", b"%d" % n, (("kind", b"x"),)) for n in range(3)])
        found = list(read_all(settings, bootstrap, "profiles.log"))
        assert [(r.key, r.value, list(r.headers)) for r in found] == [
            (b"u", b"%d" % n, [("kind", b"x")]) for n in range(3)
        ]
        with pytest.raises(BrokerError, match=r"did not take a record of profiles\.log: MessageSizeTooLarge"):
            send([Outgoing("profiles.log", b"u", b"x" * (MAX_DEAD_LETTER_BYTES + 1))])


def test_records_that_a_broker_that_went_away_did_not_take_are_an_error(tmp_path: Path) -> None:
    settings = Broker(embedded_port=free_port(), embedded_dir=tmp_path / "broker", connect_timeout_s=1.0)
    with EmbeddedBroker(settings) as bootstrap:
        create_topics(settings, bootstrap)
        command = [sys.executable, "-c", SENDER, settings.model_dump_json(), bootstrap]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with subprocess.Popen(command, text=True, cwd=Path(__file__).parents[3], **pipes) as sender:
            assert sender.stdin is not None
            assert sender.stdout is not None
            sender.stdin.write("\n")
            sender.stdin.flush()
            assert sender.stdout.readline() == "acknowledged\n"
            running = EmbeddedBroker(settings).running()
            assert running is not None
            os.kill(running.pid, signal.SIGKILL)
            said, error = sender.communicate("\n", timeout=60)
    assert said == ""
    assert "BrokerError: the broker did not take a record of profiles, profiles.log: " in error
