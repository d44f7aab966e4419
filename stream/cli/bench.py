"""`driftline bench ...`: speeds, measured on this machine."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, help="Speeds, measured on this machine.")
