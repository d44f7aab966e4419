"""Health: watchers come, go and stand still, and nobody else waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from driftline.serving import health as module
from driftline.serving.health import NOT_SERVING, SERVING, Health

UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
ASKED = health_pb2.HealthCheckRequest
MOST = 40


@pytest.fixture
def health() -> Iterator[Health]:
    served = Health({"": SERVING, "shop": NOT_SERVING}, MOST)
    yield served
    served.close()


@pytest.fixture
def stub(health: Health) -> Iterator[health_pb2_grpc.HealthStub]:
    server = grpc.server(futures.ThreadPoolExecutor(8))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    server.stop(None)


def test_the_server_answers_while_watchers_come_and_go_and_the_status_changes(health, stub):
    """The servicer of grpcio-health-checking stands still for ever here within a second or two."""
    until_s = time.monotonic() + 3

    def change() -> None:
        while time.monotonic() < until_s:
            for status in (SERVING, NOT_SERVING):
                health.set({"shop": status})

    def watch() -> None:
        while time.monotonic() < until_s:
            call = stub.Watch(ASKED(service="shop"), timeout=20)
            try:
                next(call)
                call.cancel()
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:  # calls that were cancelled may still be counted
                    raise

    threads = [threading.Thread(target=target, daemon=True) for target in (change, watch, watch, watch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(25)
    assert not any(thread.is_alive() for thread in threads)
    assert stub.Check(ASKED(service=""), timeout=2).status == SERVING


def test_a_watcher_is_told_of_each_change_and_of_a_service_that_has_no_status_yet(health, stub):
    watches = {name: stub.Watch(ASKED(service=name), timeout=5) for name in ("", "shop", "later")}
    assert {name: next(watch).status for name, watch in watches.items()} == {
        "": SERVING,
        "shop": NOT_SERVING,
        "later": UNKNOWN,
    }
    health.set({"later": SERVING, "shop": SERVING})
    assert (next(watches["later"]).status, next(watches["shop"]).status) == (SERVING, SERVING)
    health.set({"shop": SERVING})
    health.set({"shop": NOT_SERVING})
    assert next(watches["shop"]).status == NOT_SERVING


def test_at_the_end_watchers_are_told_and_let_go(health, stub):
    watches = [stub.Watch(ASKED(service=name), timeout=5) for name in ("", "unknown")]
    assert [next(watch).status for watch in watches] == [SERVING, UNKNOWN]
    health.close()
    assert [[answer.status for answer in watch] for watch in watches] == [[NOT_SERVING], []]
    late = [stub.Watch(ASKED(service=name), timeout=5) for name in ("", "unknown")]
    assert [[answer.status for answer in watch] for watch in late] == [[NOT_SERVING], [UNKNOWN]]
    health.set({"": SERVING})
    assert stub.Check(ASKED(service=""), timeout=2).status == NOT_SERVING


def test_watchers_past_the_bound_are_refused_until_one_leaves(stub):
    watches = [stub.Watch(ASKED(service=""), timeout=5) for _ in range(MOST)]
    assert {next(watch).status for watch in watches} == {SERVING}
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.Watch(ASKED(service=""), timeout=5))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    watches[0].cancel()
    wait_for(lambda: _answers(stub))


def _answers(stub: Any) -> bool:
    try:
        return next(stub.Watch(ASKED(service=""), timeout=5)).status == SERVING
    except grpc.RpcError:
        return False


class Context:
    """Of a call whose sends return when it is cancelled."""

    def __init__(self) -> None:
        self.cancelled, self.callbacks = threading.Event(), []  # type: ignore[var-annotated]

    def add_callback(self, callback: Any) -> bool:
        self.callbacks.append(callback)
        return True

    def cancel(self) -> None:
        self.cancelled.set()
        for callback in self.callbacks:
            callback()


def test_watchers_whose_clients_do_not_read_are_let_go_and_the_others_are_told(health, monkeypatch):
    monkeypatch.setattr(module, "_SEND_S", 0.3)
    stuck = [Context() for _ in range(module._SENDERS + 2)]
    for context in stuck:
        health.Watch(ASKED(service="shop"), context, lambda _, context=context: context.cancelled.wait(20))
    told: list[Any] = []
    health.Watch(ASKED(service="shop"), Context(), told.append)
    wait_for(lambda: health.set({"shop": SERVING}) or all(context.cancelled.is_set() for context in stuck))
    wait_for(lambda: [answer.status for answer in told][-1:] == [SERVING])


def test_a_watcher_that_can_not_be_told_is_let_go(health, caplog):
    def fail(_: Any) -> None:
        raise RuntimeError("no wire")

    context = Context()
    health.Watch(ASKED(service="shop"), context, fail)
    assert context.cancelled.wait(5)
    assert "a watcher of health can't be told" in caplog.text


def test_a_check_of_an_unknown_service_names_those_that_are_known(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(ASKED(service="shopp"), timeout=2)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "service 'shopp' is unknown; expected one of ['', 'shop']"


def wait_for(holds: Any) -> None:
    """Until something holds, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
