"""`driftline bench ...`: speeds, measured on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from driftline.stream.cli.common import AsJson, Config, err, out, print_json, settings_of

app = typer.Typer(no_args_is_help=True, help="Speeds, measured on this machine.")


@app.command()
def ingest(
    events: Annotated[int, typer.Option(min=1000, max=400_000, help="Events of the bundled shop.")] = 100_000,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Worker and backfill from broker to committed state, beside an empty Faust agent on the same records.

    A broker of your own is used as it is (`broker.bootstrap`), with topics that are deleted at the end.

    Example: `driftline bench ingest --json`
    """
    from driftline.stream.bench.ingest import bench_ingest

    _show(bench_ingest(settings_of(config), events, err.print), as_json)


@app.command()
def serve(
    requests: Annotated[int, typer.Option(min=50, help="Requests of each kind.")] = 500,
    processes: Annotated[int, typer.Option(min=1, help="Serving processes on one port in the last part.")] = 2,
    items: Annotated[int, typer.Option(min=100, help="Items of the shop.")] = 4000,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Latencies and rates of the gRPC service, beside a server that only echoes.

    The last part asks several processes on one port: in a closed loop, and with arrivals that wait for no answer.

    Example: `driftline bench serve --json`
    """
    from driftline.serving.bench import bench_serve

    _show(bench_serve(settings_of(config), requests, tell=err.print, processes=processes, items=items), as_json)


@app.command()
def graph(
    events: Annotated[int, typer.Option(min=1000, max=400_000, help="Events of the bundled shop.")] = 40_000,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The processor alone (validate, graph memory, history, commit), and the graph's memories beside PyG's TGN.

    Example: `driftline bench graph --json`
    """
    from driftline.stream.bench.graph import bench_graph

    _show(bench_graph(settings_of(config), events), as_json)


@app.command()
def hstu(config: Config = None, as_json: AsJson = False) -> None:
    """The sequence model: training steps, appended events and many candidates, each beside a peer in the same run.

    Example: `driftline bench hstu --json`
    """
    from driftline.stream.bench.hstu import bench_hstu

    _show(bench_hstu(settings_of(config)), as_json)


@app.command()
def learn(config: Config = "ecommerce", as_json: AsJson = False) -> None:
    """What scoring and learning one group costs, by part: baskets of the bundled shop, and single events.

    Example: `driftline bench learn --json`
    """
    from driftline.stream.bench.learn import bench_learn

    _show(bench_learn(settings_of(config)), as_json)


@app.command()
def scale(
    users: Annotated[int, typer.Option(min=1, max=10_000_000, help="User rows.")] = 1_000_000,
    history: Annotated[int, typer.Option(min=1, help="Events of each user.")] = 100,
    items: Annotated[int, typer.Option(min=1, help="Items that they took.")] = 10_000,
    events: Annotated[int, typer.Option(min=1, help="Events that come after the opening.")] = 200_000,
    groups: Annotated[int, typer.Option(min=0, help="Baskets of three that a trainer learns.")] = 1000,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Many users: how long a partition, and a trainer, take to open, what memory they take, how fast they go on.

    A million users of a hundred events take some gigabytes of disk and a minute or two to write.

    Example: `driftline bench scale --users 100000 --json`
    """
    from driftline.stream.bench.scale import bench_scale

    _show(bench_scale(settings_of(config), users, history, items, events, groups, err.print), as_json)


@app.command()
def publish(
    items: Annotated[int, typer.Option(min=100, max=2_000_000, help="Items of the catalogue.")] = 100_000,
    groups: Annotated[int, typer.Option(min=1, help="Baskets learnt between two snapshots.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Snapshots by delta.")] = 5,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Snapshots at size: bytes of a whole one and of a delta, what learning waits for, how a server adopts one.

    Example: `driftline bench publish --items 100000 --json`
    """
    from driftline.stream.bench.publish import bench_publish

    _show(bench_publish(settings_of(config), items, groups, rounds), as_json)


@app.command()
def llm(
    profiles: Annotated[int, typer.Option(min=1, help="Profiles to write.")] = 16,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """The configured language model: profiles a second, and how many facets passed the check.

    Example: `driftline bench llm --json`
    """
    from driftline.stream.bench.parts import bench_llm

    _show(bench_llm(settings_of(config), profiles), as_json)


def _show(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return print_json(figures)
    for name, value in figures.items():
        figure = "  ".join(f"{key} {inner}" for key, inner in value.items()) if isinstance(value, dict) else value
        out.print(Text.assemble((name, "bold"), f"  {figure}"))
    return None
