"""Everything that learns on one stream, behind three calls: the trainer process and replay drive the same object.

    view = learner.view(user_id, now_ms)       what is known before the group
    slate = learner.slate(view, now_ms)        predict
    learner.learn(group, events, view, slate)  then learn: engine, graph, processor, parts, in this order

Nothing here knows of Kafka. With `learning` off weights stand still while histories, memories and signals go on:
that is the arm `frozen`, and what a trainer does with the groups that it passes over while it catches up.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from driftline.configs.load import MODEL_SECTIONS, sections_sha256
from driftline.configs.settings import Settings
from driftline.graph.arrays import Arrays, Float32
from driftline.graph.contexts import Context, context_of
from driftline.graph.labels import Labelled
from driftline.graph.learn import GraphLearner
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event
from driftline.graph.texts import TextTable
from driftline.graph.touched import Touched
from driftline.graph.view import Group, ItemTable, ProfileVectors, UserView, view_of
from driftline.llm.refresh import due_version
from driftline.model.artefact import Artefact
from driftline.model.clocks import Clocks, NoClocks
from driftline.model.engine import Engine, EngineSlate
from driftline.model.parts import made, plugs_of, units_of
from driftline.model.plugs import GraphPart, SequencePart
from driftline.model.sequence import SequenceLearner
from driftline.stream.learn.waiting import Held, WaitingEvents
from driftline.stream.process.processor import Changes, Processor, Record
from driftline.stream.state.store import MemoryStore, StateStore, fill

COUNTED = 512
"""Events of groups that were only counted, which wait to be applied at once."""
LEAVE_GROUPS = 64
"""Groups for which the rows of somebody who is forgotten stay at most."""


class Profiles(Artefact[str, ProfileVectors], Protocol):
    """Users' profiles by user id, the newest that is valid."""

    made_on_request: bool
    """Whether a request changes what it gives: a group that asks for a profile is then applied at once."""

    def request(self, record: bytes) -> None:
        """Takes a record that the processor meant for `profile-requests`."""


class NoProfiles:
    """Nobody has a profile."""

    made_on_request = False

    def at(self, user_id: str, now_ms: int) -> ProfileVectors | None:
        """None."""
        return None

    def request(self, record: bytes) -> None:
        """Passes over it."""


