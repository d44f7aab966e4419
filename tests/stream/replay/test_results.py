from pathlib import Path

import orjson
import pytest

from driftline.configs.load import load_settings
from driftline.stream.bundled import EVENTS
from driftline.stream.events.files import read_columns
from driftline.stream.replay.audit import AUDITS
from driftline.stream.replay.baselines import SIMPLE_ARMS
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.protocol import run, scored_groups

RESULTS = Path(__file__).parents[3] / "docs" / "results"
BARS = {
    ("item_knn_recent", "novel"): 0.0708,
    ("user_knn_recent", "novel"): 0.0951,
    ("user_knn_recent", "repeat"): 0.398,
    ("ease_recent", "novel"): 0.1007,
    ("ease_recent", "repeat"): 0.3648,
    ("ease_recent", "overall"): 0.2145,
    ("personal_recency", "repeat"): 0.3905,
    ("personal_recency", "overall"): 0.2761,
}
"""NDCG@10 of a study of its own on the same data and protocol, last 15%."""


@pytest.fixture(scope="module")
def log():
    return EventLog(read_columns(EVENTS), load_settings("ecommerce").action)


@pytest.mark.parametrize(("arm", "which"), list(BARS))
def test_the_committed_run_reproduces_the_measured_bars(arm, which):
    measured = orjson.loads((RESULTS / "split-85.json").read_bytes())["arms"][arm][which]["ndcg@10"]
    assert measured == pytest.approx(BARS[arm, which], rel=0.02)


def test_the_committed_runs_passed_the_audit_with_every_arm():
    metrics = orjson.loads((RESULTS / "split-85.json").read_bytes())
    assert {metrics["leak_audit"][name] for name in AUDITS} == {"pass"}
    assert metrics["leak_audit"]["from_file"] > 0
    assert {"incremental", "frozen", "hstu", "sasrec", "graph", "ranker+profiles"} <= set(metrics["arms"])


@pytest.mark.parametrize("name", ["split-85.json", "split-50.json", "one-seed-85.json"])
def test_the_committed_runs_are_of_the_bundled_data(log, name):
    metrics = orjson.loads((RESULTS / name).read_bytes())
    assert metrics["data"]["events"] == len(log)
    assert metrics["protocol"]["split_ms"] == log.split_ms(metrics["protocol"]["split"])
    assert metrics["protocol"]["groups"] == len(scored_groups(log, metrics["protocol"]["split_ms"]))


def test_the_committed_figures_are_what_the_code_computes_today(log):
    committed = orjson.loads((RESULTS / "split-85.json").read_bytes())
    names = ["recent_popularity", "personal_recency"]
    result = run(log, [SIMPLE_ARMS[name]() for name in names], committed["protocol"]["split_ms"])
    for name in names:
        overall = result.arms[name].values[:, 0, 1].mean()
        assert overall == pytest.approx(committed["arms"][name]["overall"]["ndcg@10"], abs=1e-6)
