"""The bench runs whole: a shop, an echo, a server in a process of its own."""

from __future__ import annotations

import json

import pytest

from serving import bench, bench_world
from tests.serving.conftest import small_settings


@pytest.mark.slow
def test_the_bench_measures_every_kind_beside_an_echo(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_world, "ITEMS", 300)
    monkeypatch.setattr(bench_world, "USERS", 40)
    settings = small_settings(tmp_path)
    settings = settings.model_copy(update={"ranker": settings.ranker.model_copy(update={"text_dim": 4})})
    steps: list[str] = []
    result = json.loads(json.dumps(bench.bench_serve(settings, requests=5, clients=2, tell=steps.append)))
    for kind in ("echo", "get_user_state", "recommend", "recommend_batch", "score_items", "similar_items"):
        assert 0 < result[kind]["p50_ms"] <= result[kind]["p99_ms"]
        assert result[kind]["per_s"] > 0
    assert result["world"]["items"] == 300
    assert result["targets_met"].keys() == result["targets_p99_ms"].keys()
    assert len(steps) == 7
