"""--json: every command that prints a result has it."""

from __future__ import annotations

from typing import Any

import typer.main

from driftline.configs.settings import Settings
from driftline.stream.bundled import EVENTS
from driftline.stream.cli import app
from driftline.stream.events.files import read_columns
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.named import DEFAULT, ENGINE, SIMPLE, about
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


def test_the_help_of_replay_has_a_line_on_each_arm_of_the_registry() -> None:
    told = commands()["replay"].help
    names = [name for family in FAMILIES for name in family.names]
    assert names == [*SIMPLE, *ENGINE]
    for name in names:
        star = " *" if name in default_arms() else ""
        assert f"- `{name}`{star}: {about(name)}" in told
    assert set(DEFAULT) <= set(names)


def test_a_composed_arm_is_told_by_its_parts() -> None:
    assert about("ranker+hstu+graph") == f"{ENGINE['ranker']}, with hstu, with graph"
    assert about("incremental-hstu:graph=random") == f"{ENGINE['incremental']}, without hstu, over graph weights random"


def test_a_simple_arm_of_each_name_can_be_built() -> None:
    settings = Settings()
    setup = Setup(EventLog(read_columns(EVENTS, 200), settings.action), settings)
    assert [build_arm(name, setup)[0].name for name in SIMPLE] == list(SIMPLE)
