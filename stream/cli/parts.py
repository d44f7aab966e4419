"""`driftline produce` and the long-running parts: worker, trainer, profiler, serve."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from driftline.configs.addresses import joined
from driftline.configs.errors import InputError
from driftline.configs.settings import Settings
from driftline.stream.cli.common import (
    AsJson,
    Config,
    err,
    out,
    parse_time,
    print_json,
    progress,
    settings_of,
    when,
    with_bootstrap,
)
from driftline.stream.cli.composed import composed
from driftline.stream.cli.own import (
    FILES,
    SOURCES,
    Told,
    own_files,
    say,
)
from driftline.stream.ops.progress import progress_bars

COMMITS = 5000
"""Of a repository that the demo reads if it is told nothing else: those of the last years, in about two minutes."""

Once = Annotated[bool, typer.Option("--until-caught-up", help="End when everything in the topics is processed.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    app.command()(composed(produce, FILES))
    for command in (worker, trainer, profiler, serve, demo):
        app.command()(command)


def produce(
    events: Annotated[str | None, typer.Option(help=f"Events: {SOURCES}; may be left out.")] = None,
    items: Annotated[str | None, typer.Option(help="Items, sent before the events, or alone.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Events a second at most.")] = None,
    since: Annotated[
        int | None, typer.Option(parser=parse_time, metavar="TIME", help="Only events from this event time (UTC) on.")
    ] = None,
    until: Annotated[
        int | None, typer.Option(parser=parse_time, metavar="TIME", help="Only events before this event time (UTC).")
    ] = None,
    sort: Annotated[bool, typer.Option("--sort", help="Send events in order of time.")] = False,
    as_it_is: Annotated[
        bool, typer.Option("--as-it-is", help="Send events in the order of the file, late ones too.")
    ] = False,
    *,
    told: Told,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Send files of events, of items, or both to Kafka, keyed by user and item. Files out of order of time are refused.

    Example: `driftline produce --events events.parquet --items items.parquet --rate 2000`
    """
    from driftline.stream.convert.words import unset_actions
    from driftline.stream.events.files import count_rows, order_of
    from driftline.stream.events.order import refuse_disorder

    if events is None and (items is None or not rate is since is until is None):
        raise typer.BadParameter("say which file: --events, --items or both; --rate, --since and --until are of events")
    if sort and as_it_is:
        raise typer.BadParameter("got --sort and --as-it-is; expected one of them")
    settings = settings_of(config)
    with own_files(events, items, settings, told, sort=False, undone="sent") as (event_file, item_file):
        seen: dict[str, Any] = {}
        oldest_ms, rows = -1, 0
        if event_file is not None:
            actions: Counter[str] = Counter()
            order = order_of(event_file, settings.state.late_ms, since or 0, until, actions)
            if not (sort or as_it_is):
                refuse_disorder(events, order)
            if words := unset_actions(settings, actions):
                err.print(words, soft_wrap=True)
            say(str(order) if as_it_is and order.earlier else "")
            unknown = {name: n for name, n in actions.most_common() if name not in settings.actions}
            seen = {"unknown_actions": unknown, "too_late": order.too_late if as_it_is else 0}
            oldest_ms, rows = order.oldest_ms, 0 if as_it_is or sort else order.rows
        total = count_rows(event_file) if event_file is not None and since is None and until is None else None
        _send(event_file, item_file, settings, rate, since or 0, until, sort, total, oldest_ms, rows, seen, as_json)


