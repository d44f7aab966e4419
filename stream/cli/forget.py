"""`driftline forget USER`: by the running system at once, and by command out of what the state took from the user."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from driftline.configs.errors import InputError, StateError
from driftline.configs.settings import Settings
from driftline.serving.scratch import Scratch
from driftline.stream.cli.common import AsJson, Config, err, out, print_json, settings_of
from driftline.stream.events.schema import MAX_ID_BYTES

if TYPE_CHECKING:
    from driftline.stream.replay.rebuild import Rebuilt

STAYS = {
    "topics": "interactions, interactions.by-item, interactions.dlq and profiles.log keep their records until Kafka "
    "deletes them (broker.retention_days, 0 = never); `driftline replay --from-kafka` leaves the user out, "
    "`driftline dlq replay` sends dead letters of the user again",
    "disk": "RocksDB's files keep the bytes of deleted rows until it compacts them: --rebuild writes new files",
    "event ids": "without a user, until state.dedupe_ids newer ones came",
    "items": "memories, counts, popularity and the usual price took from the user's events (with one partition from "
    "those before the late window): --rebuild takes that out",
    "weights": "the trainer's weights, item tables and samples without a user id, and the snapshots: until a trainer "
    "with a new trainer.root has learnt from a log without the user",
    "text vectors": "encoder.cache has vectors of texts, by a hash of the text, no user: delete the file",
    "serving": "a serving process that does not follow profiles (serving.follow_profiles) keeps the user's last events "
    "until serving.sequence_cache_mb needs room or some models have followed",
    "copies": "backups, and the files that events were produced from",
}
"""What is not forgotten at once, and until when."""
Row = Literal["gone", "unknown", "still there", "no state"]
ROWS: dict[Row, str] = {
    "gone": "gone",
    "unknown": "there was none of this id on this host: check the id, unless the user was forgotten before; a worker "
    "on another host may have it, and events that are not applied yet are forgotten as well",
    "still there": "still there: no worker has read the request yet; it goes when one does",
    "no state": "no state on this host; it goes where a worker reads the request",
}
"""What became of the row of who is forgotten."""
EXITS: dict[Row, int] = {"unknown": 65, "still there": 75, "no state": 69}
"""Exit codes of what is not known to be done: EX_DATAERR, EX_TEMPFAIL, EX_UNAVAILABLE."""


def register(app: typer.Typer) -> None:
    """Adds the command of this file."""
    app.command()(forget)


def forget(
    user_id: Annotated[str, typer.Argument(help="Who is to be forgotten.")],
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Also take the user's events out of the state; no worker may run.")
    ] = False,
    begin_from: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="BACKUP",
            help="With --rebuild: a folder of `state backup`, or of several; the last one from before the first event "
            "of whoever is forgotten is begun from. More than one may be given.",
        ),
    ] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait for the workers of this host.")
    ] = 10.0,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Forget a user: row, history, profile and requests go when the workers read the request, within seconds.

    The request is a record of `interactions`, so it holds on every host and over restarts. Later events of the user
    start anew. What stays, and until when, is part of the output. Exit code 0 only where a row was here and is gone:
    65 = none of this id was here (nor, with --rebuild, in the log), 75 = still here after --wait, 69 = no state on
    this host.

    Example: `driftline forget 13085`, then with the worker stopped `driftline forget 13085 --rebuild`
    """
    from driftline.stream.kafka.broker import broker
    from driftline.stream.state.live import has_user

    if not 0 < len(user_id.encode(errors="replace")) <= MAX_ID_BYTES:
        raise InputError(f"user id {user_id!r:.80}; expected 1 to {MAX_ID_BYTES} bytes of UTF-8")
    settings = settings_of(config)
    before = None if rebuild else has_user(settings.state.root, user_id)
    with broker(settings.broker) as bootstrap:
        _request(settings, bootstrap, user_id)
        rebuilt = _rebuilt(settings, bootstrap, begin_from or []) if rebuild else None
        if rebuilt is not None:
            before = user_id in rebuilt.known
        row = _row(settings, user_id, before, 0.0 if rebuild else wait_s)
    if rebuilt is not None and not rebuilt.proven:
        raise StateError(
            f"the rebuilt state has hash {rebuilt.state_sha256[:12]}, the log without the user "
            f"{rebuilt.log_sha256[:12]}; expected them equal: was a worker started meanwhile?"
        )
    if as_json:
        told = dataclasses.asdict(rebuilt) if rebuilt is not None else {}
        told.pop("known", None)  # of others, too
        print_json({"user_id": user_id, "requested": True, "row": ROWS[row], "rebuilt": told or None, "stays": STAYS})
    else:
        _print(user_id, row, rebuilt)
    if row != "gone":
        raise typer.Exit(EXITS[row])


def _print(user_id: str, row: Row, rebuilt: Rebuilt | None) -> None:
    out.print(f"the request to forget {user_id} is in the topic interactions")
    out.print(f"row: {ROWS[row]}", soft_wrap=True)
    if rebuilt is not None:
        begun = f"backup {rebuilt.begun_from}" if rebuilt.begun_from else "the log's start"
        out.print(f"rebuilt from {begun} without {rebuilt.left_out:,} of {rebuilt.records:,} records", soft_wrap=True)
        out.print(f"state_sha256 {rebuilt.state_sha256}, that of the log without the user", soft_wrap=True)
    out.print("What stays:")
    for name, until in STAYS.items():
        if rebuilt is None or name not in ("items", "disk"):
            out.print(f"  {name}: {until}", soft_wrap=True)


def _request(settings: Settings, bootstrap: str, user_id: str) -> None:
    """Sends the request and, for where the workers stand still, the tombstones that they send, too."""
    from driftline.stream.events.produce import outlet
    from driftline.stream.events.records import Outgoing
    from driftline.stream.process.forget import encode_forget, tombstones

    with outlet(settings.broker, bootstrap, "driftline-forget") as send:
        send([Outgoing("interactions", *encode_forget(user_id)), *tombstones(user_id)])


def _row(settings: Settings, user_id: str, before: bool | None, wait_s: float) -> Row:
    """What became of the user's row on this host; waits for it to go.

    Args:
        before: whether it was there before the request; None = there is no state here.
    """
    from driftline.stream.state.live import has_user

    deadline = time.monotonic() + wait_s
    while True:
        found = has_user(settings.state.root, user_id)
        if found is None:
            return "no state"
        if not found:
            return "gone" if before else "unknown"
        if time.monotonic() >= deadline:
            return "still there"
        time.sleep(0.2)


def _rebuilt(settings: Settings, bootstrap: str, backups: list[Path]) -> Rebuilt:
    from driftline.stream.replay.rebuild import rebuild
    from driftline.stream.replay.topics import read_log

    err.print("rebuilding the state without the user, as long as two replays of the log take")
    with Scratch("versions") as folder:
        return rebuild(settings, read_log(settings, bootstrap, folder), backups)
