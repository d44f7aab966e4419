"""Load on a server: closed loops of several clients, and arrivals that do not wait for answers.

A closed loop asks again once it is answered, so a slow server is asked less. Requests of the world do not wait: the
open loop sends at times that were drawn before, and counts a latency from that time, queueing included.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures

import grpc
import numpy as np

from driftline.serving.transport import DIRECT

RATES_PER_S = (25, 50, 75, 100, 150, 200, 250, 300, 400, 500, 600, 800, 1000)
"""Rates that an open loop tries, one after the other, until one is too much."""
P99_MS = 25.0
"""An open loop goes on to the next rate while 99% of its answers take at most this long."""
_LEAST = 100
"""Requests of a rate at least: fewer have no 99th percentile."""
TIMEOUT_S = 10.0
"""For one answer, and at last for all that are missing."""

Ask = Callable[[int], grpc.Future]


def channels(address: str, count: int) -> list[grpc.Channel]:
    """Channels with a connection each, so that the kernel spreads them over the processes of one port."""
    options = (*DIRECT, ("grpc.use_local_subchannel_pool", 1))
    return [grpc.insecure_channel(address, options) for _ in range(count)]


def closed_loop(call: Callable[[int], object], clients: int, requests: int) -> dict[str, float]:
    """Several clients of which each asks again once it is answered: {"per_s", "p50_ms", "p99_ms"}."""
    took_ms = np.empty(requests)

    def ask(client: int) -> None:
        for n in range(client, requests, clients):
            begun = time.perf_counter()
            call(n)
            took_ms[n] = (time.perf_counter() - begun) * 1000

    started = time.perf_counter()
    with futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(clients)))
    per_s = requests / (time.perf_counter() - started)
    p50_ms, p99_ms = np.percentile(took_ms, (50, 99))
    return {"per_s": round(per_s, 1), "p50_ms": round(float(p50_ms), 3), "p99_ms": round(float(p99_ms), 3)}


def open_loop(ask: Ask, rate_per_s: float, seconds: float, seed: int = 0) -> dict[str, float]:
    """Latencies in ms from the drawn time of each request to its answer, with Poisson arrivals.

    Args:
        ask: begins the n-th call and returns its future.
        rate_per_s: mean arrivals a second.
        seconds: how long; at least `_LEAST` requests are sent.

    Returns:
        What was offered and answered a second, and percentiles; failures are not among the latencies.
    """
    requests = max(_LEAST, round(rate_per_s * seconds))
    due_s = np.random.default_rng(seed).exponential(1 / rate_per_s, requests).cumsum()
    took_ms = np.full(requests, np.nan)
    left = threading.Semaphore(0)
    started = time.perf_counter()

    def done(n: int, future: grpc.Future) -> None:
        if future.exception() is None:
            took_ms[n] = (time.perf_counter() - started - due_s[n]) * 1000
        left.release()

    for n in range(requests):
        rest_s = due_s[n] - (time.perf_counter() - started)
        if rest_s > 0:
            time.sleep(rest_s)
        ask(n).add_done_callback(lambda future, n=n: done(n, future))
    until = time.monotonic() + TIMEOUT_S
    for _ in range(requests):
        if not left.acquire(timeout=max(0.0, until - time.monotonic())):
            break
    all_done = time.perf_counter()
    answered = took_ms[~np.isnan(took_ms)]
    p50, p99 = np.percentile(answered, (50, 99)) if len(answered) else (float("inf"), float("inf"))
    return {
        "offered_per_s": float(rate_per_s),
        "answered_per_s": round(len(answered) / (all_done - started), 1),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "failed": requests - len(answered),
    }


def most_per_s(ask: Ask, seconds: float, rates: Sequence[float] = RATES_PER_S) -> dict[str, object]:
    """The largest rate that is answered within `P99_MS`, and every rate tried: {"per_s", "p99_ms", "rates"}."""
    tried: list[dict[str, float]] = []
    best = 0.0
    for rate in rates:
        tried.append(open_loop(ask, rate, seconds))
        if tried[-1]["p99_ms"] > P99_MS or tried[-1]["failed"]:
            break
        best = float(rate)
    return {"per_s": best, "within_p99_ms": P99_MS, "rates": tried}
