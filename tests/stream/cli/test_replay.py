"""`driftline replay` as a command: what it takes, what it refuses before the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.stream.cli.outcome import Run, refused
from typer.testing import CliRunner

from driftline.configs.errors import InputError
from driftline.stream.cli import app
from driftline.stream.cli.topic import topic_file
from driftline.stream.process.processor import Processor
from driftline.stream.replay.adoptions import write_adoptions
from driftline.stream.state.store import MemoryStore


def test_a_file_of_no_profiles_is_refused_before_the_replay(driftline: Run, tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id\na\n")
    given = ("--arms", "popularity", "--limit", "100", "--out", str(tmp_path / "out"))
    refused(driftline("replay", "--profiles", str(path), *given), 65, "expected a JSON object with format")


def test_a_replay_says_how_much_there_is_to_do_before_it_begins(driftline: Run, tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    rows = [f"u{n % 7},i{n % 5},{1_600_000_000_000 + n * 3_600_000}" for n in range(40)]
    events.write_text("\n".join(["user_id,item_id,timestamp_ms", *rows]))
    given = ("--events", str(events), "--arms", "popularity,item_knn_recent", "--out", str(tmp_path / "out"))
    said = driftline("replay", *given, "--no-audit").stderr
    assert "40 events are 40 groups (of one user at one time), of which 6 are scored; 2 arms, 1 seed, no leak" in said
    assert "As a rule some seconds in all; the first groups say more" in said
    assert "does not set" not in said
    events.write_text("\n".join(["user_id,item_id,timestamp_ms,action", *(f"{row},stream" for row in rows)]))
    assert "configuration 'default' does not set: 40 'stream'. Each counts" in driftline("replay", *given).stderr


def test_a_replay_without_a_folder_writes_to_one_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["replay", "--limit", "5", "--arms", "popularity", "--no-audit"])
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("out/replay/metrics.json, out/replay/report.html\n")
    assert (tmp_path / "out" / "replay" / "report.html").is_file()


@pytest.mark.parametrize("data", [(), ("--data", "games")])
def test_a_replay_of_a_few_rows_ends_well(driftline: Run, tmp_path: Path, data: tuple[str, ...]) -> None:
    given = (*data, "--limit", "5", "--arms", "popularity", "--out", str(tmp_path / "out"), "--json")
    result = driftline("replay", *given)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["leak_audit"]["permutation"].startswith(("pass", "not run: "))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--items", "items.csv"), "--items needs --events"),
        (("--events", "events.csv", "--from-kafka", "interactions"), "expected one of them"),
        (("--data", "games", "--events", "events.csv"), "expected one of them"),
        (("--data", "films"), "got 'films'; expected shop or games"),
        (("--session", "first"), "got 'first'; expected next or last"),
        (("--session-share", "0.1"), "got it without --session"),
        (("--choices", "0.7"), "got '0.7'; expected two shares from 0 to 1"),
        (("--choices", "0.9,0.1"), "got '0.9,0.1'; expected two shares"),
        (("--choices", "nan,1"), "got 'nan,1'; expected two shares"),
        (("--seed=-1",), "got '-1'; expected whole numbers from 0"),
        (("--seed", "18446744073709551616"), "got '18446744073709551616'"),
    ],
)
def test_options_of_replay_that_make_no_sense_are_refused(tmp_path: Path, given: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, ["replay", "--out", str(tmp_path / "out"), *given], terminal_width=200)
    assert result.exit_code == 2
    assert words in result.output


def test_replay_of_a_topic_takes_the_events_that_a_worker_takes(world: Any, tmp_path: Path) -> None:
    event = {"user_id": "u1", "item_id": "i1", "timestamp_ms": 1_600_000_000_000}
    good, ahead = orjson.dumps(event), orjson.dumps(event | {"timestamp_ms": 4_000_000_000_000})
    world.produce([(b"u1", good), (b"u2", good), (b"u1", ahead), (b"u1", b"{"), (None, good)])
    changes = Processor(world.settings, MemoryStore()).apply(world.log())
    assert (changes.applied, changes.dead) == (3, 2)
    path = topic_file(world.settings, "interactions", tmp_path / "events.jsonl")
    assert [orjson.loads(line)["timestamp_ms"] for line in path.read_bytes().splitlines()] == [1_600_000_000_000] * 3


def test_replay_of_a_topic_says_what_came_too_late_and_needs_no_name_of_the_topic(world: Any, tmp_path: Path) -> None:
    times = [1_600_000_000_000 + n * 60_000 for n in range(40)]
    times[30:33] = [1_500_000_000_000] * 3
    world.produce(
        [
            (b"u1", orjson.dumps({"user_id": "u1", "item_id": f"i{n % 5}", "timestamp_ms": t_ms}))
            for n, t_ms in enumerate(times)
        ]
    )
    assert Processor(world.settings, MemoryStore()).apply(world.log()).too_late == 3
    out = tmp_path / "out"
    given = ["-c", str(world.config), "--from-kafka", "--out", str(out), "--state-only"]
    result = CliRunner().invoke(app, ["replay", *given])
    assert result.exit_code == 0, result.output
    assert "3 of 40 events came too late for a worker (state.late_ms, 60 min)" in result.stderr
    assert "after 40 events" in result.stdout
    again = CliRunner().invoke(app, ["replay", *given[:3], "interactions.by-item", *given[3:]])
    assert "interactions.by-item" in str(again.exception)


def test_a_file_of_adoptions_that_can_not_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"adoptions\.jsonl: can't be written: File exists.*choose another --out"):
        write_adoptions(tmp_path / "file" / "adoptions.jsonl", [])


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/x"])
def test_a_folder_that_can_not_be_made_is_refused_before_the_work(driftline: Run, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    result = driftline("replay", "--events", "nowhere.csv", "--out", str(tmp_path / place))
    refused(result, 65, "choose another --out")
