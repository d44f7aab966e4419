"""The process around a `Trainer`: two consumers, a producer, and one loop that ends in order on SIGTERM.

[items], [profiles] -- from the first record on, before anything is learnt --> trainer
[interactions] -- from the offsets of the checkpoint on --> trainer --> [snapshots], [graph-versions]
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from typing import Any

import torch
from kafka import TopicPartition
from kafka.errors import OffsetOutOfRangeError

from driftline.configs.errors import BrokerError
from driftline.configs.logs import log_to_stderr
from driftline.configs.settings import Settings
from driftline.configs.signals import stop_on_signals
from driftline.llm.encoder import TextEncoder
from driftline.serving.lull import Lull
from driftline.serving.partitions import take_in_added
from driftline.stream.events.produce import outlet
from driftline.stream.events.records import Record, record_of
from driftline.stream.events.topics import partitions_of
from driftline.stream.headway import Headway, Rate
from driftline.stream.kafka.identity import Identities
from driftline.stream.kafka.quiet import quiet_clients
from driftline.stream.kafka.reading import consumer, of_a_follower, places, polled
from driftline.stream.learn.checkpoint import locked
from driftline.stream.learn.merge import Merge
from driftline.stream.learn.trainer import TEXTS_AT_ONCE, Trainer
from driftline.stream.owned.partitions import Bounds, check_partitions, check_position

LOG = logging.getLogger(__name__)
ENOUGH = 20
"""Groups after which their rate says something."""
LOOK_S = 0.5
"""Between two looks at how far the trainer is behind."""
AHEAD = TEXTS_AT_ONCE
"""Texts that are encoded between two polls for items that no event has named yet: learning waits for them."""
ENDS_S = 5.0
"""Between two questions for the end of the log while one batch is learnt, which may take minutes."""
TOPIC_S = 3.0
"""Between two looks at whether the topic is still the one that is being learnt."""


def run_trainer(settings: Settings, bootstrap: str, until_caught_up: bool = False) -> None:
    """Runs until SIGTERM or Ctrl-C; with `until_caught_up` until the topic's present end.

    Raises:
        LockedError: another trainer runs on `trainer.root`.
        StateError: the checkpoint can't be read, or does not belong to this topic.
        BrokerError: the broker does not answer, or does not take a record.
    """
    torch.set_num_threads(settings.trainer.threads)
    log_to_stderr()
    quiet_clients()
    stopping = stop_on_signals()
    with locked(settings.trainer.root, settings.state.lock_wait_s):
        partitions = partitions_of(settings.broker, bootstrap, "interactions")
        with outlet(settings.broker, bootstrap, "driftline-trainer") as send:
            encoder = TextEncoder(settings.encoder) if settings.ranker.text_dim else None
            with closing(Trainer(settings, partitions, send, encoder)) as trainer:
                if _run(trainer, bootstrap, until_caught_up, stopping):
                    LOG.info("stopping: publishing what was learnt since the last snapshot, then a checkpoint")
                    trainer.publish_news()
                    trainer.checkpoint()
            LOG.info("stopped; the next start goes on from here")


class Backlog:
    """How many groups the trainer has before it, and how long they take at its present rate.

    Only records are counted ahead: as many groups come of them as came of those of the last while.
    """

    def __init__(self, trainer: Trainer, now_s: float | None = None) -> None:
        now_s = time.monotonic() if now_s is None else now_s
        self._trainer, self._next_s = trainer, now_s
        self._records, self._headway = Rate(now_s, trainer.taken), Headway("trainer", "groups", now_s)

    def look(self, now_s: float | None = None) -> None:
        """Tells the metrics, and people where it takes longer; does nothing before it is time."""
        now_s = time.monotonic() if now_s is None else now_s
        if now_s < self._next_s:
            return
        self._next_s, trainer = now_s + LOOK_S, self._trainer
        records, groups = self._records.at(now_s, trainer.taken), self._headway.at(now_s, trainer.closed)
        if trainer.lag and (trainer.closed < ENOUGH or not (records and groups)):
            return  # too little is known yet, or nothing moves
        left = max(1, round(trainer.lag * groups / records)) if trainer.lag else 0
        seconds = trainer.lag / records if trainer.lag else 0.0
        trainer.metrics.behind(left, groups, seconds)
        self._headway.tell(trainer.closed, left, f" ({trainer.lag:,} records)", now_s)


def _run(trainer: Trainer, bootstrap: str, until_caught_up: bool, stopping: Callable[[], bool]) -> bool:
    """Whether it learnt, or could have. One that is stopped before knows half a catalogue, which is to be kept nowhere.

    In a checkpoint it would hide what compaction takes of the other half; a snapshot of it would have no titles.
    """
    settings = trainer.settings
    with (
        consumer(settings.broker, bootstrap) as side,
        consumer(settings.broker, bootstrap, skips=False) as reader,
        closing(Identities(settings.broker, bootstrap)) as identities,
    ):
        main_places = places(reader, settings.broker, ["interactions"])
        check_topic(trainer, identities)
        checked_s = time.monotonic()
        seek(reader, main_places, trainer)
        trainer.metrics.serve(settings.metrics)  # from here on nothing refuses what there is
        side_places = places(side, settings.broker, ["items", "profiles"])
        side.assign(side_places)
        side.seek_to_beginning(*side_places)
        first = side.beginning_offsets(side_places)
        ends = _take_all_of_side(trainer, side, stopping)
        if stopping():
            return False
        items = [place for place in side_places if place.topic == trainer.catalogue.topic]
        trainer.read_whole_catalogue({place.partition: (first[place], ends[place]) for place in items})
        trainer.encode_items(stopping)
        if stopping():
            return False
        gc.freeze()  # a full collection over all that is there by now would hold up learning for a fifth of a second
        merge, lull = Merge(range(trainer.partitions), trainer.learner.processor.validated), of_a_follower()
        backlog = Backlog(trainer)
        while not stopping():
            backlog.look()
            if time.monotonic() - checked_s > TOPIC_S:
                with suppress(BrokerError):  # the reader waits for a broker that is away
                    check_topic(trainer, identities)
                take_in_added(side, side.assignment())
                checked_s = time.monotonic()
            for partition, record in _polled(reader, main_places, trainer, merge, lull):
                closed = trainer.closed
                trainer.take(partition, record)
                if trainer.closed == closed:
                    continue  # nothing that takes time
                backlog.look()
                _publish_if_due(trainer, side, stopping)
                trainer.checkpoint_if_due()
                if stopping():
                    break
            _take_side(trainer, side, 0)
            trainer.encode_items(stopping, AHEAD)
            _publish_if_due(trainer, side, stopping)
            trainer.checkpoint_if_due()
            if until_caught_up and trainer.lag == 0 and not trainer.open_groups:
                break
    return True


def check_topic(trainer: Trainer, identities: Identities) -> None:
    """Holds the trainer to the log that its offsets are of.

    Raises:
        StateError: the topic was made anew, or has got more partitions.
        BrokerError: the broker does not answer.
    """
    asked = [("interactions", partition) for partition in range(trainer.partitions)]
    found = identities.of(asked, [trainer.topic.get(partition) for _, partition in asked])
    check_partitions(trainer.settings.broker.prefix, identities.partitions, {"interactions": trainer.partitions})
    trainer.hold_to({partition: identity for (_, partition), identity in found.items()})


def seek(reader: Any, main_places: list[TopicPartition], trainer: Trainer) -> None:
    """Lets a consumer of `interactions` go on where the trainer's checkpoint stands.

    Raises:
        StateError: the topic is another one than the checkpoint was made from, or old records are gone.
    """
    reader.assign(main_places)
    _seek(reader, {place: trainer.offsets[place.partition] for place in main_places}, trainer)


def _seek(reader: Any, offsets: Mapping[TopicPartition, int], trainer: Trainer) -> None:
    first, ends = reader.beginning_offsets(list(offsets)), reader.end_offsets(list(offsets))
    for place, offset in offsets.items():
        name = f"{place.topic} in trainer.root {trainer.settings.trainer.root}"
        check_position(name, place.partition, offset, Bounds(first[place], ends[place]))
        reader.seek(place, max(offset, first[place]))


def _polled(
    reader: Any, main_places: list[TopicPartition], trainer: Trainer, merge: Merge, lull: Lull | None = None
) -> Iterator[tuple[int, Record]]:
    """One poll, and what may be taken by now; then the groups of partitions that have no more are closed when idle.

    A partition is not read on before its records are taken, so memory holds a fetch or two of each.

    Raises:
        StateError: the broker has deleted records that were not read yet.
    """
    waiting = merge.waiting
    reader.resume(*[place for place in main_places if place.partition not in waiting])
    reader.pause(*[place for place in main_places if place.partition in waiting])
    try:
        at_most = sys.maxsize  # it mislays the rest of a fetch that is cut by a pause
        batch = polled(reader, 0 if merge.more else 100, at_most, lull)
    except OffsetOutOfRangeError as error:
        _seek(reader, error.args[0], trainer)
        batch = {}
    read = {place.partition: [record_of(r) for r in records] for place, records in batch.items()}
    now_s = time.monotonic()
    merge.put(read, now_s)
    ends = reader.end_offsets(main_places)
    behind = {place.partition: ends[place] - reader.position(place) for place in main_places}
    left = sum(behind.values()) + len(merge)
    trainer.behind(left, now_s)
    for partition, record in merge.ready([number for number, more in behind.items() if more > 0], now_s, 500):
        left -= 1
        if time.monotonic() - now_s > ENDS_S:
            before, ends, now_s = ends, reader.end_offsets(main_places), time.monotonic()
            left += sum(ends.values()) - sum(before.values())
            trainer.behind(left, now_s)
        trainer.lag = left
        yield partition, record
    trainer.lag = left
    trainer.metrics.lag.set(trainer.lag)
    waiting = merge.waiting
    trainer.close_idle({n for n, more in behind.items() if n not in read and more <= 0 and n not in waiting})


def _publish_if_due(trainer: Trainer, side: Any, stopping: Callable[[], bool]) -> None:
    """A step towards the next snapshot; before its first one, all items and profiles that have been sent by now.

    What is sent before an event is known by the snapshot that learnt it: no answer has an item without its title.
    """
    if trainer.snapshot_due:
        _take_all_of_side(trainer, side, stopping)
        trainer.encode_items(stopping, AHEAD)
    trainer.publish_if_due()


def _take_all_of_side(trainer: Trainer, side: Any, stopping: Callable[[], bool]) -> dict[TopicPartition, int]:
    """Items and profiles up to the present ends of their topics, or less when asked to stop; these ends."""
    ends: dict[TopicPartition, int] = side.end_offsets(list(side.assignment()))
    while not stopping() and any(side.position(place) < end for place, end in ends.items()):
        _take_side(trainer, side, 200)
    return ends


def _take_side(trainer: Trainer, side: Any, timeout_ms: int) -> None:
    """Items and profiles that have arrived."""
    for place, records in polled(side, timeout_ms).items():
        for record in records:
            if place.topic == trainer.catalogue.topic:
                trainer.take_item(record.value, record.key, (place.partition, record.offset), record.timestamp)
            elif record.key and not trainer.profiles.words.is_last(record.key, place.partition, record.timestamp):
                continue  # the user has a newer one in another partition
            elif record.value:
                trainer.take_profile(record.value)
            elif record.key:
                trainer.profiles.forget(record.key.decode(errors="replace"))