def _send(
    events: Path | None,
    items: Path | None,
    settings: Settings,
    rate: float | None,
    since_ms: int,
    until_ms: int | None,
    sort: bool,
    total: int | None,
    oldest_ms: int,
    rows: int,
    seen: dict[str, Any],
    as_json: bool,
) -> None:
    """Sends files in the schema and says how many rows there were: as JSON beside what was `seen` of them before.

    Events of which so many `rows` were seen are refused where most come too late; 0 = they are not.
    """
    from driftline.stream.events.produce import send_files, sender
    from driftline.stream.events.topics import create_topics
    from driftline.stream.kafka.broker import EmbeddedBroker, broker

    embedded = EmbeddedBroker(settings.broker)
    alone = not settings.broker.bootstrap and embedded.running() is None
    with broker(settings.broker) as bootstrap:
        create_topics(settings.broker, bootstrap)
        if events is not None:
            seen = seen | {"behind": _behind(events, settings, bootstrap, since_ms, until_ms, oldest_ms, rows)}
        done, what = {"items": 0, "interactions": 0}, "items" if events is None else "events"
        try:
            with sender(settings.broker, bootstrap) as to_kafka, progress(total, what) as update:

                def report(topic: str, n: int) -> None:
                    done[topic] = n
                    update(done["interactions" if events is not None else "items"])

                sent, sent_items = send_files(to_kafka, events, items, rate, since_ms, until_ms, report, sort)
        except KeyboardInterrupt:
            counts = f"{done['interactions']:,} events and {done['items']:,} items"
            err.print(
                f"interrupted: at most {counts} were sent and stay; events with an event_id may be sent again, with "
                "--sort or --as-it-is where most of them were"
            )
            raise
    if as_json:
        done_all = {"events": sent.records, "items": sent_items.records, "bytes": sent.bytes, "per_s": sent.per_s}
        print_json(done_all | seen)
    else:
        if events is not None and not sent.records:
            err.print("no event of the file lies between --since and --until")
        rate_shown = f", {sent.per_s:,.0f} events/s" if events is not None else ""
        out.print(f"sent {sent.records:,} events and {sent_items.records:,} items{rate_shown}")
        if alone:
            err.print(
                f"they lie in the embedded broker of {embedded.directory}, which only this command used: "
                "'driftline up' in this folder takes them in; a system of another folder does not see them",
                soft_wrap=True,
            )


def _behind(
    events: Path, settings: Settings, bootstrap: str, since_ms: int, until_ms: int | None, oldest_ms: int, rows: int
) -> int:
    """How many events are too old for what their partitions hold already, which is said; see `_send` for `rows`.

    Raises:
        InputError: it is most of them, as of a file that is sent again.
    """
    from driftline.serving.owner import partition_of
    from driftline.stream.events.files import count_behind
    from driftline.stream.events.produce import LAST_RECORDS, SPOTS, newest_event_ms

    late_ms, newest_ms = settings.state.late_ms, newest_event_ms(settings, bootstrap)
    last_ms = max(newest_ms.tolist(), default=-1)
    if not 0 <= oldest_ms < last_ms - late_ms:
        return 0
    owner = partial(partition_of, partitions=len(newest_ms))
    n = count_behind(events, newest_ms - late_ms, owner, since_ms, until_ms)
    words = (
        f"more than state.late_ms, {late_ms / 60_000:g} min, older than those that their partition of the topic holds "
        f"already, up to {when(last_ms)} (in its last {LAST_RECORDS:,} records and {SPOTS} spread over those before): "
        "they come too late and change no state"
    )
    if n > rows / 2 > 0:
        raise InputError(
            f"{events}: {n:,} of {rows:,} events are {words}. Nothing was sent: were they sent before? --since TIME "
            "sends what is newer, --as-it-is or --sort all of them"
        )
    say(f"{n:,} events are {words}" if n else "")
    return n


def worker(config: Config = None) -> None:
    """Apply events from Kafka to the state store, until Ctrl-C. A supervisor restarts it after a crash.

    Several workers share the partitions of the topic, each partition has one worker at a time.
    Example: `driftline worker -c ecommerce`
    """
    from driftline.stream.ops.supervisor import supervise

    settings = settings_of(config)
    err.print(f"worker: starting, state in {settings.state.root.absolute()}; Ctrl-C ends it", soft_wrap=True)
    raise typer.Exit(supervise(settings, config))


