"""The health check of the containers against real end points."""

import runpy
import socket
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, start_http_server

CHECK = runpy.run_path(str(Path(__file__).parents[2] / "docker" / "healthcheck.py"))["main"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_process_that_serves_its_metrics_is_healthy():
    port = free_port()
    server, thread = start_http_server(port, registry=CollectorRegistry())
    try:
        assert CHECK("metrics", port) == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("status", "code"), [("SERVING", 0), ("NOT_SERVING", 1)])
def test_the_service_is_as_healthy_as_it_says(status, code):
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.ServingStatus.Value(status))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert CHECK("grpc", port) == code
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("kind", ["metrics", "grpc"])
def test_nobody_listening_is_unhealthy(kind, capsys):
    assert CHECK(kind, free_port()) == 1
    assert kind in capsys.readouterr().err
