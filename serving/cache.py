"""Rankings kept for a moment: another list or page of the same user need not be scored again.

A ranking holds what its reasons need: every recaller's scores, and the engine. So the next one to be kept sends away
all that are old or of another model.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from driftline.serving.scorer import ScoredCandidates

_LATE_S = 1.0
"""Wall time that requests of equal times may lie apart."""


class RecentRankings:
    """The last ranking of each of the latest users.

    Args:
        users: how many users; 0 switches it off.
        close_ms: two request times at most this far apart may share a ranking.
    """

    def __init__(self, users: int, close_ms: int) -> None:
        self._users, self._close_ms = users, close_ms
        self._kept: OrderedDict[str, tuple[object, int, ScoredCandidates, float]] = OrderedDict()
        self._model = ""
        self._lock = threading.Lock()

    def get(self, user_id: str, model: str, key: object, now_ms: int) -> ScoredCandidates | None:
        """What a model made for this user with an equal key (state, profile, domain) at about this time."""
        kept = self._kept.get(user_id)
        if kept is None or kept[0] != (model, key) or abs(now_ms - kept[1]) > self._close_ms:
            return None
        return kept[2]

    def put(self, user_id: str, model: str, key: object, now_ms: int, ranking: ScoredCandidates) -> None:
        """Keeps a ranking in place of the user's one before; those of another model and old ones go."""
        if self._users == 0:
            return
        at_s = time.monotonic()
        with self._lock:
            if model != self._model:
                self._model = model
                self._kept.clear()
            self._kept[user_id] = ((model, key), now_ms, ranking, at_s)
            self._kept.move_to_end(user_id)
            oldest_s = at_s - self._close_ms / 1000 - _LATE_S
            while len(self._kept) > self._users or next(iter(self._kept.values()))[3] < oldest_s:
                self._kept.popitem(last=False)