class StreamLearner:
    """Processor, engine and parts of one stream.

    Args:
        settings: the whole configuration.
        texts: unit text vectors [text_dim] of items by id; None = no item has text.
        profiles: None = nobody has a profile. Neither is read where `systems` switches it off.
        store: where the rows lie; None = in memory.
        labels: of items by id; None = no item has any. They are switched with the texts.

    Attributes:
        parts: what the settings switch on, by name.
    """

    def __init__(
        self,
        settings: Settings,
        texts: Artefact[str, Float32] | None = None,
        profiles: Profiles | None = None,
        store: StateStore | None = None,
        labels: Artefact[str, Labelled] | None = None,
    ) -> None:
        self.settings = settings
        self.table = ItemTable()
        off = settings.systems.get("text") == "off"
        self.texts, self.labels = (None, None) if off else (texts, labels)
        self.profiles = NoProfiles() if profiles is None or settings.systems.get("profiles") == "off" else profiles
        self.processor = Processor(settings, MemoryStore() if store is None else store)
        self.text = TextTable(settings.ranker.text_dim)
        """Vectors by table index, one table for the engine and all parts."""
        self.parts = made(settings, self.table, self.text)
        plugs, units = plugs_of(self.parts, settings), units_of(self.parts, settings)
        self.engine = Engine(settings, self.table, plugs, self.text, units)
        self.learning = True
        self.late_waits = False
        """Whether late groups may wait before they are applied: `apply_waiting` does it. Offsets are then given
        anew."""
        self.counted_wait = False
        """Whether groups that are only counted may: who reads rows then asks `view` or `slate`, or applies them."""
        self._waiting, self._counted = WaitingEvents(), Held()
        self._counted_groups: list[Group] = []
        self._leaving: list[str] = []
        self.groups = self._leave_at = 0
        self.clocks: Clocks = NoClocks()
        self.adoptions = 0
        """Graph versions that were adopted, `processor.graph.model` last."""

    @property
    def sequence(self) -> SequenceLearner | None:
        """The sequence backbone, for who asks it alone."""
        part = self.parts.get(SequencePart.name)
        return part.learner if isinstance(part, SequencePart) else None

    @property
    def graph(self) -> GraphLearner | None:
        """The trained graph: its memory is the processor's, so it learns as the processor applies."""
        part = self.parts.get(GraphPart.name)
        return part.learner if isinstance(part, GraphPart) else None

    def add_items(self, item_ids: Sequence[str]) -> None:
        """Makes items candidates, in this order; those that are there already are passed over."""
        now_ms = self.processor.window.watermark_ms
        for item_id in item_ids:
            if self.table.find(item_id) >= 0:
                continue
            index = self.table.add(item_id)
            text = self.texts.at(item_id, now_ms) if self.texts is not None else None
            for part in self.parts.values():
                part.add_item(index, item_id)
            if text is not None:
                self.set_text(item_id, text)
            self._label(index, item_id)
        self.engine.grow(len(self.table))

    def add_group(self, events: Sequence[Event]) -> None:
        """Makes the items of a group candidates, and then its user where ids of users are ids of items."""
        oneself = [events[0].user_id] if self.settings.signals.one_id_space else []
        self.add_items(list(dict.fromkeys([*(event.item_id for event in events), *oneself])))

    def set_text(self, item_id: str, vector: Float32) -> None:
        """Gives a candidate its text vector; the catalogue may tell of an item after its first event."""
        index = self.table.find(item_id)
        if index < 0 or not self.text.set(index, vector):
            return
        for part in self.parts.values():
            part.set_text(index, vector)

    def label_anew(self, item_id: str) -> None:
        """The labels of an item may have changed."""
        if (index := self.table.find(item_id)) >= 0:
            self._label(index, item_id)

    def _label(self, index: int, item_id: str) -> None:
        labels = None if self.labels is None else self.labels.at(item_id, self.processor.window.watermark_ms)
        if labels is None:
            return
        for part in self.parts.values():
            part.set_labels(index, *labels)

    def view(self, user_id: str, now_ms: int, context: Context = ()) -> UserView:
        """What is known of a user, and of their request, at `now_ms`: a row that ended by then is none."""
        if user_id in self._counted.users:
            self._apply_counted()
        if user_id in self._leaving:
            self.let_leave()
        with self.clocks.on("profiles"):
            profile = self.profiles.at(user_id, now_ms)
        with self.clocks.on("state"):
            return view_of(self.processor.user(user_id, now_ms), self.table, user_id, profile, context)

    def slate(self, view: UserView, now_ms: int) -> EngineSlate:
        """Candidates, features and scores at a request time; changes nothing that is learnt."""
        self._apply_counted()
        return self.engine.slate(view, now_ms)

    def learn(self, group: Group, events: Sequence[Event], view: UserView, slate: EngineSlate | None) -> Changes:
        """Takes in one group that was (or was not) scored.

        Args:
            group: its rows with table indices; the items must have been added.
            events: the same rows as events with their offsets.
            view: the user before the group.
            slate: what was predicted; None = only counts, histories and memories change.
        """
        learnt = self.learning and slate is not None
        counted = not learnt and self._may_be_counted(group.t_ms, view, len(events))
        if not counted:
            self._apply_counted()
        if self._waiting.must_go_before(group.t_ms, len(events), self.processor.window):
            self.apply_waiting()
        if self.late_waits:
            events = self._numbered(events)
        takes = {name: learnt and self.engine.learns(name) for name in self.parts}
        self.engine.learn(group, view, slate if self.learning else None)
        graph = self.graph
        sample = takes.get(GraphPart.name, False)
        if counted:
            self._count(group, events, view)
            waits, changes = False, Changes()
        else:
            with self.clocks.on("graph", "learn"), self._graph_around(group, events, view, sample):
                waits = self.late_waits and self._waiting.takes(events, self.processor.window)
                changes = Changes() if waits else self._apply(events)
        for name, part in self.parts.items():
            with self.clocks.on(name, "learn"):
                part.learn(group, view, takes[name])
        if not waits:
            self._waiting.applied(len(events))
        self.groups += 1
        if self._waiting.due:
            self.apply_waiting()
        elif self.groups >= self._leave_at:
            self.let_leave()
        due = self.groups % self.settings.graph.publish_groups == 0
        if due and self.learning and graph is not None and graph.trained:
            self.apply_waiting()
            with self.clocks.on("graph", "learn"):
                self.adopt(graph.version())
        return changes

    def _may_be_counted(self, t_ms: int, view: UserView, events: int) -> bool:
        """Whether a group that nothing is learnt from may wait: in order, none late waits, no profile is to be made."""
        held, expires = self._counted.events, self.settings.state.ttl_ms > 0  # it may end the row of another one
        latest_ms = held[-1].timestamp_ms if held else self.processor.window.watermark_ms
        if not self.counted_wait or expires or self._waiting.events or t_ms < latest_ms:
            return False
        if not self.profiles.made_on_request:
            return True
        return not due_version(view.events, view.events + events, self.settings.profiles)

    def _count(self, group: Group, events: Sequence[Event], view: UserView) -> None:
        """Lets a group wait: several of different users are applied at once, which is cheaper."""
        if self.graph is not None:
            self.graph.enter(self.processor.graph, self.processor.nodes.node(group.user_id), view, group)
        self._counted.add(events)
        self._counted_groups.append(group)
        if len(self._counted.events) >= COUNTED:
            self._apply_counted()

    def _apply_counted(self) -> None:
        """Applies the groups that were only counted; the graph learns what each of them found."""
        events, groups = self._counted.take_all(), self._counted_groups
        if not events:
            return
        self._counted_groups = []
        with self.clocks.on("graph", "learn"), self.processor.graph.watched() as watched:
            self._apply(events)
            if self.graph is not None:
                memory, last_ms = (np.concatenate(columns) for columns in zip(*watched, strict=True))
                nodes = np.array([self.processor.items.find(event.item_id) for event in events], np.int64)
                number = np.repeat(np.arange(len(groups)), [len(group.items) for group in groups])
                _, first, place = np.unique(number << 32 | nodes, return_index=True, return_inverse=True)
                first = first[place]  # rows of one group read the items as they were before the first of them
                self.graph.take_in(self.processor.graph, nodes, memory[first], last_ms[first])

    def apply_waiting(self) -> None:
        """Applies the groups that were only counted, or puts the late events that wait in their places; then the rows
        of those who are forgotten go."""
        self._apply_counted()
        events, leaving, processor = self._waiting.take_all(), self._leaving, self.processor
        if events:
            self._apply(self._numbered(events))
        changed = [event.item_id for event in events]
        if leaving:
            self._leaving = []
            changes = processor.forget(leaving)
            processor.commit(changes)
            processor.acknowledged = True  # the worker sends the tombstones
            processor.clear_outbox()
            changed += [key[2:].decode() for key in changes.puts if key.startswith(b"i:")]
        ids = [item_id for item_id in dict.fromkeys(changed) if self.table.find(item_id) >= 0]
        if ids and self.graph is not None:
            nodes = np.array([processor.items.find(item_id) for item_id in ids], np.int64)
            self.graph.refresh(processor.graph, np.array([self.table.find(item_id) for item_id in ids]), nodes)

    def let_leave(self) -> None:
        """The rows of those who are forgotten go, if there are any."""
        if self._leaving:
            self.apply_waiting()

    def is_known(self, event: Event) -> bool:
        """Whether an event of this id came within the remembered ones."""
        return self.processor.is_known(event) or self._waiting.has(event) or self._counted.has(event)

    def _numbered(self, events: Sequence[Event]) -> list[Event]:
        first = self.processor.next_offset + len(self._counted.events)
        return [msgspec.structs.replace(event, offset=first + n) for n, event in enumerate(events)]

    def _apply(self, events: Sequence[Event]) -> Changes:
        with self.clocks.on("state", "learn"):
            changes = self.processor.apply([Record(event.offset, event) for event in events])
            self.processor.commit(changes)
        with self.clocks.on("profiles", "learn"):
            for out in changes.outgoing:
                if out.topic == "profile-requests" and out.value is not None:
                    self.profiles.request(out.value)
        return changes

    def _graph_around(
        self, group: Group, events: Sequence[Event], view: UserView, sample: bool
    ) -> AbstractContextManager[None]:
        """What the trained graph watches while the processor applies a group."""
        if self.graph is None:
            return nullcontext()
        processor = self.processor

        def nodes_now() -> NDArray[np.int64]:
            return np.array([processor.items.find(event.item_id, group.t_ms) for event in events], np.int64)

        user = processor.nodes.node(group.user_id, group.t_ms)
        return self.graph.around(processor.graph, user, nodes_now, view, group, sample)

    def refresh(self) -> None:
        """Brings the item vectors up to date, as the next slate would: no work that `arrays` is then the cause of."""
        for part in self.parts.values():
            part.refresh()

    def arrays(self, whole: bool = True) -> dict[str, Arrays]:
        """What a snapshot holds, the items aside: views, which learning changes; or what changes by rows alone."""
        arrays = {name: part.arrays(whole) for name, part in self.parts.items()}
        return {"engine": self.engine.arrays(rehearsal=False), **{name: dict(of) for name, of in arrays.items() if of}}

    def touched(self) -> dict[str, dict[str, Touched]]:
        """Which rows of `arrays` changed, for those that change by rows."""
        touched = {name: dict(part.touched()) for name, part in self.parts.items()}
        return {"engine": self.engine.touched(), **{name: of for name, of in touched.items() if of}}

    def adopt(self, model: GraphMemory) -> None:
        """Adopts a graph version at the processor's next offset."""
        self.processor.commit(self.processor.adopt(model))
        self.adoptions += 1

    def forget(self, user_ids: Sequence[str]) -> None:
        """Drops the histories and samples of users; what was learnt from them stays in weights and counts.

        Their rows go with `apply_waiting`, all on one way back: before a group of one of them, before anything is
        written, and after `LEAVE_GROUPS` groups of others.
        """
        self._apply_counted()
        if not self._leaving:
            self._leave_at = self.groups + LEAVE_GROUPS
        self._leaving += user_ids
        for user_id in user_ids:
            self.engine.signals.users.forget(user_id)
            for part in self.parts.values():
                part.forget(user_id)

    def charge(self, clocks: Clocks) -> None:
        """Has every part's processor time counted from here on."""
        self.clocks = self.engine.clocks = clocks

    def freeze(self) -> None:
        """Weights stand still from here on."""
        self.learning = False
        for part in self.parts.values():
            part.freeze()

    def state_dict(self, rows: bool = True) -> dict[str, Any]:
        """Everything that learning goes on from, for a checkpoint; events that waited are applied before.

        Args:
            rows: those of users and items, too; without them the store as it is now belongs to it.
        """
        self.apply_waiting()
        return {
            **({"rows": dict(self.processor.store.scan(b""))} if rows else {}),
            "model": self.processor.graph.model.arrays,
            "older": {v.sha256: v.model.arrays for v in self.processor.versions.older if v.sha256},
            "ids": list(self.table.ids),
            "engine": {name: _copied(array) for name, array in self.engine.arrays().items()},
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "groups": self.groups,
        }

    def load_state_dict(self, state: dict[str, Any], store: StateStore | None = None) -> None:
        """Goes on where `state_dict` was taken, to the bit, under the same settings.

        Args:
            state: what it returned.
            store: where the rows lie from here on; those of `state`, if it has any, are put there. None = in memory.
        """
        store = MemoryStore() if store is None else store
        fill(store, state.get("rows", {}).items())
        model = GraphMemory(self.settings.graph, state["model"])

        def older(sha256: str) -> tuple[GraphMemory, dict[str, Float32]]:
            return GraphMemory(self.settings.graph, state["older"][sha256]), {}

        self.processor = Processor(self.settings, store, model=model, version_of=older if "older" in state else None)
        for item_id in state["ids"]:
            self.table.add(item_id)
        self.text.restore(state["engine"])
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        units = units_of(self.parts, self.settings)
        self.engine = Engine.from_arrays(
            self.settings, self.table, state["engine"], self.engine.plugs, text=self.text, units=units
        )
        self.groups = state["groups"]


def _copied(array: NDArray[Any]) -> NDArray[Any]:
    """A copy, but of a large table of texts: a state is written out before anything more is learnt."""
    return array if array.dtype == np.float16 else array.copy()


LEARNING_SECTIONS = (*MODEL_SECTIONS, "state", "profiles")
"""Of the settings that what is learnt depends on; addresses, folders and paces are not among them."""


def learning_sha256(settings: Settings) -> str:
    """Hash of the settings that what is learnt depends on."""
    return sections_sha256(settings, LEARNING_SECTIONS)


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
        context=context_of(events[0].extra, settings.signals.context),
    )
