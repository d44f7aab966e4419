"""How commands take files whose columns are not those of the schema: options, what is shown, what is converted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.table import Table

from driftline.configs.errors import InputError
from driftline.configs.explain import faults_of
from driftline.configs.settings import EventFiles, ItemFiles, Settings
from driftline.serving.arrays import sync
from driftline.serving.scratch import Scratch
from driftline.stream.cli.common import err, progress, when
from driftline.stream.cli.composed import Maker
from driftline.stream.durable import make_folder

if TYPE_CHECKING:
    from driftline.stream.convert.run import Done, Plan
    from driftline.stream.events.checks import Report

Files = TypeVar("Files", bound=ItemFiles)
SOURCES = ".parquet, .arrow, .csv, .tsv, .jsonl, packed or not, a folder of them, or a query for DuckDB"

Map = Annotated[
    list[str] | None,
    typer.Option("--map", help="Columns of events: user_id=userId,item_id=movieId; `action=` for none."),
]
ItemsMap = Annotated[list[str] | None, typer.Option("--items-map", help="Columns of items: title=name,brand=maker.")]
ActionName = Annotated[
    str | None, typer.Option("--action", help="Action of all events that have no column for it: rate, play, ...")
]
ActionBelowZero = Annotated[
    str | None,
    typer.Option(
        "--action-below-zero",
        help="Action of those of these events whose value is below 0; else return where it is a number of pieces.",
    ),
]
ActionFrom = Annotated[
    list[str] | None,
    typer.Option(
        "--action-from",
        help="Actions by the least value of each: like=4,love=5; what is below all of them, or has none, is --action.",
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        help="Times of events: s, ms, us, ns, s since 2018-02-01, iso, dmy, mdy, or a format as strptime has it.",
    ),
]
Zone = Annotated[str | None, typer.Option("--zone", help="Zone of times that name none; else UTC.")]
Decimal = Annotated[str | None, typer.Option("--decimal", help="Decimal sign of numbers in text: , or .")]
Encoding = Annotated[
    str | None, typer.Option("--encoding", help="Of CSV files of events: cp1252, latin-1, utf-16; else UTF-8.")
]
ItemsEncoding = Annotated[str | None, typer.Option("--items-encoding", help="Of CSV files of items.")]
Header = Annotated[
    str | None, typer.Option("--header", help="Names of the columns, with commas, where the first line has none.")
]
BadRows = Annotated[
    Path | None, typer.Option("--bad", help="Put rows that are not right into this file, and take the others.")
]


@dataclass(frozen=True, slots=True)
class Told:
    """What options say of how files are read, one field an option; None = they don't."""

    columns: Map = None
    item_columns: ItemsMap = None
    action: ActionName = None
    action_from: ActionFrom = None
    action_below_zero: ActionBelowZero = None
    time: Time = None
    zone: Zone = None
    decimal: Decimal = None
    encoding: Encoding = None
    item_encoding: ItemsEncoding = None
    header: Header = None
    bad: BadRows = None

    @property
    def bad_items(self) -> Path | None:
        """Where rows of items go that are not right: beside those of events."""
        return self.bad and self.bad.with_name(f"items-{self.bad.name}")

    def events(self, settings: Settings) -> EventFiles:
        """How files of events are read."""
        header = None if self.header is None else [name.strip() for name in self.header.split(",")]
        told = {
            "time": self.time,
            "header": header,
            "encoding": self.encoding,
            "action": self.action,
            "action_below_zero": self.action_below_zero,
        }
        bounds = None if self.action_from is None else _pairs(self.action_from, "--action-from", "NAME=VALUE")
        return _with(settings.event_files, self.columns, told | {"action_from": bounds} | self._both())

    def refuse_again(self, source: str) -> None:
        """An error if options say what rows of events are in a file of which `driftline import` has said it.

        Raises:
            InputError: so it is.
        """
        from driftline.stream.convert.run import is_converted

        given = {
            "--map": self.columns,
            "--action": self.action,
            "--action-from": self.action_from,
            "--action-below-zero": self.action_below_zero,
            "--time": self.time,
            "--header": self.header,
        }
        if (said := [name for name, value in given.items() if value is not None]) and is_converted(Path(source)):
            raise InputError(
                f"{source}: got {', '.join(said)} for a file that `driftline import` wrote, which has it in its rows; "
                "expected none, or the file that it was made of"
            )

    def items(self, settings: Settings) -> ItemFiles:
        """How files of items are read."""
        told = {"encoding": self.item_encoding} | self._both()
        return _with(settings.item_files, self.item_columns, told, "--items-")

    def _both(self) -> dict[str, Any]:
        return {"zone": self.zone, "decimal": self.decimal}


