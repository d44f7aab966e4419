"""Metrics of this machine are read whatever proxies the environment names."""

import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from driftline.configs.addresses import free_port
from driftline.stream.demo.figures import counter


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_a_counter_of_this_machine_is_read_past_a_proxy_that_does_not_answer(name, monkeypatch):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    registry, port = CollectorRegistry(), free_port()
    Gauge("driftline_probe", "A number", registry=registry).set(7)
    server, thread = start_http_server(port, registry=registry)
    try:
        assert counter(port, "driftline_probe") == 7
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
