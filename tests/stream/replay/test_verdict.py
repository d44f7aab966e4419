"""The sentence that a report begins with, and a page without empty charts."""

from __future__ import annotations

import json
import random
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
from driftline.stream.replay.summary import COMPARED, COMPARED_BY
from driftline.stream.replay.verdict import BY_ALL, verdict

NEXT, SIMPLE = ("incremental", "ranker"), ("incremental", "ease_recent", 0.65, 0.5, 0.8)
LEVELS = {"popularity": 0.10, "ease_recent": 0.20, "ranker": 0.30, "frozen": None, "incremental": 0.33}


def metrics(names: list[str], *compared: tuple[str, str, float | None, float | None, float | None]) -> dict[str, Any]:
    arms = {name: {"overall": {"ndcg@10": LEVELS[name]}} for name in names}
    found = [
        {"a": a, "b": b, "list": "overall", "metric": "ndcg@10", "users": 50, "lift": lift, "ci": [low, high]}
        for a, b, lift, low, high in compared
    ]
    return {"arms": arms, "comparisons": found}


def of_sessions(arms: dict[str, Any], *compared: dict[str, Any]) -> dict[str, Any]:
    """A report of a session protocol, in which `transitions` leads and `own_pairs` has the higher level over all."""
    return {"arms": arms, "comparisons": list(compared), "protocol": {"session": {"targets": 6}}}


IN_SESSIONS = {
    "own_pairs": {"overall": {"ndcg@10": 0.9}, "session": {"ndcg@20": 0.1, "hr@20": 0.9}},
    "transitions": {"overall": {"ndcg@10": 0.4}, "session": {"ndcg@20": 0.3, "hr@20": 0.2}},
}
LED = {"a": "transitions", "b": "own_pairs", "list": "session", "users": 50, "lift": 2.0, "ci": [1.0, 3.0]}


def test_of_a_few_users_no_arm_wins() -> None:
    """Drawing one user again and again always gives the same, which is no certainty."""
    for users, few in ((1, "; 1 user is too few to tell."), (9, "; 9 users are too few to tell.")):
        asked = metrics(["popularity", "ease_recent"], ("ease_recent", "popularity", 1.0, 1.0, 1.0))
        asked["comparisons"][0]["users"] = users
        sentence = verdict(asked, ["popularity", "ease_recent"])
        assert sentence.startswith("Not sure which arm wins: ease_recent is ahead")
        assert sentence.endswith(few)
        asked["comparisons"][0]["users"] = 10
        assert verdict(asked, ["popularity", "ease_recent"]).startswith("ease_recent wins")


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
            metrics(list(LEVELS), (*NEXT, 0.1, 0.05, 0.15), ("incremental", "popularity", 2.3, 2.0, 2.6))
            | {"void": ["ease_recent"]},
            "incremental wins, NDCG@10 0.3300 over everything: 10.0% (95% interval 5.0 to 15.0) over ranker, "
            "the next best, and 230.0% (95% interval 200.0 to 260.0) over popularity, the best simple arm.",
        ),
        (
            metrics(["popularity", "ease_recent"]) | {"void": ["ease_recent"]},
            "Only popularity had anything to go by, NDCG@10 0.1000 over everything: there is nothing to compare it "
            "with.",
        ),
        (
            metrics(["ease_recent"]) | {"void": ["ease_recent"]},
            "No arm had anything to go by, so none wins.",
        ),
        (
            of_sessions(IN_SESSIONS, LED | {"metric": "hr@20", "ci": [-1.0, 3.0]}, LED | {"metric": "ndcg@20"}),
            "transitions wins, NDCG@20 0.3000 within sessions: 200.0% (95% interval 100.0 to 300.0) over own_pairs, "
            "the next best.",
        ),
        (
            of_sessions({"popularity": {"overall": {"ndcg@10": 1.0}}, "transitions": {"overall": {"ndcg@10": 0.9}}}),
            "Each of the 6 events that were asked for is of an item that its session holds already, so no arm wins "
            "within sessions.",
        ),
        (
            metrics(["ranker", "incremental"]),
            "Not sure which arm wins: incremental is ahead, NDCG@10 0.3300 over everything, not compared with ranker, "
            "the next best.",
        ),
    ],
)
def test_the_verdict_is_sure_only_where_the_interval_leaves_no_room_for_0(given: dict[str, Any], sentence: str) -> None:
    for name in given.get("void", ()):
        given["arms"][name]["void"] = "nothing was taken together"
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
    assert {"Arms", "Cost"} <= set(titles)
    assert not {"Drift of the data", "Freshness", "Week by week"} & set(titles)  # a line wants two weeks
    made["arms"]["popularity"]["windows"] *= 2
    write_report(tmp_path / "weeks.html", made)
    assert "<h2>Week by week</h2>" in (tmp_path / "weeks.html").read_text()


