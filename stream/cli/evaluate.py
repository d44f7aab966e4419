"""`driftline replay` and `driftline validate`: files, no broker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from stream.cli.common import AsJson, out, print_json, when


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(validate)


def validate(
    events: Annotated[Path, typer.Option(help="Events: .parquet, .csv or .jsonl.")],
    as_json: AsJson = False,
) -> None:
    """What is wrong with a file, by row and kind. Exit code 65 if anything is.

    Example: `driftline validate --events events.csv`
    """
    from configs.errors import InputError
    from stream.files import validate as check

    report = check(events)
    if as_json:
        print_json(report.as_json())
    else:
        span = (
            f", {when(report.first_ms)} to {when(report.last_ms)}"
            if report.first_ms is not None and report.last_ms is not None
            else ""
        )
        out.print(f"{report.path}: {report.rows:,} rows{span}")
        if report.unknown:
            out.print(f"unknown columns, kept: {', '.join(report.unknown)}")
        table = Table("kind", "column", "rows", "")
        for (kind, column), n in report.counts.items():
            table.add_row(kind, column, f"{n:,}", "warning" if (kind, column) in report.warnings else "error")
        if report.counts:
            out.print(table)
        for problem in report.examples:
            out.print(f"  {problem}")
        out.print("ok" if report.ok else "not ok")
    if not report.ok:
        raise typer.Exit(InputError.exit_code)
