"""Item rows: what an item remembers, and the processor of `interactions.by-item` that owns them.

With one partition the item rows live in the partition of the users and commit with them. With more, every applied
event goes on to the partition of its item, with the user's memory from before its group (stream/process/by_item.py);
the `ItemProcessor` there applies it in the order of that topic, drops what a crash sent twice, and makes a dead letter
of what no worker sent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import orjson
from numpy.typing import NDArray

from driftline.configs.settings import Settings
from driftline.graph.arrays import Float32
from driftline.graph.counters import COUNTERS, count_events
from driftline.graph.ctdg import TemporalGraph
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import NEIGHBOR_DTYPE, Event, ItemRow, decode_item, encode_items, key64
from driftline.stream.events.records import Changes, Record, dead_letter
from driftline.stream.events.schema import InvalidEvent
from driftline.stream.process.batch import EventBatch
from driftline.stream.process.by_item import BY_ITEM, FRAME_EVENTS, Sent, check_log, sent, source_of
from driftline.stream.process.forget import forgotten_user
from driftline.stream.process.intake import log_id_of
from driftline.stream.process.ttl import spans, starting_anew, sweep_is_due, to_sweep
from driftline.stream.state.store import StateStore

ADOPTED = b"a:"
"""Before the offset at which a partition of items adopted a version, in its store: no topic says it."""
_NEIGHBOR_BYTES = NEIGHBOR_DTYPE.itemsize
MS_PER_DAY = 86_400_000


class ItemNodes:
    """Items of one process: their columns (beside those of the graph), dense indices and names.

    Attributes:
        ids: by dense index; "" where an item was removed, until the index is given to another.
    """

    def __init__(self, settings: Settings, graph: TemporalGraph) -> None:
        self.ids: list[str] = []
        self._index: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._graph = graph
        self._memory_dim, self._ring = settings.graph.memory_dim, settings.graph.neighbors
        self._half_life_ms = settings.signals.half_lives_days[0] * MS_PER_DAY
        self._ttl_ms = settings.state.ttl_ms
        graph.items.keep(
            key=(0, np.uint64),
            count=(0, np.int64),
            first_ms=(0, np.int64),
            last_ms=(0, np.int64),
            too_late=(0, np.int64),
            popularity=(0, np.float64),
            price=(0, np.float64),
            ring=(2 * self._ring, np.uint64),
            ring_count=(0, np.int64),
        )

    @property
    def rows(self) -> list[ItemRow]:
        """All rows by dense index, made anew; those of removed items have no name."""
        return [self.row(index) for index in range(len(self.ids))]

    def index(self, item_id: str, pending: dict[bytes, bytes | None] | None = None) -> int:
        """Dense index of an item; a new one is named in the store."""
        index = self._index.get(item_id, -1)
        if index < 0:
            key = key64(item_id)
            index = self._index[item_id] = self._graph.add_item(key)
            self.ids[index : index + 1] = [item_id]  # at the end, or where an item was removed
            items = self._graph.items
            items["key"][index], items["price"][index] = key, np.nan
            items["first_ms"][index] = items["last_ms"][index] = -1
            self._names[key] = item_id
            if pending is not None:
                pending[b"n:" + key.to_bytes(8, "big")] = item_id.encode()
        return index

    def indices_of(self, item_ids: Sequence[str], pending: dict[bytes, bytes | None]) -> list[int]:
        """Dense indices of items, see `index`."""
        found = map(self._index.get, item_ids)
        return [self.index(item_ids[n], pending) if index is None else index for n, index in enumerate(found)]

    def row(self, index: int) -> ItemRow:
        """The row of an item."""
        items, (ring, ring_bytes) = self._graph.items, self._rings(np.array([index]))
        return ItemRow(
            self.ids[index],
            items["memory"][index].copy(),
            int(items["last_ms"][index]),
            int(items["first_ms"][index]),
            int(items["count"][index]),
            int(items["too_late"][index]),
            float(items["popularity"][index]),
            float(items["price"][index]),
            bytearray(ring.tobytes()[: int(ring_bytes[0])]),
        )

    def keys(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The key64 of items by dense index."""
        found: NDArray[np.uint64] = self._graph.items["key"][indices]
        return found

    def has_too_late(self, item_id: str) -> bool:
        """Whether an item has a row, which has counted events that came too late."""
        index = self._index.get(item_id, -1)
        return index >= 0 and bool(self._graph.items["too_late"][index])

    def find(self, item_id: str, now_ms: int = -1) -> int:
        """Dense index of an item, -1 if it was never seen, and where an event at `now_ms` would start it anew."""
        index = self._index.get(item_id, -1)
        if index < 0 or not self._ttl_ms:
            return index
        last_ms = self._graph.items["last_update_ms"][index]
        return -1 if 0 <= last_ms < now_ms - self._ttl_ms else index

    def events_of(self, item_id: str) -> int:
        """Number of events of an item."""
        index = self._index.get(item_id, -1)
        return int(self._graph.items["count"][index]) if index >= 0 else 0

    def name(self, key: int) -> str:
        """The id behind a key64, "" if it was never seen here. It outlives the row: histories refer to it."""
        return self._names.get(key, "")

    def record(self, batch: EventBatch, pending: dict[bytes, bytes | None]) -> None:
        """Counters, popularity, price and ring of the items after events in order; rows go to `pending`."""
        ids = [event.user_id for event in batch.events]
        keys = {user_id: key64(user_id) for user_id in dict.fromkeys(ids)}
        users = np.array([keys[user_id] for user_id in ids], np.uint64)
        columns, gains = self._graph.items.some(COUNTERS), np.maximum(batch.weight, 0)
        count_events(batch.items, batch.t_ms, gains, batch.price, users, self._half_life_ms, columns)
        self._encode(dict.fromkeys(batch.items.tolist()), pending)

    def count_too_late(self, item_ids: Sequence[str], pending: dict[bytes, bytes | None]) -> None:
        """Counts events that came too late to be applied, of items that have rows."""
        indices = [self.index(item_id, pending) for item_id in item_ids]
        np.add.at(self._graph.items["too_late"], np.array(indices, np.int64), 1)
        self._encode(dict.fromkeys(indices), pending)

    def start_anew(self, indices: Sequence[int], times_ms: Sequence[int]) -> list[int]:
        """Empties the rows of items whose last event is older than the time to live; the count of too late ones stands.

        Args:
            indices: of the items of a run, one an event.
            times_ms: of the events, see `ttl.spans`.

        Returns:
            Places in the run of the events that found it so.
        """
        places = starting_anew(self._graph.items["last_update_ms"], indices, times_ms, self._ttl_ms)
        for n in places:
            self._put(indices[n], self._blank(self.ids[indices[n]]))
        return places

    def sweep(self, before_ms: int, pending: dict[bytes, bytes | None]) -> int:
        """Removes the items whose last event is older than `before_ms`, but for their names; how many."""
        items = self._graph.items
        swept = to_sweep(items["last_update_ms"], items["used"], before_ms)
        self._remove(swept, pending)
        return len(swept)

    def settle(self, item_ids: Sequence[str], pending: dict[bytes, bytes | None]) -> None:
        """Writes rows that were put back; one without events is removed, but for its name."""
        indices = [self._index[item_id] for item_id in item_ids if item_id in self._index]
        counts = self._graph.items["count"]
        self._encode([index for index in indices if counts[index]], pending)
        self._remove([index for index in indices if not counts[index]], pending)

    def _remove(self, indices: Sequence[int], pending: dict[bytes, bytes | None]) -> None:
        for index in indices:
            item_id, self.ids[index] = self.ids[index], ""
            pending[item_key(item_id)] = None
            del self._index[item_id]
        self._graph.items.remove(indices)

    def forget(self, user_ids: Collection[str], pending: dict[bytes, bytes | None]) -> None:
        """Empties users' places in the rings of all items; what their events did to memories and counts stays.

        The places stay: rings are the same whether a user leaves before others come or after.
        """
        rings = self._graph.items["ring"].reshape(-1, self._ring, 2)
        keys = np.array([key64(user_id) for user_id in user_ids], np.uint64)
        item, place = np.nonzero(np.isin(rings[:, :, 0], keys))
        rings[item, place] = 0
        self._encode(np.unique(item).tolist(), pending)

    def restore(self, item_id: str, value: bytes | None) -> None:
        """Puts back a row from before some events; the count of too late ones stands."""
        index = self.index(item_id)
        self._put(index, decode_item(value) if value else self._blank(item_id))

    def load(self, store: StateStore) -> None:
        """Loads every item row and every name."""
        for key, value in store.scan(b"n:"):
            self._names[int.from_bytes(key[2:], "big")] = value.decode()
        for _, value in store.scan(b"i:"):
            row = decode_item(value)
            index = self.index(row.item_id)
            self._put(index, row)
            self._graph.items["too_late"][index] = row.too_late

    def epoch_memory(self, vectors: dict[str, Float32], pending: dict[bytes, bytes | None] | None = None) -> Float32:
        """The vectors of an item epoch (several partitions) by dense index, [n, M] float32; names new items."""
        indices = [self.index(item_id, pending) for item_id in vectors]  # the columns may be new ones after this
        memory = np.zeros_like(self._graph.items["memory"])
        if indices:
            memory[indices] = np.stack(list(vectors.values()))
        return memory

    def use_memory(self, memory: Float32) -> Float32:
        """Lets users read the vectors of an item epoch, zeros for items that it does not name; the column they read."""
        column = self._graph.items["memory"]
        if len(memory) < len(column):
            memory = np.concatenate((memory, np.zeros_like(column[len(memory) :])))
        self._graph.items.columns["memory"] = memory
        return memory

    def _blank(self, item_id: str) -> ItemRow:
        return ItemRow(item_id, np.zeros(self._memory_dim, np.float32))

    def _put(self, index: int, row: ItemRow) -> None:
        """Takes over a row, but for its count of events that came too late: no rollback takes it back."""
        items, ring = self._graph.items, np.frombuffer(row.ring, "<u8")[-2 * self._ring :]
        items["memory"][index] = row.memory
        items["last_update_ms"][index] = items["last_ms"][index] = row.last_update_ms
        for name in ("first_ms", "count", "popularity", "price"):
            items[name][index] = getattr(row, name)
        items["ring"][index, : len(ring)] = ring
        items["ring_count"][index] = len(ring) // 2

    def _rings(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Rings [n, K, 2], oldest first, and how many bytes of each are in use."""
        counts, k = self._graph.items["ring_count"][indices], self._ring
        start = np.where(counts > k, counts % k, 0)
        order = (start[:, None] + np.arange(k)) % k
        rings = self._graph.items["ring"][indices].reshape(-1, k, 2)
        return rings[np.arange(len(rings))[:, None], order], np.minimum(counts, k) * _NEIGHBOR_BYTES

    def _encode(self, touched: Iterable[int], pending: dict[bytes, bytes | None]) -> None:
        indices, items = np.fromiter(touched, np.int64), self._graph.items
        ids = [self.ids[index].encode() for index in indices.tolist()]
        rings, ring_bytes = self._rings(indices)
        names = ("last_ms", "first_ms", "count", "too_late", "popularity", "price")
        columns = {name: items[name][indices] for name in names} | {"ring_bytes": ring_bytes}
        rows = encode_items(ids, items["memory"][indices], rings, **columns)
        pending.update(zip((b"i:" + item_id for item_id in ids), rows, strict=True))


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
        self._ttl_ms = settings.state.ttl_ms
        self.graph = TemporalGraph(settings.graph, model)
        self.items = ItemNodes(settings, self.graph)
        self.items.load(store)
        self._offset_key = f"m:offset:{BY_ITEM}:{partition}".encode()
        self.next_offset = int(store.get([self._offset_key])[0] or 0)
        self._log_id = ""
        self._sources = {int(key[9:]): int(value) for key, value in store.scan(b"m:source:")}

    def apply(self, records: Sequence[Record]) -> Changes:
        """Applies one epoch in memory.

        Its dead letters are to be sent *before* `puts` is committed: there is no outbox here, and what a crash in
        between sends twice loses nothing.
        """
        changes = Changes()
        waiting: list[Sent] = []
        self._log_id = self._log_id or log_id_of(self.store)
        for record in records:
            if record.offset < self.next_offset:
                continue
            if self._ttl_ms and sweep_is_due(record.offset, self.next_offset, FRAME_EVENTS):
                self._settle(waiting, changes)
                self._sweep(changes)
                waiting = []
            self.next_offset = record.offset + 1
            try:
                if (user_id := forgotten_user(record)) is not None:
                    partition, source, log = source_of(record)
                    check_log(log, self._log_id)
                    if source <= self._sources.get(partition, -1):
                        changes.duplicates += 1
                        continue
                    self._settle(waiting, changes)
                    waiting = []
                    self.items.forget([user_id], changes.puts)
                    self._note_source(partition, source, changes)
                    continue
                found = sent(record, self.settings.graph.memory_dim)
                check_log(found.log, self._log_id)
            except InvalidEvent as refusal:
                changes.outgoing.append(dead_letter(BY_ITEM, self.partition, record, refusal))
                changes.dead += 1
                continue
            fresh = found.after(self._sources.get(found.partition, -1))
            # the others were sent twice, by a worker that crashed between committing and sending
            changes.duplicates += len(found.events) - len(fresh.events)
            if fresh.events:
                waiting.append(fresh)
                self._note_source(fresh.partition, fresh.events[-1].offset, changes)
        self._settle(waiting, changes)
        changes.next_offset = self.next_offset
        changes.puts[self._offset_key] = b"%d" % self.next_offset
        return changes

    def adopt(self, model: GraphMemory) -> Changes:
        """Adopts a graph version from `next_offset` on; the rows stay, the next events change them with it."""
        self.graph.model = model
        sha256 = model.version()
        adopted = orjson.dumps({"sha256": sha256, "offset": self.next_offset})
        place = ADOPTED + self.next_offset.to_bytes(8, "big")
        return Changes(next_offset=self.next_offset, puts={b"m:graph": adopted, place: sha256.encode()})

    def commit(self, changes: Changes) -> None:
        """Writes an epoch: one batch, all or nothing."""
        self.store.commit(changes.puts)

    def pass_to(self, offset: int) -> Changes:
        """Steps over offsets whose records are left out of the log; commit the changes like an epoch's."""
        changes = Changes()
        if self._ttl_ms and offset > self.next_offset and sweep_is_due(offset - 1, self.next_offset, FRAME_EVENTS):
            self._sweep(changes)
        self.next_offset = changes.next_offset = max(self.next_offset, offset)
        changes.puts[self._offset_key] = b"%d" % self.next_offset
        return changes

    def _note_source(self, partition: int, source: int, changes: Changes) -> None:
        self._sources[partition] = source
        changes.puts[b"m:source:%d" % partition] = b"%d" % source

    def _settle(self, waiting: Sequence[Sent], changes: Changes) -> None:
        if not waiting:
            return
        memories, done = np.concatenate([part.memories for part in waiting]), 0
        for events in spans([event for part in waiting for event in part.events], self._ttl_ms):
            self._apply_events(events, memories[done : done + len(events)], changes)
            done += len(events)
        changes.applied += done

    def _apply_events(self, events: Sequence[Event], memories: Float32, changes: Changes) -> None:
        indices = self.items.indices_of([event.item_id for event in events], changes.puts)
        batch = EventBatch.of(events, (), indices, self.settings)
        changes.items_anew += len(self.items.start_anew(indices, batch.t_ms.tolist()))
        self.graph.apply_items(batch.items, batch.t_ms, memories, batch.edges())
        self.items.record(batch, changes.puts)

    def _sweep(self, changes: Changes) -> None:
        """See stream/process/ttl.py. The newest event time of all items is that of their rows: it is never swept."""
        newest_ms = int(self.graph.items["last_update_ms"].max())
        before_ms = newest_ms - self.settings.state.late_ms - self._ttl_ms
        changes.items_swept += self.items.sweep(before_ms, changes.puts)


def item_key(item_id: str) -> bytes:
    """The store's key of an item row."""
    return b"i:" + item_id.encode()
