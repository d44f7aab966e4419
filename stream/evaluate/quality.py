"""The full comparison on the bundled shop: three seeds, both splits, every ablation. Hours; resumable.

    python -m stream.evaluate.quality [--out DIR] [--seeds 0,1,2] [--config NAME]

Writes DIR/split-85 and DIR/split-50 as `driftline replay` does, and DIR/quality.json with both, the commit and the
machine. An interrupted run goes on where it stopped: each arm and seed is kept as soon as its pass is done.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from configs.load import load_settings
from stream.bundled import EVENTS, ITEMS, PROFILES
from stream.evaluate.baselines import SIMPLE_ARMS
from stream.evaluate.progress import progress_bars
from stream.replay import Options, replay
from stream.revision import git_revision

ENGINE_ARMS = (
    "hstu", "graph", "ranker", "ranker+hstu", "ranker+graph", "ranker+profiles", "incremental-hstu",
    "incremental-graph", "incremental-profiles", "incremental:graph=random", "frozen", "incremental",
)  # fmt: skip
PASSES = ((*SIMPLE_ARMS, *ENGINE_ARMS), ("sasrec",), ("retrain",))
"""Arms that share one pass stand together; each line is kept on its own."""
SPLITS = {0.85: PASSES, 0.5: PASSES[:2]}
"""Retraining every week from the middle of the log on would take a day; it runs over the last month."""


def main(
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("out/quality"),
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "0,1,2",
    config: Annotated[str, typer.Option(help="Preset or YAML file.")] = "ecommerce",
    profiles: Annotated[Path | None, typer.Option(help="File of profiles; default: the shipped one.")] = None,
) -> None:
    """Run what is missing and write quality.json."""
    settings = load_settings(config)
    profiles = profiles or (PROFILES if PROFILES.is_file() else None)
    numbers = tuple(int(seed) for seed in seeds.split(","))
    found: dict[str, Any] = {"commit": git_revision(), "machine": machine(), "config": config, "splits": {}}
    for split, passes in SPLITS.items():
        folder = out / f"split-{round(100 * split)}"
        arms: list[str] = []
        for more in passes:
            arms += more
            options = Options(
                EVENTS, folder, ITEMS, arms, split, seeds=numbers, resume=True, profiles=profiles,
                audit_rows=6_000 if more is passes[-1] else 0,
            )  # fmt: skip
            with progress_bars() as show:
                found["splits"][str(split)] = replay(options, settings, show)
            out.mkdir(parents=True, exist_ok=True)
            (out / "quality.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "system": platform.system(),
    }


if __name__ == "__main__":
    typer.run(main)
