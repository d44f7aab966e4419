"""What a price usually is: the geometric mean over all events of a partition, as profile requests compare with it."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

from graph.rows import Event

_FORMAT = struct.Struct("<dq")


class UsualPrice:
    """Running mean of log prices. It adds in the order of the events, so it does not depend on how they were cut."""

    KEY = b"m:prices"
    """Where the store keeps it."""

    def __init__(self) -> None:
        self._sum, self._n = 0.0, 0

    @property
    def log(self) -> float | None:
        """Mean of the logs; None before the first price."""
        return self._sum / self._n if self._n else None

    def add(self, events: Iterable[Event]) -> None:
        """Takes in the prices of events; those that are not above 0 say nothing."""
        for event in events:
            if event.price is not None and event.price > 0:
                self._sum, self._n = self._sum + math.log(event.price), self._n + 1

    def encode(self) -> bytes:
        """Bytes for the store."""
        return _FORMAT.pack(self._sum, self._n)

    def load(self, value: bytes | None) -> None:
        """What `encode` gave; None = before the first price."""
        self._sum, self._n = _FORMAT.unpack(value) if value else (0.0, 0)
