"""Everything that learns on one stream, behind three calls: the trainer process and replay drive the same object.

    view = learner.view(user_id, now_ms)       what is known before the group
    slate = learner.slate(view, now_ms)        predict
    learner.learn(group, events, view, slate)  then learn: engine, graph, processor, sequence, in this order

Nothing here knows of Kafka. With `learning` off weights stand still while histories, memories and signals go on:
that is the arm `frozen`, and what a trainer does with the groups that it passes over while it catches up.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from configs.load import MODEL_SECTIONS, sections_sha256
from configs.settings import Settings
from graph.learn import GraphLearner
from graph.memory import GraphMemory
from graph.rows import Event, Float32
from graph.view import Group, ItemTable, Profile, UserView, view_of
from model.engine import Engine, Plug, Slate
from model.plugs import GraphPlug, SequencePlug
from model.sequence import SequenceLearner
from stream.processor import Changes, Processor, Record
from stream.store import MemoryStore


class Profiles(Protocol):
    """Where a user's profile comes from, as of an event time."""

    def at(self, user_id: str, now_ms: int) -> Profile | None:
        """The newest profile that is valid at `now_ms`."""

    def request(self, record: bytes) -> None:
        """Takes a record that the processor meant for `profile-requests`."""


class NoProfiles:
    """Nobody has a profile."""

    def at(self, user_id: str, now_ms: int) -> Profile | None:
        """None."""
        return None

    def request(self, record: bytes) -> None:
        """Passes over it."""


class Texts(Protocol):
    """Text vectors of items by id."""

    def get(self, item_id: str) -> Float32 | None:
        """[text_dim] float32 unit vector, None = the item says nothing."""


