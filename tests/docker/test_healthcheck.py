"""The health check of the containers against real end points."""

import runpy
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, start_http_server
from tests.serving.certificates import Authority

from driftline.configs.addresses import free_port

CHECK = runpy.run_path(str(Path(__file__).parents[2] / "docker" / "healthcheck.py"))["main"]


def test_a_process_that_serves_its_metrics_is_healthy():
    assert metrics_exit_code() == 0


def metrics_exit_code():
    port = free_port()
    server, thread = start_http_server(port, registry=CollectorRegistry())
    try:
        return CHECK("metrics", port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("status", "code"), [("SERVING", 0), ("NOT_SERVING", 1)])
def test_the_service_is_as_healthy_as_it_says(status, code):
    assert grpc_exit_code(status) == code


def grpc_exit_code(status):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        return CHECK("grpc", port)
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("kind", ["metrics", "grpc"])
def test_nobody_listening_is_unhealthy(kind, capsys):
    assert CHECK(kind, free_port()) == 1
    assert kind in capsys.readouterr().err


def test_a_proxy_of_the_environment_does_not_make_a_process_unhealthy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert (metrics_exit_code(), grpc_exit_code("SERVING")) == (0, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "serve.example"])
@pytest.mark.parametrize("callers", [False, True])
def test_the_service_is_asked_over_tls_where_the_settings_say_so(tmp_path, monkeypatch, capsys, host, callers):
    authority = Authority(tmp_path)
    pem, key = authority.sign("server", host)
    own, own_key = authority.sign("caller")
    root = authority.certificate.read_bytes() if callers else None
    pairs = ((key.read_bytes(), pem.read_bytes()),)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pairs, root, callers))
    server.start()
    try:
        assert CHECK("grpc", port) == 1
        monkeypatch.setenv("DRIFTLINE__SERVING__TLS_CERTIFICATE", str(pem))
        monkeypatch.setenv("DRIFTLINE__SERVING__TLS_KEY", str(key))
        assert CHECK("grpc", port) == int(callers)
        monkeypatch.setenv("DRIFTLINE_CLIENT_CERTIFICATE", str(own))
        monkeypatch.setenv("DRIFTLINE_CLIENT_KEY", str(own_key))
        assert CHECK("grpc", port) == 0, capsys.readouterr().err
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1"])
def test_metrics_are_asked_at_the_address_that_the_settings_name(monkeypatch, host):
    port = free_port()
    server, thread = start_http_server(port, host, registry=CollectorRegistry())
    monkeypatch.setenv("DRIFTLINE__METRICS__HOST", host)
    try:
        assert CHECK("metrics", port) == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
