"""The process around the service: tokens, TLS, load, deadlines, health, reflection, metrics, ports and signals."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent import futures

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry
from tests.serving.conftest import small_settings

from driftline.client import Client, ClientError
from driftline.configs.addresses import free_port
from driftline.configs.errors import ConfigError
from driftline.configs.settings import Metrics
from driftline.serving import guard
from driftline.serving.ports import open_metrics
from driftline.serving.server import _SPARE_STREAMS, SERVICE, Server
from driftline.stream.ops.scrape import series
from driftline.stream.system import standing
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc


def recommend(channel, user_id="user-1", **call):
    return pb_grpc.RecommendationServiceStub(channel).Recommend(pb.RecommendRequest(user_id=user_id), **call)


def held_up(server, monkeypatch):
    """Makes every ranking of a server wait for an event that the caller sets; also counts the rankings."""
    go, started = threading.Event(), []
    scorer = server.models.served.scorer
    rank = scorer.rank

    def slow(view, now_ms):
        started.append(view.user_id)
        go.wait(10)
        return rank(view, now_ms)

    monkeypatch.setattr(scorer, "rank", slow)
    return go, started


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def test_with_tokens_only_a_bearer_of_one_may_call(tmp_path, worker, settings, snapshot):
    guarded = settings.model_copy(update={"serving": settings.serving.model_copy(update={"tokens": ("one", "two")})})
    with Server(guarded) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        for metadata in ((), (("authorization", "Bearer three"),), (("authorization", "two"),)):
            with pytest.raises(grpc.RpcError) as caught:
                recommend(channel, metadata=metadata)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            stub = pb_grpc.RecommendationServiceStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.WatchUserState(pb.WatchUserStateRequest(user_id="user-1"), metadata=metadata))
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert recommend(channel, metadata=(("authorization", "Bearer two"),)).slate.item_ids
        with Client(f"127.0.0.1:{server.port}") as client, pytest.raises(ClientError, match="or DRIFTLINE_TOKEN"):
            client.recommend("user-1")
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert health.status == health_pb2.HealthCheckResponse.SERVING


def certificate(directory):
    """A self-signed certificate for 127.0.0.1 and its key, as PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "driftline test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, private, serialization.NoEncryption()))
    return paths


