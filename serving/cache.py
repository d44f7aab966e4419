"""Rankings kept for a moment: another list or page of the same user need not be scored again.

What is kept is from before anything is left out, spread or cut, so it is one for all options of a request but those in
its key. It holds what its reasons need: the digest of the user's history, the lists of every recaller without their
scores of all other items, and the engine. So the next one to be kept sends away all that are old or of another model.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from driftline.model.history_cache import FORGOTTEN_S
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
        self._forgotten_s: OrderedDict[str, float] = OrderedDict()
        """Who was forgotten a moment ago, and when; about the oldest first."""
        self._model = ""
        self._lock = threading.Lock()

    def get(self, user_id: str, model: str, key: object, now_ms: int) -> ScoredCandidates | None:
        """What a model made for this user with an equal key (state, profile, domain, context) at about this time."""
        kept = self._kept.get(user_id)
        if kept is None or kept[0] != (model, key) or abs(now_ms - kept[1]) > self._close_ms:
            return None
        return kept[2]

    def forget(self, user_id: str) -> None:
        """Drops a user's ranking, and those that requests in flight bring within `FORGOTTEN_S`."""
        with self._lock:
            self._forgotten_s[user_id] = time.monotonic()
            self._kept.pop(user_id, None)

    def put(self, user_id: str, model: str, key: object, now_ms: int, ranking: ScoredCandidates) -> None:
        """Keeps a ranking in place of the user's one before; those of another model and old ones go."""
        if self._users == 0:
            return
        at_s = time.monotonic()
        with self._lock:
            while self._forgotten_s and next(iter(self._forgotten_s.values())) < at_s - FORGOTTEN_S:
                self._forgotten_s.popitem(last=False)
            if user_id in self._forgotten_s:
                return
            if model != self._model:
                self._model = model
                self._kept.clear()
            self._kept[user_id] = ((model, key), now_ms, ranking, at_s)
            self._kept.move_to_end(user_id)
            oldest_s = at_s - self._close_ms / 1000 - _LATE_S
            while len(self._kept) > self._users or next(iter(self._kept.values()))[3] < oldest_s:
                self._kept.popitem(last=False)
