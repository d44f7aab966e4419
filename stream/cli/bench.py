"""`driftline bench ...`: speeds, measured on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from stream.cli.common import AsJson, Config, err, out, print_json, settings_of

app = typer.Typer(no_args_is_help=True, help="Speeds, measured on this machine.")


@app.command()
def ingest(
    events: Annotated[int, typer.Option(min=1000, max=400_000, help="Events of the bundled shop.")] = 40_000,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The worker from broker to committed state, beside an empty Faust agent on the same records.

    Example: `driftline bench ingest --json`
    """
    from stream.bench_ingest import bench_ingest

    _show(bench_ingest(settings_of(config), events, err.print), as_json)


@app.command()
def serve(
    requests: Annotated[int, typer.Option(min=50, help="Requests of each kind.")] = 500,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Latencies and rates of the gRPC service, beside a server that only echoes.

    Example: `driftline bench serve --json`
    """
    from serving.bench import bench_serve

    _show(bench_serve(settings_of(config), requests, tell=err.print), as_json)


@app.command()
def graph(
    events: Annotated[int, typer.Option(min=1000, max=400_000, help="Events of the bundled shop.")] = 40_000,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The processor alone: validate, graph memory, history, commit; in memory and in RocksDB.

    Example: `driftline bench graph --json`
    """
    from stream.bench_parts import bench_graph

    _show(bench_graph(settings_of(config), events), as_json)


@app.command()
def hstu(config: Config = None, as_json: AsJson = False) -> None:
    """The sequence model: training steps on the stream, and one user's query.

    Example: `driftline bench hstu --json`
    """
    from stream.bench_parts import bench_hstu

    _show(bench_hstu(settings_of(config)), as_json)


@app.command()
def llm(
    profiles: Annotated[int, typer.Option(min=1, help="Profiles to write.")] = 16,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The configured language model: profiles a second, and how many facets passed the check.

    Example: `driftline bench llm --json`
    """
    from stream.bench_parts import bench_llm

    _show(bench_llm(settings_of(config), profiles), as_json)


def _show(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return print_json(figures)
    for name, value in figures.items():
        figure = "  ".join(f"{key} {inner}" for key, inner in value.items()) if isinstance(value, dict) else value
        out.print(Text.assemble((name, "bold"), f"  {figure}"))
    return None
