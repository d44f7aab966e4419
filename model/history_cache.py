"""Keys and values of users' windows, kept for their next request: one version a user, bounded in bytes.

A request takes a user's state out, goes on from it and puts it back, so that no two threads write to one. A state
of another model version is never handed out. Who asked most often is remembered over a change of the model.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from driftline.graph.arrays import Float32, Int64

# n events of a window, D model width

ROWS_AT_ONCE = 16
"""Rows by which the arrays of a state grow."""
LEAST_USES = 1 / 16
"""Who asked once and not again is forgotten with the fifth model after that."""
FORGOTTEN_S = 60.0
"""How long nothing is kept of who was forgotten: longer than a request or the reading for a new model takes."""
OVERHEAD_BYTES = 1024
"""Of a state's objects beside its arrays."""


@dataclass(slots=True)
class WindowState:
    """What is known of one window under one version of the weights.

    Attributes:
        items, t_ms: [n] int64, the window's events.
        rows: first rows whose keys and values are final: each of them is followed by an event of the window.
        keys, values: [layers, capacity, D] float32.
    """

    items: Int64
    t_ms: Int64
    rows: int
    keys: Float32
    values: Float32

    @classmethod
    def empty(cls, layers: int, dim: int) -> WindowState:
        """Of no event."""
        none, nothing = np.zeros(0, np.int64), np.zeros((layers, 0, dim), np.float32)
        return cls(none, none, 0, nothing, nothing)

    def rows_before(self, items: Int64, t_ms: Int64) -> int:
        """First rows that are final for another window as well.

        A row reads the events up to its own and the time of the next one: after the first event that differs the
        last row before it is not final either.
        """
        n = min(len(items), len(self.items))
        same = (items[:n] == self.items[:n]) & (t_ms[:n] == self.t_ms[:n])
        common = n if same.all() else int(same.argmin())
        return max(0, min(self.rows, common - 1))

    def reserve(self, n: int, most: int) -> None:
        """Makes room for n rows; of those that are there the final ones stay."""
        if n <= self.keys.shape[1]:
            return
        layers, _, dim = self.keys.shape
        capacity = max(n, min(most, -(-5 * n // 4 // ROWS_AT_ONCE) * ROWS_AT_ONCE))
        for name in ("keys", "values"):
            grown = np.empty((layers, capacity, dim), np.float32)
            grown[:, : self.rows] = getattr(self, name)[:, : self.rows]
            setattr(self, name, grown)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self.keys.nbytes + self.values.nbytes + self.items.nbytes + self.t_ms.nbytes + OVERHEAD_BYTES


@dataclass(slots=True)
class _Kept:
    version: int
    state: WindowState | None
    uses: float = 0.0


class HistoryCache:
    """States by user, the least recently used leave first.

    Args:
        limit_bytes: at most; 0 = nothing is kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.nbytes = 0
        self.taken = 0
        """States that a request went on from."""
        self._users: OrderedDict[str, _Kept] = OrderedDict()
        self._forgotten_s: OrderedDict[str, float] = OrderedDict()
        """Who was forgotten a moment ago, and when, on the monotonic clock; oldest first."""
        self._lock = threading.Lock()

    @property
    def users(self) -> int:
        """Users of whom anything is kept."""
        return len(self._users)

    def __deepcopy__(self, memo: dict[int, object]) -> HistoryCache:
        """An empty one: what is kept can be computed again."""
        return HistoryCache(self.limit_bytes)

    def take(self, user: str, version: int) -> WindowState | None:
        """A user's state under a version, which is the caller's from here on; None if there is none."""
        with self._lock:
            kept = self._users.get(user)
            if kept is None:
                return None
            kept.uses += 1
            self._users.move_to_end(user)
            if kept.version != version or kept.state is None:
                return None
            state, kept.state = kept.state, None
            self.nbytes -= state.nbytes
            self.taken += 1
            return state

    def put(self, user: str, version: int, state: WindowState) -> None:
        """Keeps a state in place of the user's older one; one of an older version than is here is dropped.

        So is one of who was forgotten a moment ago: it may have been read before.
        """
        if state.nbytes > self.limit_bytes:
            return self.drop(user)
        with self._lock:
            while self._forgotten_s and next(iter(self._forgotten_s.values())) < time.monotonic() - FORGOTTEN_S:
                self._forgotten_s.popitem(last=False)
            if user in self._forgotten_s:
                return None
            kept = self._users.setdefault(user, _Kept(version, None, 1.0))
            if kept.version > version:
                return None
            self.nbytes += state.nbytes - (kept.state.nbytes if kept.state else 0)
            kept.version, kept.state = version, state
            self._users.move_to_end(user)
            while self.nbytes > self.limit_bytes:
                _, oldest = self._users.popitem(last=False)
                self.nbytes -= oldest.state.nbytes if oldest.state else 0
        return None

    def forget(self, user: str) -> None:
        """Drops a user's state, and those that are put back within `FORGOTTEN_S`."""
        with self._lock:
            self._forgotten_s[user] = time.monotonic()
            self._forgotten_s.move_to_end(user)
        self.drop(user)

    def drop(self, user: str) -> None:
        """Drops a user's state."""
        with self._lock:
            kept = self._users.pop(user, None)
            self.nbytes -= kept.state.nbytes if kept and kept.state else 0

    def clear(self) -> None:
        """Forgets everybody."""
        with self._lock:
            self._users.clear()
            self.nbytes = 0

    def hottest(self, version: int) -> list[tuple[str, Int64, Int64]]:
        """Users whose state is of an older version than this, those who asked most first, with their windows.

        What they asked before counts half from here on; who has not asked for some versions is forgotten.
        """
        with self._lock:
            older = [(user, kept) for user, kept in self._users.items() if kept.version < version and kept.state]
            older.sort(key=lambda pair: -pair[1].uses)
            for user, kept in list(self._users.items()):
                kept.uses /= 2
                if kept.uses < LEAST_USES:
                    del self._users[user]
                    self.nbytes -= kept.state.nbytes if kept.state else 0
            return [
                (user, kept.state.items, kept.state.t_ms)
                for user, kept in older
                if kept.state and kept.uses >= LEAST_USES
            ]
