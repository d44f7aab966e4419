"""The trainer process: reads the stream in order, predicts, then learns, and publishes what serving answers from.

    [interactions] -> cut into groups -> slate (predict) -> prequential metrics -> learn -> snapshot -> [snapshots]
    [items] -> titles, text vectors        |                                    '-> graph version -> [graph-versions]
    [profiles] -> vectors by event time ---'
    every minute: everything that learns and the offsets in one checkpoint, renamed into place

Why a restart loses nothing: reading goes on at the offsets that the checkpoint holds, so each event is learnt exactly
once by the weights that survive. While it lags it learns a share of the groups (`trainer.catch_up_share`) and only
counts the others; the shares are part of the metrics.
"""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import orjson
import torch
from kafka import KafkaProducer, TopicPartition

from configs.load import config_sha256
from configs.settings import Settings
from graph.rows import Event, Float32
from llm.encoder import TextEncoder
from model.engine import Slate
from serving.arrays import Array, item_part
from serving.snapshot import Meta, current, gate, open_snapshot, publish
from stream.checkpoint import read_checkpoint, write_checkpoint
from stream.events import InvalidEvent, Item, item_of
from stream.learner import StreamLearner, group_of, learning_sha256
from stream.metrics import TrainerMetrics
from stream.processor import Outgoing, Record
from stream.profile_join import StreamProfiles
from stream.reading import consumer, places
from stream.revision import git_revision
from stream.topics import partitions_of
from stream.versions import encode_version

LOG = logging.getLogger(__name__)

GROUP_IDLE_S = 0.25
"""An open group counts as whole when its partition has been silent for so long."""
METRIC_GROUPS = 500
"""Scored groups that a snapshot's prequential metrics are the mean of."""


