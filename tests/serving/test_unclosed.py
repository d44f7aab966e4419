"""What kafka-python would leave open when no broker answers: sockets, selectors and threads."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaConnectionError, KafkaError
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport

from driftline.configs.addresses import free_port
from driftline.configs.settings import Broker
from driftline.serving.unclosed import close_producer, close_what_is_dropped
from driftline.stream.kafka.broker import EmbeddedBroker

CLIENTS = [KafkaConsumer, KafkaProducer, KafkaAdminClient]


@pytest.fixture(autouse=True)
def mended() -> None:
    close_what_is_dropped()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """The sockets that kafka-python makes, held, so that no garbage collector closes them."""
    sockets: list[socket.socket] = []
    make = KafkaNetSocket.socket

    def noted(self: Any, *arguments: Any) -> socket.socket:
        sockets.append(make(self, *arguments))
        return sockets[-1]

    monkeypatch.setattr(KafkaNetSocket, "socket", noted)
    return sockets


@contextmanager
def refusing() -> Iterator[int]:
    """A port at which nobody listens, and nobody else will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def silent() -> Iterator[int]:
    """A port at which a connect gets no answer: others wait there already."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@contextmanager
def deaf() -> Iterator[int]:
    """A port at which a connect succeeds, and nothing that is sent is ever answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield listening.getsockname()[1]


@contextmanager
def hanging_up() -> Iterator[int]:
    """A port at which everybody who connects is hung up on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    listening.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def until(holds: Callable[[], object], limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("place", [refusing, silent])
def test_a_connect_that_is_refused_or_runs_out_of_time_closes_its_socket(place: Any, made: list[socket.socket]) -> None:
    net = NetworkSelector()
    with place() as port, pytest.raises(KafkaConnectionError):
        net.run(lambda: create_connection(net, "127.0.0.1", port, timeout_at=time.monotonic() + 0.2))
    assert [sock.fileno() for sock in made] == [-1]
    net.close()


def test_a_client_that_is_closed_while_it_connects_closes_its_socket(made: list[socket.socket]) -> None:
    with silent() as port:
        net = NetworkSelector()
        manager = KafkaConnectionManager(net, bootstrap_servers=f"127.0.0.1:{port}")
        net.start()
        manager.bootstrap_async(10_000)
        until(lambda: made)
        time.sleep(0.05)
        manager.close()
        net.close()
    assert [sock.fileno() for sock in made] == [-1]


def test_a_handshake_that_fails_closes_its_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets: list[socket.socket] = []
    make = KafkaSSLTransport.__init__

    def noted(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        sockets.append(self._sock)

    monkeypatch.setattr(KafkaSSLTransport, "__init__", noted)
    with hanging_up() as port, pytest.raises(KafkaError):
        KafkaProducer(bootstrap_servers=f"127.0.0.1:{port}", security_protocol="SSL", bootstrap_timeout_ms=300)
    assert sockets
    assert {sock.fileno() for sock in sockets} == {-1}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("place", [refusing, deaf, hanging_up])
def test_a_client_that_finds_no_broker_leaves_neither_file_nor_thread(client: Any, place: Any) -> None:
    process = psutil.Process()
    gc.collect()  # what other tests dropped closes its files now, not while we count
    with place() as port:
        before = process.num_fds(), threading.active_count()
        raised = []
        for _ in range(2):
            with pytest.raises(KafkaError) as error:
                client(bootstrap_servers=f"127.0.0.1:{port}", bootstrap_timeout_ms=200)
            raised.append(error)  # its traceback holds what the client was made of
        files, threads = before
        assert process.num_fds() <= files
        assert threading.active_count() <= threads


def test_a_producer_whose_record_nobody_takes_ends_all_the_same(tmp_path: Any) -> None:
    broker = Broker(embedded_port=free_port(), embedded_dir=tmp_path / "broker")
    before = threading.active_count()
    with EmbeddedBroker(broker) as bootstrap:
        producer = KafkaProducer(bootstrap_servers=bootstrap)
        producer.send("t", b"1").get(10)
    sent = producer.send("t", b"2")
    close_producer(producer, 0.2)
    assert threading.active_count() == before
    with pytest.raises(KafkaError):
        sent.get(0)
