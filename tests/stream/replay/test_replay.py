import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from driftline.configs.errors import InputError
from driftline.configs.load import load
from driftline.configs.settings import Settings
from driftline.stream.bundled import EVENTS, ITEMS
from driftline.stream.cli import app
from driftline.stream.events.files import read_columns
from driftline.stream.ops.revision import PACKAGES, ROOT, code_sha256
from driftline.stream.replay.adoptions import file_records, follow
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.audit import AUDITS
from driftline.stream.replay.baselines import SIMPLE_ARMS
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.protocol import Scope, scored_groups
from driftline.stream.replay.registry import build_arm
from driftline.stream.replay.report import audit_line, intervals_line, profiles_line
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import CHOICES, Options

ROWS, ARMS = 6000, ("popularity", "item_knn_recent", "personal_recency", "ease_recent")


def options(out, **changes):
    given = {"arms": ARMS, "limit": ROWS, "audit_rows": 0, "split": 0.7} | changes
    return Options(EVENTS, out, ITEMS, **given)


def without_clocks(metrics):
    text = orjson.loads(orjson.dumps(metrics))
    for name in ("seconds", "compute_seconds", "events_per_second"):
        text.pop(name)
    for arms in (text["arms"], *text["seeds"].values()):
        for arm in arms.values():
            arm.pop("train_cpu_s"), arm.pop("score_cpu_s"), arm.pop("cost")
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
    assert metrics["protocol"]["profiles"]["file"] is None
    assert sum(metrics["protocol"]["profiles"]["groups"].values()) == metrics["protocol"]["groups"]
    assert list(metrics["arms"]) == list(ARMS)
    for arm in metrics["arms"].values():
        assert {"overall", "novel", "repeat", "cold_users", "cold_items", "windows", "train_cpu_s"} <= set(arm)
        overall = arm["overall"]
        assert {"n", "hr@10", "ndcg@10", "recall@20", "mrr", "ndcg@10_ci", "pool_recall"} <= set(overall)
        low, high = overall["ndcg@10_ci"]
        assert 0 <= low <= overall["ndcg@10"] <= high <= 1
        assert sum(window["n"] for window in arm["windows"]) == overall["n"]
    assert {metrics["leak_audit"][name] for name in AUDITS} == {"pass"}
    assert 2000 <= metrics["leak_audit"]["rows"] <= 3000  # of whole users
    assert metrics["leak_audit"]["users"] < metrics["data"]["users"]
    assert metrics["leak_audit"]["groups"] == 4
    assert len(metrics["state_sha256"]) == 64
    for one in metrics["comparisons"]:
        assert {"a", "b", "list", "metric", "lift", "ci", "p_holm"} <= set(one)
        assert one["p_holm"] >= one["p"]


def test_the_report_is_one_page_that_needs_nothing_else(first):
    page = (first[0] / "report.html").read_text()
    assert "src=" not in page.split("<body>")[1]
    for arm in ARMS:
        assert arm in page
    assert profiles_line(first[1]["protocol"]["profiles"]) in page
    assert audit_line(first[1]["leak_audit"]) in page


def details(page):
    """Heads and cells of the report's second table."""
    rows = page.split("<table>")[2].split("</table>")[0].split("<tr>")[1:]
    return [[re.sub(r"<[^>]+>", " ", cell).split() for cell in re.split("</t[hd]>", row)[:-1]] for row in rows]


def test_the_report_breaks_the_figures_of_each_arm_down(first, tmp_path):
    heads, *rows = details((first[0] / "report.html").read_text())
    assert [row[0] for row in rows] == [[arm] for arm in ARMS]
    arm = first[1]["arms"]["ease_recent"]
    cold = [" ".join(head).startswith("cold users") for head in heads].index(True)
    assert heads[cold] == ["cold", "users", f"{arm['cold_users']['n']:,}", "groups"]
    assert rows[-1][cold] == [f"{arm['cold_users']['ndcg@10']:.4f}"]
    assert rows[-1][2] == [f"{arm['overall']['without_follow_ups']['ndcg@10']:.4f}"]
    assert not any("weighted" in head[0] or "held-out" in head for head in heads)  # neither is configured
    priced = Settings.model_validate({"goals": {"by": "price"}})
    metrics = replay(options(tmp_path, arms=("popularity",), limit=4000, hold_out_items=0.3), priced)
    heads, row = details((tmp_path / "report.html").read_text())
    assert ["held-out", "items"] in [head[:2] for head in heads]
    weighted = [head[0] for head in heads].index("weighted")
    assert row[weighted] == [f"{metrics['arms']['popularity']['overall']['ndcg@10_weighted']:.4f}"]


