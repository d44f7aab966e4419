"""What a price usually is: the geometric mean over all events of a partition, as profile requests compare with it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

from graph.rows import Event

_FORMAT = struct.Struct("<dq")


class UsualPrice:
    """Running mean of log prices. It adds in the order of the events, so it does not depend on how they were cut.

    Attributes:
        at: by user, the mean of the logs at the user's last event; None before the first price. Who reads empties it.
    """

    KEY = b"m:prices"
    """Where the store keeps it."""

    def __init__(self) -> None:
        self._sum, self._n = 0.0, 0
        self.at: dict[str, float | None] = {}

    def add(self, events: Iterable[Event]) -> None:
        """Takes in the prices of events in order; those that are not above 0 say nothing."""
        for event in events:
            if event.price is not None and event.price > 0:
                self._sum, self._n = self._sum + math.log(event.price), self._n + 1
            self.at[event.user_id] = self._sum / self._n if self._n else None

    def encode(self) -> bytes:
        """Bytes for the store."""
        return _FORMAT.pack(self._sum, self._n)

    def load(self, value: bytes | None) -> None:
        """What `encode` gave; None = before the first price."""
        self._sum, self._n = _FORMAT.unpack(value) if value else (0.0, 0)
