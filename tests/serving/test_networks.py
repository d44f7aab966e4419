"""The networks of real hosts: pings behind a NAT, proxies, readers that stand still, streams that ask nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import grpc
import orjson
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.serving.conftest import START_MS, small_settings
from tests.serving.test_server import RECOMMEND, recommend, wait_for

from driftline.client import Client, ClientError
from driftline.configs.addresses import free_port
from driftline.configs.errors import ConfigError
from driftline.configs.settings import Settings
from driftline.graph.rows import Event
from driftline.serving import forget, guard, transport
from driftline.serving.local import client_of
from driftline.serving.server import Server
from driftline.serving.service import RecommendationService
from driftline.serving.transport import direct_channel
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc


def test_a_watch_lives_through_pings_more_often_than_every_five_minutes(worker, settings, snapshot, monkeypatch):
    assert transport.PINGS_MS <= 10_000  # Go and Java ping every 10 s at most
    monkeypatch.setattr(transport, "PINGS_MS", 200)
    pings = (("grpc.keepalive_time_ms", 500), ("grpc.http2.max_pings_without_data", 0))
    with (
        Server(settings) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}", (*pings, ("grpc.keepalive_timeout_ms", 2000))) as channel,
    ):
        request = pb.WatchUserStateRequest(user_id="user-1")
        watch = pb_grpc.RecommendationServiceStub(channel).WatchUserState(request)
        assert next(watch).user_state.known
        time.sleep(3.0)
        worker.apply([Event("user-1", "item-1", START_MS + 10**10)])
        assert next(watch).user_state.freshness.last_event_ms == START_MS + 10**10
        watch.cancel()


def test_a_connection_to_one_of_several_processes_ages_and_takes_neither_call_nor_watch_with_it(
    worker, settings, snapshot, monkeypatch
):
    monkeypatch.setattr(transport, "AGE_MS", 300)
    several = settings.model_copy(update={"serving": settings.serving.model_copy(update={"reuse_port": True})})
    peers = set()

    def note(self, request, context):
        peers.add(context.peer())
        return pb.GetUserStateResponse()

    monkeypatch.setattr(RecommendationService, "GetUserState", note)
    with Server(several) as server, direct_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        watch = stub.WatchUserState(pb.WatchUserStateRequest(user_id="user-1"))
        assert next(watch).user_state.known
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            stub.GetUserState(pb.GetUserStateRequest(user_id="user-1"))
        assert len(peers) > 2
        worker.apply([Event("user-1", "item-1", START_MS + 10**10)])
        assert next(watch).user_state.freshness.last_event_ms == START_MS + 10**10
        watch.cancel()


@pytest.fixture
def dead_proxy(monkeypatch):
    """Every proxy that the environment can name, of which none answers."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_client_reaches_its_service_whatever_proxies_the_environment_names(running, dead_proxy):
    address = f"127.0.0.1:{running.server.port}"
    with Client(address) as client:
        assert client.recommend("user-1").slate.item_ids
    with Client(address, proxy=True, timeout_s=5) as client, pytest.raises(ClientError, match="no driftline service"):
        client.recommend("user-1")


def test_idle_reflection_streams_block_no_watch_and_end(running, settings, monkeypatch):
    monkeypatch.setattr(guard, "_IDLE_S", 1.0)
    stub, go = reflection_pb2_grpc.ServerReflectionStub(running.channel), threading.Event()

    def asks_once():
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        go.wait(30)

    idle = [stub.ServerReflectionInfo(asks_once()) for _ in range(settings.serving.max_watchers + 4)]
    wait_for(lambda: running.server._guard._reflection.in_flight == guard._REFLECTIONS)
    watches = [
        running.stub.WatchUserState(pb.WatchUserStateRequest(user_id="user-1"))
        for _ in range(settings.serving.max_watchers)
    ]
    assert all(next(watch).user_state.known for watch in watches)
    wait_for(lambda: running.server._guard._reflection.in_flight == 0)
    again = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert next(again).list_services_response.service
    go.set()
    for call in (*idle, *watches):
        call.cancel()


