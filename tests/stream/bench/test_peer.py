"""The bench of the graph: every stream beside PyG in one run, with how far the memories lie apart."""

from __future__ import annotations

import json

import pytest

from driftline.configs.settings import Settings
from driftline.stream.bench import peer


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("USERS", 60), ("ITEMS", 30), ("SINGLE", 50)):
        monkeypatch.setattr(peer, name, value)


def test_every_kind_of_stream_stands_beside_pyg_and_agrees_with_it_where_it_is_exact() -> None:
    figures = json.loads(json.dumps(peer.beside_pyg(Settings().graph, 1200)))
    assert set(figures) == {"per_event", "batch_200", "hub", "baskets", "insert_ms"}
    for name in ("per_event", "hub", "baskets"):
        assert figures[name]["max_abs_diff"] < 1e-5
        assert figures[name]["ratio"] > 0
    assert figures["batch_200"]["max_abs_diff"] > 1e-3  # it reads memories from before the batch
    assert 0 < figures["insert_ms"]["p50"] <= figures["insert_ms"]["p99"]


def test_the_rows_of_a_processor_hold_the_last_neighbours_of_every_node() -> None:
    figures = peer.wrong_last_k(Settings(), 600)
    assert figures["ours"] == 0
    assert figures["nodes"] > 60
