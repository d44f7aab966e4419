"""`driftline chaos`: kill everything at every moment, then compare with what one thread makes of the same log."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from driftline.stream.bundled import EVENTS
from driftline.stream.cli.common import AsJson, Config, err, out, print_json, progress, settings_of

Events = Annotated[Path, typer.Option("--events", help="Events whose users and items make the stream.")]
BrokerCommand = Annotated[
    str,
    typer.Option(
        help="A command that runs a broker in the foreground, called with a folder and a port: it is killed, too. "
        "Default: the broker of the settings, which is left alone."
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(chaos)


def chaos(
    kills: Annotated[int, typer.Option(min=0, help="SIGKILLs of workers, at random and between named steps.")] = 10,
    events: Events = EVENTS,
    limit: Annotated[
        int, typer.Option(min=1, help="Events of the stream; the file is repeated if it is short.")
    ] = 20_000,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Workers at once.")] = 1,
    partitions: Annotated[int, typer.Option(min=1, max=64, help="Partitions of the topics.")] = 1,
    scaling: Annotated[str, typer.Option(help="Numbers of workers to go through, such as 1,3,1.")] = "",
    pauses: Annotated[int, typer.Option(min=0, help="SIGSTOPs past the session timeout.")] = 0,
    broker_command: BrokerCommand = "",
    broker_restarts: Annotated[int, typer.Option(min=0, help="SIGKILLs of the broker.")] = 0,
    full_disks: Annotated[int, typer.Option(min=0, help="Lives of a worker in which it can't write.")] = 0,
    damaged: Annotated[int, typer.Option(min=0, help="Bytes flipped in the state.")] = 0,
    trainer: Annotated[
        bool, typer.Option("--trainer", help="With a trainer, whose graph versions are adopted.")
    ] = False,
    queries: Annotated[bool, typer.Option("--queries", help="With the service, asked all the while.")] = False,
    minutes: Annotated[float, typer.Option(min=0, help="Run after run, with other seeds, for so long.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Keep state and messages, and say where.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Break a running driftline on purpose and say whether an event was lost or applied twice.

    State, topics (a prefix of their own) and snapshots are made for the run; yours are not touched. The stream has
    10% duplicates, 5% out of order, 10% fifty minutes late, 1% poison of nine kinds and a clock six hours ahead.

    Example: `driftline chaos --kills 20 --limit 50000 --json`
    """
    from driftline.stream.chaos.setup import Room, run_in

    if broker_restarts and not broker_command:
        raise typer.BadParameter(
            "a broker that is to be killed is started by --broker-command", param_hint="--broker-restarts"
        )
    try:
        steps = tuple(int(part) for part in scaling.split(",") if part.strip())
    except ValueError:
        raise typer.BadParameter(f"got {scaling!r}; expected numbers such as 1,3,1", param_hint="--scaling") from None
    from driftline.stream.chaos.plan import Outcome, Plan

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    deadline, outcomes = time.monotonic() + 60 * minutes, list[Outcome]()
    while not outcomes or time.monotonic() < deadline:
        plan = Plan(
            kills=kills,
            workers=workers,
            partitions=partitions,
            scaling=steps,
            pauses=pauses,
            broker_restarts=broker_restarts,
            full_disks=full_disks,
            damaged=damaged,
            trainer=trainer,
            queries=queries,
            seed=seed + len(outcomes),
        )
        folder = Path(tempfile.mkdtemp(prefix="driftline-chaos-"))
        room = Room(settings_of(config), events, limit, broker_command, folder, keep)
        with progress(None, "applied") as update:

            def say(done: int, line: str) -> None:
                update(done)
                if line:
                    err.print(f"chaos: {done:,} applied: {line}")

            outcome = run_in(room, plan, say)
        outcomes.append(outcome)
        if keep:
            err.print(f"chaos: kept in {folder}")
        if as_json:
            print_json(outcome.as_dict())
        else:
            table = Table("", "")
            for name, value in outcome.as_dict().items():
                table.add_row(name, str(value))
            out.print(table)
            out.print(outcome.sentence(), soft_wrap=True)
    if not all(outcome.holds for outcome in outcomes):
        raise typer.Exit(1)
