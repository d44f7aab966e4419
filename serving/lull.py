"""How often to look at a topic that has nothing new.

A broker that answers an empty fetch at once, as the embedded one does, makes each look a request and an answer, and
`poll` with a time limit keeps a core busy with them. Kafka holds such a fetch back, and a look costs next to nothing.
"""

from __future__ import annotations

import time
from typing import Any

_ANSWER_S = 0.005
"""A broker on the same host has answered a fetch by then."""


class Lull:
    """How long to wait before the next look: a tenth of how long nothing has come.

    Args:
        shortest_s, longest_s: of a wait.
    """

    def __init__(self, shortest_s: float, longest_s: float) -> None:
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._since_s: float | None = None

    def end(self) -> None:
        """Something has come. What is done with it is no silence: that begins with the next wait."""
        self._since_s = None

    def wait_s(self) -> float:
        """From here to the next look."""
        now_s = time.monotonic()
        if self._since_s is None:
            self._since_s = now_s
        return min(max(self._shortest_s, (now_s - self._since_s) / 10), self._longest_s)


def look(consumer: Any, max_records: int | None = None) -> dict[Any, list[Any]]:
    """Records by partition that a consumer has by now, or a few milliseconds later.

    A poll sends a fetch; what the broker answers is for the next poll.
    """
    batch: dict[Any, list[Any]] = consumer.poll(timeout_ms=0, max_records=max_records)
    if not batch:
        time.sleep(_ANSWER_S)
        batch = consumer.poll(timeout_ms=0, max_records=max_records)
    return batch
