"""The command line: `driftline COMMAND`. Thin: every command loads its settings, calls one function and prints.

Results go to stdout (with `--json` one JSON object), progress to stderr. An error that a user can mend is one message
and the exit code of configs/errors.py; any other is a traceback and 70.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

for library in ("OMP", "OPENBLAS", "MKL"):  # before numpy loads: the parts run beside each other, and threads contend
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from driftline.client import ClientError  # noqa: E402
from driftline.configs.errors import EXIT_CODES, InputError  # noqa: E402
from driftline.stream.cli import (  # noqa: E402
    backfill,
    bench,
    chaos,
    convert,
    dlq,
    evaluate,
    forget,
    generate,
    imports,
    inspect,
    parts,
    peers,
    query,
    snapshots,
    state,
    streams,
    systems,
    up,
    withdraw,
)
from driftline.stream.exits import report  # noqa: E402
from driftline.stream.kafka.quiet import quiet_clients  # noqa: E402

app = typer.Typer(
    name="driftline",
    help="A streaming recommendation engine: Kafka events in, a dynamic graph and HSTU in between, gRPC answers out.",
    epilog=f"Exit codes: {', '.join(f'{code} {word}' for code, word in EXIT_CODES.items())}.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for module in (up, imports, convert, parts, backfill, query, evaluate, generate, inspect, forget, withdraw, chaos):
    module.register(app)
app.add_typer(snapshots.app, name="snapshot")
app.add_typer(state.app, name="state")
app.add_typer(dlq.app, name="dlq")
app.add_typer(inspect.config_app, name="config")
app.add_typer(inspect.profile_app, name="profile")
app.add_typer(bench.app, name="bench")
app.add_typer(systems.app, name="systems")
app.add_typer(peers.app, name="peers")


def print_version(wanted: bool) -> None:
    """What `--version` does."""
    if wanted:
        print(f"driftline {version('driftline')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
]


@app.callback()
def before_any_command(show_version: Version = False) -> None:
    """Options that belong to no command; the help is that of `app`."""


def main() -> None:
    """Entry point of the `driftline` command."""
    streams.prepare()
    quiet_clients()
    try:
        try:
            app()
        finally:
            streams.finish()
    except UnicodeEncodeError as error:
        if error.object not in sys.argv:
            sys.exit(report(error))
        sys.exit(report(InputError(f"argument {error.object!r} is not UTF-8; expected text")))
    except ClientError as error:
        print(f"driftline: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        sys.exit(report(streams.told(error)))
    except Exception as error:  # noqa: BLE001 - the last place where an error can become a message
        sys.exit(report(error))
