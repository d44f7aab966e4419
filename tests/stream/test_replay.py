import orjson
import pytest

from configs.errors import InputError
from configs.settings import Settings
from stream.bundled import EVENTS, ITEMS
from stream.evaluate.baselines import SIMPLE_ARMS
from stream.replay import Options, replay

ROWS, ARMS = 6000, ("popularity", "item_knn_recent", "personal_recency", "ease_recent")


def options(out, **changes):
    given = {"arms": ARMS, "limit": ROWS, "audit_rows": 0, "split": 0.7} | changes
    return Options(EVENTS, out, ITEMS, **given)


def without_clocks(metrics):
    text = orjson.loads(orjson.dumps(metrics))
    for name in ("seconds", "events_per_second"):
        text.pop(name)
    for arm in text["arms"].values():
        arm.pop("train_cpu_s"), arm.pop("score_cpu_s")
    return text


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp("replay")
    return out, replay(options(out, audit_rows=3000), Settings())


def test_the_metrics_have_the_shape_that_the_contract_names(first):
    out, metrics = first
    assert orjson.loads((out / "metrics.json").read_bytes()) == orjson.loads(orjson.dumps(metrics))
    assert {"data", "protocol", "arms", "comparisons", "seeds", "leak_audit", "events_per_second", "seconds"} <= set(
        metrics
    )
    assert metrics["data"]["events"] == ROWS
    assert list(metrics["arms"]) == list(ARMS)
    for arm in metrics["arms"].values():
        assert {"overall", "novel", "repeat", "cold_users", "cold_items", "windows", "train_cpu_s"} <= set(arm)
        overall = arm["overall"]
        assert {"n", "hr@10", "ndcg@10", "recall@20", "mrr", "ndcg@10_ci", "pool_recall"} <= set(overall)
        low, high = overall["ndcg@10_ci"]
        assert 0 <= low <= overall["ndcg@10"] <= high <= 1
        assert sum(window["n"] for window in arm["windows"]) == overall["n"]
    assert metrics["leak_audit"] == {"permutation": "pass", "future_deletion": "pass"}
    assert len(metrics["state_sha256"]) == 64
    for one in metrics["comparisons"]:
        assert {"a", "b", "list", "metric", "lift", "ci", "p_holm"} <= set(one)
        assert one["p_holm"] >= one["p"]


def test_the_report_is_one_page_that_needs_nothing_else(first):
    page = (first[0] / "report.html").read_text()
    assert "src=" not in page.split("<body>")[1]
    for arm in ARMS:
        assert arm in page


def test_two_runs_give_the_same_metrics_and_state(first, tmp_path):
    again = replay(options(tmp_path, audit_rows=3000), Settings())
    assert without_clocks(again) == without_clocks(first[1])


def test_resume_computes_only_what_is_missing(first, tmp_path):
    replay(options(tmp_path, arms=ARMS[:3]), Settings())
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "arms").iterdir()}
    resumed = replay(options(tmp_path, resume=True, audit_rows=3000), Settings())
    assert without_clocks(resumed) == without_clocks(first[1])
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert len(list((tmp_path / "arms").iterdir())) == len(ARMS)


def test_another_split_is_never_taken_from_what_lies_there(tmp_path):
    one = replay(options(tmp_path, arms=("popularity",)), Settings())
    two = replay(options(tmp_path, arms=("popularity",), split=0.5, resume=True), Settings())
    assert one["arms"]["popularity"]["overall"]["n"] < two["arms"]["popularity"]["overall"]["n"]


def test_held_out_items_are_reported(tmp_path):
    metrics = replay(options(tmp_path, arms=("popularity",), hold_out_items=0.3), Settings())
    held_out = metrics["arms"]["popularity"]["held_out_items"]
    assert held_out["n"] > 0
    assert held_out["pool_recall"] == 1.0


def test_an_unknown_arm_is_named_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"got 'ease_recnt'; expected any of popularity.*did you mean 'ease_recent'"):
        replay(options(tmp_path, arms=("popularity", "ease_recnt")), Settings())


def test_seeds_are_listed_one_by_one_and_their_mean_in_arms(tmp_path):
    metrics = replay(options(tmp_path, arms=("popularity",), seeds=(0, 1)), Settings())
    assert list(metrics["seeds"]) == ["0", "1"]
    assert (
        metrics["seeds"]["1"]["popularity"]["overall"]["ndcg@10"] == metrics["arms"]["popularity"]["overall"]["ndcg@10"]
    )


def test_the_simple_arms_of_the_guide_all_exist():
    assert set(SIMPLE_ARMS) == {
        "popularity",
        "recent_popularity",
        "personal_recency",
        "item_knn",
        "item_knn_recent",
        "user_knn_recent",
        "ease_recent",
    }