class Trainer:
    """Everything the process does between two polls; Kafka comes in through `take` and goes out through `send`.

    Args:
        settings: the whole configuration.
        partitions: of `interactions`.
        send: sends records and returns when they are acknowledged.
        encoder: of item texts and facets; None = items have no text.
    """

    def __init__(
        self, settings: Settings, partitions: int, send: Callable[[list[Outgoing]], None], encoder: TextEncoder | None
    ) -> None:
        self.settings, self.partitions, self._send, self._encoder = settings, partitions, send, encoder
        self.catalogue: dict[str, Item] = {}
        self.texts: dict[str, Float32] = {}
        self.profiles = StreamProfiles()
        self.learner = StreamLearner(settings, self.texts, self.profiles)
        self.offsets: dict[int, int] = dict.fromkeys(range(partitions), 0)
        self.metrics = TrainerMetrics()
        self.lag = 0
        self._open: dict[int, tuple[list[Event], float]] = {}
        self._ndcg: deque[float] = deque(maxlen=METRIC_GROUPS)
        self._arrived = 0
        self._learnt_groups = self._groups = 0
        self._since_publish, self._published_s = 0, time.monotonic()
        self._checkpoint_s = time.monotonic()
        self.snapshots = 0
        self._restore()

    # -- what comes in -----------------------------------------------------------------------------------------

    def take_item(self, value: bytes) -> None:
        """One record of `items`; one that is not an item is passed over (the worker does not read them either)."""
        try:
            item = item_of(orjson.loads(value))
        except (InvalidEvent, orjson.JSONDecodeError):
            self.metrics.invalid_items.inc()
            return
        self.catalogue[item.item_id] = item

    def encode_items(self) -> None:
        """Text vectors of items that have none yet."""
        if self._encoder is None:
            return
        new = {i: item.description() for i, item in self.catalogue.items() if i not in self.texts}
        new = {i: text for i, text in new.items() if text}
        for item_id, vector in zip(new, self._encoder.encode(list(new.values())), strict=True):
            self.texts[item_id] = vector
            self.learner.set_text(item_id, vector)

    def take(self, partition: int, record: Record) -> None:
        """One record of `interactions`: joins the partition's open group, or closes it and opens the next."""
        if record.offset < self.offsets[partition]:
            return
        event = self._accepted(record)
        if event is None:
            self._advance(partition, record.offset)
            return
        group, _ = self._open.get(partition, ([], 0.0))
        if group and not _same_group(group[-1], event):
            self.learn(partition)
            group = []
        group.append(event)
        self._open[partition] = (group, time.monotonic())
        if event.group_id is None:
            self.learn(partition)

    def close_idle(self) -> None:
        """Closes groups whose partition has been silent."""
        now = time.monotonic()
        for partition in [p for p, (_, last_s) in self._open.items() if now - last_s >= GROUP_IDLE_S]:
            self.learn(partition)

    def learn(self, partition: int) -> None:
        """Predicts, then learns the open group of a partition."""
        events, _ = self._open.pop(partition)
        learner, user_id, t_ms = self.learner, events[0].user_id, events[0].timestamp_ms
        last_offset = events[-1].offset
        if self.partitions > 1:  # one processor over several partitions: offsets become the order of arrival
            for event in events:
                event.offset = self._arrived
                self._arrived += 1
        view = learner.view(user_id, t_ms)
        slate = learner.slate(view, t_ms) if self._is_learnt() else None
        learner.add_items(list(dict.fromkeys(event.item_id for event in events)))
        group = group_of(events, learner.table, self.settings)
        if slate is not None and group.positive.any():
            self._ndcg.append(ndcg_at_10(slate, group.items[group.positive]))
        before = len(learner.adoptions)
        learner.learn(group, events, view, slate)
        for model, _ in learner.adoptions[before:]:
            self._send(encode_version(model, self._item_vectors()))
        self._advance(partition, last_offset)
        self._since_publish += len(events)
        self._groups += 1
        self._learnt_groups += slate is not None
        self.metrics.learnt(len(events), slate is not None)

    # -- what goes out -----------------------------------------------------------------------------------------

    def publish_if_due(self) -> str | None:
        """Publishes a snapshot when it is time and something was learnt; its version."""
        trainer = self.settings.trainer
        waited = time.monotonic() - self._published_s
        if not self._since_publish or (waited < trainer.publish_s and self._since_publish < trainer.publish_events):
            return None
        return self.publish()

    def publish(self) -> str:
        """Publishes a snapshot of everything that serving reads, and announces it."""
        started = time.monotonic()
        metrics = self.prequential()
        meta = Meta(
            offsets={f"interactions:{p}": offset for p, offset in self.offsets.items()},
            watermark_ms=self.learner.processor.window.watermark_ms,
            metrics=metrics,
            config_sha256=config_sha256(self.settings),
            git_revision=git_revision(),
            gate=self._gate(metrics),
            extra={"plugs": list(self.learner.engine.plugs), "trained_share": self.trained_share},
        )
        serving = self.settings.serving
        version = publish(serving.snapshots, self.parts(), meta, serving.keep)
        self._send(
            [Outgoing("snapshots", b"current", orjson.dumps({"version": version, "offsets": dict(meta.offsets)}))]
        )
        self._since_publish, self._published_s = 0, time.monotonic()
        self.snapshots += 1
        self.metrics.published(time.monotonic() - started, metrics)
        LOG.info(
            "snapshot %s: %d groups taken in, %.0f%% learnt, lag %d, NDCG@10 %.4f",
            version, self._groups, 100 * self.trained_share, self.lag, metrics.get("ndcg@10", float("nan")),
        )  # fmt: skip
        return version

    def parts(self) -> dict[str, dict[str, Array]]:
        """The parts of a snapshot."""
        learner = self.learner
        ids = learner.table.ids
        items = [self.catalogue.get(item_id) or Item(item_id) for item_id in ids]
        parts: dict[str, dict[str, Array]] = {
            "engine": dict(learner.engine.arrays(replay=False)),
            "items": item_part(
                ids,
                [item.title or item.text for item in items],
                [item.domain for item in items],
                [item.available for item in items],
            ),
        }
        if learner.sequence is not None:
            parts["hstu"] = dict(learner.sequence.arrays())
        if learner.graph is not None:
            parts["graph"] = dict(learner.graph.arrays())
        return parts

    def prequential(self) -> dict[str, float]:
        """Metrics of the last scored groups, each scored before it was learnt."""
        return {"ndcg@10": float(np.mean(self._ndcg)), "groups": float(len(self._ndcg))} if self._ndcg else {}

    @property
    def trained_share(self) -> float:
        """Share of the groups that were learnt, not only counted."""
        return self._learnt_groups / self._groups if self._groups else 1.0

    def checkpoint_if_due(self) -> None:
        """Writes a checkpoint when it is time."""
        if time.monotonic() - self._checkpoint_s >= self.settings.trainer.checkpoint_s:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Everything that learns and where it stands, in one file that is renamed into place."""
        state = {
            "learner": self.learner.state_dict(),
            "offsets": dict(self.offsets),
            "arrived": self._arrived,
            "groups": (self._groups, self._learnt_groups),
            "ndcg": list(self._ndcg),
            "settings": learning_sha256(self.settings),
        }
        write_checkpoint(self._checkpoint_path(), state)
        self._checkpoint_s = time.monotonic()

    # -- details -----------------------------------------------------------------------------------------------

    @property
    def open_groups(self) -> int:
        """Groups that more rows may still join."""
        return len(self._open)

    def _accepted(self, record: Record) -> Event | None:
        try:
            event = self.learner.processor.validated(record)
        except InvalidEvent:
            return None
        return None if self.learner.processor.is_known(event) else event

    def _advance(self, partition: int, offset: int) -> None:
        self.offsets[partition] = max(self.offsets[partition], offset + 1)

    def _is_learnt(self) -> bool:
        """Every group while it keeps up, each n-th while it lags."""
        trainer = self.settings.trainer
        return self.lag <= trainer.catch_up_events or self._groups % round(1 / trainer.catch_up_share) == 0

    def _item_vectors(self) -> dict[str, Float32]:
        if self.partitions == 1:
            return {}
        processor = self.learner.processor
        memory = processor.graph.items["memory"]
        return {row.item_id: memory[n].copy() for n, row in enumerate(processor.items.rows)}

    def _gate(self, metrics: dict[str, float]) -> str:
        root = self.settings.serving.snapshots
        pointer = current(root)
        if pointer is None or metrics.get("groups", 0) < METRIC_GROUPS:
            return ""
        reference = open_snapshot(root, pointer.version).meta.metrics
        enough = reference.get("groups", 0) >= METRIC_GROUPS
        return gate(metrics, reference, self.settings.trainer.gate_drop) if enough else ""

    def _checkpoint_path(self) -> Path:
        return self.settings.trainer.root / "checkpoint.pt"

    def _restore(self) -> None:
        state = read_checkpoint(self._checkpoint_path(), learning_sha256(self.settings))
        if state is None:
            return
        self.learner.load_state_dict(state["learner"])
        self.offsets.update(state["offsets"])
        self._arrived = state["arrived"]
        self._groups, self._learnt_groups = state["groups"]
        self._ndcg.extend(state["ndcg"])


def ndcg_at_10(slate: Slate, wanted: Any) -> float:
    """NDCG@10 of the overall list for the items that followed."""
    top, _ = slate.top(10, "mix")
    hits = np.isin(top, wanted)
    gains = 1 / np.log2(np.arange(2, 12))
    return float((hits * gains[: len(hits)]).sum() / gains[: min(10, len(np.unique(wanted)))].sum())


def run_trainer(settings: Settings, bootstrap: str, until_caught_up: bool = False) -> None:
    """Runs until SIGTERM or Ctrl-C; with `until_caught_up` until the topic's present end."""
    torch.set_num_threads(settings.trainer.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    logging.getLogger("kafka").setLevel(logging.WARNING)
    stopping = stop_on_signals()
    partitions = partitions_of(settings.broker, bootstrap, "interactions")
    producer = KafkaProducer(bootstrap_servers=bootstrap.split(","), acks="all", client_id="driftline-trainer")

    def send(outgoing: list[Outgoing]) -> None:
        for out in outgoing:
            topic = settings.broker.prefix + out.topic
            producer.send(topic, key=out.key, value=out.value, headers=list(out.headers))
        producer.flush()

    trainer = Trainer(settings, partitions, send, TextEncoder(settings.encoder))
    trainer.metrics.serve(settings.metrics.trainer_port)
    with consumer(settings.broker, bootstrap) as side, consumer(settings.broker, bootstrap) as reader:
        side_places = places(side, settings.broker, ["items", "profiles"])
        side.assign(side_places)
        side.seek_to_beginning(*side_places)
        main_places = places(reader, settings.broker, ["interactions"])
        reader.assign(main_places)
        for place in main_places:
            reader.seek(place, trainer.offsets[place.partition])
        ends = side.end_offsets(side_places)
        while any(side.position(place) < ends[place] for place in side_places):
            _take_side(trainer, side, 200)
        trainer.encode_items()
        while not stopping():
            for partition, record in _polled(reader, main_places, trainer):
                trainer.take(partition, record)
                trainer.publish_if_due()
                trainer.checkpoint_if_due()
                if stopping():
                    break
            trainer.close_idle()
            if _take_side(trainer, side, 0):
                trainer.encode_items()
            trainer.publish_if_due()
            trainer.checkpoint_if_due()
            if until_caught_up and trainer.lag == 0 and not trainer.open_groups:
                break
    trainer.publish()
    trainer.checkpoint()
    producer.close()


def _polled(reader: Any, main_places: list[TopicPartition], trainer: Trainer) -> Iterator[tuple[int, Record]]:
    batch = reader.poll(timeout_ms=100, max_records=500)
    ends = reader.end_offsets(main_places)
    behind = sum(ends[place] - reader.position(place) for place in main_places)
    left = sum(len(records) for records in batch.values())
    for place, records in batch.items():
        for r in records:
            left -= 1
            trainer.lag = behind + left
            yield place.partition, Record(r.offset, r.value or b"", r.key, r.timestamp)
    trainer.lag = behind
    trainer.metrics.lag.set(behind)


def _take_side(trainer: Trainer, side: Any, timeout_ms: int) -> bool:
    """Items and profiles that have arrived; True if an item was among them."""
    items = False
    for place, records in side.poll(timeout_ms=timeout_ms).items():
        for record in records:
            if place.topic.endswith("items"):
                trainer.take_item(record.value or b"")
                items = True
            elif record.value:
                trainer.profiles.take(record.value)
    return items


def _same_group(last: Event, event: Event) -> bool:
    return (
        event.group_id is not None
        and last.user_id == event.user_id
        and last.group_id == event.group_id
        and last.timestamp_ms == event.timestamp_ms
    )


def stop_on_signals() -> Callable[[], bool]:
    """From here on SIGTERM and Ctrl-C only make the returned function true, so that work ends in order."""
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return lambda: bool(stopped)