def trainer(until_caught_up: Once = False, config: Config = None) -> None:
    """Learn from the stream and publish snapshots, until Ctrl-C: predict first, then learn, then publish.

    Example: `driftline trainer -c ecommerce`
    """
    from driftline.stream.events.topics import create_topics
    from driftline.stream.kafka.broker import broker
    from driftline.stream.learn.loop import run_trainer

    settings = settings_of(config)
    with broker(settings.broker) as bootstrap:
        create_topics(settings.broker, bootstrap)
        roots = (
            f"checkpoint in {settings.trainer.root.absolute()}, snapshots in {settings.serving.snapshots.absolute()}"
        )
        err.print(f"trainer: starting, {roots}; Ctrl-C ends it", soft_wrap=True)
        run_trainer(settings, bootstrap, until_caught_up)


def profiler(
    events: Annotated[Path | None, typer.Option(help="Write a profile file from these events, without Kafka.")] = None,
    items: Annotated[Path | None, typer.Option(help="Items with the titles that prompts speak of.")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="The profile file, .jsonl or .jsonl.gz.")] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Profiles in the file at most.")] = None,
    until_caught_up: Once = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Answer profile requests from Kafka until Ctrl-C, or write a profile file for replay.

    Example: `driftline profiler --events events.parquet --items items.parquet --out profiles.jsonl.gz`
    """
    from driftline.stream.events.topics import create_topics
    from driftline.stream.kafka.broker import broker
    from driftline.stream.profile.profiler import run_profiler

    settings = settings_of(config)
    if events is not None:
        from driftline.stream.profile.file import write_profile_file

        if items is None or to is None:
            raise typer.BadParameter("--events needs --items and --out")
        with progress_bars() as show:
            n = write_profile_file(settings, events, items, to, most, lambda done, total: show("profiles", done, total))
        if as_json:
            return print_json({"file": str(to), "profiles": n})
        return out.print(f"{to} holds {n:,} profiles", soft_wrap=True)
    if as_json:
        raise typer.BadParameter("--json needs --events: without it the profiler runs until Ctrl-C")
    with broker(settings.broker) as bootstrap:
        create_topics(settings.broker, bootstrap)
        err.print("profiler: starting; Ctrl-C ends it")
        run_profiler(settings, bootstrap, until_caught_up)
    return None


def serve(config: Config = None) -> None:
    """Answer over gRPC from the state store and the newest snapshot, until Ctrl-C.

    With `serving.processes` of more than 1, so many processes share the port, and one that crashed is started again.
    Example: `DRIFTLINE__SERVING__PORT=50051 driftline serve`
    """
    from driftline.serving.ports import check_free
    from driftline.stream.kafka.broker import broker
    from driftline.stream.ops.supervisor import serve_in_processes

    settings = settings_of(config)
    check_free(settings.serving)
    with broker(settings.broker) as bootstrap:
        err.print(f"serve: starting on {joined(settings.serving.host, settings.serving.port)}; Ctrl-C ends it")
        if settings.serving.processes > 1:
            raise typer.Exit(serve_in_processes(settings, bootstrap, config))
        from driftline.serving.server import run_server

        run_server(with_bootstrap(settings, bootstrap))


def demo(
    data: Annotated[str | None, typer.Option(help="Bundled data: shop (the default), or games.")] = None,
    git: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A git repository in their place: what its authors touch next.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"With --git: read the newest commits only; default {COMMITS:,}.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    seconds: Annotated[
        float | None, typer.Option(min=30, help="Wall time of the paced part; default 45, with --git 75.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The whole engine on bundled data: all parts, years of history in bulk, the rest live.

    Example: `driftline demo --data games`
    """
    from driftline.stream.demo import SCENES, run_demo

    if data is not None and git is not None:
        raise typer.BadParameter("got --data and --git; expected one of them", param_hint="--git")
    if limit is not None and git is None:
        raise typer.BadParameter("got --limit without --git; expected a repository to read", param_hint="--limit")
    if data not in (None, *SCENES):
        raise typer.BadParameter(f"got {data!r}; expected {' or '.join(SCENES)}", param_hint="--data")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    if git is not None:
        from driftline.stream.demo.git import run_git_demo

        figures = run_git_demo(git, limit or COMMITS, keep, seconds or 75.0)
    else:
        figures = run_demo(SCENES[data or "shop"], keep, seconds or 45.0)
    if as_json:
        print_json(figures)
