"""The process around a `Trainer`: two consumers, a producer, and one loop that ends in order on SIGTERM.

[items], [profiles] -- from the first record on, before anything is learnt --> trainer
[interactions] -- from the offsets of the checkpoint on --> trainer --> [snapshots], [graph-versions]
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from kafka import TopicPartition

from configs.settings import Settings
from configs.signals import stop_on_signals
from llm.encoder import TextEncoder
from stream.checkpoint import locked
from stream.merge import Merge
from stream.partitions import Bounds, check_position
from stream.processor import Record
from stream.produce import outlet
from stream.reading import consumer, places, polled
from stream.topics import partitions_of
from stream.trainer import Trainer


def run_trainer(settings: Settings, bootstrap: str, until_caught_up: bool = False) -> None:
    """Runs until SIGTERM or Ctrl-C; with `until_caught_up` until the topic's present end.

    Raises:
        LockedError: another trainer runs on `trainer.root`.
        StateError: the checkpoint can't be read, or does not belong to this topic.
        BrokerError: the broker does not answer, or does not take a record.
    """
    torch.set_num_threads(settings.trainer.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    logging.getLogger("kafka").setLevel(logging.WARNING)
    stopping = stop_on_signals()
    with locked(settings.trainer.root, settings.state.lock_wait_s):
        partitions = partitions_of(settings.broker, bootstrap, "interactions")
        with outlet(settings.broker, bootstrap, "driftline-trainer") as send:
            trainer = Trainer(settings, partitions, send, TextEncoder(settings.encoder))
            trainer.metrics.serve(settings.metrics.trainer_port)
            _run(trainer, bootstrap, until_caught_up, stopping)
            trainer.publish_news()
            trainer.checkpoint()


def _run(trainer: Trainer, bootstrap: str, until_caught_up: bool, stopping: Callable[[], bool]) -> None:
    settings = trainer.settings
    with consumer(settings.broker, bootstrap) as side, consumer(settings.broker, bootstrap) as reader:
        main_places = places(reader, settings.broker, ["interactions"])
        seek(reader, main_places, trainer)
        side_places = places(side, settings.broker, ["items", "profiles"])
        side.assign(side_places)
        side.seek_to_beginning(*side_places)
        ends = side.end_offsets(side_places)
        while any(side.position(place) < ends[place] for place in side_places):
            _take_side(trainer, side, 200)
        trainer.encode_items()
        merge = Merge(range(trainer.partitions), trainer.learner.processor.validated)
        while not stopping():
            for partition, record in _polled(reader, main_places, trainer, merge):
                trainer.take(partition, record)
                trainer.publish_if_due()
                trainer.checkpoint_if_due()
                if stopping():
                    break
            if _take_side(trainer, side, 0):
                trainer.encode_items()
            trainer.publish_if_due()
            trainer.checkpoint_if_due()
            if until_caught_up and trainer.lag == 0 and not trainer.open_groups:
                break


def seek(reader: Any, main_places: list[TopicPartition], trainer: Trainer) -> None:
    """Lets a consumer of `interactions` go on where the trainer's checkpoint stands.

    Raises:
        StateError: the topic is another one than the checkpoint was made from, or old records are gone.
    """
    reader.assign(main_places)
    first, ends = reader.beginning_offsets(main_places), reader.end_offsets(main_places)
    for place in main_places:
        offset = trainer.offsets[place.partition]
        name = f"{place.topic} in trainer.root {trainer.settings.trainer.root}"
        check_position(name, place.partition, offset, Bounds(first[place], ends[place]))
        reader.seek(place, max(offset, first[place]))


def _polled(
    reader: Any, main_places: list[TopicPartition], trainer: Trainer, merge: Merge
) -> Iterator[tuple[int, Record]]:
    """One poll, and what may be taken by now; then the groups of partitions that have no more are closed when idle.

    A partition is not read on before its records are taken, so memory holds a fetch or two of each.
    """
    waiting = merge.waiting
    reader.resume(*[place for place in main_places if place.partition not in waiting])
    reader.pause(*[place for place in main_places if place.partition in waiting])
    batch = polled(reader, 0 if merge.more else 100, sys.maxsize)  # it mislays the rest of a fetch cut by a pause
    read = {
        place.partition: [Record(r.offset, r.value or b"", r.key, r.timestamp) for r in records]
        for place, records in batch.items()
    }
    now_s = time.monotonic()
    merge.put(read, now_s)
    ends = reader.end_offsets(main_places)
    behind = {place.partition: ends[place] - reader.position(place) for place in main_places}
    left = sum(behind.values()) + len(merge)
    for partition, record in merge.ready([number for number, more in behind.items() if more > 0], now_s, 500):
        left -= 1
        trainer.lag = left
        yield partition, record
    trainer.lag = left
    trainer.metrics.lag.set(trainer.lag)
    waiting = merge.waiting
    trainer.close_idle({n for n, more in behind.items() if n not in read and more <= 0 and n not in waiting})


def _take_side(trainer: Trainer, side: Any, timeout_ms: int) -> bool:
    """Items and profiles that have arrived; True if an item was among them."""
    items = False
    for place, records in polled(side, timeout_ms).items():
        for record in records:
            if place.topic.endswith("items"):
                trainer.take_item(record.value or b"")
                items = True
            elif record.value:
                trainer.take_profile(record.value)
    return items
