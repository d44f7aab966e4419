"""`driftline peers`: the environment in which a replay runs recommenders of other makers."""

from __future__ import annotations

import sys

import typer

from driftline.stream.cli.common import AsJson, out, print_json

app = typer.Typer(help="Recommenders of other makers, as arms of a replay.", no_args_is_help=True)


@app.command()
def setup(as_json: AsJson = False) -> None:
    """Make their virtual environment, about 1.3 GB: RecTools, implicit and LightGBM, locked. Done once.

    Example: `driftline peers setup`, then `driftline replay --out out/peers --arms ease_recent,peer:implicit_als`
    """
    from driftline.stream.replay.peers.environment import set_up

    root = set_up(lambda step: print(f"peers: {step}", file=sys.stderr, flush=True))
    if as_json:
        print_json({"environment": str(root)})
    else:
        out.print(f"peers in {root}", soft_wrap=True)
