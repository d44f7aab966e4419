"""What `driftline systems run` does for one system: its parts' contract, then a replay of its arms."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from driftline.configs.load import switched
from driftline.configs.settings import Settings
from driftline.graph.texts import TextTable
from driftline.graph.view import ItemTable
from driftline.model.parts import made
from driftline.stream.learn.contracts import check_part
from driftline.stream.ops.revision import git_revision
from driftline.stream.replay.run import Progress, replay
from driftline.stream.replay.source import Options
from driftline.stream.replay.systems import Row, arms_to_run


def show_system(row: Row, options: Options, settings: Settings, progress: Progress | None) -> dict[str, Any]:
    """The content of a result file: `contract` by part, `broken` in words, and what a replay found.

    Args:
        row: of the system.
        options: of the replay; its arms are those of the system.
        settings: the whole configuration.
        progress: of the replay; None = no replay.
    """
    contract, broken = {}, []
    for name in parts_of(row.name, settings):
        with tempfile.TemporaryDirectory() as folder:
            try:
                check_part(name, Path(folder))
            except AssertionError as error:
                broken.append(f"part {name}: {error}")
        contract[name] = not any(reason.startswith(f"part {name}:") for reason in broken)
    found: dict[str, Any] = {"system": row.name, "row": row.number, "commit": git_revision(), "contract": contract}
    found["broken"] = broken
    if progress is not None:
        found |= replay(replace(options, arms=arms_to_run(row)), settings, progress)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    return found


def parts_of(system: str, settings: Settings) -> list[str]:
    """The parts that are there when a system is on and not when it is off."""
    text = TextTable(settings.ranker.text_dim)
    on, off = (made(switched(settings, {system: arm}), ItemTable(), text) for arm in ("on", "off"))
    return [name for name in on if name not in off]
