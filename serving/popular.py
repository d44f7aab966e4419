"""What is popular by the state store answers while no model does; read beside requests, by a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from driftline.serving.models import Served
from driftline.serving.scorer import PopularityScorer
from driftline.serving.snapshot import Meta, Snapshot

LOG = logging.getLogger(__name__)
FRESH_S = 10.0
"""How old the popularity that answers may be before it is read anew."""
_WAIT_S = 5.0
"""How long a request waits for the very first reading."""
_NO_SNAPSHOT = Snapshot("", 0, -1, Meta(), {})


class Popular:
    """Popularity of items as a model, as old as the last reading.

    Args:
        read: gives items with their popularity, best first; it may take long.
        one_id_space: ids of users are ids of items.
    """

    def __init__(self, read: Callable[[], Sequence[tuple[str, float]]], one_id_space: bool = False) -> None:
        self._read, self._one_id_space = read, one_id_space
        self._lock = threading.Lock()
        self._reading: threading.Event | None = None
        self._read_s = float("-inf")
        self._served = _served((), one_id_space)

    def served(self) -> Served:
        """What was read last, maybe no items; only where nothing was read yet, the first reading is waited for."""
        nothing = not len(self._served.scorer.table)
        with self._lock:
            if self._reading is None and (nothing or time.monotonic() - self._read_s > FRESH_S):
                self._reading = threading.Event()
                threading.Thread(target=self._read_anew, args=(self._reading,), name="popular", daemon=True).start()
            reading = self._reading
        if nothing and reading is not None:
            reading.wait(_WAIT_S)
        return self._served

    def _read_anew(self, done: threading.Event) -> None:
        try:
            self._served = _served(self._read(), self._one_id_space)
        except Exception:
            LOG.exception("the popularity of items could not be read; what was read last goes on answering")
        with self._lock:
            self._read_s, self._reading = time.monotonic(), None
        done.set()


def _served(scores: Sequence[tuple[str, float]], one_id_space: bool) -> Served:
    n, scorer = len(scores), PopularityScorer(scores, one_id_space)
    return Served(_NO_SNAPSHOT, scorer, [], np.ones(n, np.bool_), np.zeros(n, np.int32), {})
