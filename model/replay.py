"""What the sequence learner remembers of the stream: a bounded log of groups, linked by user.

Groups lie in a ring in order of arrival; each knows where the same user's previous group is. So any group of the
log can be turned back into a training window: the events that came before it, and the groups along the way as
targets. The log forgets the oldest groups, never the newest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graph.view import Int32, Int64

# n events of a window, g target groups of a window, T targets of a window


@dataclass(frozen=True, slots=True)
class Window:
    """One user's events and what was asked at the end of each group.

    Attributes:
        items: [n] int64 rows of the item table, in (time, arrival) order.
        t_ms: [n + 1] int64, the last one is the request time of the last row.
        ends: [h] int64, where each group of the window ends; the last one is n.
        rows: [g] int64, rows whose output predicts a whole group.
        targets: [T] int64 item rows, group after group.
        counts: [g] int64 targets of each group, all above 0.
        repeated: [T] bool, the target is already among the events up to its row.
    """

    items: Int64
    t_ms: Int64
    ends: Int64
    rows: Int64
    targets: Int64
    counts: Int64
    repeated: NDArray[np.bool_]


class ReplayLog:
    """Ring of the newest `groups` groups, with their events.

    Args:
        groups: groups remembered.
        max_len: events of a window at most.
    """

    def __init__(self, groups: int, max_len: int) -> None:
        self.capacity = groups
        self.max_len = max_len
        self.end = 0
        """Groups ever added; group numbers run from 0 and lie at number % capacity."""
        self._items: list[Int32] = []
        self._wanted: list[NDArray[np.bool_]] = []
        self._t_ms: list[int] = []
        self._previous: list[int] = []
        self._last: dict[str, int] = {}
        self._user: list[str] = []

    @property
    def start(self) -> int:
        """Number of the oldest group that is still here."""
        return max(0, self.end - self.capacity)

    def add(self, user_id: str, items: Int32, wanted: NDArray[np.bool_], t_ms: int) -> int:
        """Appends a group and returns its number.

        Args:
            user_id: whose group it is.
            items: [b] int32 rows of the item table, what later windows read.
            wanted: [b] bool, those that are targets.
            t_ms: unix milliseconds.
        """
        number, at = self.end, self.end % self.capacity
        previous = self._last.get(user_id, -1)
        if number < self.capacity:
            self._items.append(items)
            self._wanted.append(wanted)
            self._t_ms.append(t_ms)
            self._previous.append(previous)
            self._user.append(user_id)
        else:
            forgotten = self._user[at]
            if self._last[forgotten] == number - self.capacity:
                del self._last[forgotten]
            self._items[at], self._wanted[at], self._t_ms[at] = items, wanted, t_ms
            self._previous[at], self._user[at] = previous, user_id
        self._last[user_id] = number
        self.end += 1
        return number

    def has_past(self, number: int) -> bool:
        """Whether a group is still here and has an earlier group of its user here."""
        return number >= self.start and self._previous[number % self.capacity] >= self.start

    def history(self, user_id: str) -> tuple[Int64, Int64]:
        """The user's last `max_len` events: items [n] int64 and times [n] int64."""
        chain = self._chain(self._last.get(user_id, -1), self.max_len)
        if not chain:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        items, t_ms, _ = self._events(chain)
        return items[-self.max_len :], t_ms[-self.max_len :]

    def window(self, number: int) -> Window:
        """The window that ends with the request for group `number`; `has_past(number)` must hold.

        What came first but happened later, of a group that came late, is not in it.
        """
        at = number % self.capacity
        chain = [a for a in self._chain(self._previous[at], self.max_len) if self._t_ms[a] <= self._t_ms[at]]
        items, t_ms, ends = self._events(chain)
        cut = max(0, len(items) - self.max_len)
        asked = [*chain, at][1:]
        picked = [self._items[a][self._wanted[a]] for a in asked]
        keep = [i for i, p in enumerate(picked) if len(p) and ends[i] > cut]
        targets = [picked[i].astype(np.int64) for i in keep]
        repeated = [np.isin(p, items[cut : ends[i]]) for i, p in zip(keep, targets, strict=True)]
        return Window(
            items=items[cut:],
            t_ms=np.append(t_ms[cut:], self._t_ms[at]),
            ends=ends[ends > cut] - cut,
            rows=np.array([ends[i] - cut - 1 for i in keep], np.int64),
            targets=np.concatenate(targets) if targets else np.zeros(0, np.int64),
            counts=np.array([len(p) for p in targets], np.int64),
            repeated=np.concatenate(repeated) if repeated else np.zeros(0, bool),
        )

    def _chain(self, number: int, events: int) -> list[int]:
        """Places of a user's groups up to `number`, oldest first, until they hold `events` events."""
        chain: list[int] = []
        while number >= self.start and events > 0:
            at = number % self.capacity
            chain.append(at)
            events -= len(self._items[at])
            number = self._previous[at]
        chain.sort(key=lambda a: (self._t_ms[a], (a - self.start) % self.capacity))
        return chain

    def _events(self, chain: list[int]) -> tuple[Int64, Int64, Int64]:
        """Items [n], times [n] and the end of each group [g] of a chain of places."""
        counts = np.array([len(self._items[a]) for a in chain], np.int64)
        items = np.concatenate([np.zeros(0, np.int64), *(self._items[a] for a in chain)])
        t_ms = np.repeat(np.array([self._t_ms[a] for a in chain], np.int64), counts)
        return items, t_ms, counts.cumsum()

    def state_dict(self) -> dict[str, object]:
        """Everything, as arrays and lists."""
        counts = np.array([len(z) for z in self._items], np.int64)
        return {
            "end": self.end,
            "counts": counts,
            "items": np.concatenate(self._items) if self._items else np.zeros(0, np.int32),
            "wanted": np.concatenate(self._wanted) if self._wanted else np.zeros(0, bool),
            "t_ms": np.array(self._t_ms, np.int64),
            "previous": np.array(self._previous, np.int64),
            "user": list(self._user),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores what `state_dict` returned, from a log of the same capacity."""
        arrays = {k: np.asarray(state[k]) for k in ("counts", "items", "wanted", "t_ms", "previous")}
        cuts = arrays["counts"].cumsum()[:-1]
        some = len(arrays["counts"]) > 0
        self.end = int(str(state["end"]))
        self._items = list(np.split(arrays["items"], cuts)) if some else []
        self._wanted = list(np.split(arrays["wanted"], cuts)) if some else []
        self._t_ms = arrays["t_ms"].tolist()
        self._previous = arrays["previous"].tolist()
        self._user = list(state["user"])  # type: ignore[call-overload]
        self._last = {}
        for number in range(self.start, self.end):
            self._last[self._user[number % self.capacity]] = number