def test_every_lift_that_is_compared_is_drawn() -> None:
    drawn = {"a": "x", "b": "y", "lift": 0.1, "ci": [0.0, 0.2], "p_holm": 0.5}
    compared = [drawn | {"list": which, "metric": "ndcg@10"} for which in (*COMPARED, "rare_items")]
    compared += [drawn | {"list": which, "metric": metric} for which, found in COMPARED_BY.items() for metric in found]
    figure = forest(compared)
    assert figure is not None
    assert sum(len(trace.y) for trace in figure.data) == len(compared) == len({y for t in figure.data for y in t.y})


def test_arms_that_need_baskets_are_void_on_single_plays_and_goals_that_change_nothing_are_told(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [(f"u{rng.randrange(12)}", f"i{min(rng.randrange(9), rng.randrange(9))}", n) for n in range(400)]
    lines = [f"{user},{item},{1_600_000_000_000 + n * 3_600_000},play,{rng.randrange(600)}" for user, item, n in rows]
    plays, own = tmp_path / "plays.csv", tmp_path / "own.yaml"
    plays.write_text("\n".join(["user_id,item_id,timestamp_ms,action,value", *lines]))
    own.write_text("extends: media\ngoals: {action_weights: {play: 1.0}, by: value}\n")
    names = "popularity,item_knn,item_knn_recent,ease_recent,user_knn_recent,transitions"

    def replayed(events: Path, *more: str) -> tuple[dict[str, Any], str, str]:
        out = tmp_path / events.stem
        call = ("replay", "--events", str(events), "-c", str(own), "--arms", names, "--no-audit", "--out", str(out))
        told = CliRunner().invoke(app, [*call, *more])
        assert told.exit_code == 0, told.output
        made: dict[str, Any] = json.loads((out / "metrics.json").read_text())
        return made, told.stdout, (out / "report.html").read_text()

    made, said, page = replayed(plays)
    void = {name for name, arm in made["arms"].items() if "void" in arm}
    assert void == {"item_knn", "item_knn_recent", "ease_recent"}
    compared = {arm for one in made["comparisons"] for arm in (one["a"], one["b"])}
    assert compared == set(names.split(",")) - void
    assert not [name for name in void if f" {name}" in said.splitlines()[0]]
    assert "item_knn, void" in said
    made["arms"]["ease_recent"]["novel"][BY_ALL[1]] = 1.0
    write_report(tmp_path / "chance.html", made)
    shown = [row for row in (tmp_path / "chance.html").read_text().split("<tr>") if "void: no group" in row]
    assert len(shown) == 3
    assert not any("class='best'" in row for row in shown), "what chance gave is not shaded, however good"
    assert said.count("void: no group, and no session, holds two items that") == page.count("void: no group") == 3
    assert "goals: Every scored group is one item, so goals change nothing" in said
    assert "so goals change nothing" in page
    weighted, plain = (
        [arm["overall"][name] for arm in made["arms"].values()] for name in ("ndcg@10_weighted", BY_ALL[1])
    )
    assert weighted == pytest.approx(plain, abs=0.02), "but for groups that are worth nothing"
    again, _, _ = replayed(plays, "--resume")
    assert {name for name, arm in again["arms"].items() if "void" in arm} == void, "what lies on disk says it too"

    baskets = tmp_path / "baskets.csv"
    text = [line.replace(f",{1_600_000_000_000 + n * 3_600_000},", f",{1_600_000_000_000 + n // 4 * 3_600_000},")
            for n, line in enumerate(lines)]  # fmt: skip
    owners = [f"u{n // 4 % 12}," + line.split(",", 1)[1] for n, line in enumerate(text)]
    baskets.write_text("\n".join(["user_id,item_id,timestamp_ms,action,value", *owners]))
    made, said, page = replayed(baskets)
    assert not any("void" in arm for arm in made["arms"].values())
    assert "goals change nothing" not in said + page


def test_an_arm_that_never_tells_one_candidate_from_another_is_void_whatever_it_is(tmp_path: Path) -> None:
    made = replay(
        Options(EVENTS, tmp_path, arms=("popularity", "reversed_pairs"), limit=2500, audit_rows=0), Settings()
    )
    assert "void" not in made["arms"]["popularity"]
    assert made["arms"]["reversed_pairs"]["void"].startswith("it never told one candidate from another")
