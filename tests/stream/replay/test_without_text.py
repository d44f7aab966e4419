"""Streams of edges that say nothing in words: no table of texts, no encoder, no profile, and all parts run."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from driftline.configs.settings import Graph, Model, Ranker, Settings
from driftline.graph.learn import GraphLearner
from driftline.stream.replay import inputs
from driftline.stream.replay.registry import build_arm
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options, read

SETTINGS = Settings(
    graph=Graph(memory_dim=8, message_dim=8, time_dim=4, embed_dim=8, publish_groups=50),
    model=Model(dim=8, blocks=1, max_len=20, step_groups=4),
    ranker=Ranker(hidden=8, members=1),
)


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    rng = np.random.default_rng(0)
    n = 400
    table = {
        "user_id": [f"u{user}" for user in rng.integers(0, 20, n)],
        "item_id": [f"i{item}" for item in rng.integers(0, 30, n)],
        "timestamp_ms": np.sort(rng.integers(0, 10**9, n)) + 1_600_000_000_000,
    }
    path = tmp_path_factory.mktemp("edges") / "events.parquet"
    pq.write_table(pa.table(table), path)
    pq.write_table(pa.table({"item_id": ["i1", "i2"], "price": [1.0, 2.0]}), path.with_name("items.parquet"))
    return path


@pytest.mark.parametrize("with_items", [False, True])
def test_edges_without_text_are_replayed_without_a_table_of_texts_or_an_encoder(
    events, tmp_path, monkeypatch, with_items
):
    monkeypatch.setattr(inputs, "TextEncoder", None)  # nobody may ask for one
    items = events.with_name("items.parquet") if with_items else None
    given = Options(events, tmp_path, items, arms=("incremental", "hstu", "graph"), split=0.6, audit_rows=0)
    metrics = replay(given, SETTINGS)
    assert metrics["protocol"]["text"] is False
    assert set(metrics["protocol"]["profiles"]["groups"]) == {"file", "template", "none"}
    assert metrics["protocol"]["profiles"]["groups"]["template"] == 0
    assert metrics["arms"]["incremental"]["overall"]["ndcg@10"] > 0
    assert metrics["state"]["adoptions"] > 0
    data = read(given, SETTINGS)
    arm = build_arm("incremental", data.setup(data.log, SETTINGS, 0, None))[0]
    learner = arm.shared.learner
    assert (learner.text.dim, learner.graph.text_dim, learner.sequence.items.text_dim) == (0, 0, 0)
    assert not any(name.startswith("text") and array.size for name, array in learner.engine.arrays().items())


def test_a_graph_without_text_is_made_in_silence_and_says_the_same_twice():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = GraphLearner(Graph(), 0), GraphLearner(Graph(), 0)
    for name, array in one.reader.state_dict().items():
        assert np.array_equal(array, other.reader.state_dict()[name]), name


def test_items_with_words_have_their_table_as_before(events, tmp_path):
    items = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": ["i1"], "title": ["lamp"]}), items)
    data = read(Options(events, tmp_path, items), SETTINGS)
    assert data.has_text
    assert data.setup(data.log, SETTINGS, 0, None).settings is SETTINGS
