"""The full comparison on the bundled shop: three seeds, both splits, every ablation, retraining. Hours; resumable.

    python -m driftline.stream.replay.quality [--out DIR] [--seeds 0,1,2] [--config NAME]

Writes DIR/split-85 and DIR/split-50 as `driftline replay` does, and DIR/quality.json with both, the commit and the
machine. An interrupted run goes on where it stopped: each arm and seed is kept as soon as its pass is done.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from driftline.configs.load import load_settings
from driftline.stream.bundled import EVENTS, ITEMS, PROFILES
from driftline.stream.ops.progress import progress_bars
from driftline.stream.ops.revision import git_revision
from driftline.stream.replay.baselines import SIMPLE_ARMS
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options

ENGINE_ARMS = (
    "hstu", "graph", "ranker", "ranker+hstu", "ranker+graph", "ranker+profiles", "incremental-hstu",
    "incremental-graph", "incremental-profiles", "frozen", "incremental",
)  # fmt: skip
PASSES = ((*SIMPLE_ARMS, *ENGINE_ARMS), ("sasrec",))
"""Arms that share one pass stand together; each line is kept on its own."""
SPLITS = (0.85, 0.5)
GRAPHS = ("incremental:graph=random", "incremental:graph=off")
ONE_SEED = ("incremental-graph", *GRAPHS, "frozen", "weekly_frozen", "retrain", "incremental")
"""On the first split alone: a random graph and none need a pass each, freezing weekly five, retraining more."""


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

    def run(name: str, arms: Sequence[str], split: float, seeds: Sequence[int], audit_rows: int) -> None:
        folder = out / f"split-{round(100 * split)}"
        options = Options(
            EVENTS, folder, ITEMS, arms, split, seeds=seeds, resume=True, profiles=profiles, audit_rows=audit_rows
        )
        with progress_bars() as show:
            found["splits"][name] = replay(options, settings, show)
        (out / "quality.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))

    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        run(str(split), PASSES[0], split, numbers, 0)
        if split == SPLITS[0]:
            run(f"{split}, one seed", ONE_SEED, split, numbers[:1], 0)
        run(str(split), [*PASSES[0], *PASSES[1]], split, numbers, 6_000)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "system": platform.system(),
    }


if __name__ == "__main__":
    typer.run(main)
