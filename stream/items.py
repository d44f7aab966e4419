"""Item rows: what an item remembers, and the processor of `interactions.by-item` that owns them.

With one partition the item rows live in the partition of the users and commit with them. With more, every applied
event goes on, keyed by item, with the user's memory from before its group; the `ItemProcessor` of the item's
partition applies it in the order of that topic and drops what a crash sent twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from configs.settings import Settings
from graph.ctdg import TemporalGraph
from graph.memory import GraphMemory, edge_features
from graph.rows import Event, ItemRow, decode_item, encode_item, key64
from stream.events import parse_event
from stream.store import StateStore

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
            row.popularity = row.popularity * 0.5 ** (age_ms / self._half_life_ms) + 1.0
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

    def load_epoch(self, vectors: dict[str, np.ndarray]) -> None:
        """Takes the item vectors of a numbered item epoch (several partitions)."""
        for item_id, vector in vectors.items():
            self._graph.items["memory"][self.index(item_id)] = vector

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
    """Owner of the item rows of one partition of `interactions.by-item`; commits with that topic's offsets."""

    def __init__(self, settings: Settings, store: StateStore, partition: int, model: GraphMemory | None = None) -> None:
        self.settings, self.store = settings, store
        self.graph = TemporalGraph(settings.graph, model)
        self.items = ItemNodes(settings, self.graph)
        self.items.load(store)
        self._offset_key = f"m:offset:interactions.by-item:{partition}".encode()
        self.next_offset = int(store.get([self._offset_key])[0] or 0)
        self._sources = {int(key[9:]): int(value) for key, value in store.scan(b"m:source:")}

    def apply(self, records: Sequence[tuple[int, bytes, dict[str, bytes]]]) -> dict[bytes, bytes | None]:
        """Applies (offset, value, headers) of one epoch; the batch to commit."""
        puts: dict[bytes, bytes | None] = {}
        events, memories = [], []
        for offset, value, headers in records:
            if offset < self.next_offset:
                continue
            self.next_offset = offset + 1
            partition, source = (int(part) for part in headers["source"].decode().split(":"))
            if source <= self._sources.get(partition, -1):
                continue  # sent twice by a worker that crashed between sending and committing
            self._sources[partition] = source
            events.append(parse_event(value))
            memories.append(np.frombuffer(headers["user_memory"], "<f4"))
            puts[b"m:source:%d" % partition] = b"%d" % source
        if events:
            indices = [self.items.index(event.item_id, puts) for event in events]
            weights = np.array([self.settings.action(event.action).weight for event in events], np.float32)
            edges = edge_features(weights, floats(e.value for e in events), floats(e.price for e in events))
            self.graph.apply_items(indices, [e.timestamp_ms for e in events], np.stack(memories), edges)
            self.items.record(events, indices, puts)
        puts[self._offset_key] = b"%d" % self.next_offset
        return puts


def floats(values: Iterable[float | None]) -> NDArray[np.float32]:
    """[n] float32 with NaN for None."""
    return np.array([np.nan if value is None else value for value in values], np.float32)
