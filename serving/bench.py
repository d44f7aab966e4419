"""How fast serving answers: one client, an idle engine, and an echoing grpcio server in the same minutes beside it.

The echo is what Python's gRPC costs on this machine without any work; the difference to it is ours.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from configs.errors import ServingError
from configs.settings import Settings
from serving.bench_world import World, build_world
from serving.health import SERVING, Health
from serving.proto.driftline.v1 import recommendation_pb2 as pb
from serving.proto.driftline.v1 import recommendation_pb2_grpc as pb_grpc
from serving.server import SERVICE, run_server

CANDIDATES = 200
BATCH = 16
TARGETS_P99_MS = {"recommend": 50.0, "get_user_state": 10.0}
_ECHO_BYTES = 1000
_WARM_UP = 30
_START_S = 60.0

Tell = Callable[[str], None]
Call = Callable[[int], object]


def bench_serve(
    settings: Settings, requests: int = 500, clients: int = 8, tell: Tell = lambda text: None
) -> dict[str, Any]:
    """Builds a shop, serves it in a process of its own and measures.

    Args:
        settings: model sizes are taken from here; directories and ports are the bench's own.
        requests: of each kind; of batches as many as hold so many users.
        clients: threads of the parts that measure a rate.
        tell: is given a line for each step.

    Returns:
        Latencies in milliseconds and rates by kind, with the machine and the targets: ready for JSON.
    """
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as directory:
        own = _own(settings, Path(directory))
        tell("building a shop of a few thousand items")
        world = build_world(own)
        tell("measuring an echo")
        with _process("echo", own) as (channel, server):
            echo = channel.unary_unary("/echo/Echo", lambda data: data, lambda data: data)
            payload = bytes(_ECHO_BYTES)
            results: dict[str, Any] = {"echo": _timed(lambda n: echo(payload), requests, server)}
            results["echo"]["per_s"] = _rate(lambda n: echo(payload), requests, clients)
        with _process("serve", own) as (channel, server):
            for name, call in _calls(channel, world).items():
                tell(f"measuring {name}")
                count = max(1, requests // BATCH) if name == "recommend_batch" else requests
                results[name] = _timed(call, count, server)
                results[name]["per_s"] = _rate(call, count, clients)
        results["recommend_batch"]["users"] = BATCH
    met = {name: results[name]["p99_ms"] <= bound for name, bound in TARGETS_P99_MS.items()}
    return {
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()},
        "world": {"users": len(world.user_ids), "items": len(world.item_ids), "candidates": world.candidates},
        "requests": requests,
        "clients_of_rates": clients,
        **results,
        "targets_p99_ms": TARGETS_P99_MS,
        "targets_met": met,
    }


def _own(settings: Settings, directory: Path) -> Settings:
    """The settings with the bench's directories, no cache of slates, and a pool of the stated size."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = settings.model_dump(mode="json")
    data["serving"] |= {"host": "127.0.0.1", "port": port, "snapshots": directory / "snapshots", "cache_users": 0}
    data["serving"] |= {"follow_profiles": False, "tokens": (), "tls_certificate": None, "tls_key": None}
    data["state"]["root"] = directory / "state"
    data["broker"]["partitions"] = 1
    data["metrics"]["serving_port"] = 0
    base = CANDIDATES * 3 // 4  # the recallers of sequence and graph bring the others
    data["ranker"] |= {"pool": base, "recall": base // 2, "personal": base // 2, "plug_recall": CANDIDATES // 4}
    return Settings.model_validate(data)


def _calls(channel: grpc.Channel, world: World) -> dict[str, Call]:
    stub: Any = pb_grpc.RecommendationServiceStub(channel)  # type: ignore[no-untyped-call]
    users, items = world.user_ids, world.item_ids
    options = pb.SlateOptions(request_time_ms=world.now_ms)

    def user(n: int) -> str:
        return users[n % len(users)]

    def batch(n: int) -> Sequence[str]:
        return [user(n * BATCH + place) for place in range(BATCH)]

    return {
        "get_user_state": lambda n: stub.GetUserState(pb.GetUserStateRequest(user_id=user(n))),
        "recommend": lambda n: stub.Recommend(pb.RecommendRequest(user_id=user(n), options=options)),
        "recommend_batch": lambda n: stub.RecommendBatch(
            pb.RecommendBatchRequest(user_ids=batch(n), options=options), timeout=60
        ),
        "score_items": lambda n: stub.ScoreItems(
            pb.ScoreItemsRequest(user_id=user(n), item_ids=items[:CANDIDATES], request_time_ms=world.now_ms)
        ),
        "similar_items": lambda n: stub.SimilarItems(pb.SimilarItemsRequest(item_id=items[n % len(items)])),
    }


def _timed(call: Call, requests: int, server: psutil.Process) -> dict[str, Any]:
    """Latencies of one client that asks one after the other, and the server's processor time for each answer."""
    for n in range(min(_WARM_UP, requests)):
        call(n)
    times_ms, before = np.empty(requests), server.cpu_times()
    for n in range(requests):
        started = time.perf_counter()
        call(n)
        times_ms[n] = (time.perf_counter() - started) * 1000
    after = server.cpu_times()
    cpu_ms = (after.user + after.system - before.user - before.system) * 1000 / requests
    p50, p99 = np.percentile(times_ms, (50, 99))
    figures = {"p50_ms": p50, "p99_ms": p99, "max_ms": times_ms.max(), "server_cpu_ms": cpu_ms}
    return {name: round(float(value), 3) for name, value in figures.items()}


def _rate(call: Call, requests: int, clients: int) -> float:
    """Answers a second of several clients at once, of one process."""
    started = time.perf_counter()
    with futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(call, range(requests)))
    return round(requests / (time.perf_counter() - started), 1)


@contextmanager
def _process(part: str, settings: Settings) -> Iterator[tuple[grpc.Channel, psutil.Process]]:
    """A channel to a server in a process of its own, once it is ready, and the process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "serving.bench", part]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        if process.stdin is not None:
            process.stdin.write(settings.model_dump_json().encode())
            process.stdin.close()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{settings.serving.port}") as channel:
                _wait(channel, process)
                yield channel, psutil.Process(process.pid)
        finally:
            process.terminate()


def _wait(channel: grpc.Channel, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    check = health_pb2_grpc.HealthStub(channel).Check
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if check(health_pb2.HealthCheckRequest(service=SERVICE)).status == health_pb2.HealthCheckResponse.SERVING:
                return
        except grpc.RpcError:
            pass
        time.sleep(0.05)
    raise ServingError(f"the measured server did not start within {_START_S:g} s; its messages above say why")


def _echo(settings: Settings) -> None:
    """A server that sends back what it gets, with as many threads as the real one."""
    server = grpc.server(futures.ThreadPoolExecutor(settings.serving.threads))
    handler = grpc.unary_unary_rpc_method_handler(lambda data, context: data)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", {"Echo": handler}),))
    health_pb2_grpc.add_HealthServicer_to_server(Health({SERVICE: SERVING}, 1), server)
    server.add_insecure_port(f"127.0.0.1:{settings.serving.port}")
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    _parts = {"echo": _echo, "serve": run_server}
    _parts[sys.argv[1]](Settings.model_validate_json(sys.stdin.read()))
