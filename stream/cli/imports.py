"""`driftline import`: files of other people to files in the schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftline.configs.files import presets
from driftline.configs.settings import Settings
from driftline.stream.cli.common import AsJson, Config, out, print_json, progress, settings_of, when
from driftline.stream.cli.composed import composed
from driftline.stream.cli.own import (
    FILES,
    SOURCES,
    Told,
    say,
    show,
    together,
)

if TYPE_CHECKING:
    from driftline.stream.convert.run import Done


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command("import")(composed(import_files, FILES))


def import_files(
    source: Annotated[str, typer.Argument(metavar="SRC", help=f"Events: {SOURCES}.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for events.parquet, items.parquet and driftline.yaml.")],
    items: Annotated[str | None, typer.Option(help="Items, in the same formats.")] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the configuration; else that of your own file after -c, or of the file of events."),
    ] = None,
    *,
    told: Told,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Convert files of your own to the schema: columns guessed and shown, times converted, events sorted by time.

    Example: `driftline import ratings.csv --items movies.csv --action rate -c media --out mine`
    """
    from driftline.stream.convert.guess import EVENTS, ITEMS
    from driftline.stream.convert.run import Plan, is_converted, titles_of, write_events, write_items
    from driftline.stream.convert.words import below_zero, check_value, prices_below_zero, reading_of, write_config
    from driftline.stream.events.ids import Join

    settings = settings_of(config)
    event_files, item_files = told.events(settings), told.items(settings)
    plan = Plan.of(EVENTS, source, event_files, settings.signals.context)
    item_plan = Plan.of(ITEMS, items, item_files) if items is not None else titles_of(plan, item_files)
    show(plan)
    if item_plan is not None:
        show(item_plan)
    say(check_value(plan, settings))
    whole: dict[str, Any] = {}
    files, join = [to / "events.parquet"], None
    if item_plan is None and is_converted(to / "items.parquet"):
        say(f"{to / 'items.parquet'} is of an earlier import and stays; --items FILE writes it anew")
    with together(to) as begun:
        with progress(None, "rows of events read") as update:
            done = write_events(plan, begun / "events.parquet", settings, told.bad, update)
        say(below_zero(plan, done, settings))
        say(prices_below_zero(plan, done))
        whole["events"] = done.report.as_json() | {
            "written": done.written, "put_aside": done.bad, "below_zero": done.below_zero
        }  # fmt: skip
        if item_plan is not None:
            with progress(None, "rows of items read") as update:
                item_done = write_items(item_plan, begun / "items.parquet", told.bad_items, update)
            say(prices_below_zero(item_plan, item_done))
            whole["items"] = item_done.report.as_json() | {"written": item_done.written, "put_aside": item_done.bad}
            files.append(to / "items.parquet")
            join = Join.of(done.report.item_rows, item_done.report.item_rows)
            whole["join"] = join.as_json()
    found = reading_of(plan.mapping, event_files)
    item_found = {} if item_plan is None or items is None else reading_of(item_plan.mapping, item_files)
    if name is None:
        name = "" if settings.name not in presets() else plan.source.name or None
    if write_config(to / "driftline.yaml", config, found, item_found, name=name):
        files.append(to / "driftline.yaml")
    whole["files"] = [str(path) for path in files]
    if as_json:
        print_json(whole)
        return
    _print_done(done, settings, told.bad)
    if item_plan is not None:
        out.print(f"{item_done.written:,} items{_aside(item_done, told.bad_items)}", soft_wrap=True)
    if join is not None:
        apart = f"{join.ids - join.joined_ids:,} ids with {join.rows - join.joined_rows:,} events join none"
        ids = f"{join.joined_ids:,} of {join.ids:,} item ids of the events are among the items"
        out.print(f"{ids}; {apart}" if join.joined_ids < join.ids else ids, soft_wrap=True)
        columns = [
            f"{one.mapping.columns['item_id']!r} of {one.source}" for one in (plan, item_plan) if one is not None
        ]
        if problem := join.problem(*columns):
            out.print(f"warning: {problem}", soft_wrap=True)
    out.print(", ".join(str(path) for path in files), soft_wrap=True)


def _print_done(done: Done, settings: Settings, bad: Path | None) -> None:
    from driftline.stream.convert.words import unset_actions

    report = done.report
    span = f"{when(report.first_ms or 0)} to {when(report.last_ms or 0)}"
    order = report.order
    was = "sorted by time" if order is not None and order.earlier else "in order of time already"
    out.print(f"{done.written:,} events, {span}, {was}{_aside(done, bad)}", soft_wrap=True)
    if order is not None and order.earlier:
        out.print(f"as they were, {order.too_late:,} of {order.rows:,} would have come too late", soft_wrap=True)
    for problem in report.examples:
        if problem.warning:
            n = report.counts[problem.kind, problem.column]
            out.print(f"warning: {problem}{f' ({n:,} rows)' if n > 1 else ''}", soft_wrap=True)
    if done.duplicates:
        out.print(f"warning: {done.duplicates:,} events have the event_id of an earlier one and will be dropped")
    if words := unset_actions(settings, done.actions):
        out.print(words, soft_wrap=True)


def _aside(done: Done, bad: Path | None) -> str:
    replaced = f", {done.repeated:,} earlier rows of the same ids replaced" if done.repeated else ""
    return f"{replaced}; {done.bad:,} rows put aside in {bad}" if done.bad else replaced
