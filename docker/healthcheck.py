"""Whether a process answers: `healthcheck.py metrics PORT` or `healthcheck.py grpc PORT`. Ends with 0 or 1.

Which addresses, and whether with TLS, the settings of the process say: DRIFTLINE_CONFIG and the environment. Where
callers must bring a certificate (`serving.tls_client_ca`), DRIFTLINE_CLIENT_CERTIFICATE and DRIFTLINE_CLIENT_KEY name
one.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import urllib.request
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from driftline.configs.addresses import joined, reachable
from driftline.configs.errors import DriftlineError
from driftline.configs.load import load_settings

TIMEOUT_S = 3.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The process is in this container: no proxy of the environment reaches it."""
NO_PROXY = ("grpc.enable_http_proxy", 0)
LOCKED = 'driftline_partitions_waiting{why="locked"}'


def metrics(port: int) -> bool:
    """Whether the process serves its metrics, and no partition of a worker waits for another process's lock."""
    host = reachable(load_settings(os.environ.get("DRIFTLINE_CONFIG")).metrics.host)
    with DIRECT.open(f"http://{joined(host, port)}/metrics", timeout=TIMEOUT_S) as answer:
        lines = answer.read().decode().splitlines()
    locked = sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(LOCKED))
    if locked:
        print(f"{locked:g} partitions are locked by another process; the log names it", file=sys.stderr)
    return not locked


def serving(port: int) -> bool:
    """Whether the gRPC service says that it is serving, over TLS where the settings ask for it."""
    settings = load_settings(os.environ.get("DRIFTLINE_CONFIG")).serving
    target, certificate = joined(reachable(settings.host), port), settings.tls_certificate
    opened = grpc.insecure_channel(target, (NO_PROXY,)) if certificate is None else _encrypted(target, certificate)
    with opened as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _encrypted(target: str, certificate: Path) -> grpc.Channel:
    """A channel that trusts the service's own certificate, whichever host it was made for."""
    own = [os.environ.get(name) for name in ("DRIFTLINE_CLIENT_CERTIFICATE", "DRIFTLINE_CLIENT_KEY")]
    chain, key = (Path(path).read_bytes() if path else None for path in own)
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes(), key, chain)
    return grpc.secure_channel(
        target, credentials, (NO_PROXY, ("grpc.ssl_target_name_override", _name_in(target, certificate, own)))
    )


def _name_in(target: str, certificate: Path, own: list[str | None]) -> str:
    """The first name in the certificate that the service shows: gRPC compares names, and this host has another."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    if own[0]:
        context.load_cert_chain(own[0], own[1])
    host, _, port = target.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S) as plain,
        context.wrap_socket(plain) as encrypted,
    ):
        shown = encrypted.getpeercert() or {}
    names = [value for _, value in shown.get("subjectAltName", ())]
    return str(names[0]) if names else host


def main(kind: str, port: int) -> int:
    """The exit code for Docker: 0 healthy, 1 not."""
    try:
        healthy = {"metrics": metrics, "grpc": serving}[kind](port)
    except (OSError, grpc.RpcError, DriftlineError) as error:
        print(f"{kind} on port {port}: {error}", file=sys.stderr)
        return 1
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
