"""Options of gRPC channels and servers: what lets them live in the networks of real hosts.

Clients behind a NAT or a load balancer ping every 10 to 60 s so that an idle connection is not forgotten on the way;
gRPC's own bound for a server is one ping in five minutes, after which it ends the connection with all its streams.
"""

from __future__ import annotations

import grpc

PINGS_MS = 5000
"""Least time between two pings of a client: Go and Java send none more often than every 10 s."""
KEEPALIVE_MS = 20_000
ANSWER_MS = 10_000
"""A client that vanished without a word is noticed after KEEPALIVE_MS and this; its streams give their threads back."""
AGE_MS = 300_000
"""Of a connection to one of several processes on a port: a new one may lead to another, as to one that came back."""
DIRECT = (("grpc.enable_http_proxy", 0),)
"""Options of a channel that http_proxy, https_proxy and grpc_proxy do not divert."""


def server_options(reuse_port: bool) -> tuple[tuple[str, int], ...]:
    """Options of the server: its own pings, and which of its clients it puts up with.

    Args:
        reuse_port: others may listen there, so a connection takes no new calls once it is `AGE_MS` old (give or take a
            tenth, as gRPC draws it); calls and streams that it has end as they would.
    """
    ages = (("grpc.max_connection_age_ms", AGE_MS),) if reuse_port else ()
    return (
        *ages,
        ("grpc.so_reuseport", int(reuse_port)),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", ANSWER_MS),
        ("grpc.http2.ping_timeout_ms", ANSWER_MS),  # a machine that is up answers in TCP for a process that hangs
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", PINGS_MS),
        ("grpc.http2.max_pings_without_data", 0),
    )


def direct_channel(address: str) -> grpc.Channel:
    """An unencrypted channel to a server of this machine, whatever proxies the environment names."""
    return grpc.insecure_channel(address, DIRECT)
