"""The processor: one epoch of records in, changed rows and outgoing records out.

    records -> 1 validate -> 2 dedupe -> 3 late? -> 4 roll back -> 5 apply in (time, offset) order -> 6 changes

It is deterministic and knows nothing of Kafka, RocksDB or gRPC: a Faust agent, the trainer and the replay tool drive
the same object. The state after a record depends on the log up to it, never on how the log was cut into epochs.

Why a crash loses nothing: `Changes.puts` holds the changed rows, the next offset, the deduplication ids, the undo
records and the outgoing records not yet sent, and is committed as one batch. A restart opens the store, re-sends
what `unsent` lists and goes on at `next_offset`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import orjson

from configs.settings import Settings
from graph.ctdg import TemporalGraph
from graph.memory import Float32, GraphMemory, edge_features
from graph.rows import Event, UserRow, key64
from llm.refresh import due_version
from stream.events import InvalidEvent, encode_event, parse_event
from stream.items import ItemNodes, floats
from stream.late import LateWindow, Undo, order_of
from stream.prices import UsualPrice
from stream.profile_requests import profile_request
from stream.records import Changes as Changes
from stream.records import Outgoing as Outgoing
from stream.records import Record as Record
from stream.records import dead_letter, pack, unpack
from stream.store import StateStore
from stream.users import UserNodes, user_key

FUTURE_MS = 86_400_000
"""An event may lie this far after the time at which the broker took it; more would hold the watermark hostage."""


class Processor:
    """State of one partition and the rule by which records change it.

    Args:
        settings: the whole configuration.
        store: where the partition's state lies; everything in it is loaded.
        topic, partition: name the offset under which the state is committed.
        partitions: of `interactions`. With one, item rows live here; with more, each event goes on to
            `interactions.by-item`, and messages to users read the item vectors of the adopted item epoch.
        model: the graph version that the store adopted last; default is the seeded version 0.
        item_vectors: the item epoch that came with it, see `adopt`.
    """

    def __init__(
        self,
        settings: Settings,
        store: StateStore,
        topic: str = "interactions",
        partition: int = 0,
        partitions: int = 1,
        model: GraphMemory | None = None,
        item_vectors: dict[str, Float32] | None = None,
    ) -> None:
        self.settings, self.store, self.partition = settings, store, partition
        self.local_items = partitions == 1
        self.graph = TemporalGraph(settings.graph, model)
        self.nodes = UserNodes(settings, self.graph)
        self.users, self.user_index = self.nodes.rows, self.nodes.indices
        self.items = ItemNodes(settings, self.graph)
        self.prices = UsualPrice()
        self.window = LateWindow(settings.state.late_ms, settings.state.late_events)
        self.next_offset, self.too_late = 0, 0
        self.unsent: list[Outgoing] = []
        self._topic, self._offset_key = topic, f"m:offset:{topic}:{partition}".encode()
        self._pending: dict[bytes, bytes | None] = {}
        self._sent_keys: list[bytes] = []
        self.acknowledged = True
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._load()
        if item_vectors is not None and not self.local_items:
            self.items.load_epoch(item_vectors)

    # -- reading -----------------------------------------------------------------------------------------------

    def user(self, user_id: str) -> UserRow | None:
        """The current row of a user, None before the first event."""
        return self.nodes.find(user_id)

    # -- one epoch ---------------------------------------------------------------------------------------------

    def apply(self, records: Sequence[Record]) -> Changes:
        """Applies one epoch in memory. Records below `next_offset` are dropped: they are in the state already."""
        changes = Changes(next_offset=self.next_offset)
        fresh: list[Event] = []
        for record in records:
            if record.offset < self.next_offset:
                continue
            self.next_offset = record.offset + 1
            try:
                event = self.validated(record)  # 1
            except InvalidEvent as refusal:
                changes.outgoing.append(dead_letter(self._topic, self.partition, record, refusal))
                changes.dead += 1
                continue
            if self._duplicate(event):  # 2
                changes.duplicates += 1
                continue
            match self.window.judge(event.timestamp_ms, event.offset):  # 3
                case "in order":
                    fresh.append(event)
                case "late":
                    fresh.append(event)
                    changes.late += 1
                case "too late":
                    self.nodes.count_too_late(event.user_id, self._pending)
                    if self.local_items:
                        self.items.count_too_late(event.item_id, self._pending)
                    changes.too_late += 1
                    self.too_late += 1
        changes.applied = len(fresh)
        unknown = [event.action for event in fresh if event.action not in self.settings.actions]
        changes.unknown_actions, changes.unknown_names = len(unknown), frozenset(unknown)
        before = {event.user_id: self.nodes.events_of(event.user_id) for event in fresh}
        ordered = self._roll_back(fresh) if changes.late else fresh  # 4
        size = self.settings.state.epoch_events
        memories: dict[int, Float32] = {}
        for start in range(0, len(ordered), size):
            self._apply_sorted(ordered[start : start + size], memories)  # 5
        if not self.local_items:
            # by offset, which is what tells the items' owner a second copy; what was applied again was sent before
            for event in sorted(fresh, key=lambda event: event.offset):
                changes.outgoing.append(self._by_item(event, memories[event.offset]))
        self._request_profiles(before, changes)
        return self._finish(changes)  # 6

    def commit(self, changes: Changes) -> None:
        """Writes an epoch: one batch, all or nothing."""
        self.store.commit(changes.puts)

    def adopt(self, model: GraphMemory, item_vectors: dict[str, Float32] | None = None) -> Changes:
        """Adopts a graph version from `next_offset` on; commit the changes like an epoch's and send what says so.

        Events from before it can't be rolled back any more: a later arrival among them only counts.

        Args:
            model: the trained weights.
            item_vectors: the item epoch that goes with them, [M] float32 by item id (several partitions only). It
                takes the place of the one before: an item that it does not name reads as zeros.
        """
        self.graph.model = model
        if item_vectors is not None:
            self.items.load_epoch(item_vectors, self._pending)
        for key in self.window.clear():
            self._pending[key] = None
        (before,) = self.store.get([b"m:graph"])
        sha256 = model.version()
        adopted = {"sha256": sha256, "offset": self.next_offset}
        self._pending[b"m:graph"] = orjson.dumps(adopted)
        replaces = orjson.loads(before) if before else None
        said = orjson.dumps(adopted | {"partition": self.partition, "replaces": replaces})
        record = Outgoing("graph-versions", sha256.encode(), said, (("kind", b"adoption"),))
        return self._finish(Changes(next_offset=self.next_offset, outgoing=[record]))

    # -- steps -------------------------------------------------------------------------------------------------

    @staticmethod
    def validated(record: Record) -> Event:
        """The record as an event with its offset. Raises InvalidEvent if it is none."""
        event = record.value if isinstance(record.value, Event) else parse_event(record.value)
        event.offset = record.offset
        if record.key is not None and record.key != event.user_id.encode():
            raise InvalidEvent("key_mismatch", f"key is {record.key!r:.80}, expected user_id {event.user_id!r:.80}")
        if 0 < record.timestamp_ms < event.timestamp_ms - FUTURE_MS:
            raise InvalidEvent(
                "from_the_future",
                f"timestamp_ms is {event.timestamp_ms}, more than a day after the broker's {record.timestamp_ms}",
            )
        return event

    def is_known(self, event: Event) -> bool:
        """Whether an event of this id was applied within the remembered ones."""
        return event.event_id is not None and event.event_id in self._ids

    def _duplicate(self, event: Event) -> bool:
        if event.event_id is None or self.settings.state.dedupe_ids == 0:
            return False
        if self.is_known(event):
            return True
        self._ids[event.event_id] = None
        self._pending[b"d:" + event.event_id.encode()] = event.offset.to_bytes(8, "big")
        if len(self._ids) > self.settings.state.dedupe_ids:
            oldest, _ = self._ids.popitem(last=False)
            self._pending[b"d:" + oldest.encode()] = None
        return False

    def _roll_back(self, fresh: list[Event]) -> list[Event]:
        """Undoes the epochs after the earliest late event; returns all events to apply, in order."""
        undone = self.window.take_after(min(map(order_of, fresh)))
        for undo in reversed(undone):
            self._pending[undo.store_key] = None
            for key, value in undo.before.items():
                self._pending[key] = value
                if key == UsualPrice.KEY:
                    self.prices.load(value)
                    continue
                nodes = self.items if key.startswith(b"i:") else self.nodes
                nodes.restore(key[2:].decode(), value)
        return sorted([event for undo in undone for event in undo.events] + fresh, key=order_of)

    def _apply_sorted(self, events: list[Event], memories: dict[int, Float32]) -> None:
        """Applies events in order; `memories` takes each user's [M] float32 from before its group, by offset."""
        user_keys = dict.fromkeys(user_key(event.user_id) for event in events)
        item_keys = dict.fromkeys(item_key(event.item_id) for event in events) if self.local_items else {}
        touched = [*user_keys, *item_keys, UsualPrice.KEY]
        undo = self.window.push(events, lambda: dict(zip(touched, self._stored(touched), strict=True)))
        if undo is not None:
            self._pending[undo.store_key] = undo.encode()
        users, items = self._apply_graph(events, memories)
        self.nodes.record(events, users, self._pending)
        if self.local_items:
            self.items.record(events, items, self._pending)
        self.prices.add(events)
        self._pending[UsualPrice.KEY] = self.prices.encode()

    def _apply_graph(self, events: list[Event], memories: dict[int, Float32]) -> tuple[list[int], list[int]]:
        users = [self.nodes.index(event.user_id) for event in events]
        items = [self.items.index(event.item_id, self._pending) for event in events]
        times = [event.timestamp_ms for event in events]
        groups = [key64(event.group_id) if event.group_id else 0 for event in events]
        weights = np.array([self.settings.action(event.action).weight for event in events], np.float32)
        edges = edge_features(weights, floats(e.value for e in events), floats(e.price for e in events))
        pre = self.graph.apply(users, items, times, groups, edges, self.local_items)
        if not self.local_items:
            memories.update(zip((event.offset for event in events), pre, strict=True))
        return users, items

    def _request_profiles(self, before: dict[str, int], changes: Changes) -> None:
        """Asks for a profile of every user for whom one has fallen due."""
        for user_id, events in before.items():
            row = self.users[self.nodes.index(user_id)]
            version = due_version(events, row.events, self.settings.profiles)
            if version:
                request = profile_request(row, version, self.items, self.prices.at[user_id], self.settings)
                changes.outgoing.append(Outgoing("profile-requests", user_id.encode(), request))
        self.prices.at.clear()

    def _by_item(self, event: Event, memory: Float32) -> Outgoing:
        headers = (("source", f"{self.partition}:{event.offset}".encode()), ("user_memory", memory.tobytes()))
        return Outgoing("interactions.by-item", event.item_id.encode(), encode_event(event), headers)

    def _finish(self, changes: Changes) -> Changes:
        """Offsets, watermark and outbox join the batch."""
        puts, self._pending = self._pending, {}
        for key in self._sent_keys:
            puts[key] = None
        self._sent_keys = []
        for key in self.window.drop_old():
            puts[key] = None
        if changes.outgoing:
            key = b"o:" + self.next_offset.to_bytes(8, "big")
            puts[key] = pack(changes.outgoing)
            self._sent_keys.append(key)
            self.acknowledged = False
        puts[self._offset_key] = b"%d" % self.next_offset
        puts[b"m:watermark"] = b"%d" % self.window.watermark_ms
        puts[b"m:late"] = self.window.encode()
        puts[b"m:too_late"] = b"%d" % self.too_late
        changes.puts, changes.next_offset, changes.watermark_ms = puts, self.next_offset, self.window.watermark_ms
        return changes

    # -- rows --------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        self.nodes.load(self.store)
        self.items.load(self.store)
        by_age = sorted((value, key) for key, value in self.store.scan(b"d:"))
        self._ids = OrderedDict((key[2:].decode(), None) for _, key in by_age)
        meta = [self._offset_key, b"m:late", b"m:too_late", UsualPrice.KEY]
        offset, late, too_late, prices = self.store.get(meta)
        self.next_offset, self.too_late = int(offset or 0), int(too_late or 0)
        self.prices.load(prices)
        self.window.load(late, [Undo.decode(key, value) for key, value in self.store.scan(b"w:")])
        for key, value in self.store.scan(b"o:"):
            self.unsent += unpack(value)
            self._sent_keys.append(key)
        self.acknowledged = not self.unsent

    def clear_outbox(self) -> None:
        """Takes outgoing records out of the store if whoever sent them has set `acknowledged`; else they come again."""
        if self.acknowledged and self._sent_keys:
            self.store.commit(dict.fromkeys(self._sent_keys))
            self._sent_keys, self.unsent = [], []

    def _stored(self, keys: list[bytes]) -> list[bytes | None]:
        """Values as of the last applied event: what this epoch changed, else what the store holds."""
        missing = [key for key in keys if key not in self._pending]
        stored = dict(zip(missing, self.store.get(missing), strict=True))
        return [self._pending[key] if key in self._pending else stored[key] for key in keys]


def item_key(item_id: str) -> bytes:
    """The store's key of an item row."""
    return b"i:" + item_id.encode()
