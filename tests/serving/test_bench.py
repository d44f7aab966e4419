"""The bench runs whole: a shop, an echo, a server in a process of its own."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from tests.serving.conftest import small_settings

from driftline.serving import bench, bench_load, bench_world


@pytest.mark.slow
def test_the_bench_measures_every_kind_beside_an_echo(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_world, "USERS", 40)
    settings = small_settings(tmp_path)
    settings = settings.model_copy(update={"ranker": settings.ranker.model_copy(update={"text_dim": 4})})
    steps: list[str] = []
    measured = bench.bench_serve(settings, requests=5, clients=2, tell=steps.append, seconds=0.1, items=300)
    result = json.loads(json.dumps(measured))
    for kind in ("echo", "get_user_state", "recommend", "recommend_batch", "score_items", "similar_items"):
        assert 0 < result[kind]["p50_ms"] <= result[kind]["p99_ms"]
        assert result[kind]["per_s"] > 0
    assert result["world"]["items"] == 300
    assert result["targets_met"].keys() == result["targets_p99_ms"].keys()
    assert len(steps) == 9
    parts = result["recommend"]["parts_us"]
    assert {"ranker", "features", "reasons", "graph: the user's vector", "HSTU: the user's vector"} < parts.keys()
    assert parts.pop("sum") == pytest.approx(sum(parts.values()), abs=1)
    shared = result["processes"]
    assert shared["processes"] == 2
    assert shared["closed_per_s"] > 0
    assert shared["closed_p50_ms"] > 0
    assert sum(shared["connections"]) == bench.CONNECTIONS
    assert all(shared["connections"]), "a process that is not up yet takes none, and so measures the others alone"
    assert all(rate["failed"] == 0 for rate in shared["open"]["rates"])


class Slow:
    """Answers one request after the other, each in 10 ms."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)

    def ask(self, n: int) -> Future[None]:
        return self.pool.submit(time.sleep, 0.01)


def test_arrivals_that_wait_for_nobody_see_the_queue_that_a_closed_loop_does_not(monkeypatch):
    monkeypatch.setattr(bench_load, "_LEAST", 10)
    server = Slow()
    calm = bench_load.open_loop(server.ask, 20, 0.1)
    swamped = bench_load.open_loop(server.ask, 400, 0.25)
    assert bench_load.closed_loop(lambda n: server.ask(n).result(), 1, 20)["per_s"] <= 100
    assert calm["p50_ms"] < 100 < swamped["p99_ms"]
    assert swamped["answered_per_s"] <= 100


def test_the_largest_rate_is_the_last_one_before_one_is_too_slow_or_fails():
    def broken(n: int) -> Future[None]:
        future: Future[None] = Future()
        future.set_exception(OSError("gone"))
        return future

    assert bench_load.most_per_s(broken, 0.01, rates=(2000, 3000)) | {"rates": None} == {
        "per_s": 0.0,
        "within_p99_ms": bench_load.P99_MS,
        "rates": None,
    }