FILES: dict[str, Maker] = {"told": Told}
"""What makes the parameters of commands that take such files: see `composed`."""


def _with(files: Files, columns: list[str] | None, told: dict[str, Any], prefix: str = "--") -> Files:
    given, typed = {name: value for name, value in told.items() if value is not None}, _pairs(columns or [])
    try:
        made = type(files).model_validate(files.model_dump() | given | {"map": files.map | typed})
        return made.typed(typed) if files.map else made  # who is told nothing is told what nobody changed
    except ValidationError as error:
        (_, words), *_ = faults_of(error, {})
        key = str(error.errors()[0]["loc"][0])
        option = f"{'--' if key in ('zone', 'decimal') else prefix}{key.replace('_', '-')}"
        raise typer.BadParameter(words.removeprefix(f"{key}: "), param_hint=option) from None


def _pairs(texts: list[str], option: str = "--map", expected: str = "FIELD=COLUMN") -> dict[str, str]:
    """What stands after each `=` by what stands before; a comma in a name stays where no `=` comes after it."""
    pairs: dict[str, str] = {}
    field = ""
    for text in texts:
        for part in text.split(","):
            name, sign, column = part.partition("=")
            if sign and name.strip():
                field = name.strip()
                if field in pairs:
                    words = f"got {pairs[field]!r} and {column.strip()!r} for {field}; expected one of them"
                    raise typer.BadParameter(words, param_hint=option)
                pairs[field] = column.strip()
            elif field:
                pairs[field] += f",{part}"
            else:
                words = f"got {text!r}; expected {expected}, with commas between"
                raise typer.BadParameter(words, param_hint=option)
    return pairs


def show(plan: Plan) -> None:
    """The mapping and the first converted rows, on stderr."""
    from driftline.stream.convert.words import rows_of

    what = "events" if plan.mapping.kind.option == "--map" else "items"
    err.print(f"{plan.source}: read as {what}; {plan.mapping.kind.option} FIELD=COLUMN changes it", soft_wrap=True)
    table = Table("field", "column", "")
    for cells in rows_of(plan):
        table.add_row(*cells)
    err.print(table)
    say(plan.note)
    if plan.mapping.kept:
        err.print(f"kept for the context: {', '.join(plan.mapping.kept)}", soft_wrap=True)
    for field, column in plan.mapping.lacking.items():
        err.print(f"{plan.source}: has no column {column!r}, which the configuration names for {field}", soft_wrap=True)
    if plan.mapping.left_out:
        err.print(f"left out: {', '.join(plan.mapping.left_out)}", soft_wrap=True)
        for words in plan.mapping.unfit:
            say(words)
        if plan.mapping.kind.option == "--map":
            err.print(
                "what is known when a request is made is kept if `signals: {context: [COLUMN]}` of the settings names "
                "it before",
                soft_wrap=True,
            )
    rows = plan.first_rows()
    if not rows:
        return
    fields = [field for field in rows[0] if any(row[field] is not None for row in rows)]
    converted = Table(*fields)
    for row in rows:
        converted.add_row(*(_cell(field, row[field]) for field in fields))
    err.print(converted)


def _cell(field: str, value: Any) -> str:
    if value is None:
        return ""
    if field in ("timestamp_ms", "valid_from_ms"):
        return f"{value} ({when(value)})"
    text = f"{value:g}" if isinstance(value, float) else " | ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def say(words: str) -> None:
    """A note on stderr, if there is one."""
    if words:
        err.print(f"note: {words}", soft_wrap=True)


# ---------------------------------------------------------------------------------------------- for other commands


