"""`driftline produce` and the long-running parts: worker, trainer, profiler, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream.cli.common import AsJson, Config, err, out, parse_time, print_json, progress, settings_of, with_bootstrap

Once = Annotated[bool, typer.Option("--until-caught-up", help="End when everything in the topics is processed.")]


def register(app: typer.Typer) -> None:
    """Adds the commands of this file."""
    for command in (produce, worker, trainer, profiler, serve, demo):
        app.command()(command)


def produce(
    events: Annotated[Path, typer.Option(help="Events: .parquet, .csv or .jsonl in the event schema.")],
    items: Annotated[Path | None, typer.Option(help="Items, sent before the events.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Events a second at most.")] = None,
    since: Annotated[
        int | None, typer.Option(parser=parse_time, metavar="TIME", help="Only events from this event time on.")
    ] = None,
    until: Annotated[
        int | None, typer.Option(parser=parse_time, metavar="TIME", help="Only events before this event time.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Send files to Kafka, keyed by user and item, in the order of the file.

    Example: `driftline produce --events events.parquet --items items.parquet --rate 2000`
    """
    from stream.broker import broker
    from stream.files import count_rows
    from stream.produce import send_files, sender
    from stream.topics import create_topics

    settings = settings_of(config)
    total = count_rows(events) if since is None and until is None else None
    with broker(settings.broker) as bootstrap:
        create_topics(settings.broker, bootstrap)
        done = {"items": 0, "interactions": 0}
        try:
            with sender(settings.broker, bootstrap) as to_kafka, progress(total, "events") as update:

                def report(topic: str, n: int) -> None:
                    done[topic] = n
                    update(done["interactions"])

                sent, sent_items = send_files(to_kafka, events, items, rate, since or 0, until, report)
        except KeyboardInterrupt:
            counts = f"{done['interactions']:,} events and {done['items']:,} items"
            err.print(f"interrupted: at most {counts} were sent and stay; events with an event_id may be sent again")
            raise
    if as_json:
        print_json({"events": sent.records, "items": sent_items.records, "bytes": sent.bytes, "per_s": sent.per_s})
    else:
        if not sent.records:
            err.print("no event of the file lies between --since and --until")
        out.print(f"sent {sent.records:,} events and {sent_items.records:,} items, {sent.per_s:,.0f} events/s")


def worker(config: Config = None) -> None:
    """Apply events from Kafka to the state store, until Ctrl-C. A supervisor restarts it after a crash.

    Several workers share the partitions of the topic, each partition has one worker at a time.
    Example: `driftline worker -c ecommerce`
    """
    from stream.supervisor import supervise

    settings = settings_of(config)
    err.print("worker: starting; Ctrl-C ends it")
    raise typer.Exit(supervise(settings, config))


def trainer(until_caught_up: Once = False, config: Config = None) -> None:
    """Learn from the stream and publish snapshots, until Ctrl-C: predict first, then learn, then publish.

    Example: `driftline trainer -c ecommerce`
    """
    from stream.broker import broker
    from stream.topics import create_topics
    from stream.trainer_process import run_trainer

    settings = settings_of(config)
    with broker(settings.broker) as bootstrap:
        create_topics(settings.broker, bootstrap)
        err.print("trainer: starting; Ctrl-C ends it")
        run_trainer(settings, bootstrap, until_caught_up)


def profiler(
    events: Annotated[Path | None, typer.Option(help="Write a profile file from these events, without Kafka.")] = None,
    items: Annotated[Path | None, typer.Option(help="Items with the titles that prompts speak of.")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="The profile file, .jsonl or .jsonl.gz.")] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Profiles in the file at most.")] = None,
    until_caught_up: Once = False,
    config: Config = None,
) -> None:
    """Answer profile requests from Kafka until Ctrl-C, or write a profile file for replay.

    Example: `driftline profiler --events events.parquet --items items.parquet --out profiles.jsonl.gz`
    """
    from stream.broker import broker
    from stream.profiler import run_profiler
    from stream.topics import create_topics

    settings = settings_of(config)
    if events is not None:
        from stream.profile_file import write_profile_file

        if items is None or to is None:
            raise typer.BadParameter("--events needs --items and --out")
        with progress(most, "profiles") as update:
            n = write_profile_file(settings, events, items, to, most, update)
        out.print(f"{to} holds {n:,} profiles")
        return
    with broker(settings.broker) as bootstrap:
        create_topics(settings.broker, bootstrap)
        err.print("profiler: starting; Ctrl-C ends it")
        run_profiler(settings, bootstrap, until_caught_up)


def serve(config: Config = None) -> None:
    """Answer over gRPC from the state store and the newest snapshot, until Ctrl-C.

    Example: `DRIFTLINE__SERVING__PORT=50051 driftline serve`
    """
    from serving.server import run_server
    from stream.broker import broker

    settings = settings_of(config)
    with broker(settings.broker) as bootstrap:
        err.print(f"serve: starting on {settings.serving.host}:{settings.serving.port}; Ctrl-C ends it")
        run_server(with_bootstrap(settings, bootstrap))


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
    seconds: Annotated[float, typer.Option(min=60, help="Wall time of the paced part.")] = 75.0,
    as_json: AsJson = False,
) -> None:
    """The whole engine on the bundled shop: all parts, a year of history, two weeks live.

    Example: `driftline demo --json`
    """
    from stream.demo import run_demo

    figures = run_demo(keep, seconds)
    if as_json:
        print_json(figures)
