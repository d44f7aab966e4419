"""`driftline replay` and `driftline validate`: files, no broker."""

from __future__ import annotations

import os
import shlex
import sys
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperCommand

from driftline.configs import environment
from driftline.configs.settings import Settings
from driftline.serving.scratch import Scratch
from driftline.stream.bundled import BUNDLED
from driftline.stream.cli.arms import print_arms
from driftline.stream.cli.common import AsJson, Config, err, out, print_json, settings_of, when
from driftline.stream.cli.composed import composed
from driftline.stream.cli.own import (
    FILES,
    SOURCES,
    Told,
    checked_events,
    checked_items,
    own_files,
)
from driftline.stream.cli.topic import topic_file, without_prefix
from driftline.stream.ops.progress import progress_bars
from driftline.stream.replay.named import help_of_arms

if TYPE_CHECKING:
    from driftline.stream.events.checks import Report
    from driftline.stream.process.processor import Record


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    help_of_replay = f"{cleandoc(replay.__doc__ or '')}\n\n{help_of_arms()}"
    app.command(cls=Replay, help=help_of_replay)(composed(replay, FILES))
    app.command()(composed(validate, FILES))


class Replay(TyperCommand):
    """The command `replay`, whose --from-kafka may stand without a topic: typer has no options of that kind."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Gives the topic of events to a --from-kafka that another option, or nothing, follows."""
        pairs = zip(args, [*args[1:], "-"], strict=False)  # there may be no argument at all
        is_bare = [word == "--from-kafka" and after.startswith("-") for word, after in pairs]
        filled = [f"{word}=interactions" if bare else word for word, bare in zip(args, is_bare, strict=True)]
        return super().parse_args(ctx, filled)


