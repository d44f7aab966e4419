"""The trainer process: reads the stream in order, predicts, then learns, and publishes what serving answers from.

    [interactions] -> cut into groups -> slate (predict) -> prequential metrics -> learn -> snapshot -> [snapshots]
    [items] -> titles, text vectors        |                                    '-> graph version -> [graph-versions]
    [profiles] -> vectors by event time ---'
    every minute: everything that learns, the open groups and the offsets in one checkpoint, renamed into place

Why a restart loses nothing: reading goes on at the offsets that the checkpoint holds, and the groups that were open go
on with it, so each event is learnt exactly once by the weights that survive. While it lags it learns a share of the
groups (`trainer.catch_up_share`) and only counts the others; the shares are part of the metrics.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from configs.errors import StateError
from configs.load import MODEL_SECTIONS, config_sha256, sections_sha256
from configs.settings import Settings
from graph.rows import Event, Float32
from graph.view import UserView
from llm.encoder import TextEncoder
from model.engine import Slate
from serving.arrays import Array, item_part
from serving.publish import publish
from serving.snapshot import LEVEL, SETTINGS, Meta
from stream.allocator import return_freed_memory
from stream.checkpoint import read_checkpoint, write_checkpoint
from stream.events import InvalidEvent, Item, item_of
from stream.learner import StreamLearner, group_of, learning_sha256
from stream.level_gate import LevelGate
from stream.metrics import TrainerMetrics
from stream.open_groups import OpenGroups
from stream.processor import Outgoing, Record
from stream.profile_join import StreamProfiles
from stream.revision import git_revision
from stream.versions import encode_version

LOG = logging.getLogger(__name__)

METRIC_GROUPS = 500
"""Scored groups that a snapshot's prequential metrics are the mean of."""
MANY_TEXTS = 200
"""Item texts that take seconds to encode."""
FIRST_GROUPS = 50
"""Scored groups without which a model that lags answers worse than the popular items do."""
LAGGING_RARER = 4
"""While the trainer catches up it publishes so many times less often."""


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
        self.profiles = StreamProfiles(settings.ranker.text_dim)
        self.learner = StreamLearner(settings, self.texts, self.profiles)
        self.offsets: dict[int, int] = dict.fromkeys(range(partitions), 0)
        """Next offset to take, by partition; rows below it are learnt, left out, or in an open group."""
        self.metrics = TrainerMetrics()
        self.lag = 0
        self._open = OpenGroups()
        self._ndcg: deque[float] = deque(maxlen=METRIC_GROUPS)
        self._gate = LevelGate(settings.trainer, settings.serving.snapshots, METRIC_GROUPS, self.metrics)
        self._changed: dict[str, str] = {}
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
        known = self.catalogue.get(item.item_id)
        if item.description() != (known.description() if known is not None else ""):
            self._changed[item.item_id] = item.description()
        self.catalogue[item.item_id] = item

    def take_profile(self, value: bytes) -> None:
        """One record of `profiles`; one that learning can't read is counted and passed over."""
        before = self.profiles.invalid
        self.profiles.take(value)
        self.metrics.invalid_profiles.inc(self.profiles.invalid - before)

    def encode_items(self) -> None:
        """Text vectors of the items whose description changed since the last call."""
        changed, self._changed = self._changed, {}
        if self._encoder is None or not changed:
            return
        said = [item_id for item_id, text in changed.items() if text]
        if len(said) > MANY_TEXTS:
            LOG.info("encoding the texts of %d items", len(said))
        vectors = dict(zip(said, self._encoder.encode([changed[item_id] for item_id in said]), strict=True))
        nothing = np.zeros(self.settings.ranker.text_dim, np.float32)
        for item_id in changed:
            self.texts[item_id] = vectors.get(item_id, nothing)
            self.learner.set_text(item_id, self.texts[item_id])

    def take(self, partition: int, record: Record) -> None:
        """One record of `interactions`: joins an open group or opens one; groups that it closes are learnt."""
        if record.offset < self.offsets[partition]:
            return
        self.offsets[partition] = record.offset + 1
        event = self._accepted(record)
        if event is not None:
            for number, events in self._open.add(partition, event, time.monotonic()):
                self._learn(number, events)

    def close_idle(self, silent: Collection[int]) -> None:
        """Learns the groups of partitions of which the topic has nothing more and had nothing for a while."""
        for number, events in self._open.idle(silent, time.monotonic()):
            self._learn(number, events)

    # -- what goes out -----------------------------------------------------------------------------------------

    def publish_if_due(self) -> str | None:
        """Publishes a snapshot when it is time and something was learnt; its version.

        While it lags a snapshot is stale when it appears, so there are fewer of them.
        """
        trainer = self.settings.trainer
        rarer = LAGGING_RARER if self.lag > trainer.catch_up_events else 1
        waited = time.monotonic() - self._published_s
        soon = waited < rarer * trainer.publish_s and self._since_publish < rarer * trainer.publish_events
        return None if soon else self.publish_news()

    def publish_news(self) -> str | None:
        """Publishes a snapshot if something was learnt since the last one; its version.

        The first one of a stream that is still being caught up with waits until it has learnt enough to be of use.
        """
        useless = (
            not self.snapshots and self.lag > self.settings.trainer.catch_up_events and len(self._ndcg) < FIRST_GROUPS
        )
        return self.publish() if self._since_publish and not useless else None

    def publish(self) -> str:
        """Publishes a snapshot of everything that serving reads, and announces it."""
        started = time.monotonic()
        metrics = self.prequential()
        refusal, level = self._gate.judge(metrics)
        meta = Meta(
            offsets={f"interactions:{p}": self._open.first_offset(p, offset) for p, offset in self.offsets.items()},
            watermark_ms=self.learner.processor.window.watermark_ms,
            metrics=metrics,
            config_sha256=config_sha256(self.settings),
            git_revision=git_revision(),
            gate=refusal,
            extra={
                "plugs": list(self.learner.engine.plugs),
                "trained_share": self.trained_share,
                SETTINGS: sections_sha256(self.settings, MODEL_SECTIONS),
                LEVEL: level,
            },
        )
        serving = self.settings.serving
        version = publish(serving.snapshots, self.parts(), meta, serving.keep)
        self._send(
            [Outgoing("snapshots", b"current", orjson.dumps({"version": version, "offsets": dict(meta.offsets)}))]
        )
        self._since_publish, self._published_s = 0, time.monotonic()
        self.snapshots += 1
        return_freed_memory()
        self.metrics.published(time.monotonic() - started, metrics)
        LOG.info(
            "snapshot %s: %d groups, %.0f%% learnt, lag %d, NDCG@10 %.4f",
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
        mean = {"ndcg@10": float(np.mean(self._ndcg))} if self._ndcg else {}
        return {**mean, "groups": float(len(self._ndcg))}

    @property
    def trained_share(self) -> float:
        """Share of the groups worth learning that were learnt, not only counted."""
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
            "open": self._open.state(),
            "groups": (self._groups, self._learnt_groups),
            "ndcg": list(self._ndcg),
            "unpublished": self._since_publish,
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
        deduplicates = self.settings.state.dedupe_ids > 0
        known = deduplicates and (self.learner.processor.is_known(event) or self._open.holds(event))
        return None if known else event

    def _learn(self, partition: int, events: list[Event]) -> None:
        """Predicts, then learns a group.

        Groups close in another order than they opened, and several partitions share one processor, so events get the
        offsets of the order in which they are learnt.
        """
        learner, user_id, t_ms = self.learner, events[0].user_id, events[0].timestamp_ms
        events = [replace(event, offset=learner.processor.next_offset + n) for n, event in enumerate(events)]
        view = learner.view(user_id, t_ms)
        use = self._use(events, view)
        slate = learner.slate(view, t_ms) if use == "learnt" else None
        learner.add_items(list(dict.fromkeys(event.item_id for event in events)))
        group = group_of(events, learner.table, self.settings)
        if slate is not None:
            self._ndcg.append(ndcg_at_10(slate, group.items[group.positive]))
        before = len(learner.adoptions)
        learner.learn(group, events, view, slate)
        for model, _ in learner.adoptions[before:]:
            self._send(encode_version(model, self._item_vectors()))
        self._since_publish += len(events)
        self.metrics.learnt(len(events), use)

    def _use(self, events: list[Event], view: UserView) -> str:
        """What a group is good for: only what was wanted, and comes in order, can be predicted."""
        if not any(self.settings.action(event.action).wanted(event.value) for event in events):
            return "no_target"
        if events[0].timestamp_ms < view.last_update_ms:
            return "late"  # the row holds the user's future
        learnt = self._is_learnt()
        self._groups += 1
        self._learnt_groups += learnt
        return "learnt" if learnt else "counted"

    def _is_learnt(self) -> bool:
        """Every group while it keeps up, an even share of them while it lags."""
        trainer = self.settings.trainer
        if self.lag <= trainer.catch_up_events:
            return True
        return int(self._groups * trainer.catch_up_share) > int((self._groups - 1) * trainer.catch_up_share)

    def _item_vectors(self) -> dict[str, Float32]:
        if self.partitions == 1:
            return {}
        processor = self.learner.processor
        memory = processor.graph.items["memory"]
        return {row.item_id: memory[n].copy() for n, row in enumerate(processor.items.rows)}

    def _checkpoint_path(self) -> Path:
        return self.settings.trainer.root / "checkpoint.pt"

    def _restore(self) -> None:
        state = read_checkpoint(self._checkpoint_path(), learning_sha256(self.settings))
        if state is None:
            return
        try:
            self.learner.load_state_dict(state["learner"])
            self.offsets.update(state["offsets"])
            self._open.load(state.get("open", []))
            self._groups, self._learnt_groups = state["groups"]
            self._ndcg.extend(state["ndcg"])
            self._since_publish = state.get("unpublished", 0)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise StateError(
                f"checkpoint {self._checkpoint_path()} does not hold what this release expects: {error!r:.200}; move "
                "it away to learn from the start"
            ) from None


def ndcg_at_10(slate: Slate, wanted: Any) -> float:
    """NDCG@10 of the overall list for the items that followed."""
    top, _ = slate.top(10, "mix")
    hits = np.isin(top, wanted)
    gains = 1 / np.log2(np.arange(2, 12))
    return float((hits * gains[: len(hits)]).sum() / gains[: min(10, len(np.unique(wanted)))].sum())
