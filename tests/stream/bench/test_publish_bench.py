"""`driftline bench publish` on a small catalogue: the real trainer, real files, figures that fit together."""

from __future__ import annotations

from driftline.configs.settings import Graph, Model, Ranker, Settings, Signals
from driftline.stream.bench import publish


def test_the_bench_publishes_whole_and_by_delta_and_says_what_each_costs(monkeypatch) -> None:
    monkeypatch.setattr(publish, "HISTORY_GROUPS", 40)
    settings = Settings(
        model=Model(dim=8, blocks=1, max_len=20, step_groups=4, batch=4),
        graph=Graph(memory_dim=8, message_dim=8, time_dim=4, embed_dim=8, neighbors=5),
        ranker=Ranker(members=1, hidden=8, sampled=20, recall=20, pool=60, text_dim=16),
        signals=Signals(neighbors=8),
    )
    figures = publish.bench_publish(settings, items=3000, groups=5, rounds=3)
    sizes, whole = figures["publish"], figures["whole"]
    assert 0 < sizes["delta_mb"] <= sizes["largest_delta_mb"] < sizes["full_mb"]
    assert sizes["share"] == round(sizes["delta_mb"] / sizes["full_mb"], 4) or sizes["full_mb"] < 10
    assert abs(sizes["full_mb"] - whole["mb"]) < 0.2 * whole["mb"]
    assert sizes["first_pause_ms"] > 0
    assert 0 < sizes["pause_ms"] < 1000
    assert figures["adopt"]["deltas"] == 3
    assert isinstance(figures["target_met"], bool)
