"""`driftline dlq list|show|replay`."""

from __future__ import annotations

import base64
import sys
import time
from collections import Counter
from typing import Annotated

import typer
from rich.table import Table

from driftline.configs.errors import InputError
from driftline.stream.cli.common import AsJson, Config, out, print_json, settings_of, when

app = typer.Typer(no_args_is_help=True, help="Records that are not events: why, which bytes, and sending them again.")
Reason = Annotated[str, typer.Option(help="Only those refused for this reason.")]


@app.command("list")
def list_them(
    reason: Reason = "",
    limit: Annotated[int, typer.Option(min=1, help="Newest to show.")] = 20,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Counts by reason and the newest dead letters.

    Example: `driftline dlq list --reason not_json`
    """
    from driftline.stream.events.dlq import distinct, read_dlq
    from driftline.stream.kafka.broker import broker

    settings = settings_of(config)
    with broker(settings.broker) as bootstrap:
        letters = [letter for letter in distinct(read_dlq(settings.broker, bootstrap)) if reason in ("", letter.reason)]
    counts = Counter(letter.reason for letter in letters)
    newest = letters[-limit:][::-1]
    if as_json:
        rows = [{"offset": x.offset, "reason": x.reason, "detail": x.detail, "source": x.source} for x in newest]
        return print_json({"total": len(letters), "by_reason": dict(counts), "newest": rows})
    if not letters:
        which = f" of reason {reason!r}" if reason else ": every record that was read is an event"
        return out.print(f"no dead letters{which}")
    by_reason = ", ".join(f"{n:,} {name}" for name, n in counts.most_common())
    out.print(f"dead letters: {len(letters):,} ({by_reason}); newest first, {len(newest):,} shown")
    table = Table()
    for name in ("offset", "refused at", "stood at", "reason", "received and expected"):
        table.add_column(name, overflow="fold")
    for letter in newest:
        stood = f"{letter.topic} {letter.source}"
        table.add_row(str(letter.offset), when(letter.timestamp_ms), stood, letter.reason, letter.detail)
    out.print(table)
    return out.print(
        "offset: its place among the dead letters, for `driftline dlq show OFFSET`; "
        "stood at: topic, partition:offset of the record"
    )


@app.command()
def show(
    offset: Annotated[int, typer.Argument(help="As `dlq list` names it.")],
    raw: Annotated[bool, typer.Option("--raw", help="Only the original bytes, unchanged.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """One dead letter with its original bytes, as JSON with --json or without.

    Example: `driftline dlq show 3 --raw > record.bin`
    """
    from driftline.stream.events.dlq import find, read_dlq
    from driftline.stream.kafka.broker import broker

    if raw and as_json:
        raise typer.BadParameter("got --raw and --json; expected one of them")
    settings = settings_of(config)
    with broker(settings.broker) as bootstrap:
        letter = find(read_dlq(settings.broker, bootstrap, offset), offset)
    if raw:
        sys.stdout.buffer.write(letter.value or b"")
        return
    print_json(
        {
            "offset": letter.offset,
            "reason": letter.reason,
            "detail": letter.detail,
            "source": letter.source,
            "written_ms": letter.timestamp_ms,
            "key": None if letter.key is None else letter.key.decode(errors="backslashreplace"),
            "value": None if letter.value is None else letter.value.decode(errors="backslashreplace"),
            "value_base64": None if letter.value is None else base64.b64encode(letter.value).decode(),
        }
    )


@app.command()
def replay(
    reason: Reason = "",
    offset: Annotated[list[int] | None, typer.Option(help="Only this one; may be given several times.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters to `interactions` again, byte for byte, for instance after a release that accepts them.

    They stay among the dead letters: sent twice, those that have no event_id are applied twice. What was refused as
    of the future is sent once its time has come, and not before.

    Example: `driftline dlq replay --reason from_the_future`
    """
    from driftline.stream.events.dlq import distinct, due_ms, read_dlq, resend
    from driftline.stream.events.produce import sender
    from driftline.stream.kafka.broker import broker

    if not (reason or offset or everything):
        raise typer.BadParameter("say which: --reason, --offset or --all")
    settings, now_ms = settings_of(config), time.time_ns() // 1_000_000
    with broker(settings.broker) as bootstrap, sender(settings.broker, bootstrap) as to_kafka:
        there = list(read_dlq(settings.broker, bootstrap))
        letters = [
            letter
            for letter in (there if offset else distinct(there))
            if reason in ("", letter.reason) and (not offset or letter.offset in offset)
        ]
        if there and not letters:
            reasons = ", ".join(sorted({letter.reason for letter in there}))
            raise InputError(
                f"none of {len(there):,} dead letters is meant: reason {reason or 'any'}, offsets {offset or 'any'}; "
                f"there are the reasons {reasons} and the offsets {there[0].offset} to {there[-1].offset}"
            )
        early = sorted(due for x in letters if (due := due_ms(x, settings.state.future_ms)) > now_ms)
        ready = [x for x in letters if due_ms(x, settings.state.future_ms) <= now_ms]
        sent = resend(to_kafka, ready)
    stay = len(ready) - sent
    if as_json:
        return print_json({"sent": sent, "stay": stay, "early": len(early), "due_ms": early[0] if early else None})
    out.print(f"sent {sent:,} records to interactions again" + (f"; {stay:,} shortened or foreign stay" * bool(stay)))
    if early:
        out.print(
            f"{len(early):,} of the future stay, they would be refused again: the first may be sent from "
            f"{when(early[0])} on, the last from {when(early[-1])} on",
            soft_wrap=True,
        )
    return None
