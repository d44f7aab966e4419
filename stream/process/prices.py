"""What a price usually is: the geometric mean over all events of a partition, as profile requests compare with it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

from driftline.graph.rows import Event

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
        total, n, log = self._sum, self._n, math.log
        for event in events:
            price = event.price
            if price is not None and price > 0:
                total, n = total + log(price), n + 1
            self.at[event.user_id] = total / n if n else None
        self._sum, self._n = total, n

    def encode(self) -> bytes:
        """Bytes for the store."""
        return _FORMAT.pack(self._sum, self._n)

    def load(self, value: bytes | None) -> None:
        """What `encode` gave; None = before the first price."""
        self._sum, self._n = _FORMAT.unpack(value) if value else (0.0, 0)