class StreamLearner:
    """Processor, engine and plugs of one stream.

    Args:
        settings: the whole configuration; `model.backbone` and `graph.weights` may be "off".
        texts: text vectors of items; None = no item has text.
        profiles: None = nobody has a profile.
    """

    def __init__(self, settings: Settings, texts: Texts | None = None, profiles: Profiles | None = None) -> None:
        self.settings = settings
        self.table = ItemTable()
        self.texts = texts
        self.profiles = profiles or NoProfiles()
        self.processor = Processor(settings, MemoryStore())
        self.sequence = (
            SequenceLearner(settings.model, text_dim=settings.ranker.text_dim)
            if settings.model.backbone != "off"
            else None
        )
        self.graph = GraphLearner(settings.graph, settings.ranker.text_dim) if settings.graph.weights != "off" else None
        plugs: dict[str, Plug] = {}
        if self.sequence is not None:
            plugs["hstu"] = SequencePlug(self.sequence)
        if self.graph is not None:
            plugs["graph"] = GraphPlug(self.graph)
            plugs["fused"] = GraphPlug(self.graph, fused=True)
        self.engine = Engine(settings, self.table, plugs)
        self.learning = True
        self.groups = 0
        self.sequence_cpu_s = 0.0
        """CPU seconds that the backbone has spent on learning."""
        self.adoptions: list[tuple[GraphMemory, int]] = []

    def add_items(self, item_ids: Sequence[str]) -> None:
        """Makes items candidates, in this order; those that are there already are passed over."""
        for item_id in item_ids:
            if self.table.find(item_id) >= 0:
                continue
            index = self.table.add(item_id)
            text = self.texts.get(item_id) if self.texts is not None else None
            if self.graph is not None:
                self.graph.add_item(index, item_id, text)
            if text is not None:
                self.set_text(item_id, text)
        self.engine.grow(len(self.table))

    def set_text(self, item_id: str, vector: Float32) -> None:
        """Gives a candidate its text vector; the catalogue may tell of an item after its first event."""
        index = self.table.find(item_id)
        if index < 0:
            return
        self.engine.set_text(index, vector)
        if self.sequence is not None:
            self.sequence.set_text(index, vector)
        if self.graph is not None:
            self.graph.add_item(index, item_id, vector)

    def view(self, user_id: str, now_ms: int) -> UserView:
        """What is known of a user; `now_ms` picks the profile."""
        row = self.processor.user(user_id)
        return view_of(row, self.table, user_id, self.profiles.at(user_id, now_ms))

    def slate(self, view: UserView, now_ms: int) -> Slate:
        """Candidates, features and scores at a request time; changes nothing."""
        return self.engine.slate(view, now_ms)

    def learn(self, group: Group, events: Sequence[Event], view: UserView, slate: Slate | None) -> Changes:
        """Takes in one group that was (or was not) scored.

        Args:
            group: its rows with table indices; the items must have been added.
            events: the same rows as events with their offsets.
            view: the user before the group.
            slate: what was predicted; None = only counts, histories and memories change.
        """
        self.engine.learn(group, view, slate if self.learning else None)
        processor = self.processor
        known = self.processor.items.find
        if self.graph is not None:
            before = np.array([known(event.item_id) for event in events])
            user = processor.user_index.get(group.user_id, -1)
            self.graph.before(processor.graph, user, before, view, group, self.learning and slate is not None)
        changes = processor.apply([Record(event.offset, event) for event in events])
        processor.commit(changes)
        if self.graph is not None:
            self.graph.after(processor.graph, np.array([known(event.item_id) for event in events]), group)
        if self.sequence is not None:
            before_s = time.process_time()
            if self.learning and slate is not None:
                self.sequence.learn(group)
            else:
                self.sequence.observe(group)
            self.sequence_cpu_s += time.process_time() - before_s
        for out in changes.outgoing:
            if out.topic == "profile-requests":
                self.profiles.request(out.value)
        self.groups += 1
        due = self.groups % self.settings.graph.publish_groups == 0
        if due and self.learning and self.graph is not None and self.graph.trained:
            self.adopt(self.graph.version())
        return changes

    def adopt(self, model: GraphMemory) -> None:
        """Adopts a graph version at the processor's next offset."""
        self.processor.commit(self.processor.adopt(model))
        self.adoptions.append((model, self.processor.next_offset))

    def freeze(self) -> None:
        """Weights stand still from here on."""
        self.learning = False
        if self.graph is not None:
            self.graph.freeze()

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning goes on from, for a checkpoint."""
        return {
            "rows": dict(self.processor.store.scan(b"")),
            "model": self.processor.graph.model.state_dict(),
            "ids": list(self.table.ids),
            "engine": self.engine.arrays(replay=True),
            "sequence": self.sequence.state_dict() if self.sequence is not None else None,
            "graph": self.graph.state_dict() if self.graph is not None else None,
            "groups": self.groups,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, to the bit, under the same settings."""
        store = MemoryStore()
        store.data = dict(state["rows"])
        model = GraphMemory(self.settings.graph)
        model.load_state_dict(state["model"])
        self.processor = Processor(self.settings, store, model=model)
        for item_id in state["ids"]:
            self.table.add(item_id)
        if self.sequence is not None:
            self.sequence.load_state_dict(state["sequence"])
        if self.graph is not None:
            self.graph.load_state_dict(state["graph"])
        self.engine = Engine.from_arrays(self.settings, self.table, state["engine"], self.engine.plugs)
        self.groups = state["groups"]


def learning_sha256(settings: Settings) -> str:
    """Hash of the settings that what is learnt depends on; addresses, folders and paces are not among them."""
    return sections_sha256(settings, (*MODEL_SECTIONS, "state", "profiles"))


def group_of(events: Sequence[Event], table: ItemTable, settings: Settings) -> Group:
    """Events of one user at one time as a group; their items must be in the table."""
    nan = float("nan")
    meanings = [settings.action(event.action) for event in events]
    return Group(
        user_id=events[0].user_id,
        t_ms=events[0].timestamp_ms,
        items=np.array([table.find(event.item_id) for event in events], np.int32),
        weight=np.array([meaning.weight for meaning in meanings], np.float32),
        value=np.array([nan if event.value is None else event.value for event in events], np.float32),
        price=np.array([nan if event.price is None else event.price for event in events], np.float32),
        positive=np.array([m.wanted(e.value) for m, e in zip(meanings, events, strict=True)], np.bool_),
        domain=events[-1].domain or "",
    )
