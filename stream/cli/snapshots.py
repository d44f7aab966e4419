"""`driftline snapshot list|show|rollback|release`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.table import Table

from driftline.configs.errors import SnapshotError
from driftline.stream.cli.common import AsJson, Config, out, print_json, settings_of, when

app = typer.Typer(no_args_is_help=True, help="Published snapshots: what serves, and going back.")
Version = Annotated[str, typer.Argument(help="As `snapshot list` names it; its number alone is enough.")]


@app.command("list")
def list_them(config: Config = None, as_json: AsJson = False) -> None:
    """All snapshots on disk, newest first.

    One that builds on others holds what changed; 12 + 3 are the whole snapshot 12 and three deltas on it. Any of them
    can be rolled back to.

    Example: `driftline snapshot list`
    """
    from driftline.serving.snapshot import list_snapshots

    root = settings_of(config).serving.snapshots
    entries = list_snapshots(root)
    if as_json:
        return print_json([dataclasses.asdict(entry) for entry in entries])
    if not entries:
        return out.print(f"no snapshots in {root} yet; `driftline trainer` publishes them")
    table = Table()
    table.add_column("version", no_wrap=True)  # what other commands take: whole on a narrow screen, too
    for name in ("state", "created", "learnt to", "MB", "builds on", "NDCG@10"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        ndcg = entry.metrics.get("ndcg@10")
        table.add_row(
            entry.version, entry.state, when(entry.created_ms), when(entry.watermark_ms), f"{entry.bytes / 1e6:.1f}",
            f"{int(entry.base.split('-')[0])} + {entry.deltas - 1}" if entry.base else "",
            "" if ndcg is None else f"{ndcg:.4f}",
        )  # fmt: skip
    out.print(table)
    for entry in entries:
        if entry.reason:
            out.print(f"{entry.version} {entry.state}: {entry.reason}", soft_wrap=True)
    return None


@app.command()
def show(version: Version, config: Config = None, as_json: AsJson = False) -> None:
    """One snapshot's manifest as JSON, with --json or without, after checking every sum.

    Example: `driftline snapshot show 12`
    """
    from driftline.serving.snapshot import open_snapshot

    root = settings_of(config).serving.snapshots
    snapshot = open_snapshot(root, _full(root, version))
    arrays = {
        part: {name: [a.dtype.str, list(a.shape)] for name, a in of.items()} for part, of in snapshot.parts.items()
    }
    print_json(
        {
            "version": snapshot.version,
            "sequence": snapshot.sequence,
            "created_ms": snapshot.created_ms,
            **dataclasses.asdict(snapshot.meta),
            "parts": arrays,
        }
    )


@app.command()
def rollback(version: Version, config: Config = None, as_json: AsJson = False) -> None:
    """Serve an older snapshot and hold it: new ones are published, but do not serve until `snapshot release`.

    Example: `driftline snapshot rollback 12`
    """
    from driftline.serving.publish import rollback as roll_back

    root = settings_of(config).serving.snapshots
    version = _full(root, version)
    roll_back(root, version)
    if as_json:
        return print_json({"serves": version, "held": True})
    return out.print(f"{version} serves and is held; `driftline snapshot release` ends the hold")


@app.command()
def release(config: Config = None, as_json: AsJson = False) -> None:
    """End a hold: the newest snapshot that may serve serves again.

    Example: `driftline snapshot release`
    """
    from driftline.serving.publish import release as let_go

    version = let_go(settings_of(config).serving.snapshots)
    return print_json({"serves": version, "held": False}) if as_json else out.print(f"{version} serves")


def _full(root: object, version: str) -> str:
    """The whole name of a version given by its number."""
    from pathlib import Path

    from driftline.serving.snapshot import list_snapshots

    entries = list_snapshots(Path(str(root)))
    for entry in entries:
        if version == entry.version or (version.isdigit() and int(version) == entry.sequence):
            return entry.version
    have = ", ".join(str(entry.sequence) for entry in entries[:10]) or "none"
    raise SnapshotError(f"no snapshot {version!r} in {root}; there are {have}")
