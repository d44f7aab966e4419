"""User rows of one partition: the graph's columns, histories and counters, by dense index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from driftline.configs.settings import Settings
from driftline.graph.chunks import chunk_keys, cut, user_key, whole
from driftline.graph.ctdg import TemporalGraph
from driftline.graph.rows import EVENT_DTYPE, UserRow, decode_user, encode_user
from driftline.stream.process.ages import PLACES, age_key, hold_ages, older_than
from driftline.stream.process.batch import EventBatch
from driftline.stream.process.ttl import go_first, oldest, starting_anew
from driftline.stream.state.store import StateStore

Pending = dict[bytes, bytes | None]
_GRAPH_SCALARS = ("message_count", "group", "group_ms", "pre_update_ms", "last_update_ms")
_GRAPH_VECTORS = ("memory", "pre", "message_sum")
_GRAPH_COLUMNS = (*_GRAPH_VECTORS, *_GRAPH_SCALARS)
SWEPT_AT_ONCE = 4096
"""Rows that a sweep has in memory at once."""
LEAVE_SHARE = 8
"""Where the cache is too full, so many-th part of what it may hold leaves at once: finding out which costs as much as
it has rows."""


class UserNodes:
    """Users of one process: rows by dense index, a cache over those in the store.

    Whoever needs a row has it read, several at once where that can be. What has changed since the last commit stays;
    at a commit, those that were used last stay, `state.cache_users` of them.

    Args:
        settings: the whole configuration.
        graph: has the users' vectors.
        store: has the rows as of the last commit.

    Attributes:
        rows: heads (graph/chunks.py) by dense index; the graph's own columns stand in the graph. Where there is no user
            stands one without a name, until the index is given to another.
        indices: dense index by user_id of those that are here.
        stored: what was read since the last epoch, as it stands in the store.
        uncommitted: epochs whose changes were taken and do not stand in the store yet.
    """

    def __init__(self, settings: Settings, graph: TemporalGraph, store: StateStore) -> None:
        self.settings, self._graph, self._store = settings, graph, store
        self.rows: list[UserRow] = []
        self.indices: dict[str, int] = {}
        self.stored: Pending = {}
        self._chunks: Pending = {}  # changed since the last commit
        self._gone: set[str] = set()  # since the last commit: what the store has of them holds no more
        self._changed: set[int] = set()
        self.uncommitted = 0
        self._turn, self._most, self._history = 0, settings.state.cache_users, settings.state.history
        self._ttl_ms = settings.state.ttl_ms
        memory, message = np.zeros((2, settings.graph.memory_dim), np.float32), settings.graph.message_dim
        self._zeros = (memory[0], memory[1], np.zeros(message, np.float32))
        self._nobody = self._blank("")
        graph.users.keep(turn=(0, np.int64), place=(0, np.int64))
        hold_ages(store, self._ttl_ms)

    def index(self, user_id: str) -> int:
        """Dense index of a user; a new one gets a row without events."""
        return self.indices_of([user_id])[0]

    def indices_of(self, user_ids: Sequence[str]) -> list[int]:
        """Dense indices of users, see `index`."""
        self._read(user_ids)
        for user_id in user_ids:
            if user_id not in self.indices:
                self._add(self._blank(user_id))
        found = [self.indices[user_id] for user_id in user_ids]
        self._graph.users["turn"][found] = self._turn
        return found

    def node(self, user_id: str, now_ms: int = -1) -> int:
        """Dense index of a user, -1 before the first event, and where an event at `now_ms` would start the row anew."""
        if user_id not in self.indices:
            self._read([user_id])
        index = self.indices.get(user_id, -1)
        if index < 0 or self.rows[index].events == 0:
            return -1
        self._graph.users["turn"][index] = self._turn
        expired = self._ttl_ms and self._graph.users["last_update_ms"][index] < now_ms - self._ttl_ms
        return -1 if expired else index

    def find(self, user_id: str, now_ms: int = -1) -> UserRow | None:
        """The current row of a user, whole; None where there is no `node`."""
        index = self.node(user_id, now_ms)
        if index < 0:
            return None
        head, columns = self.rows[index], self._graph.users.columns
        memory, pre, message_sum = [columns[name][index].copy() for name in _GRAPH_VECTORS]
        count, group, group_ms, pre_ms, last_ms = [int(columns[name][index]) for name in _GRAPH_SCALARS]
        row = UserRow(
            user_id, memory, pre, message_sum, count, group, group_ms, pre_ms, last_ms, head.events, head.too_late,
            head.first_ms, head.domain, head.actions, head.history, head.version, head.earlier,
        )  # fmt: skip
        return whole(row, self._chunks_of(chunk_keys(row))) if row.earlier else row

    def events_of(self, user_ids: Sequence[str]) -> dict[str, int]:
        """Numbers of events of different users."""
        self._read(user_ids)
        here = {user_id: self.indices.get(user_id, -1) for user_id in user_ids}
        self._graph.users["turn"][[index for index in here.values() if index >= 0]] = self._turn
        return {user_id: self.rows[index].events if index >= 0 else 0 for user_id, index in here.items()}

    def record(self, batch: EventBatch, item_keys: NDArray[np.uint64], pending: Pending, before: Pending) -> None:
        """Histories and counters of the users after events in order; rows go to `pending`.

        Args:
            batch: the events.
            item_keys: [n] key64 of their items.
            pending: takes the rows.
            before: takes what chunks that change were.
        """
        histories, size = batch.histories(item_keys), EVENT_DTYPE.itemsize
        starts = np.flatnonzero(np.concatenate(([True], batch.users[1:] != batch.users[:-1])))
        ends = [*starts[1:].tolist(), len(batch.users)]
        indices, first_ms = batch.users[starts].tolist(), batch.t_ms[starts].tolist()
        newest, actions = np.maximum.reduceat(batch.offset, starts).tolist(), batch.action.tolist()
        domains = [event.domain for event in batch.events]
        for run, (index, start, end) in enumerate(zip(indices, starts.tolist(), ends, strict=True)):
            row = self.rows[index]
            row.history += histories[start * size : end * size]
            row.events += end - start
            row.version = max(row.version, newest[run] + 1)
            if row.first_ms < 0:
                row.first_ms = first_ms[run]
            for action in actions[start:end]:
                row.actions[action] = row.actions.get(action, 0) + 1
            row.domain = next(filter(None, reversed(domains[start:end])), row.domain)
        touched = list(dict.fromkeys(indices))
        for index in touched:
            if changes := cut(self.rows[index], self._history):
                self._change(changes, pending, before)
        self._encode(touched, pending)

    def count_too_late(self, user_ids: Sequence[str], pending: Pending) -> None:
        """Counts events that came too late to be applied, of users who have rows."""
        indices = self.indices_of(user_ids)
        for index in indices:
            self.rows[index].too_late += 1
        self._encode(list(dict.fromkeys(indices)), pending)

    def remove(self, user_ids: Sequence[str], pending: Pending) -> list[tuple[str, int]]:
        """Takes rows of different users away; later events start new ones. Ids and numbers of events, in order.

        Rows that are not here are read for what else is to be removed with them, and don't come here.
        """
        here = {user_id: self.indices.pop(user_id) for user_id in user_ids if user_id in self.indices}
        away = [user_id for user_id in user_ids if user_id not in here and user_id not in self._gone]
        stored = zip(away, self._store.get([user_key(user_id) for user_id in away]), strict=True)
        rows = {user_id: decode_user(value) for user_id, value in stored if value is not None}
        rows |= {user_id: self.rows[index] for user_id, index in here.items()}
        removed = [(user_id, rows[user_id].events) for user_id in user_ids if user_id in rows]
        for user_id, row in rows.items():
            place = self._graph.users["place"][here[user_id]] if user_id in here else row.last_update_ms + PLACES
            if self._ttl_ms and place:
                pending[age_key(int(place), user_id)] = None
            if row.earlier:
                self._change(dict.fromkeys(chunk_keys(row)), pending)
        pending |= {user_key(user_id): None for user_id in user_ids}
        self._gone.update(user_ids)
        self._leave(list(here.values()))
        return removed

    def start_anew(
        self, indices: Sequence[int], times_ms: Sequence[int], pending: Pending, before: Pending
    ) -> dict[int, UserRow]:
        """Empties the rows of users whose last event is older than the time to live; the count of too late ones stands.

        Args:
            indices: of the users of a run, one an event.
            times_ms: of the events, see `ttl.spans`.
            pending, before: as in `record`.

        Returns:
            By place in the run of the event that found it so, the row from before.
        """
        ended = {}
        for n in starting_anew(self._graph.users["last_update_ms"], indices, times_ms, self._ttl_ms):
            ended[n] = self.rows[indices[n]]
            self._change(dict.fromkeys(chunk_keys(ended[n])), pending, before)
            row = self._blank(ended[n].user_id)
            row.too_late = ended[n].too_late
            self._put(indices[n], row)
        return ended

    def sweep(self, before_ms: int, pending: Pending) -> list[tuple[str, int]]:
        """Removes the users whose last event is older than `before_ms`; their ids and numbers of events."""
        users = self._graph.users
        last_ms, stale = users["last_update_ms"], users["used"] & (users["last_update_ms"] < before_ms)
        old = [(int(last_ms[index]), self.rows[index].user_id) for index in np.flatnonzero(stale)]
        elsewhere = (
            (t, user_id)
            for t, user_id in older_than(self._store, before_ms)
            if user_id not in self.indices and user_id not in self._gone
        )
        old = sorted(old + oldest(elsewhere))
        going = [old[n][1] for n in np.flatnonzero(go_first(np.array([t for t, _ in old], np.int64)))]
        some = (going[start : start + SWEPT_AT_ONCE] for start in range(0, len(going), SWEPT_AT_ONCE))
        return [pair for user_ids in some for pair in self.remove(user_ids, pending)]

    def restore(self, before: dict[str, bytes | None], chunks: Pending) -> None:
        """Puts back rows from before some events, by user_id, and their chunks; the counts of too late ones stand."""
        self._chunks |= chunks
        for (user_id, value), index in zip(before.items(), self.indices_of(list(before)), strict=True):
            row = decode_user(value) if value else self._blank(user_id)
            row.too_late = self.rows[index].too_late
            self._put(index, row)

    def finish(self, pending: Pending) -> None:
        """The end of an epoch: notes where changed rows stand by the time of their last event, see `process.ages`."""
        self.stored.clear()
        self.uncommitted += 1
        if not self._ttl_ms:
            return
        users, changed, self._changed = self._graph.users, list(self._changed), set()
        places = users["last_update_ms"][changed] + PLACES
        moved = np.flatnonzero(users["used"][changed] & (places != users["place"][changed]))
        for n in moved.tolist():
            index, place = changed[n], int(places[n])
            user_id, before = self.rows[index].user_id, int(users["place"][index])
            if before:
                pending[age_key(before, user_id)] = None
            pending[age_key(place, user_id)] = b""
            users["place"][index] = place

    def committed(self) -> None:
        """The changes of an epoch stand in the store now. Where those of all do, rows unused for longest may leave."""
        self.uncommitted -= 1
        if self.uncommitted > 0:
            return
        self._gone.clear()
        self._chunks.clear()
        self._turn += 1
        most, users = self._most, self._graph.users
        if len(self.indices) > most:
            used = np.flatnonzero(users["used"])
            leave = len(used) - most + most // LEAVE_SHARE
            oldest_used = used[np.argpartition(users["turn"][used], leave - 1)[:leave]].tolist()
            for index in oldest_used:
                del self.indices[self.rows[index].user_id]
            self._leave(oldest_used)

    def _read(self, user_ids: Iterable[str]) -> None:
        """Has rows here, if there are any; from then on `indices` says for whom."""
        missing = {user_id for user_id in user_ids if user_id not in self.indices} - self._gone
        keys = [user_key(user_id) for user_id in missing]
        for key, value in zip(keys, self._store.get(keys), strict=True):
            self.stored[key] = value
            if value is not None:
                row = decode_user(value)
                index = self._add(row)
                self._put(index, row)
                if self._ttl_ms:
                    self._graph.users["place"][index] = row.last_update_ms + PLACES

    def _change(self, chunks: Pending, pending: Pending, before: Pending | None = None) -> None:
        """Changes chunks; `before` takes what they were, where it does not say so yet."""
        if before is not None:
            dropped = [key for key, value in chunks.items() if value is None]
            was = dict.fromkeys(chunks) | dict(zip(dropped, self._chunks_of(dropped), strict=True))
            before |= {key: value for key, value in was.items() if key not in before}
        self._chunks |= chunks
        pending |= chunks

    def _chunks_of(self, keys: list[bytes]) -> list[bytes | None]:
        missing = [key for key in keys if key not in self._chunks]
        stored = dict(zip(missing, self._store.get(missing), strict=True))
        return [stored[key] if key in stored else self._chunks[key] for key in keys]

    def _leave(self, indices: list[int]) -> None:
        for index in indices:
            self.rows[index] = self._nobody
        self._graph.users.remove(indices)

    def _encode(self, indices: list[int], pending: Pending) -> None:
        """Rows to `pending`."""
        columns = self._graph.users.columns
        if self._ttl_ms:
            self._changed.update(indices)
        vectors = np.concatenate([columns[name][indices] for name in _GRAPH_VECTORS], 1).tobytes()
        size = len(vectors) // max(len(indices), 1)
        scalars = [columns[name][indices].tolist() for name in _GRAPH_SCALARS]
        for n, (index, *values) in enumerate(zip(indices, *scalars, strict=True)):
            row = self.rows[index]
            row.message_count, row.group, row.group_ms, row.pre_update_ms, row.last_update_ms = values
            pending[user_key(row.user_id)] = encode_user(row, vectors[n * size : (n + 1) * size])

    def _add(self, row: UserRow) -> int:
        self._gone.discard(row.user_id)
        index = self.indices[row.user_id] = self._graph.add_user()
        self.rows[index : index + 1] = [row]  # at the end, or where a user was removed
        return index

    def _blank(self, user_id: str) -> UserRow:
        return UserRow(user_id, *self._zeros)

    def _put(self, index: int, row: UserRow) -> None:
        """Takes over a row that is nobody else's."""
        for name in _GRAPH_COLUMNS:
            self._graph.users[name][index] = getattr(row, name)
        row.memory, row.pre, row.message_sum = self._zeros
        self.rows[index] = row
