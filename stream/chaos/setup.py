"""A place of its own for a run: folders, a prefix for the topics, a broker, the stream."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path

from driftline.configs.addresses import free_port
from driftline.configs.errors import InputError
from driftline.configs.settings import Settings
from driftline.graph.rows import Event
from driftline.stream.chaos.plan import Outcome, Plan
from driftline.stream.chaos.processes import OwnBroker
from driftline.stream.chaos.run import Chaos
from driftline.stream.chaos.troubles import USUAL, Troubles, spaced, trouble
from driftline.stream.events.files import read_messages
from driftline.stream.events.schema import decode_event
from driftline.stream.kafka.broker import broker


@dataclass(frozen=True, slots=True)
class Room:
    """Where a run takes place.

    Attributes:
        settings: of the user; folders, prefix and ports are replaced.
        events: file whose users and items make the stream.
        limit: events of the stream.
        broker_command: see OwnBroker; "" = the broker of the settings.
        folder: for everything that is written; removed at the end unless `keep`.
        troubles: of the stream.
    """

    settings: Settings
    events: Path
    limit: int
    broker_command: str
    folder: Path
    keep: bool = False
    troubles: Troubles = USUAL


def run_in(room: Room, plan: Plan, say: Callable[[int, str], None] = lambda done, line: None) -> Outcome:
    """Sets up, runs and judges.

    Raises:
        DriftlineError: the run could not be made.
    """
    try:
        settings = _settings(room, plan)
        stream = trouble(spaced(_events(room), time.time_ns() // 1_000_000), room.troubles, plan.seed)
        with _broker(room, settings) as (own, bootstrap):
            at = settings.model_copy(update={"broker": settings.broker.model_copy(update={"bootstrap": bootstrap})})
            return Chaos(at, own, bootstrap, stream, plan, room.folder, say).run()
    finally:
        if not room.keep:
            shutil.rmtree(room.folder, ignore_errors=True)


def _settings(room: Room, plan: Plan) -> Settings:
    s, folder = room.settings, room.folder
    broker = {
        "prefix": f"chaos-{uuid.uuid4().hex[:8]}.",
        "partitions": plan.partitions,
        "embedded_dir": folder / "broker",
    }
    if not s.broker.bootstrap:
        broker["embedded_port"] = free_port()
    return s.model_copy(
        update={
            "broker": s.broker.model_copy(update=broker),
            "state": s.state.model_copy(update={"root": folder / "state"}),
            "trainer": s.trainer.model_copy(update={"root": folder / "trainer"}),
            "graph": s.graph.model_copy(update={"publish_groups": min(s.graph.publish_groups, 200)}),
            "serving": s.serving.model_copy(
                update={"snapshots": folder / "snapshots", "port": free_port(), "host": "127.0.0.1", "tokens": ()}
            ),
            "encoder": s.encoder.model_copy(update={"cache": folder / "encodings.sqlite"}),
        }
    )


def _events(room: Room) -> list[Event]:
    """`limit` events of the file, again from its beginning where it is short."""
    first = [decode_event(value) for _, value in islice(read_messages(room.events), room.limit)]
    if not first:
        raise InputError(f"{room.events} has no row; expected events")
    return list(islice(chain.from_iterable(repeat(first)), room.limit))


@contextmanager
def _broker(room: Room, settings: Settings) -> Iterator[tuple[OwnBroker | None, str]]:
    if not room.broker_command:
        with broker(settings.broker) as bootstrap:
            yield None, bootstrap
        return
    own = OwnBroker(room.broker_command, room.folder / "kafka")
    own.start()
    try:
        own.wait_until_it_answers(settings.broker)
        yield own, own.bootstrap
    finally:
        own.kill()
