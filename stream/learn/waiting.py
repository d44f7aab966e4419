"""Late groups of a trainer: learnt from when they come, put in their place in rows and memories some at a time.

To put one event in its place costs applying all later ones once more: with a producer 50 minutes behind, thousands for
each of its groups. So they wait together until what has come since is a share of that, but never until one of them
would be too late, nor over a checkpoint, a snapshot, an adoption or a request to forget.
"""

from __future__ import annotations

from collections.abc import Sequence

from driftline.graph.rows import Event
from driftline.stream.process.late import LateWindow

AGAIN_PER_NEW = 3
"""Events applied again for each one that came since the last time, at most about so many."""


class Held:
    """Events that rows and memories lack.

    Attributes:
        events: in the order in which they came.
        users: whose they are.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.users: set[str] = set()
        self._ids: set[str] = set()

    def add(self, events: Sequence[Event]) -> None:
        """Takes events of one user."""
        self.events += events
        self.users.add(events[0].user_id)
        self._ids.update([event.event_id for event in events if event.event_id is not None])

    def has(self, event: Event) -> bool:
        """Whether an event of this id is among them."""
        return event.event_id in self._ids

    def take_all(self) -> list[Event]:
        """Takes them out, in the order in which they came."""
        events, self.events = self.events, []
        self.users.clear()
        self._ids.clear()
        return events


class WaitingEvents(Held):
    """Late ones."""

    def __init__(self) -> None:
        super().__init__()
        self._room = self._since = self._again = 0
        self._oldest_ms = 0

    def takes(self, events: Sequence[Event], window: LateWindow) -> bool:
        """Whether a group is late, but not too late: then it waits here."""
        t_ms = events[0].timestamp_ms
        if t_ms >= window.watermark_ms:
            return False
        after = window.late_events - window.room_at(t_ms)
        room = window.late_events - after - len(self.events)  # those that wait come before it, maybe to later places
        if room <= 0:
            return False
        if not self.events:
            self._room, self._oldest_ms, self._since, self._again = room, t_ms, 0, 0
        self._room, self._oldest_ms = min(self._room, room), min(self._oldest_ms, t_ms)
        self._again = max(self._again, after)
        self._since += len(events)
        self.add(events)
        return True

    def must_go_before(self, t_ms: int, events: int, window: LateWindow) -> bool:
        """Whether so many events of a time would make one of them too late, or they the verdict on a late group."""
        if not self.events:
            return False
        if t_ms >= window.watermark_ms:
            return t_ms - self._oldest_ms > window.late_ms or events >= self._room
        return 0 < window.room_at(t_ms) <= len(self.events)

    def applied(self, events: int) -> None:
        """Counts events that did not wait."""
        self._since += events
        self._room -= events

    @property
    def due(self) -> bool:
        """Whether what came since, late or not, is worth applying them now."""
        return bool(self.events) and AGAIN_PER_NEW * self._since >= self._again + self._since
