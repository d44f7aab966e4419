"""`driftline systems ...`: published systems as capabilities of the engine, and what is shown of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from driftline.stream.bundled import BUNDLED
from driftline.stream.cli.common import AsJson, Config, err, out, print_json, settings_of
from driftline.stream.ops.progress import progress_bars

RESULTS = Path("docs/results")

app = typer.Typer(no_args_is_help=True, help="Published systems in the engine: which are wired, and what they add.")


@app.command("table")
def show_table(
    results: Annotated[Path, typer.Option(help="Folder of result files.")] = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Every published system with its state and the lifts that result files show, as Markdown: docs/systems.md.

    Example: `driftline systems table --results docs/results`
    """
    from driftline.stream.replay.systems import markdown, table
    from driftline.stream.replay.systems import results as read

    there = results.is_dir() or results != RESULTS
    if not there:
        err.print(f"note: there is no {results} here, so nothing is shown of any system", soft_wrap=True)
    entries = table(read(results) if there else {})
    if as_json:
        print_json(entries)
    else:
        print(markdown(entries), end="")


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="NAME|all", help="A system that is wired.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for the reports and system-NAME.json.")] = Path(
        "out/systems"
    ),
    data: Annotated[str, typer.Option(help="Bundled data: shop or games.")] = "shop",
    split: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the rows that only warm up.")] = 0.85,
    seeds: Annotated[int, typer.Option(min=1, max=9, help="How many.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of the data.")] = None,
    replay: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Without: the contract of its parts alone.")
    ] = True,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show what a system does: the contract of its parts, then a replay with it on, off, as placebo and as template.

    A result that is to count is put into docs/results. Hours on the whole data.

    Example: `driftline systems run hstu --limit 20000 --json`
    """
    from driftline.stream.replay.show_system import show_system
    from driftline.stream.replay.source import Options
    from driftline.stream.replay.systems import ROWS, row_of

    if data not in BUNDLED:
        raise typer.BadParameter(f"got {data!r}; expected {' or '.join(BUNDLED)}", param_hint="--data")
    rows = [row for row in ROWS if row.name] if name == "all" else [row_of(name)]
    of, found = BUNDLED[data], list[dict[str, Any]]()
    settings = settings_of(config or of.preset)
    profiles = of.profiles if of.profiles is not None and of.profiles.is_file() else None
    for row in rows:
        options = Options(
            of.events,
            to / row.name,
            of.items,
            (),
            split,
            seeds=range(seeds),
            limit=limit,
            resume=True,
            profiles=profiles,
        )
        with progress_bars() as show:
            result = show_system(row, options, settings, show if replay else None)
        file = to / f"system-{row.name}.json"
        file.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
        found.append(result)
        if not as_json:
            kept = ", ".join(f"{part}: {'holds' if held else 'BROKEN'}" for part, held in result["contract"].items())
            out.print(f"{row.name}: contract of {kept}; {file}", soft_wrap=True)
            for one in result.get("comparisons", ()):
                if one["family"] == "parts":
                    low, high = one["ci"]
                    words = f"{one['lift']:+.1%} [{100 * low:.1f}, {100 * high:.1f}]"
                    out.print(f"  over {one['b']} on {one['list']}: {words}", soft_wrap=True)
        for reason in result["broken"]:
            err.print(reason, soft_wrap=True)
    if as_json:
        print_json(found)
    if any(result["broken"] for result in found):
        raise typer.Exit(1)
