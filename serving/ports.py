"""Ports of this machine: that of the service, checked before anything heavy begins, and those of the metrics."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from driftline.configs.addresses import joined
from driftline.configs.errors import ConfigError
from driftline.configs.settings import Metrics, Serving

LOG = logging.getLogger(__name__)


def is_taken(host: str, port: int, shared: bool = False) -> bool:
    """Whether somebody listens there: the port is bound for a moment. A host that this machine has not is not taken.

    Args:
        host, port: where.
        shared: others may listen there that share their port.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def check_free(settings: Serving) -> None:
    """That nobody listens where the service is to: gRPC gives its error no reason.

    Raises:
        ConfigError: somebody does.
    """
    if is_taken(settings.host, settings.port, settings.reuse_port):
        raise ConfigError(
            f"port {settings.port} of {settings.host} is in use by another process. Set serving.port to a free "
            "one, or stop the other process; several share a port with serving.processes."
        )


def open_metrics(registry: CollectorRegistry, settings: Metrics, key: str) -> Callable[[], None]:
    """Opens `/metrics` on the port of a key of section `metrics`, on any free one where that is taken; 0 = not at all.

    Returns:
        What closes it.

    Raises:
        ConfigError: the machine has not the address, or does not let us have the port.
    """
    port: int = getattr(settings, key)
    if port == 0:
        return lambda: None
    Gauge("process_id", "Of the process that tells this", registry=registry).set(os.getpid())
    try:
        try:
            server, _ = start_http_server(port, settings.host, registry=registry)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            server, _ = start_http_server(0, settings.host, registry=registry)
            at = joined(settings.host, server.server_port)
            LOG.warning("metrics.%s: port %d is taken, so /metrics is at http://%s/metrics this time", key, port, at)
    except OSError as error:
        raise ConfigError(
            f"metrics.{key} is {port} of metrics.host {settings.host}, which can't be opened: {error}; set an address "
            "of this machine and a port that it lets you have, or port 0 for none"
        ) from None

    def close() -> None:
        server.shutdown()
        server.server_close()

    return close
