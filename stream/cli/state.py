"""`driftline state hash|adoptions`: what to compare a replay with, and what it has to follow."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from stream.cli.common import AsJson, Config, out, print_json, settings_of

app = typer.Typer(no_args_is_help=True, help="State that workers keep on this host: its hash, and what replay follows.")


@app.command("hash")
def hash_of(config: Config = None, as_json: AsJson = False) -> None:
    """Hash, rows and offsets of the state on disk; a worker may run meanwhile.

    `driftline replay --adoptions FILE` ends in the same state_sha256 (topics of one partition).

    Example: `driftline state hash --json`
    """
    from stream.live_state import read_live_state

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
    from stream.adoptions import announced, write_adoptions
    from stream.broker import broker

    settings = settings_of(config)
    with broker(settings.broker) as bootstrap:
        lines = announced(settings, bootstrap)
    write_adoptions(to, lines)
    versions = len({line["sha256"] for line in lines})
    if as_json:
        return print_json({"adoptions": len(lines), "versions": versions, "file": str(to)})
    return out.print(f"{to}: {len(lines):,} adoptions of {versions:,} graph versions")
