"""What the sequence learner remembers of the stream: a bounded log of groups, linked by user.

Groups lie in a ring in order of arrival; each knows where the same user's previous group is. So any group of the
log can be turned back into a training window: the events that came before it, and the groups along the way as
targets. The log forgets the oldest groups, never the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from driftline.graph.arrays import Bool, Int32, Int64, grown
from driftline.model.windows_kernel import chain_of, windows_of

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
    repeated: Bool


class RehearsalLog:
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
        self._t_ms, self._previous, self._begin, self._size = np.zeros((4, groups), np.int64)
        self._user: list[str] = []
        self._last: dict[str, int] = {}
        self._items: Int32 = np.zeros(0, np.int32)  # events of all groups, in order of arrival
        self._wanted: Bool = np.zeros(0, np.bool_)
        self._events = 0
        self._place: Int32 = np.zeros(0, np.int32)

    @property
    def start(self) -> int:
        """Number of the oldest group that is still here."""
        return max(0, self.end - self.capacity)

    def add(self, user_id: str, items: Int32, wanted: Bool, t_ms: int) -> int:
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
            self._user.append(user_id)
        else:
            forgotten = self._user[at]
            if self._last.get(forgotten) == number - self.capacity:
                del self._last[forgotten]
            self._user[at] = user_id
        self.end += 1
        self._last[user_id] = number
        self._t_ms[at], self._previous[at] = t_ms, previous
        self._put(at, items, wanted)
        return number

    def _put(self, at: int, items: Int32, wanted: Bool) -> None:
        """Appends the events of the newest group; those of groups that are gone make room."""
        size = len(items)
        if self._events + size > len(self._items):
            oldest = self.start % self.capacity
            first = int(self._begin[oldest]) if oldest != at else self._events
            held = self._events - first
            room = max(1024, 2 * (held + size))
            self._items = grown(self._items[first : self._events], room)
            self._wanted = grown(self._wanted[first : self._events], room)
            self._begin -= first
            self._events = held
        these = slice(self._events, self._events + size)
        self._items[these], self._wanted[these] = items, wanted
        self._begin[at], self._size[at] = self._events, size
        self._events += size
        self._place = grown(self._place, int(items.max()) + 1 if size else 0)

    def forget(self, user_id: str) -> None:
        """Empties a user's groups; they keep their places in the ring, and nothing is a past of anything."""
        self._last.pop(user_id, None)
        for at, owner in enumerate(self._user):
            if owner == user_id:
                these = slice(self._begin[at], self._begin[at] + self._size[at])
                self._items[these], self._wanted[these] = 0, False
                self._size[at], self._previous[at], self._user[at] = 0, -1, ""

    def has_past(self, number: int) -> bool:
        """Whether a group is still here and has an earlier group of its user here."""
        return number >= self.start and int(self._previous[number % self.capacity]) >= self.start

    def user(self, number: int) -> str:
        """Whose a group is, "" if it is not here any more."""
        return self._user[number % self.capacity] if number >= self.start else ""

    def history(self, user_id: str) -> tuple[Int64, Int64]:
        """The user's last `max_len` events: items [n] int64 and times [n] int64."""
        last = self._last.get(user_id, -1)
        at = chain_of(last, self.start, self.max_len, self._previous, self._t_ms, self._size) % self.capacity
        items = self._items[_runs(self._begin[at], self._size[at])].astype(np.int64)
        return items[-self.max_len :], np.repeat(self._t_ms[at], self._size[at])[-self.max_len :]

    def windows(self, numbers: Sequence[int]) -> list[Window]:
        """The windows that end with the requests for these groups; `has_past` must hold for each.

        What came first but happened later, of a group that came late, is not in a window.
        """
        starts, items, t_ms, ends, rows, targets, counts, repeated = windows_of(
            np.array(numbers, np.int64), self.start, self.max_len,
            self._previous, self._t_ms, self._begin, self._size, self._items, self._wanted, self._place,
        )  # fmt: skip
        found = []
        for w, (first, last) in enumerate(pairwise(starts.T.tolist())):
            n, h, g, t = (slice(*both) for both in zip(first, last, strict=True))
            times = t_ms[n.start + w : n.stop + w + 1]
            found.append(Window(items[n], times, ends[h], rows[g], targets[t], counts[g], repeated[t]))
        return found

    def state_dict(self) -> dict[str, object]:
        """Everything, as arrays and lists."""
        groups = len(self._user)
        size = self._size[:groups].copy()
        events = _runs(self._begin[:groups], size)
        return {
            "end": self.end,
            "counts": size,
            "items": self._items[events],
            "wanted": self._wanted[events],
            "t_ms": self._t_ms[:groups].copy(),
            "previous": self._previous[:groups].copy(),
            "user": list(self._user),
        }

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores what `state_dict` returned, from a log of the same capacity."""
        arrays = {k: np.asarray(state[k]) for k in ("counts", "items", "wanted", "t_ms", "previous")}
        size, groups = arrays["counts"].astype(np.int64), len(arrays["counts"])
        begin = size.cumsum() - size
        self.end = int(str(state["end"]))
        at = np.arange(self.start, self.end) % self.capacity  # by number
        events = _runs(begin[at], size[at])
        self._t_ms[:groups], self._previous[:groups], self._size[:groups] = arrays["t_ms"], arrays["previous"], size
        self._begin[at] = size[at].cumsum() - size[at]
        self._items, self._wanted = arrays["items"][events].astype(np.int32), arrays["wanted"][events].astype(np.bool_)
        self._events = len(events)
        self._place = np.zeros(int(self._items.max(initial=-1)) + 1, np.int32)
        self._user = list(state["user"])  # type: ignore[call-overload]
        self._last = {self._user[number % self.capacity]: number for number in range(self.start, self.end)}


def _runs(begin: Int64, size: Int64) -> Int64:
    """Places [n] of runs of such sizes that begin there, one run after the other."""
    return np.repeat(begin - size.cumsum() + size, size) + np.arange(size.sum())
