"""User rows of one partition: the graph's columns, histories and counters, by dense index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from configs.settings import Settings
from graph.ctdg import TemporalGraph
from graph.rows import EVENT_DTYPE, Event, UserRow, action_code, decode_user, encode_user, key64, pack_event
from stream.store import StateStore

_NAN = float("nan")
_GRAPH_SCALARS = ("message_count", "group", "group_ms", "pre_update_ms", "last_update_ms")
_GRAPH_COLUMNS = ("memory", "pre", "message_sum", *_GRAPH_SCALARS)


class UserNodes:
    """Users of one process: their rows and dense indices.

    Attributes:
        rows: by dense index; the graph's own columns in them are as of their last `synced`.
        indices: dense index by user_id.
    """

    def __init__(self, settings: Settings, graph: TemporalGraph) -> None:
        self.settings, self._graph = settings, graph
        self.rows: list[UserRow] = []
        self.indices: dict[str, int] = {}
        self._history_bytes = settings.state.history * EVENT_DTYPE.itemsize

    def index(self, user_id: str) -> int:
        """Dense index of a user; a new one gets a row without events."""
        index = self.indices.get(user_id, -1)
        if index < 0:
            index = self.indices[user_id] = self._graph.add_user()
            self.rows.append(self._blank(user_id))
        return index

    def find(self, user_id: str) -> UserRow | None:
        """The current row of a user, None before the first event."""
        index = self.indices.get(user_id, -1)
        return None if index < 0 or self.rows[index].events == 0 else self.synced(index)

    def events_of(self, user_id: str) -> int:
        """Number of events of a user."""
        index = self.indices.get(user_id, -1)
        return 0 if index < 0 else self.rows[index].events

    def record(self, events: Sequence[Event], indices: Sequence[int], pending: dict[bytes, bytes | None]) -> None:
        """Histories and counters of the users after events in order; rows go to `pending`."""
        for event, index in zip(events, indices, strict=True):
            self._append(self.rows[index], event)
        for index in dict.fromkeys(indices):
            row = self.rows[index]
            if len(row.history) > self._history_bytes:
                del row.history[: -self._history_bytes]
            pending[user_key(row.user_id)] = encode_user(self.synced(index))

    def count_too_late(self, user_id: str, pending: dict[bytes, bytes | None]) -> None:
        """Counts an event that came too late to be applied."""
        index = self.index(user_id)
        self.rows[index].too_late += 1
        pending[user_key(user_id)] = encode_user(self.synced(index))

    def restore(self, user_id: str, value: bytes | None) -> None:
        """Puts back a row from before some events; the count of too late ones stands."""
        index = self.index(user_id)
        row = decode_user(value) if value else self._blank(user_id)
        row.too_late = self.rows[index].too_late
        self._put(index, row)

    def load(self, store: StateStore) -> None:
        """Loads every user row."""
        for _, value in store.scan(b"u:"):
            row = decode_user(value)
            self._put(self.index(row.user_id), row)

    def synced(self, index: int) -> UserRow:
        """The row with the graph's columns filled in."""
        row, columns = self.rows[index], self._graph.users.columns
        row.memory, row.pre = columns["memory"][index].copy(), columns["pre"][index].copy()
        row.message_sum = columns["message_sum"][index].copy()
        for name in _GRAPH_SCALARS:
            setattr(row, name, int(columns[name][index]))
        return row

    def _append(self, row: UserRow, event: Event) -> None:
        action = action_code(event.action)
        row.history += pack_event(
            key64(event.item_id),
            event.timestamp_ms,
            key64(event.group_id) if event.group_id else 0,
            self.settings.action(event.action).weight,
            _NAN if event.value is None else event.value,
            _NAN if event.price is None else event.price,
            action,
        )
        row.actions[action] = row.actions.get(action, 0) + 1
        row.events += 1
        row.version = max(row.version, event.offset + 1)
        if row.first_ms < 0:
            row.first_ms = event.timestamp_ms
        if event.domain:
            row.domain = event.domain

    def _blank(self, user_id: str) -> UserRow:
        memory, message = self.settings.graph.memory_dim, self.settings.graph.message_dim
        zeros = np.zeros(memory, np.float32)
        return UserRow(user_id, zeros, zeros.copy(), np.zeros(message, np.float32))

    def _put(self, index: int, row: UserRow) -> None:
        for name in _GRAPH_COLUMNS:
            self._graph.users[name][index] = getattr(row, name)
        self.rows[index] = row


def user_key(user_id: str) -> bytes:
    """The store's key of a user row."""
    return b"u:" + user_id.encode()
