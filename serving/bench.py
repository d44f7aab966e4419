"""How fast serving answers: one client, an idle engine, and an echoing grpcio server in the same minutes beside it.

The echo is what Python's gRPC costs on this machine without any work; the difference to it is ours.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from driftline.configs.addresses import free_port
from driftline.configs.errors import ServingError
from driftline.configs.settings import Settings
from driftline.serving.bench_load import TIMEOUT_S, channels, closed_loop, most_per_s
from driftline.serving.bench_parts import recommend_parts
from driftline.serving.bench_world import ITEMS, World, build_world
from driftline.serving.server import SERVICE, run_server
from driftline.serving.transport import direct_channel
from driftline.v1 import recommendation_pb2 as pb
from driftline.v1 import recommendation_pb2_grpc as pb_grpc

CANDIDATES = 200
BATCH = 16
TARGETS_P99_MS = {"recommend": 50.0, "get_user_state": 10.0}
_ECHO_BYTES = 1000
_WARM_UP = 30
_START_S = 60.0
CONNECTIONS = 32
"""To several processes on one port: the kernel spreads connections, and few are spread unevenly."""

Tell = Callable[[str], None]
Call = Callable[[int], object]


def bench_serve(
    settings: Settings,
    requests: int = 500,
    clients: int = 8,
    tell: Tell = lambda text: None,
    processes: int = 2,
    seconds: float = 5.0,
    items: int = ITEMS,
) -> dict[str, Any]:
    """Builds a shop, serves it in a process of its own and measures.

    Args:
        settings: model sizes are taken from here; directories and ports are the bench's own.
        requests: of each kind; of batches as many as hold so many users.
        clients: threads of the parts that measure a rate.
        tell: is given a line for each step.
        processes: that serve on one port in the last part, which measures rates alone.
        seconds: of each rate of arrivals there.
        items: of the shop.

    Returns:
        Latencies in milliseconds and rates by kind, with the machine and the targets: ready for JSON.
    """
    with tempfile.TemporaryDirectory(prefix="driftline-bench-") as directory:
        own = _own(settings, Path(directory))
        tell(f"building a shop of {items:,} items")
        world = build_world(own, items)
        tell("measuring an echo")
        with _process("echo", own) as server, _channel(own) as channel:
            echo = channel.unary_unary("/echo/Echo", lambda data: data, lambda data: data)
            payload = bytes(_ECHO_BYTES)
            results: dict[str, Any] = {"echo": _timed(lambda n: echo(payload), requests, server)}
            results["echo"]["per_s"] = closed_loop(lambda n: echo(payload), clients, requests)["per_s"]
        with _process("serve", own) as server, _channel(own) as channel:
            for name, call in _calls(channel, world).items():
                tell(f"measuring {name}")
                count = max(1, requests // BATCH) if name == "recommend_batch" else requests
                results[name] = _timed(call, count, server)
                results[name]["per_s"] = closed_loop(call, clients, count)["per_s"]
        results["recommend_batch"]["users"] = BATCH
        tell("measuring the parts of recommend")
        results["recommend"]["parts_us"] = recommend_parts(own, world, requests)
        tell(f"measuring {processes} processes on one port")
        results["processes"] = {"processes": processes, **_spread(own, world, processes, requests, clients, seconds)}
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


def _spread(
    own: Settings, world: World, processes: int, requests: int, clients: int, seconds: float
) -> dict[str, object]:
    """Rates of Recommend by many connections: a closed loop, and arrivals that wait for nobody."""
    data = own.model_dump(mode="json")
    data["serving"]["reuse_port"] = True
    shared = Settings.model_validate(data)
    options = pb.SlateOptions(request_time_ms=world.now_ms)
    with ExitStack() as stack:
        servers = [stack.enter_context(_process("serve", shared)) for _ in range(processes)]
        connected = channels(f"127.0.0.1:{shared.serving.port}", CONNECTIONS)
        # bytes in and out: what a client makes of a message is no load of the server's
        asks = [stack.enter_context(channel).unary_unary(f"/{SERVICE}/Recommend") for channel in connected]
        messages = [pb.RecommendRequest(user_id=user, options=options).SerializeToString() for user in world.user_ids]

        def call(n: int) -> object:
            return asks[n % CONNECTIONS](messages[n % len(messages)])

        def ask(n: int) -> grpc.Future:
            return asks[n % CONNECTIONS].future(messages[n % len(messages)], timeout=TIMEOUT_S)

        closed_loop(call, clients, _WARM_UP * CONNECTIONS)
        closed = closed_loop(call, clients, requests)
        return {
            "connections": [_connections(server, shared.serving.port) for server in servers],
            **{f"closed_{name}": value for name, value in closed.items()},
            "open": most_per_s(ask, seconds),
        }


def _connections(server: psutil.Process, port: int, status: str = psutil.CONN_ESTABLISHED) -> int:
    """Connections of one process at its side of the port; with CONN_LISTEN, sockets that take new ones."""
    return sum(held.laddr.port == port and held.status == status for held in server.net_connections("tcp"))


def _own(settings: Settings, directory: Path) -> Settings:
    """The settings with the bench's directories, no cache of slates, and a pool of the stated size."""
    data = settings.model_dump(mode="json")
    data["serving"] |= {
        "host": "127.0.0.1",
        "port": free_port(),
        "snapshots": directory / "snapshots",
        "cache_users": 0,
        "follow_profiles": False,
        "follow_items": False,
        "follow_ends": False,
        "tokens": (),
        "tls_certificate": None,
        "tls_key": None,
        "token_file": None,
        "tls_client_ca": None,
    }
    data["state"]["root"] = directory / "state"
    data["broker"]["partitions"] = 1
    data["metrics"]["serving_port"] = 0
    base = CANDIDATES * 3 // 4  # the recallers of sequence and graph bring the others
    data["ranker"] |= {"pool": base, "recall": base // 2, "personal": base // 2, "plug_recall": CANDIDATES // 4}
    return Settings.model_validate(data)


def _calls(channel: grpc.Channel, world: World) -> dict[str, Call]:
    stub: Any = pb_grpc.RecommendationServiceStub(channel)
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


def _channel(settings: Settings) -> grpc.Channel:
    return direct_channel(f"127.0.0.1:{settings.serving.port}")


@contextmanager
def _process(part: str, settings: Settings) -> Iterator[psutil.Process]:
    """A server in a process of its own, once it is ready."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "driftline.serving.bench", part]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        if process.stdin is not None:
            process.stdin.write(settings.model_dump_json().encode())
            process.stdin.close()
        try:
            server = psutil.Process(process.pid)
            _wait(server, process, settings.serving.port)
            yield server
        finally:
            process.terminate()


def _wait(server: psutil.Process, process: subprocess.Popen[bytes], port: int) -> None:
    """Until this process takes calls: another one on the same port would answer in its place if it were asked."""
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psutil.Error):  # it ended: the next round sees that
            if _connections(server, port, psutil.CONN_LISTEN):
                return
        time.sleep(0.05)
    raise ServingError(f"the measured server did not start within {_START_S:g} s; its messages above say why")


def _echo(settings: Settings) -> None:
    """A server that sends back what it gets, with as many threads as the real one."""
    server = grpc.server(futures.ThreadPoolExecutor(settings.serving.threads))
    handler = grpc.unary_unary_rpc_method_handler(lambda data, context: data)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", {"Echo": handler}),))
    server.add_insecure_port(f"127.0.0.1:{settings.serving.port}")
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    _parts = {"echo": _echo, "serve": run_server}
    _parts[sys.argv[1]](Settings.model_validate_json(sys.stdin.read()))
