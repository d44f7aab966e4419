"""`driftline state hash|adoptions|backup|restore`: what to compare a replay with and what it follows; copies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from driftline.stream.cli.common import AsJson, Config, out, print_json, settings_of

app = typer.Typer(
    no_args_is_help=True, help="State that workers keep on this host: its hash, what replay follows, copies of it."
)


@app.command("hash")
def hash_of(config: Config = None, as_json: AsJson = False) -> None:
    """Hash, rows and offsets of the state on disk; a worker may run meanwhile.

    `driftline replay --adoptions FILE` ends in the same state_sha256 (topics of one partition).

    Example: `driftline state hash --json`
    """
    from driftline.stream.state.live import read_live_state

    state = read_live_state(settings_of(config).state.root)
    if as_json:
        return print_json(dataclasses.asdict(state))
    out.print(f"state_sha256 {state.state_sha256}", soft_wrap=True)
    out.print(f"{state.users:,} users, {state.items:,} items")
    for number, offset in state.next_offset.items():
        out.print(f"partition {number} to offset {offset}, graph version {state.graph[number][:12] or 'as seeded'}")
    if len(state.next_offset) < state.partitions:
        out.print(f"{len(state.next_offset)} of {state.partitions} partitions lie here; the hash is of these")
    return None


@app.command()
def adoptions(
    to: Annotated[Path, typer.Option("--out", help="JSON lines: partition, offset, sha256, weights.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write which trained graph versions the workers adopted, and at which offsets, for `replay --adoptions`.

    Example: `driftline state adoptions --out adoptions.jsonl`
    """
    from driftline.stream.kafka.broker import broker
    from driftline.stream.replay.adoptions import announced, write_adoptions

    settings = settings_of(config)
    with broker(settings.broker) as bootstrap:
        lines = announced(settings, bootstrap)
    write_adoptions(to, lines)
    versions = len({line["sha256"] for line in lines})
    if as_json:
        return print_json({"adoptions": len(lines), "versions": versions, "file": str(to)})
    return out.print(f"{to}: {len(lines):,} adoptions of {versions:,} graph versions")


@app.command()
def backup(
    to: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Copy the state on this host while workers run: rows, offsets, adopted graph versions.

    Example: `driftline state backup /backups/monday`
    """
    from driftline.stream.state.backup import backup as copy

    return _copied(copy(settings_of(config).state.root, to), to, as_json)


@app.command()
def restore(
    backed_up: Annotated[Path, typer.Argument(metavar="IN", help="Folder of `state backup`.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Put a backup where no state is; the workers go on from its offsets.

    Example: `driftline state restore /backups/monday`
    """
    from driftline.stream.state.backup import restore as put_back

    root = settings_of(config).state.root
    return _copied(put_back(root, backed_up), root, as_json)


def _copied(state: Any, to: Path, as_json: bool) -> None:
    if as_json:
        return print_json(dataclasses.asdict(state) | {"folder": str(to)})
    offsets = ", ".join(f"{number}: {offset}" for number, offset in state.next_offset.items())
    out.print(f"{to}: {state.users:,} users, {state.items:,} items, next offsets {offsets}", soft_wrap=True)
    return out.print(f"state_sha256 {state.state_sha256}", soft_wrap=True)
