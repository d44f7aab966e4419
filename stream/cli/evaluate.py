"""`driftline replay` and `driftline validate`: files, no broker."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from configs.settings import UNKNOWN_ACTION, Settings
from stream.bundled import EVENTS, ITEMS, PROFILES
from stream.cli.common import AsJson, Config, err, out, print_json, settings_of, when
from stream.evaluate.progress import progress_bars

if TYPE_CHECKING:
    from stream.file_checks import Report
    from stream.processor import Record


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(replay)
    app.command()(validate)


def replay(
    to: Annotated[Path, typer.Option("--out", help="Folder for metrics.json and report.html.")],
    events: Annotated[Path | None, typer.Option(help="Events file; default: the bundled shop.")] = None,
    items: Annotated[Path | None, typer.Option(help="Items file.")] = None,
    from_kafka: Annotated[str | None, typer.Option(help="Read this topic instead of a file.")] = None,
    arms: Annotated[str, typer.Option(help="Comma-separated; default: the simple ones and the engine.")] = "",
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
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate on a historical log through the code that runs live: predict, then learn.

    Example: `driftline replay --events events.parquet --items items.parquet --out out/mine --arms ranker,ease_recent`
    """
    from stream.evaluate.report import profiles_line
    from stream.evaluate.source import Options, make_folder
    from stream.replay import replay as run

    if candidates not in ("seen", "items"):
        raise typer.BadParameter(f"got {candidates!r}; expected seen or items", param_hint="--candidates")
    numbers = _numbers(seeds)
    if events is not None and from_kafka is not None:
        raise typer.BadParameter("got --events and --from-kafka; expected one of them")
    if events is None and from_kafka is None:
        if items is not None:
            raise typer.BadParameter("--items needs --events or --from-kafka; without them the bundled shop is read")
        events, items, config = EVENTS, ITEMS, config or "ecommerce"
        profiles = profiles or (PROFILES if PROFILES.is_file() else None)
    settings = settings_of(config)
    records: list[Record] | None = None
    make_folder(to)
    with tempfile.TemporaryDirectory() as folder:
        if from_kafka is not None:
            records = None if adoptions is None else []
            events = topic_file(settings, from_kafka, Path(folder) / "events.jsonl", records, limit)
        options = Options(
            Path(str(events)), to, items, [name for name in arms.split(",") if name], split, candidates,
            numbers, limit, resume, hold_out_items, profiles,
            adoptions=adoptions, records=records,
        )  # fmt: skip
        with progress_bars() as show:
            metrics = run(options, settings, show)
    if as_json:
        print_json(metrics)
    else:
        out.print(arms_table(metrics))
        out.print(f"profiles: {profiles_line(metrics['protocol']['profiles'])}", soft_wrap=True)
        out.print(f"{to / 'metrics.json'}, {to / 'report.html'}")


def _numbers(seeds: str) -> list[int]:
    parts = [seed.strip() for seed in seeds.split(",")]
    if not all(seed.isascii() and seed.isdigit() and len(seed) < 10 for seed in parts):
        raise typer.BadParameter(
            f"got {seeds!r}; expected whole numbers from 0 to 999999999 with commas", param_hint="--seeds"
        )
    return [int(seed) for seed in parts]


def topic_file(
    settings: Settings, topic: str, path: Path, records: list[Record] | None = None, limit: int | None = None
) -> Path:
    """The events of a topic that a worker accepts as a JSONL file; the others are counted on stderr.

    Args:
        records: gets every record as a worker sees it, valid or not.
        limit: events to read at most.

    Raises:
        InputError: the topic holds no event, or several partitions whose records were asked for.
    """
    from configs.errors import InputError
    from stream.broker import broker
    from stream.events import InvalidEvent, encode_event
    from stream.processor import Processor, Record
    from stream.reading import read_all

    written = invalid = 0
    with broker(settings.broker) as bootstrap, path.open("wb") as file:
        for received in read_all(settings.broker, bootstrap, topic):
            if written == limit:
                break
            record = Record(received.offset, received.value or b"", received.key, received.timestamp)
            if records is not None:
                if received.partition:
                    raise InputError(f"topic {topic!r} has several partitions; --adoptions follows a log of one")
                records.append(record)
            try:
                file.write(encode_event(Processor.validated(record)) + b"\n")
                written += 1
            except InvalidEvent:
                invalid += 1
    if invalid:
        err.print(f"{invalid:,} records of {topic} are not events and are left out")
    if not written:
        raise InputError(f"topic {topic!r} holds no event; check --from-kafka and broker.prefix")
    return path


