"""`driftline backfill`: what the topics hold, into the state of this host, faster than a worker."""

from __future__ import annotations

import typer

from driftline.configs.errors import INTERRUPTED_EXIT_CODE
from driftline.stream.cli.common import AsJson, Config, err, out, print_json, settings_of


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command()(backfill)


def backfill(config: Config = None, as_json: AsJson = False) -> None:
    """Apply all that the topics hold to the state on this host, then end: for a long history, or after a long stop.

    It does what a worker does, with the same guarantees, faster; no worker may run meanwhile, and one goes on
    after it. Ctrl-C ends it in order: the next one, or a worker, goes on from there.

    Example: `driftline backfill -c ecommerce && driftline worker -c ecommerce`
    """
    from driftline.stream.backfill import run_backfill
    from driftline.stream.kafka.broker import broker

    settings = settings_of(config)
    with broker(settings.broker) as bootstrap:
        err.print(f"backfill: starting, state in {settings.state.root.absolute()}; Ctrl-C ends it", soft_wrap=True)
        done = run_backfill(settings, bootstrap)
    if as_json:
        print_json(done)
    else:
        also = ", ".join(
            f"{done[name]:,} {name.replace('_', ' ')}"
            for name in ("dead", "duplicates", "late", "too_late", "unknown_actions")
            if done[name]
        )
        out.print(
            f"{done['records']:,} records in {done['seconds']:.1f} s, {done['per_s']:,} a second; {done['applied']:,} "
            f"events applied{also and f' ({also})'}",
            soft_wrap=True,
        )
    if not done["complete"]:
        err.print("backfill: ended before the end of the topics; a worker, or another backfill, goes on from here")
        raise typer.Exit(INTERRUPTED_EXIT_CODE)
