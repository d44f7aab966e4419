"""A profiler that is asked to end does so in the middle of a batch; who waited is asked for again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pytest
from kafka import KafkaProducer
from tests.stream.conftest import T0_MS

from driftline.llm.clients import make_client
from driftline.stream.kafka.reading import read_all
from driftline.stream.profile import profiler as module

USERS = ("u1", "u2")


@pytest.fixture
def handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


class Slow:
    """A language model that is asked to end while it writes, and would take minutes more."""

    source = "llm:slow"

    def generate(self, prompts: Sequence[Any]) -> list[str]:
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            time.sleep(0.01)
        raise AssertionError("nothing took it from its work")


def profiles_of(world: Any) -> list[str]:
    return [record.key.decode() for record in read_all(world.settings.broker, world.bootstrap, "profiles")]


@pytest.mark.usefixtures("handlers")
def test_a_profiler_ends_in_the_middle_of_a_batch_and_the_next_one_writes_it(world: Any, monkeypatch: Any) -> None:
    world.create_topics()
    sender = KafkaProducer(bootstrap_servers=world.bootstrap)
    prefix = world.settings.broker.prefix
    sender.send(prefix + "items", key=b"i1", value=b'{"item_id": "i1", "title": "RED RETROSPOT CAKE STAND"}')
    for user_id in USERS:
        items = [{"item_id": "i1", "count": 1, "last_ms": T0_MS}]
        asked = {"user_id": user_id, "as_of_ms": T0_MS, "version": 1, "events": 3, "items": items}
        sender.send(prefix + "profile-requests", key=user_id.encode(), value=orjson.dumps(asked))
    sender.close()
    monkeypatch.setattr(module.os, "nice", lambda by: 0)
    gave_way: list[int] = []
    monkeypatch.setattr(module, "give_way", lambda: gave_way.append(1))  # it would hold for all that this process does
    monkeypatch.setattr(module, "TextEncoder", lambda settings: None)
    monkeypatch.setattr(module, "make_client", lambda settings: Slow())
    settings = world.settings.model_copy(
        update={"profiles": world.settings.profiles.model_copy(update={"batch": 8, "max_per_minute": 600})}
    )
    began_s = time.monotonic()
    module.run_profiler(settings, world.bootstrap)
    assert time.monotonic() - began_s < 30
    assert gave_way
    assert profiles_of(world) == []
    template = settings.llm.model_copy(update={"client": "template"})
    monkeypatch.setattr(module, "make_client", lambda settings: make_client(template))
    module.run_profiler(settings, world.bootstrap, until_caught_up=True)
    assert sorted(profiles_of(world)) == list(USERS)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no idle policy")
def test_the_processor_is_for_whoever_else_wants_it() -> None:
    code = "from driftline.stream.profile.profiler import give_way, os; give_way(); print(os.sched_getscheduler(0))"
    said = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(said) == os.SCHED_IDLE
