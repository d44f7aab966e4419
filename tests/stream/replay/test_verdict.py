"""The sentence that a report begins with, and a page without empty charts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from driftline.configs.settings import Settings
from driftline.stream.bundled import EVENTS
from driftline.stream.cli import app
from driftline.stream.replay.charts import drift, forest, freshness, plot
from driftline.stream.replay.named import about
from driftline.stream.replay.report import write_report
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options
from driftline.stream.replay.verdict import verdict

NEXT, SIMPLE = ("incremental", "ranker"), ("incremental", "ease_recent", 0.65, 0.5, 0.8)
LEVELS = {"popularity": 0.10, "ease_recent": 0.20, "ranker": 0.30, "frozen": None, "incremental": 0.33}


def metrics(names: list[str], *compared: tuple[str, str, float | None, float | None, float | None]) -> dict[str, Any]:
    arms = {name: {"overall": {"ndcg@10": LEVELS[name]}} for name in names}
    found = [{"a": a, "b": b, "list": "overall", "lift": lift, "ci": [low, high]} for a, b, lift, low, high in compared]
    return {"arms": arms, "comparisons": found}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            metrics(list(LEVELS), (*NEXT, 0.1, 0.05, 0.15), SIMPLE),
            "incremental wins, NDCG@10 0.3300 over everything: 10.0% (95% interval 5.0 to 15.0) over ranker, "
            "the next best, and 65.0% (95% interval 50.0 to 80.0) over ease_recent, the best simple arm.",
        ),
        (
            metrics(list(LEVELS), (*NEXT, 0.1, -0.01, 0.2), SIMPLE),
            "Not sure which arm wins: incremental is ahead, NDCG@10 0.3300 over everything, 10.0% (95% interval "
            "-1.0 to 20.0), which may be chance, over ranker, the next best, and 65.0% (95% interval 50.0 to 80.0) "
            "over ease_recent, the best simple arm.",
        ),
        (
            metrics(["popularity", "ease_recent"], ("ease_recent", "popularity", 1.0, 0.0, 2.0)),
            "Not sure which arm wins: ease_recent is ahead, NDCG@10 0.2000 over everything, 100.0% (95% interval "
            "0.0 to 200.0), which may be chance, over popularity, the next best.",
        ),
        (
            metrics(["popularity"]),
            "Only popularity ran, NDCG@10 0.1000 over everything: there is nothing to compare it with.",
        ),
        (metrics(["frozen"]), "No group was scored, so no arm wins."),
        (
            metrics(["ranker", "incremental"]),
            "Not sure which arm wins: incremental is ahead, NDCG@10 0.3300 over everything, not compared with ranker, "
            "the next best.",
        ),
    ],
)
def test_the_verdict_is_sure_only_where_the_interval_leaves_no_room_for_0(given: dict[str, Any], sentence: str) -> None:
    assert verdict(given, ("popularity", "ease_recent")) == sentence


def test_a_replay_compares_its_best_arm_with_the_next_and_says_so_first(tmp_path: Path) -> None:
    names = "popularity,personal_recency,item_knn"
    call = ("replay", "--limit", "2500", "--arms", names, "--no-audit", "--out", str(tmp_path))
    told = CliRunner().invoke(app, call)
    assert told.exit_code == 0, told.output
    made = replay(Options(EVENTS, tmp_path, arms=tuple(names.split(",")), limit=2500, audit_rows=0), Settings())
    first, *lines = told.stdout.splitlines()
    order = sorted(made["arms"], key=lambda name: -made["arms"][name]["overall"]["ndcg@10"])
    assert first.startswith((f"{order[0]} wins, ", f"Not sure which arm wins: {order[0]} is ahead, "))
    assert f" over {order[1]}, the next best" in first
    (one,) = [one for one in made["comparisons"] if one["family"] == "first"]
    assert (one["a"], one["b"], one["list"]) == (*order[:2], "overall")
    assert (one["ci"][0] > 0) == (" wins, " in first)
    assert any(line.split(maxsplit=1) == ["item_knn", about("item_knn")] for line in lines)
    page = (tmp_path / "report.html").read_text()
    assert page.index(made["verdict"].split(",")[0]) < page.index("class='cards'")
    assert about("popularity") in page
    assert "Leak audit not run: left out with --no-audit" in page


def test_a_page_has_no_chart_without_a_value(tmp_path: Path) -> None:
    nothing = {"arms": {"a": {}}, "freshness": {"a": [{"since": "a day", "n": 0, "ndcg@10": None}]}, "drift": []}
    assert [plot(figure) for figure in (freshness(nothing), drift(nothing), forest([]))] == ["", "", ""]
    made = replay(Options(EVENTS, tmp_path, arms=("popularity",), limit=2500, audit_rows=0), Settings())
    made["drift"] = []
    made["freshness"] = {"popularity": nothing["freshness"]["a"]}
    write_report(tmp_path / "empty.html", made)
    page = (tmp_path / "empty.html").read_text()
    titles = re.findall(r"<h2>([^<]+)</h2>", page)
    assert {"Arms", "Week by week", "Cost"} <= set(titles)
    assert not {"Drift of the data", "Freshness"} & set(titles)
