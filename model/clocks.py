"""Processor time by part of an engine: what an evaluation charges each part for.

The clock is the process's: a pass computes on one thread, and what numpy and torch start beside it is its own doing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Key = tuple[str, str]
"""A part, and what it did: "predict" or "learn"."""


_NOTHING = nullcontext()


class Clocks:
    """Seconds by part; a part within another is charged alone, and the outer one stands still meanwhile.

    Attributes:
        seconds: part and deed -> CPU seconds spent while the arms trained, and while they were asked for an answer.
        asked: whether what runs now answers a request that is scored; else it serves training. What learns does in
            any case, though an answer may have waited for it.
    """

    def __init__(self) -> None:
        self.seconds: dict[Key, list[float]] = {}
        self.asked = False
        self._running: Key | None = None
        self._since = 0.0

    def on(self, part: str, deed: str = "predict") -> AbstractContextManager[None]:
        """Charges a part for what runs within."""
        return self._charged((part, deed))

    @contextmanager
    def _charged(self, key: Key) -> Iterator[None]:
        outer = self._running
        self._run(key)
        try:
            yield
        finally:
            self._run(outer)

    def _run(self, key: Key | None) -> None:
        now = time.process_time()
        if self._running is not None:
            answers = self.asked and self._running[1] == "predict"
            self.seconds.setdefault(self._running, [0.0, 0.0])[answers] += now - self._since
        self._running, self._since = key, now


class NoClocks(Clocks):
    """Charges nobody: what runs live, on several threads at once, is not told apart."""

    def on(self, part: str, deed: str = "predict") -> AbstractContextManager[None]:
        """Nothing."""
        return _NOTHING