def replay(
    to: Annotated[Path, typer.Option("--out", help="Folder for metrics.json and report.html.")] = Path("out/replay"),
    *,
    events: Annotated[str | None, typer.Option(help=f"Events: {SOURCES}; default: the bundled shop.")] = None,
    items: Annotated[str | None, typer.Option(help="Items, in the same formats.")] = None,
    data: Annotated[str | None, typer.Option(help="Bundled data instead: shop, or games.")] = None,
    from_kafka: Annotated[
        str | None,
        typer.Option(
            metavar="[TOPIC]",
            help="Read this topic instead of a file, named with or without broker.prefix; default: interactions.",
        ),
    ] = None,
    arms: Annotated[str, typer.Option(help="Comma-separated, those listed above; default: those with a star.")] = "",
    split: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the rows that only warm up.")] = 0.85,
    candidates: Annotated[str, typer.Option(help="seen, or items = those of the items file.")] = "seen",
    seeds: Annotated[str, typer.Option("--seed", "--seeds", help="One, or several with commas.")] = "0",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of the file.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Take over results that lie in --out.")] = False,
    hold_out_items: Annotated[float, typer.Option(min=0, max=0.9, help="Share of items unseen before the split.")] = 0,
    profiles: Annotated[
        Path | None, typer.Option(help="Profile file; default: the shipped one, else the template.")
    ] = None,
    adoptions: Annotated[
        Path | None, typer.Option(help="Follow these adoptions of graph versions to the state of a worker.")
    ] = None,
    audit: Annotated[bool, typer.Option("--audit/--no-audit", help="Prove that no arm knows the future.")] = True,
    state_only: Annotated[bool, typer.Option("--state-only", help="Only the state of the log: no arm runs.")] = False,
    session: Annotated[
        str, typer.Option(help="Ask for the next event of a session, or for its last; default: for all groups.")
    ] = "",
    session_share: Annotated[float, typer.Option(min=1e-6, max=1, help="Share of the sessions that is scored.")] = 1.0,
    learn_share: Annotated[
        float, typer.Option(min=1e-3, max=1, help="Share of the groups that is learnt; the others are only counted.")
    ] = 1.0,
    choices: Annotated[
        str,
        typer.Option(
            metavar="FROM,TO",
            help="Shares of the rows between which settings were chosen. With --split before FROM they are not scored; "
            "with --split before TO figures are to choose by, and the report says so. 0,0 = nothing was chosen.",
        ),
    ] = "0.7,0.85",
    told: Told,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate on a historical log through the code that runs live: predict, then learn.

    Example: `driftline replay --events events.parquet --items items.parquet --out out/mine --arms ranker,ease_recent`
    """
    from driftline.stream.durable import make_folder
    from driftline.stream.replay.run import replay as run
    from driftline.stream.replay.sessions import PROTOCOLS
    from driftline.stream.replay.source import Options

    if candidates not in ("seen", "items"):
        raise typer.BadParameter(f"got {candidates!r}; expected seen or items", param_hint="--candidates")
    if session not in ("", *PROTOCOLS):
        raise typer.BadParameter(f"got {session!r}; expected {' or '.join(PROTOCOLS)}", param_hint="--session")
    if session_share < 1 and not session:
        raise typer.BadParameter(
            "got it without --session; expected --session next or last", param_hint="--session-share"
        )
    if state_only and arms:
        raise typer.BadParameter("got --state-only and --arms; expected one of them", param_hint="--state-only")
    numbers, span = _numbers(seeds), _span(choices)
    if events is not None and from_kafka is not None:
        raise typer.BadParameter("got --events and --from-kafka; expected one of them")
    if data is not None and (events, items, from_kafka) != (None, None, None):
        raise typer.BadParameter("got --data and a source; expected one of them", param_hint="--data")
    if data not in (None, *BUNDLED):
        raise typer.BadParameter(f"got {data!r}; expected {' or '.join(BUNDLED)}", param_hint="--data")
    if events is None and from_kafka is None:
        if items is not None:
            raise typer.BadParameter("--items needs --events or --from-kafka; without them the bundled shop is read")
        found = BUNDLED[data or "shop"]
        events, items, config = str(found.events), str(found.items), config or found.preset
        profiles = profiles or (found.profiles if found.profiles and found.profiles.is_file() else None)
    settings = settings_of(config)
    records: list[Record] | None = None
    make_folder(to)
    with (
        Scratch("topic") as folder,
        own_files(events, items, settings, told, to / "files") as (event_file, item_file),
    ):
        if from_kafka is not None:
            records = None if adoptions is None else []
            topic = without_prefix(settings, from_kafka)
            event_file = topic_file(settings, topic, folder / "events.jsonl", records, limit)
        options = Options(
            Path(str(event_file)), to, item_file, list(dict.fromkeys(filter(None, arms.split(",")))), split, candidates,
            numbers, limit, resume, hold_out_items, profiles,
            adoptions=adoptions, records=records, audit_rows=None if audit else 0, state_only=state_only,
            session=session, session_share=session_share, learn_share=learn_share, choices=span,
            command=_command(),
        )  # fmt: skip
        with progress_bars() as show:
            metrics = run(options, settings, show, lambda words: err.print(words, soft_wrap=True))
    if as_json:
        print_json(metrics)
    elif state_only:
        rows, rate = metrics["data"]["events"], metrics["events_per_second"]
        out.print(f"state_sha256 {metrics['state_sha256']} after {rows:,} events, {rate:,.0f} events/s", soft_wrap=True)
        out.print(f"{to / 'metrics.json'}")
    else:
        print_arms(metrics)
        out.print(f"{to / 'metrics.json'}, {to / 'report.html'}")


def _span(choices: str) -> tuple[float, float]:
    try:
        begin, end = map(float, choices.split(","))
    except ValueError:
        begin, end = -1.0, -1.0
    if not 0 <= begin <= end <= 1:
        raise typer.BadParameter(
            f"got {choices!r}; expected two shares from 0 to 1 with a comma, as 0.7,0.85", param_hint="--choices"
        )
    return begin, end


def _numbers(seeds: str) -> list[int]:
    parts = [seed.strip() for seed in seeds.split(",")]
    if not all(seed.isascii() and seed.isdigit() and len(seed) < 10 for seed in parts):
        raise typer.BadParameter(
            f"got {seeds!r}; expected whole numbers from 0 to 999999999 with commas", param_hint="--seeds"
        )
    numbers = [int(seed) for seed in parts]
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise typer.BadParameter(f"got {twice[0]} more than once; expected different numbers", param_hint="--seeds")
    return numbers


def validate(
    file: Annotated[str | None, typer.Argument(metavar="[EVENTS]", help="The same as --events.")] = None,
    events: Annotated[str | None, typer.Option(help=f"Events: {SOURCES}.")] = None,
    items: Annotated[str | None, typer.Option(help="Items, in the same formats.")] = None,
    *,
    told: Told,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """What is wrong with files of events and items, by row and kind. Exit code 65 if anything is.

    Example: `driftline validate --events events.csv --items items.csv`, or `driftline validate events.csv`
    """
    from driftline.configs.errors import InputError
    from driftline.stream.events.ids import Join

    if file is not None and events is not None:
        raise typer.BadParameter(f"got {file} and --events {events}; expected one file of events, items as --items")
    events = events or file
    if events is None and items is None:
        raise typer.BadParameter("say which file: --events, --items or both")
    settings = settings_of(config)
    reports: dict[str, Report] = {}
    whole: dict[str, Any] = {}
    if events is not None:
        reports["events"] = checked_events(events, settings, told, items is not None)
    try:
        if items is not None:
            reports["items"] = checked_items(items, settings, told)
    except InputError:
        if events is not None and not as_json:
            _print_report(reports["events"], "kept", settings)
        raise
    if len(reports) == 2:
        join = Join.of(reports["events"].item_rows, reports["items"].item_rows)
        whole["join"] = join.as_json()
        if problem := join.problem():
            reports["events"].add(problem)
    ok = all(report.ok for report in reports.values())
    if as_json:
        whole |= {name: report.as_json() for name, report in reports.items()}
        print_json({"ok": ok, **whole} if len(whole) > 1 else next(iter(whole.values())))
    else:
        for name, report in reports.items():
            _print_report(report, "kept" if name == "events" else "left out", settings)
        if "join" in whole:
            ids, joined = whole["join"]["item_ids"], whole["join"]["in_items"]
            out.print(f"{joined:,} of {ids:,} item ids of the events are in the items file", soft_wrap=True)
    if not ok:
        raise typer.Exit(InputError.exit_code)


def _command() -> str:
    """The words of this call, "" where a program makes it; queries may hold passwords, so they are left out.

    Settings of the environment that change results stand before it.
    """
    if Path(sys.argv[0]).stem not in ("driftline", "command"):
        return ""
    words = shlex.join(["driftline", *("QUERY" if " " in word.strip() else word for word in sys.argv[1:])])
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in environment.told(os.environ)), words])


def _print_report(report: Report, fate: str, settings: Settings) -> None:
    """A report for people; `fate` is what becomes of unknown columns."""
    from driftline.stream.convert.words import meaning, unset_actions

    span = (
        f", {when(report.first_ms)} to {when(report.last_ms)}"
        if report.first_ms is not None and report.last_ms is not None
        else ""
    )
    out.print(f"{report.path}: {report.rows:,} rows{span}", soft_wrap=True)
    context = [name for name in report.unknown if fate == "kept" and name in settings.signals.context]
    for said, names in (
        ("kept for the context", context),
        (f"unknown columns, {fate}", [name for name in report.unknown if name not in context]),
    ):
        if names:
            shown = ", ".join(name if name.strip() and name.isprintable() else repr(name) for name in names)
            out.print(f"{said}: {shown}", soft_wrap=True)
    if fate == "kept" and (absent := [name for name in settings.signals.context if name not in report.unknown]):
        out.print(
            f"warning: no event has {', '.join(absent)}, which signals.context names: expected fields of the events "
            "themselves, not of objects in them",
            soft_wrap=True,
        )
    if words := unset_actions(settings, report.unknown_actions):
        out.print(words, soft_wrap=True)
    table = Table("kind", "column", "rows", "")
    for (kind, column), n in report.counts.items():
        table.add_row(kind, column, f"{n:,}", "warning" if (kind, column) in report.warnings else "error")
    if report.counts:
        out.print(table)
    for problem in report.examples:
        out.print(f"  {problem}", soft_wrap=True)
    if report.unnamed_values:
        out.print(
            f"warning: {report.unnamed_values:,} rows have a value and no action that says what it means: each counts "
            f"as an 'interact', {meaning(settings, 'interact')}; name it, as by --action rate",
            soft_wrap=True,
        )
    disorder = report.order if report.order is not None and report.order.earlier else None
    if disorder:
        out.print(f"warning: {disorder}", soft_wrap=True)
    if not report.ok:
        out.print(
            "not ok: mend these rows, or put them aside with --bad FILE where files are converted", soft_wrap=True
        )
    elif disorder:
        out.print(
            "ok, but out of order: driftline import sorts it, and so does driftline produce --sort", soft_wrap=True
        )
    else:
        out.print("ok")
