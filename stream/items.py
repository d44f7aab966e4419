"""Item rows: what an item remembers, and the processor of `interactions.by-item` that owns them.

With one partition the item rows live in the partition of the users and commit with them. With more, every applied
event goes on, keyed by item, with the user's memory from before its group; the `ItemProcessor` of the item's
partition applies it in the order of that topic, drops what a crash sent twice, and makes a dead letter of what no
worker sent.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence

import numpy as np
import orjson
from numpy.typing import NDArray

from configs.settings import Settings
from graph.ctdg import TemporalGraph
from graph.memory import Float32, GraphMemory, edge_features
from graph.rows import Event, ItemRow, decode_item, encode_item, key64
from stream.events import InvalidEvent, decode_event
from stream.records import Changes, Record, dead_letter
from stream.store import StateStore

BY_ITEM = "interactions.by-item"
_SOURCE = re.compile(rb"(\d{1,9}):(\d{1,18})")
_NEIGHBOR = struct.Struct("<Qq")
MS_PER_DAY = 86_400_000


class ItemNodes:
    """Items of one process: their rows, dense indices and names."""

    def __init__(self, settings: Settings, graph: TemporalGraph) -> None:
        self.rows: list[ItemRow] = []
        self._index: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._graph = graph
        self._memory_dim = settings.graph.memory_dim
        self._ring_bytes = settings.graph.neighbors * _NEIGHBOR.size
        self._action = settings.action
        self._half_life_ms = settings.signals.half_lives_days[0] * MS_PER_DAY

    def index(self, item_id: str, pending: dict[bytes, bytes | None] | None = None) -> int:
        """Dense index of an item; a new one is named in the store."""
        index = self._index.get(item_id, -1)
        if index < 0:
            key = key64(item_id)
            index = self._index[item_id] = self._graph.add_item(key)
            self.rows.append(ItemRow(item_id, np.zeros(self._memory_dim, np.float32)))
            self._names[key] = item_id
            if pending is not None:
                pending[b"n:" + key.to_bytes(8, "big")] = item_id.encode()
        return index

    def find(self, item_id: str) -> int:
        """Dense index of an item, -1 if it was never seen."""
        return self._index.get(item_id, -1)

    def name(self, key: int) -> str:
        """The id behind a key64, "" if it was never seen here."""
        return self._names.get(key, "")

    def record(self, events: Sequence[Event], indices: Sequence[int], pending: dict[bytes, bytes | None]) -> None:
        """Counters, popularity, price and ring of the items after events in order; rows go to `pending`."""
        for event, index in zip(events, indices, strict=True):
            row, t = self.rows[index], event.timestamp_ms
            age_ms = max(0, t - row.last_update_ms) if row.last_update_ms >= 0 else 0
            gain = max(0.0, self._action(event.action).weight)
            row.popularity = row.popularity * 0.5 ** (age_ms / self._half_life_ms) + gain
            row.count += 1
            row.first_ms = t if row.first_ms < 0 else min(row.first_ms, t)
            row.last_update_ms = max(row.last_update_ms, t)
            if event.price is not None:
                row.price = event.price
            row.ring += _NEIGHBOR.pack(key64(event.user_id), t)
            if len(row.ring) > self._ring_bytes:
                del row.ring[: -self._ring_bytes]
        self._encode(dict.fromkeys(indices), pending)

    def count_too_late(self, item_id: str, pending: dict[bytes, bytes | None]) -> None:
        """Counts an event that came too late to be applied."""
        index = self.index(item_id, pending)
        self.rows[index].too_late += 1
        self._encode([index], pending)

    def restore(self, item_id: str, value: bytes | None) -> None:
        """Puts back a row from before some events; the count of too late ones stands."""
        index = self.index(item_id)
        row = decode_item(value) if value else ItemRow(item_id, np.zeros(self._memory_dim, np.float32))
        row.too_late = self.rows[index].too_late
        self._put(index, row)

    def load(self, store: StateStore) -> None:
        """Loads every item row and every name."""
        for key, value in store.scan(b"n:"):
            self._names[int.from_bytes(key[2:], "big")] = value.decode()
        for _, value in store.scan(b"i:"):
            row = decode_item(value)
            self._put(self.index(row.item_id), row)

    def load_epoch(self, vectors: dict[str, Float32], pending: dict[bytes, bytes | None] | None = None) -> None:
        """Takes the item vectors of an item epoch (several partitions) in place of those before; names new items."""
        self._graph.items["memory"][:] = 0.0
        for item_id, vector in vectors.items():
            self._graph.items["memory"][self.index(item_id, pending)] = vector

    def _put(self, index: int, row: ItemRow) -> None:
        self.rows[index] = row
        self._graph.items["memory"][index] = row.memory
        self._graph.items["last_update_ms"][index] = row.last_update_ms

    def _encode(self, indices: Sequence[int] | dict[int, None], pending: dict[bytes, bytes | None]) -> None:
        memory = self._graph.items["memory"]
        for index in indices:
            row = self.rows[index]
            row.memory = memory[index].copy()
            pending[b"i:" + row.item_id.encode()] = encode_item(row)


class ItemProcessor:
    """Owner of the item rows of one partition of `interactions.by-item`; commits with that topic's offsets.

    Args:
        settings: the whole configuration.
        store: where the rows lie; everything in it is loaded.
        partition: of `interactions.by-item`.
        model: the graph version that the store adopted last; default is the seeded version 0.
    """

    def __init__(self, settings: Settings, store: StateStore, partition: int, model: GraphMemory | None = None) -> None:
        self.settings, self.store, self.partition = settings, store, partition
        self.graph = TemporalGraph(settings.graph, model)
        self.items = ItemNodes(settings, self.graph)
        self.items.load(store)
        self._offset_key = f"m:offset:{BY_ITEM}:{partition}".encode()
        self.next_offset = int(store.get([self._offset_key])[0] or 0)
        self._sources = {int(key[9:]): int(value) for key, value in store.scan(b"m:source:")}

    def apply(self, records: Sequence[Record]) -> Changes:
        """Applies one epoch in memory.

        Its dead letters are to be sent *before* `puts` is committed: there is no outbox here, and what a crash in
        between sends twice loses nothing.
        """
        changes = Changes()
        events: list[Event] = []
        memories: list[Float32] = []
        for record in records:
            if record.offset < self.next_offset:
                continue
            self.next_offset = record.offset + 1
            try:
                partition, source = self._source(record)
                if source <= self._sources.get(partition, -1):
                    changes.duplicates += 1  # sent twice by a worker that crashed between committing and sending
                    continue
                event, memory = self._event(record)
            except InvalidEvent as refusal:
                changes.outgoing.append(dead_letter(BY_ITEM, self.partition, record, refusal))
                changes.dead += 1
                continue
            events.append(event)
            memories.append(memory)
            self._sources[partition] = source
            changes.puts[b"m:source:%d" % partition] = b"%d" % source
        if events:
            self._apply_events(events, memories, changes.puts)
        changes.applied, changes.next_offset = len(events), self.next_offset
        changes.puts[self._offset_key] = b"%d" % self.next_offset
        return changes

    def adopt(self, model: GraphMemory) -> Changes:
        """Adopts a graph version from `next_offset` on; the rows stay, the next events change them with it."""
        self.graph.model = model
        adopted = orjson.dumps({"sha256": model.version(), "offset": self.next_offset})
        return Changes(next_offset=self.next_offset, puts={b"m:graph": adopted})

    def _source(self, record: Record) -> tuple[int, int]:
        """(partition, offset) of the event in `interactions`. Raises InvalidEvent if the record does not say."""
        value = dict(record.headers).get("source") or b""
        found = _SOURCE.fullmatch(value)
        if found is None:
            raise InvalidEvent("no_source", f"header source is {value!r:.80}, expected partition:offset")
        return int(found[1]), int(found[2])

    def _event(self, record: Record) -> tuple[Event, Float32]:
        """The event and the memory [M] float32 of its user. Raises InvalidEvent if the record is none of ours."""
        event = record.value if isinstance(record.value, Event) else decode_event(record.value)
        if record.key is not None and record.key != event.item_id.encode():
            raise InvalidEvent("key_mismatch", f"key is {record.key!r:.80}, expected item_id {event.item_id!r:.80}")
        raw, width = dict(record.headers).get("user_memory") or b"", 4 * self.settings.graph.memory_dim
        memory = np.frombuffer(raw, "<f4") if len(raw) == width else np.array([np.nan], np.float32)
        if not np.isfinite(memory).all():
            raise InvalidEvent(
                "no_user_memory", f"header user_memory has {len(raw)} bytes, expected {width} of finite float32"
            )
        return event, memory

    def _apply_events(
        self, events: Sequence[Event], memories: Sequence[Float32], puts: dict[bytes, bytes | None]
    ) -> None:
        indices = [self.items.index(event.item_id, puts) for event in events]
        weights = np.array([self.settings.action(event.action).weight for event in events], np.float32)
        edges = edge_features(weights, floats(e.value for e in events), floats(e.price for e in events))
        self.graph.apply_items(indices, [e.timestamp_ms for e in events], np.stack(memories), edges)
        self.items.record(events, indices, puts)


def floats(values: Iterable[float | None]) -> NDArray[np.float32]:
    """[n] float32 with NaN for None."""
    return np.array([np.nan if value is None else value for value in values], np.float32)