def test_with_a_certificate_only_encrypted_calls_are_answered(tmp_path, worker, settings, snapshot):
    pem, key = certificate(tmp_path)
    update = {"tls_certificate": pem, "tls_key": key}
    encrypted = settings.model_copy(update={"serving": settings.serving.model_copy(update=update)})
    with Server(encrypted) as server:
        address = f"127.0.0.1:{server.port}"
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(pem.read_bytes())) as channel:
            assert recommend(channel).slate.item_ids
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            recommend(channel, timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("content", [None, "no PEM"])
def test_a_certificate_that_can_not_be_used_is_a_config_error(tmp_path, content):
    paths = tmp_path / "one.pem", tmp_path / "one.key"
    for path in paths:
        if content is not None:
            path.write_text(content)
    settings = small_settings(tmp_path, tls_certificate=paths[0], tls_key=paths[1])
    with pytest.raises(ConfigError, match=r"one.pem with serving.tls_key .*one.key can't be used"):
        Server(settings)


def test_requests_past_the_bound_are_shed_with_retry_info_while_others_finish(running, settings, monkeypatch):
    bound = settings.serving.max_in_flight
    go, started = held_up(running.server, monkeypatch)
    with futures.ThreadPoolExecutor(bound) as pool:
        waiting = [pool.submit(recommend, running.channel, f"user-{n % 20}") for n in range(bound)]
        wait_for(lambda: running.server._requests.in_flight == bound)
        with pytest.raises(grpc.RpcError) as caught:
            recommend(running.channel)
        go.set()
        assert all(one.result().slate.item_ids for one in waiting)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    names = [one.TypeName() for one in rpc_status.from_call(caught.value).details]
    assert names == [error_details_pb2.RetryInfo.DESCRIPTOR.full_name]
    assert "shed" not in started
    assert recommend(running.channel).slate.item_ids


def test_a_request_whose_deadline_passed_in_the_queue_is_not_computed(
    tmp_path, worker, settings, snapshot, monkeypatch
):
    narrow = settings.model_copy(update={"serving": settings.serving.model_copy(update={"threads": 1})})
    with Server(narrow) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        go, started = held_up(server, monkeypatch)
        with futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(recommend, channel, "user-1")
            wait_for(lambda: started == ["user-1"])
            with pytest.raises(grpc.RpcError) as caught:
                recommend(channel, "user-2", timeout=0.1)
            go.set()
            assert first.result().slate.item_ids
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        recommend(channel, "user-3")
        assert started == ["user-1", "user-3"]


@pytest.fixture
def half_open():
    """Opens a call whose headers arrive and whose message does not, until the test ends."""
    ended, calls = threading.Event(), []

    def never():
        ended.wait(60)
        yield from ()

    def start(channel, method, metadata=()):
        calls.append(channel.stream_stream(method)(never(), metadata=metadata, timeout=60))
        return calls[-1]

    yield start
    for call in calls:
        call.cancel()
    ended.set()


RECOMMEND, WATCH, CHECK = f"/{SERVICE}/Recommend", f"/{SERVICE}/WatchUserState", "/grpc.health.v1.Health/Check"
BEARER = (("authorization", "Bearer one"),)


def code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    return caught.value.code()


def test_half_open_health_checks_take_no_thread_from_requests(worker, settings, snapshot, half_open, monkeypatch):
    monkeypatch.setattr(guard, "_MESSAGE_S", 3.0)
    narrow = settings.model_copy(
        update={"serving": settings.serving.model_copy(update={"threads": 1, "tokens": ("one",)})}
    )
    with Server(narrow) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        waiting = [half_open(channel, CHECK) for _ in range(guard._HEALTH_CALLS)]
        assert code_of(half_open(channel, CHECK)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert recommend(channel, metadata=BEARER, timeout=2).slate.item_ids
        assert {code_of(call) for call in waiting} == {grpc.StatusCode.CANCELLED}
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=2).status == health_pb2.HealthCheckResponse.SERVING


def test_a_refusal_does_not_wait_for_the_message(worker, settings, snapshot, half_open, monkeypatch):
    monkeypatch.setattr(guard, "_MESSAGE_S", 60.0)
    bounded = settings.serving.model_copy(update={"threads": 1, "max_in_flight": 1, "tokens": ("one",)})
    with (
        Server(settings.model_copy(update={"serving": bounded})) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        started = time.monotonic()
        for method in (RECOMMEND, WATCH) * 4:
            assert code_of(half_open(channel, method)) == grpc.StatusCode.UNAUTHENTICATED
        half_open(channel, RECOMMEND, BEARER)
        wait_for(lambda: server._requests.in_flight == 1)
        for _ in range(4):
            assert code_of(half_open(channel, RECOMMEND, BEARER)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert time.monotonic() - started < 30


@pytest.mark.parametrize("method", [RECOMMEND, WATCH, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"])
def test_a_call_whose_message_does_not_come_is_cancelled(worker, settings, snapshot, half_open, monkeypatch, method):
    monkeypatch.setattr(guard, "_MESSAGE_S", 0.3)
    narrow = settings.model_copy(update={"serving": settings.serving.model_copy(update={"threads": 1})})
    with Server(narrow) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert code_of(half_open(channel, method)) == grpc.StatusCode.CANCELLED
        assert recommend(channel, timeout=5).slate.item_ids
        wait_for(lambda: server._requests.in_flight == 0)


def test_a_stream_that_has_sent_a_message_may_wait_before_the_next(running, monkeypatch):
    monkeypatch.setattr(guard, "_MESSAGE_S", 0.2)
    more = threading.Event()

    def requests():
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        more.wait(10)
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    answers = reflection_pb2_grpc.ServerReflectionStub(running.channel).ServerReflectionInfo(requests())
    first = next(answers)
    time.sleep(1.0)
    more.set()
    assert next(answers).list_services_response == first.list_services_response


def test_half_open_streams_past_the_bound_are_refused_and_told_in_the_metrics(
    worker, settings, snapshot, half_open, monkeypatch
):
    monkeypatch.setattr(guard, "_MESSAGE_S", 1.0)
    few = settings.model_copy(update={"serving": settings.serving.model_copy(update={"max_watchers": 2})})
    with Server(few) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        waiting = [half_open(channel, WATCH) for _ in range(2 + _SPARE_STREAMS)]
        wait_for(lambda: server._guard._streams.in_flight == len(waiting))
        assert code_of(half_open(channel, WATCH)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert {code_of(call) for call in waiting} == {grpc.StatusCode.CANCELLED}
        cancelled = server.metrics.answers.labels("WatchUserState", "CANCELLED")._value
        wait_for(lambda: cancelled.get() == len(waiting))


def test_a_call_without_a_message_or_with_other_bytes_is_invalid(running):
    calls = (
        running.channel.stream_stream(RECOMMEND)(iter(())),
        running.channel.stream_stream(RECOMMEND)(iter((b"\xff",))),
    )
    assert [code_of(call) for call in calls] == [grpc.StatusCode.INVALID_ARGUMENT] * 2


def test_health_is_watched_without_holding_a_thread(running, settings):
    stub = health_pb2_grpc.HealthStub(running.channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(guard._HEALTH_CALLS + 4)]
    assert {next(watch).status for watch in watches} == {health_pb2.HealthCheckResponse.SERVING}
    for watch in watches:
        watch.cancel()


def test_who_watches_health_learns_of_the_end_and_does_not_hold_it_up(settings, snapshot, worker):
    patient = settings.model_copy(update={"serving": settings.serving.model_copy(update={"grace_s": 20.0})})
    with Server(patient) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        started_s = time.monotonic()
        server.close()
        assert time.monotonic() - started_s < 5
        assert [answer.status for answer in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]


def test_streams_past_the_bound_are_refused_and_requests_still_run(tmp_path, worker, settings, snapshot):
    few = settings.model_copy(update={"serving": settings.serving.model_copy(update={"max_watchers": 2, "threads": 1})})
    with Server(few) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.RecommendationServiceStub(channel)
        streams = [stub.WatchUserState(pb.WatchUserStateRequest(user_id="user-1")) for _ in range(2)]
        assert all(next(stream).user_state.known for stream in streams)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.WatchUserState(pb.WatchUserStateRequest(user_id="user-1")))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert recommend(channel).slate.item_ids
        for stream in streams:
            stream.cancel()
        wait_for(lambda: server.metrics.watchers._value.get() == 0)
        assert next(stub.WatchUserState(pb.WatchUserStateRequest(user_id="user-1"))).user_state.known


def test_reflection_lists_the_service(running):
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    answers = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in next(answers).list_services_response.service}
    assert {"driftline.v1.RecommendationService", "grpc.health.v1.Health"} <= names


def test_health_is_serving_once_there_is_anything_to_answer_from(settings, learnt):
    from driftline.serving.publish import publish

    with Server(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)

        def status(service):
            return health.Check(health_pb2.HealthCheckRequest(service=service)).status

        assert status("") == health_pb2.HealthCheckResponse.SERVING
        assert status(SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        publish(settings.serving.snapshots, *learnt)
        wait_for(lambda: status(SERVICE) == health_pb2.HealthCheckResponse.SERVING)


def test_a_taken_port_is_named_in_one_sentence_and_one_of_metrics_ends_nothing(running, tmp_path, capfd, caplog):
    with pytest.raises(ConfigError, match=rf"port {running.server.port} of 127.0.0.1 is in use .* Set serving.port"):
        Server(small_settings(tmp_path / "other", port=running.server.port))
    assert "add_port" not in capfd.readouterr().err
    with pytest.raises(ConfigError, match=r"203\.0\.113\.7:\d+ can't be listened on: .* Set serving.host"):
        Server(small_settings(tmp_path / "other", host="203.0.113.7", port=free_port()))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        taken = Metrics(serving_port=one.getsockname()[1])
        caplog.clear()
        registry = CollectorRegistry()
        close = open_metrics(registry, taken, "serving_port")
        (said,) = [record.getMessage() for record in caplog.records]
        (other,) = re.findall(r"serving_port: port \d+ is taken, so /metrics is at (http://127\.0\.0\.1:\d+\S+)", said)
        assert f"process_id {float(os.getpid())}" in urllib.request.urlopen(other).read().decode()
        close()
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(other)
    elsewhere = Metrics(host="203.0.113.7", serving_port=free_port())
    with pytest.raises(ConfigError, match=r"metrics\.serving_port is \d+ of metrics\.host 203"):
        open_metrics(CollectorRegistry(), elsewhere, "serving_port")


def test_metrics_tell_latency_origin_codes_and_version(tmp_path, worker, settings, snapshot):
    port = free_port()
    metrics = settings.metrics.model_copy(update={"serving_port": port})
    with (
        Server(settings.model_copy(update={"metrics": metrics})) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        recommend(channel)
        with pytest.raises(grpc.RpcError):
            recommend(channel, user_id="")
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    for line in (
        r'driftline_serving_latency_seconds_count\{rpc="Recommend"\} 2.0',
        r'driftline_serving_served_from_total\{rpc="Recommend",served_from="model"\} 1.0',
        r'driftline_serving_answers_total\{code="INVALID_ARGUMENT",rpc="Recommend"\} 1.0',
        r"driftline_serving_model_sequence 1.0",
    ):
        assert re.search(line, text), line


def test_a_service_whose_metrics_answer_is_not_called_ready_before_it_takes_calls(worker, settings, snapshot):
    port = free_port()
    serving = settings.serving.model_copy(update={"follow_items": True, "items_wait_s": 3.0})
    silent = socket.create_server(("127.0.0.1", 0))  # a broker that answers nothing, which is waited for
    broker = settings.broker.model_copy(update={"bootstrap": f"127.0.0.1:{silent.getsockname()[1]}"})
    metrics = settings.metrics.model_copy(update={"serving_port": port})
    waits = settings.model_copy(update={"serving": serving, "broker": broker, "metrics": metrics})

    def told():
        return standing(waits, {"serving": port}, [os.getpid()])

    with silent, futures.ThreadPoolExecutor() as pool:
        starting = pool.submit(Server, waits)
        while not series(port):
            assert not starting.done(), starting.result()
            time.sleep(0.02)
        now = told()
        assert (now.model_sequence, now.serving) == (None, None)
        with starting.result() as server, Client(f"127.0.0.1:{server.port}") as client:
            assert (told().model_sequence, told().serving) == (1, True)
            assert client.health() == "SERVING"
    assert standing(waits, {"serving": port}, [os.getpid()]).model_sequence is None


def test_sigterm_lets_a_request_in_flight_finish_and_ends_with_code_0(tmp_path, worker, settings, snapshot):
    port = free_port()
    code = (
        "import sys, time\n"
        "from driftline.configs.settings import Settings\n"
        "from driftline.model.engine import Engine\n"
        "from driftline.serving.server import run_server\n"
        "slate = Engine.slate\n"
        "def slow(self, view, now_ms):\n"
        "    if view.user_id == 'user-2':\n"
        "        print('ranking', flush=True); time.sleep(1)\n"
        "    return slate(self, view, now_ms)\n"
        "Engine.slate = slow\n"
        "run_server(Settings.model_validate_json(sys.stdin.read()))\n"
    )
    chosen = settings.model_copy(update={"serving": settings.serving.model_copy(update={"port": port, "grace_s": 5.0})})
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdin.write(chosen.model_dump_json())
    process.stdin.close()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(recommend, channel, "user-2", wait_for_ready=True, timeout=120)
        answer.add_done_callback(lambda done: done.exception() and process.kill())  # else nobody writes a line
        assert process.stdout.readline() == "ranking\n"
        os.kill(process.pid, signal.SIGTERM)
        assert answer.result().slate.item_ids
    assert process.wait(timeout=10) == 0
    process.stdout.close()
    process.stderr.close()