def arms_table(metrics: dict[str, Any]) -> Table:
    """NDCG@10 of each arm by list, and the CPU time that it took to learn and to score."""
    table = Table("arm", "novel", "repeat", "overall", "CPU", title="NDCG@10", title_justify="left")
    for name, arm in metrics["arms"].items():
        cells = [_cell(arm.get(which, {})) for which in ("novel", "repeat", "overall")]
        table.add_row(name, *cells, f"{arm.get('train_cpu_s', 0) + arm.get('score_cpu_s', 0):,.0f} s")
    return table


def _cell(values: dict[str, Any]) -> str:
    return "" if values.get("ndcg@10") is None else f"{values['ndcg@10']:.4f}"


def validate(
    events: Annotated[Path | None, typer.Option(help="Events: .parquet, .csv or .jsonl.")] = None,
    items: Annotated[Path | None, typer.Option(help="Items, in the same formats.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """What is wrong with files of events and items, by row and kind. Exit code 65 if anything is.

    Example: `driftline validate --events events.csv --items items.csv`
    """
    from configs.errors import InputError
    from stream.files import validate as check
    from stream.files import validate_items

    if events is None and items is None:
        raise typer.BadParameter("say which file: --events, --items or both")
    settings = settings_of(config)
    reports: dict[str, Report] = {}
    if events is not None:
        reports["events"] = check(events, settings.actions)
        if not as_json:
            _print_report(reports["events"], "kept", settings)
    if items is not None:
        reports["items"] = validate_items(items)
        if not as_json:
            _print_report(reports["items"], "left out", settings)
    ok = all(report.ok for report in reports.values())
    if as_json:
        whole = {name: report.as_json() for name, report in reports.items()}
        print_json({"ok": ok, **whole} if len(whole) > 1 else next(iter(whole.values())))
    if not ok:
        raise typer.Exit(InputError.exit_code)


def _print_report(report: Report, fate: str, settings: Settings) -> None:
    """A report for people; `fate` is what becomes of unknown columns."""
    span = (
        f", {when(report.first_ms)} to {when(report.last_ms)}"
        if report.first_ms is not None and report.last_ms is not None
        else ""
    )
    out.print(f"{report.path}: {report.rows:,} rows{span}")
    if report.unknown:
        out.print(f"unknown columns, {fate}: {', '.join(report.unknown)}")
    if report.unknown_actions:
        out.print(_warning(settings, report.unknown_actions))
    table = Table("kind", "column", "rows", "")
    for (kind, column), n in report.counts.items():
        table.add_row(kind, column, f"{n:,}", "warning" if (kind, column) in report.warnings else "error")
    if report.counts:
        out.print(table)
    for problem in report.examples:
        out.print(f"  {problem}")
    out.print("ok" if report.ok else "not ok: mend these rows, or take them out")


def _warning(settings: Settings, unknown: Counter[str]) -> str:
    """What becomes of actions that the configuration does not set."""
    from stream.events import shorten

    counts = [f"{n:,} {shorten(action)}" for action, n in unknown.most_common(10)]
    if len(unknown) > len(counts):
        counts.append(f"{len(unknown) - len(counts):,} actions more")
    return (
        f"warning: rows with an action that configuration {settings.name!r} does not set: {', '.join(counts)}. "
        f"Each counts as wanted, with weight {UNKNOWN_ACTION.weight:g}; set it under `actions`, or choose another -c"
    )
