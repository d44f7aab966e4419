"""The ids of the last events, by which a second copy of one is known, whoever sent it again."""

from __future__ import annotations

from collections import OrderedDict

from driftline.graph.rows import Event
from driftline.stream.state.store import StateStore


class KnownIds:
    """Event ids that were applied, oldest first.

    Args:
        most: ids that are remembered; 0 = none.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, event: Event) -> bool:
        return event.event_id is not None and event.event_id in self._ids

    def is_second(self, event: Event, pending: dict[bytes, bytes | None]) -> bool:
        """Whether an event was applied before; one that was not counts as applied from here on, also in `pending`."""
        if event.event_id is None or self._most == 0:
            return False
        if event in self:
            return True
        self._ids[event.event_id] = None
        pending[b"d:" + event.event_id.encode()] = event.offset.to_bytes(8, "big")
        if len(self._ids) > self._most:
            oldest, _ = self._ids.popitem(last=False)
            pending[b"d:" + oldest.encode()] = None
        return False

    def load(self, store: StateStore) -> None:
        """Takes back what was remembered."""
        by_age = sorted((value, key) for key, value in store.scan(b"d:"))
        self._ids = OrderedDict((key[2:].decode(), None) for _, key in by_age)
