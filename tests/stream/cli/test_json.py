"""--json: every command that prints a result has it, and what it prints is what docs/json.md says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from driftline.configs.environment import OTHERS
from driftline.configs.settings import Settings
from driftline.stream.bundled import EVENTS
from driftline.stream.cli import app
from driftline.stream.events.files import read_columns
from driftline.stream.ops.revision import ROOT
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.named import DEFAULT, ENGINE, PAIRS, PEERS, SIMPLE, about
from driftline.stream.replay.registry import FAMILIES, build_arm, default_arms

NO_RESULT = {"up": "runs until it ends", "worker": "as up", "trainer": "as up", "serve": "as up"}


def commands() -> dict[str, Any]:
    found = {}

    def walk(command: Any, path: str) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{path} {name}".strip())
        if not hasattr(command, "commands"):
            found[path] = command

    walk(typer.main.get_command(app), "")
    return found


def test_every_command_that_prints_a_result_has_json() -> None:
    without = {
        name for name, command in commands().items() if not any("--json" in option.opts for option in command.params)
    }
    assert without == set(NO_RESULT)


def rows() -> dict[str, str]:
    """What docs/json.md says, by command."""
    page = (ROOT / "docs" / "json.md").read_text("utf-8")
    found = {}
    for names, value in re.findall(r"^\| ((?:`[a-z .]+`(?:, )?)+) \| (.+) \|$", page, re.MULTILINE):
        found |= dict.fromkeys(re.findall(r"`([a-z .]+)`", names), value)
    return found


def test_the_page_of_json_has_every_command_that_does_not_ask_the_service() -> None:
    told = rows()
    families = [name.removesuffix(" ...") for name in told if name.endswith(" ...")]
    expected = {
        name
        for name, command in commands().items()
        if any("--json" in option.opts for option in command.params)
        and not any("--address" in option.opts for option in command.params)
        and name.split()[0] not in families
    }
    assert {name for name in told if not name.endswith(" ...")} == expected


@pytest.mark.parametrize(
    "call",
    [
        "config validate",
        "validate --events events.csv",
        "import events.csv --items items.csv --out mine",
        "profile try --events events.csv --items items.csv",
        "down",
        "reset --yes",
    ],
)
def test_json_has_the_keys_that_the_page_says(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    events = [f"u{n % 2},i{n % 4},{1_600_000_000_000 + n}" for n in range(30)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp_ms", *events]))
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Pot {n}\n" for n in range(4)))
    result = CliRunner().invoke(app, [*call.split(), "--json"])
    assert result.exit_code == 0, result.output
    (value,) = [name for name in rows() if call.startswith(name)]
    said = rows()[value].split("; of both")[0]
    assert set(json.loads(result.stdout)) == set(re.findall(r"`(\w+)`", said.split(" (`")[0]))


def test_the_help_of_replay_has_a_line_on_each_arm_of_the_registry() -> None:
    told = commands()["replay"].help
    names = [name for family in FAMILIES for name in family.names]
    assert names == [*SIMPLE, *PAIRS, *ENGINE, *PEERS]
    for name in names:
        star = " *" if name in default_arms() else ""
        assert f"- `{name}`{star}: {about(name)}" in told
    assert set(DEFAULT) <= set(names)


def test_a_composed_arm_is_told_by_its_parts() -> None:
    assert about("ranker+hstu+graph") == f"{ENGINE['ranker']}, with hstu, with graph"
    assert about("incremental-hstu:graph=random") == f"{ENGINE['incremental']}, without hstu, graph random"


def test_a_simple_arm_of_each_name_can_be_built() -> None:
    settings = Settings()
    setup = Setup(EventLog(read_columns(EVENTS, 200), settings.action), settings)
    assert [build_arm(name, setup)[0].name for name in SIMPLE] == list(SIMPLE)


def test_every_variable_that_an_option_reads_is_known_not_to_be_a_setting() -> None:
    read = {str(option.envvar) for command in commands().values() for option in command.params if option.envvar}
    assert read
    assert read <= set(OTHERS)
