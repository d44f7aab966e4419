"""The table of published systems: what follows from which result; docs/systems.md is what the command writes."""

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from driftline.configs.errors import InputError
from driftline.configs.settings import Model, Settings
from driftline.configs.switches import systems
from driftline.stream.bundled import EVENTS, ITEMS
from driftline.stream.cli import app
from driftline.stream.learn import contracts
from driftline.stream.replay.show_system import SPEEDS, candidates_at_once, parts_of, show_system
from driftline.stream.replay.source import Options
from driftline.stream.replay.systems import ROWS, Bar, Row, _entry, arms_to_run, markdown, results, row_of, table

ROOT = Path(__file__).parents[3]


def measured(lift, low, arm="incremental", over="incremental:hstu=off", which="novel"):
    return {"a": arm, "b": over, "list": which, "lift": lift, "ci": [low, lift + 0.1], "p_holm": 0.01}


def state(*found):
    """Of a system with two bars and nothing else to show."""
    bars = (Bar(("incremental:hstu=off", "incremental-hstu"), "novel", 0.04), Bar(("ease_recent",), "novel"))
    row = Row(6, "", "", "hstu", ("hstu",), bars)
    return _entry(row, {f"file {n}": one for n, one in enumerate(found)})["state"]


def test_the_page_is_what_the_command_writes_and_json_says_the_same():
    folder = str(ROOT / "docs" / "results")
    page = CliRunner().invoke(app, ["systems", "table", "--results", folder])
    assert page.stdout == (ROOT / "docs" / "systems.md").read_text("utf-8"), "run: driftline systems table"
    told = orjson.loads(CliRunner().invoke(app, ["systems", "table", "--results", folder, "--json"]).stdout)
    assert told == table(results(ROOT / "docs" / "results"))
    assert [one["row"] for one in told] == list(range(1, 19))


def test_each_row_that_is_wired_has_an_overlay_and_no_overlay_is_forgotten():
    assert {row.name: row.number for row in ROWS if row.name} == {n: s.row for n, s in systems().items() if s.row}


def test_a_state_needs_the_contract_and_every_bar_in_every_result_that_measured_it():
    kept, ease = {"system": "hstu", "contract": {"hstu": True}}, measured(0.3, 0.2, over="ease_recent")
    above = {"comparisons": [measured(0.05, 0.01), ease]}
    assert state() == state(above) == "wired"
    assert state(kept) == state(kept, {"comparisons": [ease]}) == "mechanism"
    assert state(kept, above) == "works"
    assert state(kept, {"comparisons": [measured(0.05, 0.01, over="incremental-hstu"), ease]}) == "works"
    for missed in (measured(0.03, 0.01), measured(0.05, -0.01)):
        assert state(kept, above, {"comparisons": [missed]}) == "mechanism"
    assert state({"system": "hstu", "contract": {"hstu": True, "other": False}}, above) == "wired"
    assert state({"system": "dynllm", "contract": {"graph": True}}, above) == "wired"


def test_what_no_result_can_show_keeps_a_system_from_working():
    entry = next(one for one in table({"x": {"system": "dynllm", "contract": {"graph": True}}}) if one["row"] == 11)
    assert entry["state"] == "mechanism"
    assert entry["also"]


def test_a_claim_of_speed_is_measured_and_needed_for_the_mechanism():
    def hstu(**speed):
        found = {"x": {"system": "hstu", "contract": {"hstu": True}} | speed}
        return next(one for one in table(found) if one["row"] == 6)

    assert hstu()["state"] == "wired", "its speed was not measured"
    assert hstu(speed={"times": 3.0, "holds": False})["state"] == "wired"
    assert hstu(speed={"times": 7.0, "holds": True})["state"] == "mechanism"
    assert "at once, at 5 x the speed of a pass over the history for each, and alike: 7 x" in markdown(
        [hstu(speed={"times": 7.0, "holds": True})]
    )
    assert set(SPEEDS) == {row.name for row in ROWS if row.speed}
    found = candidates_at_once(Model(dim=16, max_len=30))
    assert found["holds"], found


def test_a_part_works_on_the_streams_where_what_comes_next_is_surely_better_with_it():
    def over(which, low, a="incremental", b="incremental-hstu", metric="ndcg@10"):
        return measured(0.05, low, a, b, which) | {"metric": metric}

    found = {
        "engine-85": {"comparisons": [over("novel", 0.04), over("overall", -0.01)]},
        "songs-85": {
            "comparisons": [
                over("overall", -0.01),
                over("session", -0.02, "ranker+hstu", "ranker", "hr@20"),
                over("session", 0.01, "ranker+hstu", "ranker", "ndcg@20"),
            ]
        },
        "games-parts-85": {"comparisons": [over("overall", -0.3) | {"lift": -0.2, "ci": [-0.3, -0.1]}]},
        "one-seed-85": {"comparisons": [over("overall", 0.01)]},
    }
    entries = {one["system"]: one for one in table(found)}
    assert {one["stream"]: one["verdict"] for one in entries["hstu"]["worth"]} == {
        "the shop": "adds nothing that shows", "games": "costs", "songs": "works"
    }  # fmt: skip
    assert entries["dynllm"]["worth"] == []
    page = markdown([entries["hstu"]])
    assert "`hstu` adds nothing that shows on the shop: +5.0% [-1.0, 15.0] over `incremental-hstu` (engine-85)" in page
    assert "`hstu` works on songs: +5.0% [1.0, 15.0] over `ranker` (songs-85), ndcg@20" in page


def test_a_folder_without_results_and_a_system_that_is_not_wired_are_refused(tmp_path):
    with pytest.raises(InputError, match="is no folder; expected one with results"):
        results(tmp_path / "none")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        results(tmp_path)
    with pytest.raises(InputError, match="got 'learn'; expected a system that is wired: hstu, dynllm, or all"):
        row_of("learn")


def test_the_parts_of_a_system_are_those_that_it_switches():
    assert parts_of("hstu", Settings()) == ["hstu"]
    assert parts_of("dynllm", Settings()) == ["graph"]
    assert arms_to_run(row_of("hstu")) == ["incremental", "incremental:hstu=off", "incremental:hstu=placebo"]


@pytest.mark.slow
def test_a_run_shows_the_contract_and_compares_every_arm_of_a_system(tmp_path):
    options = Options(EVENTS, tmp_path / "hstu", ITEMS, split=0.6, limit=1500, audit_rows=0)
    said = []
    found = show_system(row_of("hstu"), options, Settings(), lambda what, done, total: said.append(what))
    assert found["contract"] == {"hstu": True}
    assert found["broken"] == []
    compared = {(one["a"], one["b"]) for one in found["comparisons"] if one["family"] == "parts"}
    assert compared == {("incremental", f"incremental:hstu={arm}") for arm in ("off", "placebo")}
    (entry,) = [one for one in table({"run": found}) if one["system"] == "hstu"]
    assert [len(bar["measured"]) for bar in entry["bars"]] == [0, 1, 1]


def test_a_part_that_breaks_its_contract_is_named_and_the_command_says_so(tmp_path, monkeypatch):
    def gossip(checks):
        raise AssertionError("forgotten: it names the user")

    monkeypatch.setattr(contracts, "CHECKS", (gossip,))
    done = CliRunner().invoke(app, ["systems", "run", "hstu", "--no-replay", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 1
    (found,) = orjson.loads(done.stdout)
    assert found["broken"] == ["part hstu: forgotten: it names the user"]
    assert orjson.loads((tmp_path / "system-hstu.json").read_bytes()) == found
    assert found["contract"] == {"hstu": False}