@contextmanager
def together(folder: Path) -> Iterator[Path]:
    """A folder to write files in: at the end all of them come to `folder`, which is made, or, after an error, none.

    Raises:
        InputError: it can't be made, or nothing can be written there.
    """
    was_there = folder.exists()
    make_folder(folder)
    try:
        with Scratch("files", folder) as scratch:
            yield scratch
            for path in sorted(scratch.glob("*.parquet")):
                path.replace(folder / path.name)
            sync(folder)
    except BaseException:
        if not was_there:
            with suppress(OSError):  # somebody else has put something there
                folder.rmdir()
        raise


@contextmanager
def own_files(
    events: str | None,
    items: str | None,
    settings: Settings,
    told: Told,
    folder: Path | None = None,
    sort: bool = True,
    undone: str = "written",
) -> Iterator[tuple[Path | None, Path | None]]:
    """Paths of events and items in the schema: those given, or what they were converted to.

    Args:
        folder: for converted files; None = a temporary one.
        sort: converted events are sorted by time.
        undone: what a refusal says that nothing was.
    """
    from driftline.stream.convert.guess import EVENTS, ITEMS
    from driftline.stream.convert.run import Plan, is_ready, write_events, write_items
    from driftline.stream.convert.words import below_zero, check_value, prices_below_zero

    with ExitStack() as stack:
        event_file, item_file = (None if text is None else Path(text) for text in (events, items))
        of_events = events is not None and not is_ready(events, EVENTS, told.events(settings))
        if events is not None and not of_events:
            told.refuse_again(events)
        of_items = items is not None and not is_ready(items, ITEMS, told.items(settings))
        place = folder or stack.enter_context(Scratch("files"))
        with together(place) if of_events or of_items else nullcontext(place) as begun:
            if events is not None and of_events:
                plan = Plan.of(EVENTS, events, told.events(settings), settings.signals.context)
                show(plan)
                say(check_value(plan, settings))
                event_file = place / "events.parquet"
                with progress(None, "rows of events read") as update:
                    done = write_events(plan, begun / event_file.name, settings, told.bad, update, sort, undone)
                say(below_zero(plan, done, settings))
                say(prices_below_zero(plan, done))
                _say_aside(done, told.bad)
            if items is not None and of_items:
                plan = Plan.of(ITEMS, items, told.items(settings))
                show(plan)
                item_file = place / "items.parquet"
                with progress(None, "rows of items read") as update:
                    done = write_items(plan, begun / item_file.name, told.bad_items, update, undone)
                say(prices_below_zero(plan, done))
                _say_aside(done, told.bad_items)
        yield event_file, item_file


def _say_aside(done: Done, bad: Path | None) -> None:
    say(f"{done.bad:,} of {done.report.rows:,} rows were put aside in {bad}" if done.bad else "")
    say(
        f"{done.duplicates:,} events have the event_id of an earlier one and will be dropped" if done.duplicates else ""
    )


def checked_events(source: str, settings: Settings, told: Told, count_items: bool) -> Report:
    """What `validate` says of events, converted where they must be."""
    from driftline.stream.convert.guess import EVENTS
    from driftline.stream.convert.run import Plan, check, is_ready
    from driftline.stream.convert.words import below_zero, check_value, prices_below_zero
    from driftline.stream.events.files import validate

    files = told.events(settings)
    if is_ready(source, EVENTS, files):
        told.refuse_again(source)
        return validate(Path(source), settings.actions, count_items, settings.state.late_ms)
    plan = Plan.of(EVENTS, source, files, settings.signals.context)
    show(plan)
    say(check_value(plan, settings))
    with progress(None, "rows of events read") as update:
        done = check(plan, settings, told.bad, update)
    say(below_zero(plan, done, settings))
    say(prices_below_zero(plan, done))
    done.report.unknown_actions.update({name: n for name, n in done.actions.items() if name not in settings.actions})
    return done.report


def checked_items(source: str, settings: Settings, told: Told) -> Report:
    """What `validate` says of items, converted where they must be."""
    from driftline.stream.convert.guess import ITEMS
    from driftline.stream.convert.run import Plan, check, is_ready
    from driftline.stream.events.files import validate_items

    files = told.items(settings)
    if is_ready(source, ITEMS, files):
        return validate_items(Path(source))
    plan = Plan.of(ITEMS, source, files)
    show(plan)
    return check(plan, settings, told.bad_items).report
