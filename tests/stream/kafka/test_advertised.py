"""A broker that answers and says that it is found where it is not; a bootstrap address that is an IPv6 literal."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.stream.conftest import World

from driftline.configs.addresses import Address, free_port
from driftline.configs.errors import BrokerError
from driftline.configs.settings import Broker
from driftline.graph.rows import Event
from driftline.stream.events.schema import encode_event
from driftline.stream.kafka.advertised import unreachable
from driftline.stream.kafka.broker import check_reachable
from driftline.stream.ops.doctor import examine


@contextmanager
def relay(upstream: str, edit: Callable[[bytes], bytes] = bytes, host: str = "127.0.0.1") -> Iterator[str]:
    """An address that passes everything on to a broker, and what the broker says back through `edit`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets: list[socket.socket] = []
    with socket.socket(family) as listening:
        listening.bind((host, 0))
        listening.listen()

        def pump(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
            try:
                while data := source.recv(1 << 16):
                    target.sendall(change(data))
                target.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        def accept() -> None:
            while True:
                try:
                    near, _ = listening.accept()
                except OSError:
                    return
                at, _, port = upstream.rpartition(":")
                far = socket.create_connection((at, int(port)))
                sockets.extend((near, far))
                threading.Thread(target=pump, args=(near, far, bytes), daemon=True).start()
                threading.Thread(target=pump, args=(far, near, edit), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        try:
            yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for one in sockets:
                one.close()


def advertising(bootstrap: str, host: bytes, port: int) -> Callable[[bytes], bytes]:
    """Answers of the broker that name another place of equal length."""
    real = int(bootstrap.rpartition(":")[2])
    assert len(host) == len(b"127.0.0.1")
    return lambda data: data.replace(b"127.0.0.1" + real.to_bytes(4, "big"), host + port.to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("host", "why"), [(b"127.0.0.1", "Connection refused"), (b"nowhere-x", "the name is not known")]
)
def test_a_broker_found_nowhere_is_a_sentence_with_both_addresses_and_the_setting(
    embedded_bootstrap: str, world: World, driftline: Any, host: bytes, why: str
) -> None:
    port = free_port()
    with relay(embedded_bootstrap, advertising(embedded_bootstrap, host, port)) as bootstrap:
        settings = Broker(bootstrap=bootstrap, connect_timeout_s=1.0)
        started = time.monotonic()
        with pytest.raises(BrokerError) as caught:
            check_reachable(settings, bootstrap)
        assert time.monotonic() - started < 4
        said = f"{bootstrap} answers and says that it is found at {host.decode()}:{port}"
        assert said in str(caught.value)
        assert re.search(rf"\({why}.*advertised\.listeners", str(caught.value))
        found = next(f for f in examine(world.settings.model_copy(update={"broker": settings})) if f.part == "broker")
        assert (found.state, said in found.detail) == ("bad", True)
        events = world.root / "events.jsonl"
        events.write_text('{"user_id": "u", "item_id": "i", "timestamp_ms": 1600000000000}\n')
        for command in (["produce", "--events", str(events)], ["trainer"]):
            ended = driftline(
                *command, DRIFTLINE__BROKER__BOOTSTRAP=bootstrap, DRIFTLINE__BROKER__CONNECT_TIMEOUT_S="0.5",
                DRIFTLINE__TRAINER__ROOT=str(world.root / "trainer"),
            )  # fmt: skip
            assert ended.returncode == 69, ended.stderr
            assert "advertised.listeners" in ended.stderr
            assert "Traceback" not in ended.stderr


def test_one_of_several_places_that_answers_is_enough_and_the_others_hold_up_nobody() -> None:
    full = [socket.socket() for _ in range(4)]
    with socket.socket() as silent, socket.socket() as listening:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for one in full:  # its queue is full, so that what comes next is swallowed
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        swallowing = Address(*silent.getsockname())
        started = time.monotonic()
        assert unreachable([swallowing, Address(*listening.getsockname())], 5.0) == ""
        assert time.monotonic() - started < 1
        assert unreachable([swallowing, Address("127.0.0.1", free_port())], 0.5) == "no answer in time"
        assert time.monotonic() - started < 3
    for one in full:
        one.close()
    assert unreachable([], 1.0) == ""


def test_a_worker_starts_from_an_ipv6_address(embedded_bootstrap: str, world: World, wait: Any) -> None:
    events = [Event(f"u{n}", "i", 1_600_000_000_000 + n, event_id=f"e{n}") for n in range(20)]
    with relay(embedded_bootstrap, host="::1") as bootstrap:
        world.bootstrap = bootstrap
        world.produce([(event.user_id.encode(), encode_event(event)) for event in events])
        with world.worker() as worker:
            wait(lambda: worker.applied() == 20, what="everything is applied")
            worker.stop()
