"""Whether a process answers: `healthcheck.py metrics PORT` or `healthcheck.py grpc PORT`. Ends with 0 or 1."""

from __future__ import annotations

import sys
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0


def metrics(port: int) -> bool:
    """Whether the process serves its metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as answer:
        return bool(answer.status == 200)


def serving(port: int) -> bool:
    """Whether the gRPC service says that it is serving."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main(kind: str, port: int) -> int:
    """The exit code for Docker: 0 healthy, 1 not."""
    try:
        healthy = {"metrics": metrics, "grpc": serving}[kind](port)
    except (OSError, grpc.RpcError) as error:
        print(f"{kind} on port {port}: {error}", file=sys.stderr)
        return 1
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
