"""The trainer process: reads the stream in order, predicts, then learns, and publishes what serving answers from.

    [interactions] -> cut into groups -> slate (predict) -> prequential metrics -> learn -> snapshot -> [snapshots]
    [items] -> titles, text vectors        |                                    '-> graph version -> [graph-versions]
    [profiles] -> vectors by event time ---'
    every minute: everything that learns, the open groups and the offsets in one checkpoint, renamed into place, and the
                  rows as of the same moment beside it (stream/learn/kept.py)

Why a restart loses nothing: reading goes on at the offsets that the checkpoint holds, and the groups that were open go
on with it, so each event is learnt exactly once by the weights that survive. While it lags it learns a share of the
groups (`pace`) and only counts the others; the shares are part of the metrics.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from driftline.configs.errors import SnapshotError, StateError
from driftline.configs.load import config_sha256, sections_of
from driftline.configs.settings import Settings
from driftline.configs.switches import refuse_evaluation
from driftline.graph.arrays import Float32
from driftline.graph.contexts import context_of
from driftline.graph.rows import Event
from driftline.graph.view import UserView
from driftline.llm.encoder import TextEncoder
from driftline.model.engine import EngineSlate
from driftline.model.gate import ndcg
from driftline.serving.availability import CATALOGUE, Bounds, Place
from driftline.serving.publisher import BrokenChainError
from driftline.serving.snapshot import GATE, LEVEL, PARTS, Meta, model_settings
from driftline.stream.events.records import dead_letter
from driftline.stream.events.schema import InvalidEvent
from driftline.stream.headway import Headway
from driftline.stream.kafka.identity import Identity
from driftline.stream.learn.catalogue import NOWHERE, Catalogue, CatalogueLabels, CatalogueTexts
from driftline.stream.learn.checkpoint import read_checkpoint, write_checkpoint
from driftline.stream.learn.gate import LevelGate
from driftline.stream.learn.groups import OpenGroups
from driftline.stream.learn.kept import KeptRows
from driftline.stream.learn.learner import LEARNING_SECTIONS, StreamLearner, group_of, learning_sha256
from driftline.stream.learn.pace import Pace
from driftline.stream.learn.profiles import StreamProfiles
from driftline.stream.learn.publishing import Publishing
from driftline.stream.ops.backlog import write_standing
from driftline.stream.ops.metrics import TrainerMetrics
from driftline.stream.ops.revision import git_revision
from driftline.stream.owned.partitions import check_partitions
from driftline.stream.owned.versions import encode_version
from driftline.stream.process.forget import counts, forgotten_user
from driftline.stream.process.intake import is_copy
from driftline.stream.process.processor import Outgoing, Record
from driftline.stream.state.origin import merged

LOG = logging.getLogger(__name__)

METRIC_GROUPS = 500
"""Scored groups that a snapshot's prequential metrics are the mean of."""
TEXTS_AT_ONCE = 256
"""Item texts whose vectors are in memory while they are encoded; afterwards the encoder's cache on disk has them."""
FIRST_GROUPS = 50
"""Scored groups without which a model answers worse than the popular items do, where more records are there to take."""
ANYWAY_GROUPS = 1000
"""Groups after which a first model does not wait for scored ones: views alone give none."""
SOON_S = 5.0
"""Within how long a checkpoint is written that should not wait: of several reasons for one, one is written."""
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
        self.catalogue = Catalogue(settings.broker.prefix + "items", settings.serving.snapshots)
        self.profiles = StreamProfiles(settings.ranker.text_dim)
        refuse_evaluation(settings.systems)
        keys = sections_of(settings, LEARNING_SECTIONS)
        state = read_checkpoint(self._checkpoint_path(), learning_sha256(settings), keys)
        self._rows = KeptRows(settings.trainer.root, None if state is None else self._named_rows(state))
        self._forgotten: set[str] = set()
        """Users of whom the last checkpoint may have bytes."""
        store = self._rows.store if state is None else None  # else `_restore` hands them over: they are read once
        self.learner = StreamLearner(
            settings, CatalogueTexts(self.catalogue, encoder), self.profiles, store, CatalogueLabels(self.catalogue)
        )
        self.learner.late_waits = self.learner.counted_wait = True
        self.offsets: dict[int, int] = dict.fromkeys(range(partitions), 0)
        """Next offset to take, by partition; rows below it are learnt, left out, or in an open group."""
        self.topic: dict[int, Identity] = {}
        """Which log the offsets are of, by partition; empty where that is not known."""
        self.metrics = TrainerMetrics()
        self.lag = 0
        self.pace = Pace(settings.trainer.catch_up_events, settings.trainer.catch_up_share)
        self.taken = self.closed = 0
        """Records taken in, and groups closed, since the start."""
        self._open = OpenGroups(settings.state.ordered)
        self._ndcg: deque[float] = deque(maxlen=METRIC_GROUPS)
        self._revision = git_revision()  # of the code that was loaded; asking it later would hold up learning
        self._gate = LevelGate(settings, METRIC_GROUPS, self.metrics)
        self._published_out: frozenset[str] = frozenset()
        """Items that the last snapshot says are withdrawn."""
        self._catalogue_news = False
        self._ahead: dict[str, str] = {}
        """Descriptions that are not encoded yet, of items that no event had named."""
        self._letters: list[Outgoing] = []
        self._judged: dict[int, int] = {}
        """Offset by partition of `items` below which every record was judged before."""
        self._learnt_groups = self._groups = 0
        self._publishing = Publishing(
            settings.serving, self.learner.arrays, self.learner.touched, self.catalogue, self.learner.table
        )
        self._since_publish, self._published_s = 0, time.monotonic()
        self._unwritten = 0
        """Events that are in no snapshot on disk but in the one on its way."""
        self._checkpoint_s = time.monotonic()
        self.snapshots = 0
        if state is not None:
            self._restore(state)

    # -- what comes in -----------------------------------------------------------------------------------------

    def hold_to(self, now: Mapping[int, Identity]) -> None:
        """Takes partitions of `interactions` for those that the offsets are of.

        Raises:
            StateError: they are of another log: the topic was made anew.
        """
        whose = f"the checkpoint in trainer.root {self.settings.trainer.root}"
        for partition, identity in now.items():
            known = {"interactions": self.topic[partition]} if partition in self.topic else {}
            held = merged(self.settings, whose, known, {"interactions": identity})
            if "interactions" in held:
                self.topic[partition] = held["interactions"]

    def take_item(self, value: bytes | None, key: bytes | None = None, place: Place = NOWHERE, t_ms: int = 0) -> None:
        """One record of `items`; one that is not an item becomes a dead letter: no other process sends them.

        Args:
            value: without one the record deletes the item of its key.
            place: its partition and offset.
            t_ms: its time, as Kafka has it.
        """
        try:
            item_id = self.catalogue.take(value, key, place, t_ms)
        except InvalidEvent as refusal:
            self.metrics.invalid_items.inc()
            partition, offset = place
            if offset >= self._judged.get(partition, 0):
                self._letters.append(dead_letter("items", partition, Record(offset, value, key), refusal))
                self._checkpoint_soon()
            self._judge(place)
            return
        self._judge(place)
        if self.learner.table.find(item_id) >= 0:
            switched = self.catalogue.may_recommend(item_id) == (item_id in self._published_out)
            self._catalogue_news |= switched or self.catalogue.says_else

    def _judge(self, place: Place) -> None:
        """Notes that a record of `items` is judged; the topic is read again at every start."""
        self._judged[place[0]] = max(self._judged.get(place[0], 0), place[1] + 1)

    def read_whole_catalogue(self, bounds: Bounds) -> None:
        """After the topic `items` was taken from its beginning to its end; `bounds` are its first offset and end."""
        relisted = self.catalogue.read_whole(bounds, self.learner.table)
        self._judged = {partition: end for partition, (_, end) in bounds.items()}  # less, if the topic was made anew
        self._catalogue_news = relisted or self._withdrawn_now() != self._published_out

    def take_profile(self, value: bytes) -> None:
        """One record of `profiles`; one that learning can't read is counted and passed over."""
        before = self.profiles.invalid
        self.profiles.take(value)
        self.metrics.invalid_profiles.inc(self.profiles.invalid - before)

    def encode_items(self, stopping: Callable[[], bool] = lambda: False, ahead: int | None = None) -> None:
        """Labels and text vectors of the items that say something else since the last call; withdrawn ids are written
        down.

        Args:
            stopping: ends it between two items, or batches of texts.
            ahead: of items that no event has named yet, so many are encoded at most and the others wait for later
                calls; None = all.
        """
        self.catalogue.keep_withdrawn()
        for item_id in self.catalogue.changed:
            if stopping():
                return
            self.learner.label_anew(item_id)
        changed, waiting = self.catalogue.take_changed(), self._ahead
        if self._encoder is None:
            return
        waiting |= changed
        now = [item_id for item_id in changed if self.learner.table.find(item_id) >= 0]
        texts = {item_id: waiting.pop(item_id) for item_id in now}
        texts |= {item_id: waiting.pop(item_id) for item_id in list(islice(waiting, ahead))}
        said = [item_id for item_id, text in texts.items() if text]
        headway = Headway("trainer", "item texts encoded")
        for at in range(0, len(said), TEXTS_AT_ONCE):
            if stopping():
                return
            some = said[at : at + TEXTS_AT_ONCE]
            vectors = self._encoder.encode([texts[item_id] for item_id in some])
            for item_id, vector in zip(some, vectors, strict=True):
                self.learner.set_text(item_id, vector)
            headway.tell(at + len(some), len(said) - at - len(some))
        nothing = np.zeros(self.settings.ranker.text_dim, np.float32)
        for item_id in (item_id for item_id, text in texts.items() if not text):
            self.learner.set_text(item_id, nothing)

    def take(self, partition: int, record: Record) -> None:
        """One record of `interactions`: joins an open group or opens one; groups that it closes are learnt."""
        if record.offset < self.offsets[partition]:
            return
        self.offsets[partition] = record.offset + 1
        self.taken += 1
        if (user_id := forgotten_user(record)) is not None:
            log_id = self.topic.get(partition, Identity()).topic_id
            if counts(partition, record, user_id, log_id, self.partitions):
                self.forget(user_id)
            return
        event = self._accepted(record)
        if event is not None:
            for number, events in self._open.add(partition, event, time.monotonic()):
                self._learn(number, events)

    def behind(self, lag: int, now_s: float) -> None:
        """Says how many records there are to take, as the log's end was just asked for, by a monotonic clock."""
        self.lag = lag
        self.pace.see(lag, self.taken, now_s)
        self.metrics.lag.set(lag)

    def forget(self, user_id: str) -> None:
        """Drops what is kept of a user, and soon after the checkpoint, and the current snapshot, that still have it."""
        self._open.drop(user_id)
        self.profiles.forget(user_id)
        self.learner.forget([user_id])
        self._forgotten.add(user_id)
        self._publishing.anew()
        self._since_publish += 1
        self._checkpoint_soon()

    def close_idle(self, silent: Collection[int]) -> None:
        """Learns the groups of partitions of which the topic has nothing more and had nothing for a while."""
        for number, events in self._open.idle(silent, time.monotonic()):
            self._learn(number, events)

    # -- what goes out -----------------------------------------------------------------------------------------

    def publish_if_due(self) -> str | None:
        """Takes a step towards the next snapshot when it is time and something was learnt; the version of one that is
        on disk by now.

        While it lags a snapshot is stale when it appears, so there are fewer of them.
        """
        if self._publishing.writing:
            return self._written(wait=False)
        if not self._publishing.copying:
            if not self.snapshot_due:
                return None
            self.learner.let_leave()  # before the copy begins, as it may change many items
        self.learner.refresh()
        if self._publishing.copy():
            self._write()
        return None

    @property
    def snapshot_due(self) -> bool:
        """Whether the next step of `publish_if_due` is the first one of a snapshot."""
        if self._publishing.writing or self._publishing.copying:
            return False
        trainer = self.settings.trainer
        rarer = LAGGING_RARER if self.lag > trainer.catch_up_events else 1
        waited = time.monotonic() - self._published_s
        soon = waited < rarer * trainer.publish_s and self._since_publish < rarer * trainer.publish_events
        return not soon and self._has_news()

    def _has_news(self) -> bool:
        """Whether something was learnt, or an item that is served says something else, since the last snapshot.

        The first one of a stream that is still being caught up with waits until it has learnt enough to be of use: of
        a short file, too, it would answer with the one item that it knows.
        """
        few = len(self._ndcg) < FIRST_GROUPS and self.closed < ANYWAY_GROUPS
        useless = not self.snapshots and self.lag >= FIRST_GROUPS and few
        return bool(self._since_publish or self._catalogue_news) and not useless

    def publish_news(self) -> str | None:
        """Publishes a snapshot if there is news, and waits until it or the one on its way is on disk; its version."""
        version = self._written(wait=True)
        return self.publish() if self._has_news() else version

    def publish(self) -> str:
        """Publishes a snapshot of everything that serving reads, and waits until it is on disk; its version."""
        version = self._written(wait=True)
        for _ in range(2):  # the second time it builds on nothing that may be damaged
            self._publishing.copy_all()
            self._write()
            version = self._written(wait=True)
            if version is not None:
                return version
        raise SnapshotError("no snapshot could be written; the log says why.")

    def _write(self) -> None:
        """Lets what was copied, as it is now, become a snapshot."""
        self.learner.apply_waiting()
        self.learner.refresh()
        began_s = time.perf_counter()
        metrics = self.prequential()
        told = {name: standing.told() for name, standing in self.learner.engine.gate.standing().items()}
        self.metrics.parts(told)
        refusal, level = self._gate.judge(metrics)
        meta = Meta(
            offsets={f"interactions:{p}": self._open.first_offset(p, offset) for p, offset in self.offsets.items()},
            watermark_ms=self.learner.processor.window.watermark_ms,
            metrics=metrics,
            config_sha256=config_sha256(self.settings),
            git_revision=self._revision,
            gate=refusal,
            extra={
                PARTS: list(self.learner.parts),
                "trained_share": self.trained_share,
                **model_settings(self.settings),
                LEVEL: level,
                CATALOGUE: self.catalogue.topic,
                GATE: told,
            },
        )
        self._published_out, self._catalogue_news = self._withdrawn_now(), False
        self._publishing.write(meta, began_s)
        self._unwritten, self._since_publish = max(1, self._since_publish), 0
        self._published_s = time.monotonic()

    def _written(self, wait: bool) -> str | None:
        """Takes note of the snapshot that was on its way; its version, None if there is none, or not yet."""
        try:
            written = self._publishing.written(wait)
        except BrokenChainError as error:
            LOG.warning("%s", error)
            self._since_publish, self._unwritten = self._since_publish + self._unwritten, 0
            return None
        if written is None:
            return None
        self._unwritten = 0
        self._gate.note(written.meta)
        self.snapshots += 1
        metrics = written.meta.metrics
        self.metrics.published(written.seconds, written.pause_s, written.bytes, metrics)
        LOG.info(
            "snapshot %s: %.1f MB%s, %d groups, %.0f%% learnt, lag %d, NDCG@10 %.4f",
            written.version, written.bytes / 1e6, f" on {written.deltas} before" if written.deltas else "",
            self._groups, 100 * self.trained_share, self.lag, metrics.get("ndcg@10", float("nan")),
        )  # fmt: skip
        return written.version

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

    def _checkpoint_soon(self) -> None:
        """Lets the next checkpoint wait no longer than `SOON_S`."""
        soon_s = time.monotonic() - self.settings.trainer.checkpoint_s + SOON_S
        self._checkpoint_s = min(self._checkpoint_s, soon_s)

    def checkpoint(self) -> None:
        """Everything that learns and where it stands, in one file that is renamed into place, and rows that it names.

        Dead letters of `items` go out before it, which says that they were sent: again after a crash in between.
        """
        if self._letters:
            self._send(self._letters)
            self._letters = []
        state = {
            "learner": self.learner.state_dict(rows=False),
            "rows": self._rows.keep(self._forgotten),
            "offsets": dict(self.offsets),
            "topic": {partition: (i.topic_id, i.offset, i.mark) for partition, i in self.topic.items()},
            "open": self._open.state(),
            "groups": (self._groups, self._learnt_groups, self.pace.even.owed),
            "ndcg": list(self._ndcg),
            "unpublished": max(self._since_publish + self._unwritten, int(self._catalogue_news)),
            "catalogue": self.catalogue.state_dict(),
            "published_out": sorted(self._published_out),
            "judged": dict(self._judged),
            "settings": learning_sha256(self.settings),
            "keys": sections_of(self.settings, LEARNING_SECTIONS),
        }
        write_checkpoint(self._checkpoint_path(), state)
        self._rows.named()
        self._forgotten.clear()
        write_standing(self.settings.trainer.root, self.offsets)
        self._checkpoint_s = time.monotonic()

    def close(self) -> None:
        """Releases the rows; what is in no checkpoint is lost."""
        self._rows.close()

    # -- details -----------------------------------------------------------------------------------------------

    @property
    def open_groups(self) -> int:
        """Groups that more rows may still join."""
        return len(self._open)

    def _accepted(self, record: Record) -> Event | None:
        if is_copy(record):
            return None
        try:
            event = self.learner.processor.validated(record)
        except InvalidEvent:
            return None
        deduplicates = self.settings.state.dedupe_ids > 0
        known = deduplicates and (self.learner.is_known(event) or self._open.holds(event))
        return None if known else event

    def _learn(self, partition: int, events: list[Event]) -> None:
        """Predicts, then learns a group.

        Groups close in another order than they opened, and several partitions share one processor, so the learner gives
        events the offsets of the order in which they are learnt.
        """
        self.closed += 1
        learner, user_id, t_ms = self.learner, events[0].user_id, events[0].timestamp_ms
        view = learner.view(user_id, t_ms, context_of(events[0].extra, self.settings.signals.context))
        use = self._use(events, view)
        slate = learner.slate(view, t_ms) if use == "learnt" else None
        learner.add_group(events)
        group = group_of(events, learner.table, self.settings)
        if slate is not None:
            self._ndcg.append(ndcg_at_10(slate, group.items[group.positive]))
        before = learner.adoptions
        learner.learn(group, events, view, slate)
        if learner.adoptions > before:
            self._send(encode_version(learner.processor.graph.model, self._item_vectors()))
        self._since_publish += len(events)
        self.metrics.learnt(len(events), use)

    def _use(self, events: list[Event], view: UserView) -> str:
        """What a group is good for: only what was wanted, and comes in order, can be predicted."""
        if not any(self.settings.action(event.action).wanted(event.value) for event in events):
            return "no_target"
        if events[0].timestamp_ms < view.last_update_ms:
            return "late"  # the row holds the user's future
        learnt = self.pace.takes_next(self.lag)
        self._groups += 1
        self._learnt_groups += learnt
        return "learnt" if learnt else "counted"

    def _withdrawn_now(self) -> frozenset[str]:
        return self.catalogue.withdrawn(self.learner.table)

    def _item_vectors(self) -> dict[str, Float32]:
        if self.partitions == 1:
            return {}
        processor = self.learner.processor
        memory = processor.graph.items["memory"]
        return {item_id: memory[n].copy() for n, item_id in enumerate(processor.items.ids) if item_id}

    def _checkpoint_path(self) -> Path:
        return self.settings.trainer.root / "checkpoint.pt"

    def _check_partitions(self, offsets: Mapping[int, int]) -> None:
        """Raises StateError if `interactions` has another number of partitions than the checkpoint's offsets."""
        whole = f"{self.settings.broker.prefix}interactions"
        name = "interactions"
        check_partitions(self.settings.broker.prefix, {name: self.partitions}, {name: len(offsets)})
        if self.partitions < len(offsets):
            raise StateError(
                f"checkpoint {self._checkpoint_path()} is of {len(offsets)} partitions of {whole}, the topic has "
                f"{self.partitions}: it is another one. Set trainer.root to a new directory to learn from this one"
            )

    def _named_rows(self, state: dict[str, Any]) -> int | None:
        """The number of the rows that a checkpoint names; None if it holds them itself, as in earlier releases."""
        with self._as_expected():
            self._check_partitions(state["offsets"])
            return int(state["rows"]) if "rows" in state or "rows" not in state["learner"] else None

    @contextmanager
    def _as_expected(self) -> Iterator[None]:
        """Turns what a checkpoint with another content raises into one sentence."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise StateError(
                f"checkpoint {self._checkpoint_path()} does not hold what this release expects: {error!r:.200}; move "
                "it away to learn from the start"
            ) from None

    def _restore(self, state: dict[str, Any]) -> None:
        with self._as_expected():
            self.learner.load_state_dict(state["learner"], self._rows.store)
            self.offsets.update(state["offsets"])
            self.topic = {partition: Identity(*known) for partition, known in state.get("topic", {}).items()}
            self._open.load(state.get("open", []))
            self._groups, self._learnt_groups, *owed = state["groups"]
            self.pace.even.owed = sum(owed)  # of a checkpoint that tells it
            self._ndcg.extend(state["ndcg"])
            self._since_publish = state.get("unpublished", 0)
            self._judged = dict(state.get("judged", {}))
            if "catalogue" in state:
                self.catalogue.load_state_dict(state["catalogue"])
                self._published_out = frozenset(state["published_out"])


def ndcg_at_10(slate: EngineSlate, wanted: Any) -> float:
    """NDCG@10 of the overall list for the items that followed."""
    top, _ = slate.top(10, "overall")
    return ndcg(top, np.unique(wanted))