def test_two_runs_give_the_same_metrics_and_state(first, tmp_path):
    again = replay(options(tmp_path, audit_rows=3000), Settings())
    assert without_clocks(again) == without_clocks(first[1])


def test_the_engine_gives_the_same_metrics_and_state_in_another_process(tmp_path):
    publish = {"DRIFTLINE__GRAPH__PUBLISH_GROUPS": "20"}
    given = options(tmp_path / "one", arms=("frozen", "incremental"), limit=1500)
    one = replay(given, load("ecommerce", publish).settings)
    assert one["state"]["adoptions"] > 0
    code = f"""
from pathlib import PosixPath
from driftline.configs.load import load_settings
from driftline.stream.replay.source import Options
from driftline.stream.replay.run import replay
replay({replace(given, out=tmp_path / "two")!r}, load_settings("ecommerce"))
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | publish | {"PYTHONHASHSEED": "1"}, check=True)
    two = orjson.loads((tmp_path / "two" / "metrics.json").read_bytes())
    assert without_clocks(two) == without_clocks(one)


def test_resume_computes_only_what_is_missing(first, tmp_path):
    half = replay(options(tmp_path, arms=ARMS[:3]), Settings())
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "arms").iterdir()}
    resumed = replay(options(tmp_path, resume=True, audit_rows=3000), Settings())
    assert without_clocks(resumed) == without_clocks(first[1])
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    assert len(list((tmp_path / "arms").iterdir())) == len(ARMS)
    again = replay(options(tmp_path, resume=True), Settings())
    assert all(0 < half["compute_seconds"][clock] < resumed["compute_seconds"][clock] for clock in ("wall", "cpu"))
    assert again["compute_seconds"] == resumed["compute_seconds"]  # each pass once, whenever it was


def arms_made(out, settings, **changes):
    """How many results of arms a resumed replay had to make."""
    before = set((out / "arms").iterdir()) if (out / "arms").is_dir() else set()
    replay(options(out, arms=("popularity",), limit=1500, resume=True, **changes), settings)
    return len(set((out / "arms").iterdir()) - before)


def test_what_changes_no_result_voids_none(tmp_path, monkeypatch):
    assert arms_made(tmp_path, Settings()) == 1
    for module in ("driftline.stream.replay.run", "driftline.stream.replay.content"):
        monkeypatch.setattr(f"{module}.git_revision", lambda: "another commit")
    elsewhere = {
        "name": "other",
        "broker": {"bootstrap": "k:1", "security": "SASL_SSL", "sasl_username": "u", "sasl_password": "p"},
        "state": {"root": "other"},
        "llm": {"client": "openai", "api_key": "secret"},
        "encoder": {"threads": 2, "cache": "other.sqlite"},
        "trainer": {"publish_s": 9},
        "serving": {"port": 1234, "tokens": ["secret"]},
        "metrics": {"worker_port": 1235},
    }
    assert arms_made(tmp_path, Settings.model_validate(elsewhere)) == 0
    metrics = orjson.loads((tmp_path / "metrics.json").read_bytes())
    assert metrics["protocol"]["commit"] == "another commit"


@pytest.mark.parametrize(
    "changed",
    [
        {"ranker": {"hidden": 8}},
        {"goals": {"by": "price"}},
        {"encoder": {"max_tokens": 9}},
        {"profiles": {"prompts": "media"}},
        {"actions": {"purchase": {"weight": 2.0}}},
    ],
)
def test_what_may_change_a_result_makes_it_anew(changed, tmp_path):
    assert arms_made(tmp_path, Settings()) == 1
    assert arms_made(tmp_path, Settings.model_validate(changed)) == 1


def test_code_that_may_change_a_result_makes_it_anew(tmp_path, monkeypatch):
    assert arms_made(tmp_path, Settings()) == 1
    monkeypatch.setattr("driftline.stream.replay.run.code_sha256", lambda: "another code")
    assert arms_made(tmp_path, Settings()) == 1


def test_the_hash_of_the_code_is_of_the_files_that_a_result_depends_on(tmp_path):
    root = tmp_path / "copy"
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, root / package, ignore=lambda _, names: [n for n in names if n == "__pycache__"]
        )

    def counts(name):
        path, before = root / name, code_sha256.__wrapped__(root)
        path.write_bytes(path.read_bytes() + b"# changed")
        return code_sha256.__wrapped__(root) != before

    asked = ("stream/replay/run.py", "stream/replay/arms.py", "model/engine.py", "llm/client.py", "graph/signals.py")
    assert [name for name in asked if not counts(name)] == []
    apart = (
        "stream/cli/evaluate.py",
        "stream/cli/command.py",
        "stream/bench/parts.py",
        "stream/demo/show.py",
        "stream/replay/report.py",
    )
    assert [name for name in apart if counts(name)] == []


def test_another_split_is_never_taken_from_what_lies_there(tmp_path):
    one = replay(options(tmp_path, arms=("popularity",)), Settings())
    two = replay(options(tmp_path, arms=("popularity",), split=0.5, resume=True), Settings())
    assert one["arms"]["popularity"]["overall"]["n"] < two["arms"]["popularity"]["overall"]["n"]


def test_the_span_of_choices_is_in_no_figure_of_a_report_that_begins_before_it(first, tmp_path):
    given = {"arms": ("popularity",), "audit_rows": 0}
    whole = replay(options(tmp_path / "late", split=CHOICES[1], **given), Settings())
    early = replay(options(tmp_path / "early", split=0.5, **given), Settings())
    log = EventLog(read_columns(EVENTS, ROWS), Settings().action)
    begin, end = early["protocol"]["choices"]["left_out_ms"]
    assert (begin, end) == tuple(log.split_ms(share) for share in CHOICES)
    scored = scored_groups(log, log.split_ms(0.5), Scope(left_out=(begin, end)))
    t_ms = log.group_t_ms[scored]
    assert not ((t_ms >= begin) & (t_ms < end)).any()
    assert early["protocol"]["groups"] == len(scored) > (t_ms >= end).sum() == whole["protocol"]["groups"]
    assert "without 70% to 85% of the rows" in (tmp_path / "early" / "report.html").read_text()
    assert "a figure to choose by, and no claim" in (first[0] / "report.html").read_text()
    assert "choose by" not in (tmp_path / "late" / "report.html").read_text()


def test_a_report_leaves_out_the_rows_that_its_user_chose_on_and_no_others(tmp_path):
    def run(name, choices):
        given = options(tmp_path / name, split=0.5, arms=("popularity",), audit_rows=0, choices=choices)
        return replay(given, Settings())["protocol"]

    log = EventLog(read_columns(EVENTS, ROWS), Settings().action)
    early, some, none = run("early", (0.0, 0.5)), run("some", (0.6, 0.65)), run("none", (0.0, 0.0))
    assert some["choices"] == {"span": [0.6, 0.65], "left_out_ms": (log.split_ms(0.6), log.split_ms(0.65))}
    assert early["groups"] == none["groups"] == len(scored_groups(log, log.split_ms(0.5))) > some["groups"]
    assert "without 60% to 65% of the rows" in (tmp_path / "some" / "report.html").read_text()
    late, empty = run("late", (0.7, 1.0)), run("empty", (0.9, 0.9))
    assert late["groups"] == (log.group_t_ms[scored_groups(log, log.split_ms(0.5))] < log.split_ms(0.7)).sum()
    assert empty["groups"] == none["groups"]
    for name in ("early", "none", "empty"):
        assert "choices were made" not in (tmp_path / name / "report.html").read_text()


def test_a_log_in_seconds_is_refused(tmp_path):
    path = tmp_path / "events.jsonl"
    rows = [{"user_id": f"u{n % 3}", "item_id": f"i{n % 5}", "timestamp_ms": 1_600_000_000 + n} for n in range(40)]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    with pytest.raises(InputError, match="row 1, column 'timestamp_ms': looks like seconds: got 1600000000; expected"):
        replay(Options(path, tmp_path / "out", arms=("popularity",), audit_rows=0), Settings())


def test_held_out_items_are_reported(tmp_path):
    metrics = replay(options(tmp_path, arms=("popularity",), hold_out_items=0.3), Settings())
    held_out = metrics["arms"]["popularity"]["held_out_items"]
    assert held_out["n"] > 0
    assert held_out["pool_recall"] == 1.0


def without_duplicates(metrics):
    text = without_clocks(metrics)
    text["data"].pop("sha256"), text["data"].pop("duplicates"), text.pop("state_sha256")
    return text


def test_rows_of_a_known_event_id_are_neither_scored_nor_learnt_and_stay_in_the_count_of_offsets(tmp_path):
    rows = pq.read_table(EVENTS).slice(0, 3000).to_pylist()
    rows = [dict(row, event_id=f"e{n}") for n, row in enumerate(rows)]
    sent_twice = []
    for n, row in enumerate(rows):
        sent_twice.append(row)
        if n % 50 == 7:  # the copy comes at once, with a time of its own
            sent_twice.append(dict(row, timestamp_ms=row["timestamp_ms"] + 1))
    sent_twice.sort(key=lambda row: row["timestamp_ms"])
    files = {"once": rows, "twice": sent_twice, "none": [dict(row, event_id=None) for row in sent_twice]}
    metrics, states = {}, {}
    for name, events in files.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in events))
        given = Options(path, tmp_path / name, ITEMS, arms=ARMS[1:3], split=0.7, audit_rows=2000)
        metrics[name] = replay(given, Settings())
        states[name] = follow(file_records(path), [], Settings())[0]
    assert [metrics[name]["data"]["duplicates"] for name in files] == [0, 60, 0]
    assert without_duplicates(metrics["twice"]) == without_duplicates(metrics["once"])
    assert metrics["none"]["arms"] != metrics["once"]["arms"]
    assert {name: metrics[name]["state_sha256"] for name in files} == states
    assert {metrics["twice"]["leak_audit"][name] for name in AUDITS} == {"pass"}


def test_an_unknown_arm_is_named_with_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"got 'ease_recnt': did you mean 'ease_recent'\?; expected any of popularity"):
        replay(options(tmp_path, arms=("popularity", "ease_recnt")), Settings())


def test_a_catalogue_too_large_for_ease_is_told_before_the_pass(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("driftline.stream.replay.run.EASE_ITEMS", 100)
    with pytest.raises(InputError, match=r"ease_recent.* at most 100 items; the log has .*leave it out of --arms"):
        replay(options(tmp_path / "named"), Settings())
    monkeypatch.setattr("driftline.stream.replay.run.default_arms", lambda: ["popularity", "ease_recent"])
    assert list(replay(options(tmp_path / "default", arms=(), limit=1500), Settings())["arms"]) == ["popularity"]
    assert "it is left out" in caplog.text


def test_a_lone_backbone_is_lent_only_by_a_pass_that_trains_it():
    settings = Settings.model_validate({"model": {"backbone": "sasrec"}})
    setup = Setup(EventLog(read_columns(EVENTS, 200), settings.action), settings)
    shared, lone, same = (build_arm(name, setup)[0] for name in ("ranker", "hstu", "sasrec"))
    assert lone.learner is not shared.shared.learner.sequence
    assert lone.learner.backbone.__class__.__name__ == "HSTU"
    assert same.learner is shared.shared.learner.sequence


def test_a_resumed_run_tells_the_state_that_a_fresh_one_tells(tmp_path):
    replay(options(tmp_path / "both", arms=("popularity", "ranker"), limit=1500), Settings())
    resumed = replay(options(tmp_path / "both", arms=("popularity",), limit=1500, resume=True), Settings())
    fresh = replay(options(tmp_path / "one", arms=("popularity",), limit=1500), Settings())
    assert (resumed["state"], resumed["state_sha256"]) == (fresh["state"], fresh["state_sha256"])


def test_the_state_is_that_after_the_log_whatever_arms_are_asked_for(tmp_path):
    arms = ("popularity", "graph", "frozen")
    runs = [replay(options(tmp_path / arm, arms=(arm,), limit=700), Settings()) for arm in arms]
    assert len({metrics["state_sha256"] for metrics in runs}) == 1


def test_candidates_of_no_items_file_are_refused(tmp_path):
    given = Options(EVENTS, tmp_path, arms=("popularity",), limit=1500, candidates="items")
    with pytest.raises(InputError, match="none is given; add --items FILE"):
        replay(given, Settings())


def test_a_report_says_whether_seeds_were_drawn_too(first, tmp_path):
    assert first[1]["protocol"]["intervals"]["seeds"] is False
    said = "drawn over users alone: one seed ran, so seeds were not resampled"
    assert intervals_line(first[1]["protocol"]) == said
    assert said in (first[0] / "report.html").read_text()
    given = options(tmp_path, arms=("sasrec",), limit=500, split=0.5)
    two = replay(replace(given, seeds=(0, 1)), Settings.model_validate({"model": {"dim": 16, "max_len": 20}}))
    assert two["protocol"]["intervals"]["seeds"] == [0, 1]
    assert intervals_line(two["protocol"]) == "drawn over users and 2 seeds"


def test_a_single_seed_is_listed_too(first):
    assert list(first[1]["seeds"]) == ["0"]
    assert list(first[1]["seeds"]["0"]) == list(ARMS)


@pytest.mark.parametrize(("seeds", "said"), [("1,1", "got 1 more than once"), ("0,x", "expected whole numbers")])
def test_seeds_that_are_none_or_no_second_one_are_refused(tmp_path, seeds, said):
    """The mean of a seed with itself would look like that of two."""
    result = CliRunner().invoke(app, ["replay", "--seeds", seeds, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_seeds_are_listed_one_by_one_and_their_mean_in_arms(tmp_path):
    metrics = replay(options(tmp_path, arms=("popularity",), seeds=(0, 1)), Settings())
    assert list(metrics["seeds"]) == ["0", "1"]
    assert (
        metrics["seeds"]["1"]["popularity"]["overall"]["ndcg@10"] == metrics["arms"]["popularity"]["overall"]["ndcg@10"]
    )


def test_the_command_ends_with_whose_profiles_were_read(tmp_path):
    given = ("replay", "--events", str(EVENTS), "--limit", "1500", "--arms", "popularity", "--out", str(tmp_path))
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert re.search(r"│? *arm +┃ novel +┃ repeat +┃ overall +┃ CPU", result.stdout)
    assert "profiles: no file; of " in result.stdout


@pytest.mark.parametrize("option", ["--seed", "--seeds"])
def test_the_command_takes_seeds_in_both_spellings_and_refuses_what_is_none(option, tmp_path):
    given = ("replay", "--events", str(EVENTS), "--limit", "1500", "--arms", "popularity", "--out", str(tmp_path))
    result = CliRunner().invoke(app, [*given, option, "0,2", "--json"])
    assert result.exit_code == 0, result.output
    assert orjson.loads(result.stdout)["protocol"]["seeds"] == [0, 2]
    refused = CliRunner().invoke(app, [*given, option, "0,x"])
    assert refused.exit_code == 2
    assert "got '0,x'" in refused.output


def test_the_simple_arms_all_exist():
    assert set(SIMPLE_ARMS) == {
        "popularity",
        "recent_popularity",
        "personal_recency",
        "item_knn",
        "item_knn_recent",
        "user_knn_recent",
        "ease_recent",
        "transitions",
    }
