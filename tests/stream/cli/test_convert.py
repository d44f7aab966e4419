"""`driftline convert` and what `driftline demo` takes, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.stream.cli.outcome import Run, refused
from typer.testing import CliRunner

from driftline.stream.cli import app


def test_a_named_data_set_is_converted_with_one_command_and_replayed(driftline: Run, tmp_path: Path) -> None:
    lines = [f"{n % 7} {7 + n % 5} {1_082_040_961 + 600 * n}\n" for n in range(60)]
    (tmp_path / "CollegeMsg.txt").write_text("".join(reversed(lines)))
    out = tmp_path / "out"
    result = driftline("convert", "messages", str(tmp_path), str(out), "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["events"], told["items"]) == (60, 0)
    assert told["files"] == [str(out / "events.parquet"), str(out / "driftline.yaml")]
    given = ("--events", told["files"][0], "-c", told["files"][1], "--arms", "popularity", "--no-audit")
    result = driftline("replay", *given, "--out", str(tmp_path / "report"), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["data"]["events"] == 60


def test_a_source_that_does_not_fit_is_refused_with_what_is_expected(driftline: Run, tmp_path: Path) -> None:
    given = ("convert", "games", str(tmp_path), str(tmp_path / "out"))
    refused(driftline(*given), 65, "SRC of games: a folder with playedgames.parquet and game_docs.parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--data", "films"), "got 'films'; expected shop or games"),
        (("--data", "games", "--git", "."), "got --data and --git; expected one of them"),
        (("--limit", "100"), "got --limit without --git"),
    ],
)
def test_a_demo_that_is_asked_for_the_wrong_thing_is_refused(given: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, ["demo", *given], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2
    assert words in result.output


def test_a_demo_of_what_is_no_repository_ends_with_one_sentence(driftline: Run, tmp_path: Path) -> None:
    refused(driftline("demo", "--git", str(tmp_path / "none")), 65, "expected that of a git repository")