def test_a_watcher_that_does_not_read_gives_its_thread_back(running, worker, monkeypatch):
    monkeypatch.setattr(guard, "_IDLE_S", 1.0)
    narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
    channel = grpc.insecure_channel(f"127.0.0.1:{running.server.port}", narrow)
    request = pb.WatchUserStateRequest(user_id="user-1", history_limit=1000)
    watch = pb_grpc.RecommendationServiceStub(channel).WatchUserState(request)
    next(watch)
    for n in range(40):
        t_ms = START_MS + 10**10 + n * 100
        worker.apply([Event("user-1", f"item-{k}", t_ms + k, "view") for k in range(40)])
        time.sleep(0.03)
    wait_for(lambda: running.server.metrics.watchers._value.get() == 0)
    assert recommend(running.channel).slate.item_ids
    with pytest.raises(grpc.RpcError) as caught:
        list(watch)
    assert caught.value.code() == grpc.StatusCode.CANCELLED
    channel.close()


@pytest.mark.parametrize("host", ["::1", "[::1]", "::", "localhost", "0.0.0.0"])
def test_the_service_listens_where_it_is_told_and_its_client_finds_it(tmp_path, host):
    settings = Settings.model_validate(
        small_settings(tmp_path, host=host, port=free_port()).model_dump() | {"name": "here"}
    )
    with Server(settings), client_of(settings.serving) as client:
        assert not client.user_state("nobody").user_state.known
    with (
        Server(settings),
        pytest.raises(ConfigError, match=r"in use by another process"),
        Server(settings),
    ):
        pass


def test_calls_whose_message_does_not_come_hold_up_no_others(worker, settings, snapshot):
    narrow = settings.model_copy(update={"serving": settings.serving.model_copy(update={"threads": 1})})
    ended = threading.Event()

    def never():
        ended.wait(30)
        yield from ()

    with Server(narrow) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        waiting = [channel.stream_stream(RECOMMEND)(never()) for _ in range(settings.serving.max_in_flight // 2)]
        wait_for(lambda: server._requests.in_flight == len(waiting))
        assert recommend(channel, timeout=2).slate.item_ids
        ended.set()
        for call in waiting:
            call.cancel()


WATCHES = """
import sys, grpc
from driftline.v1 import recommendation_pb2 as pb, recommendation_pb2_grpc as pb_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    for _ in pb_grpc.RecommendationServiceStub(channel).WatchUserState(pb.WatchUserStateRequest(user_id="user-1")):
        print("watches", flush=True)
"""


def test_a_watcher_that_vanished_without_a_word_gives_its_thread_back(worker, settings, snapshot, monkeypatch):
    monkeypatch.setattr(transport, "KEEPALIVE_MS", 500)
    monkeypatch.setattr(transport, "ANSWER_MS", 500)
    with Server(settings) as server:
        command = [sys.executable, "-c", WATCHES, f"127.0.0.1:{server.port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout.readline() == "watches\n"
            try:
                client.send_signal(signal.SIGSTOP)  # its kernel answers in TCP, nobody answers a ping
                wait_for(lambda: server.metrics.watchers._value.get() == 0)
            finally:
                client.kill()


def test_calls_that_wait_for_a_broker_stop_neither_answers_nor_the_end(
    tmp_path, worker, settings, snapshot, monkeypatch
):
    monkeypatch.setattr(forget, "_TIMEOUT_MS", 2500)
    broker = settings.broker.model_copy(update={"bootstrap": f"127.0.0.1:{free_port()}"})
    tokens = tmp_path / "tokens.json"
    tokens.write_bytes(orjson.dumps({"tokens": [{"name": "a", "token": "a", "scopes": ["admin", "recommend"]}]}))
    tokens.chmod(0o600)
    serving = settings.serving.model_copy(update={"token_file": tokens})
    server = Server(settings.model_copy(update={"broker": broker, "serving": serving}))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub, bearer = pb_grpc.RecommendationServiceStub(channel), (("authorization", "Bearer a"),)
        begun_s = time.monotonic()
        asked = [
            stub.ForgetUser.future(pb.ForgetUserRequest(user_id=f"user-{n}"), metadata=bearer)
            for n in range(serving.threads + 1)
        ]
        wait_for(lambda: server._guard._forgets.in_flight == guard._FORGETS)
        assert stub.Recommend(pb.RecommendRequest(user_id="user-1"), metadata=bearer, timeout=10).slate.item_ids
        assert {call.code() for call in asked} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert time.monotonic() - begun_s < 15, "the calls wait for one another's attempts"
        late = stub.ForgetUser.future(pb.ForgetUserRequest(user_id="user-1"), metadata=bearer)
        wait_for(lambda: server._guard._forgets.in_flight)
        time.sleep(0.2)
        begun_s = time.monotonic()
        server.close()
        assert time.monotonic() - begun_s < 10, "the end waits for a connection"
        assert late.code() != grpc.StatusCode.OK
