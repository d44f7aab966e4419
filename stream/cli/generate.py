"""`driftline generate`: a synthetic stream of any size, and the best that can be reached on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from driftline.stream.cli.common import AsJson, out, parse_time, print_json, progress


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command()(generate)


def generate(
    to: Annotated[Path, typer.Option("--out", help="Folder for events.parquet, items.parquet and optimum.json.")],
    users: Annotated[int, typer.Option(min=1, help="Users; how active they are follows a power law.")] = 10_000,
    items: Annotated[int, typer.Option(min=1, help="Items at the end of the stream.")] = 5_000,
    events: Annotated[int, typer.Option(min=1, help="Events in total.")] = 1_000_000,
    seed: Annotated[int, typer.Option(min=0, max=999_999_999, help="One seed, the same bytes.")] = 0,
    days: Annotated[int, typer.Option(min=1, help="Days that the events are spread over.")] = 365,
    start: Annotated[int, typer.Option(parser=parse_time, metavar="TIME", help="The first day.")] = "2023-01-01",  # type: ignore[assignment]
    genres: Annotated[int, typer.Option(min=1, help="Groups of items that tastes are about.")] = 40,
    zipf: Annotated[
        float, typer.Option(min=0, max=10, help="Exponent of the items' popularity; 1.3 = few hubs.")
    ] = 1.1,
    activity: Annotated[float, typer.Option(min=0, max=10, help="Exponent of the users' activity.")] = 0.6,
    drift_days: Annotated[
        float, typer.Option(min=0, help="A user changes one of three favourite genres this often; 0 = never.")
    ] = 90.0,
    season: Annotated[float, typer.Option(min=0, max=10, help="How far genres swing over a year, in log odds.")] = 0.7,
    growth: Annotated[float, typer.Option(min=0, help="Share of the items that enter after the first day.")] = 0.5,
    fresh: Annotated[float, typer.Option(min=0, help="Share of events on items of the last 30 days alone.")] = 0.15,
    stay: Annotated[float, typer.Option(min=0, help="Chance to stay in the genre of the event before.")] = 0.3,
    explore: Annotated[float, typer.Option(min=0, help="Share of events that follow everybody's taste.")] = 0.1,
    titles: Annotated[bool, typer.Option("--titles", help="Give items titles and categories.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a synthetic stream whose best possible recommendations are known.

    Tastes drift, genres have seasons, the catalogue grows, and few items take most events. `optimum.json` says which
    HR and NDCG the true probabilities reach; `driftline replay` finds it beside the events and says how far each arm is
    from it. Events are written a day at a time, so that memory does not depend on their number.

    Example: `driftline generate --out out/small --users 2000 --items 1000 --events 100000 --titles`, then
    `driftline replay --events out/small/events.parquet --items out/small/items.parquet --out out/small`

    A large one: `driftline generate --out out/large --users 1000000 --items 100000 --events 100000000 --seed 1`
    """
    from driftline.stream.generate.plan import Plan
    from driftline.stream.generate.write import generate as write

    plan = Plan(
        users, items, events, seed, days, start, genres, zipf, activity, drift_days, season, growth, fresh, stay,
        explore, titles,
    )  # fmt: skip
    with progress(events, "events") as update:
        made = write(plan, to, update)
    if as_json:
        print_json(made)
        return
    names = ", ".join(str(to / name) for name in ("events.parquet", "items.parquet", "optimum.json"))
    out.print(
        f"{made['events']:,} events of {made['users']:,} users on {made['items']:,} items, "
        f"{made['events_per_second']:,} events/s: {names}",
        soft_wrap=True,
    )
    if made["test"]["n"]:
        out.print(f"from {made['split']:.0%} of the events on, {best(made['test'])}", soft_wrap=True)


def best(test: dict[str, Any]) -> str:
    """The best that can be reached, for people."""
    known, blind = test["optimum"], test["impersonal"]
    return (
        f"who knows all probabilities reaches HR@10 {known['hr@10']:.4f} and NDCG@10 {known['ndcg@10']:.4f}; "
        f"who knows all but the user, {blind['hr@10']:.4f} and {blind['ndcg@10']:.4f}"
    )
