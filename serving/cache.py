"""Rankings kept for a moment: another list or page of the same user need not be scored again."""

from __future__ import annotations

import threading
from collections import OrderedDict

from serving.scorer import Ranking


class RecentRankings:
    """The last ranking of each of the latest users.

    Args:
        users: how many users; 0 switches it off.
        close_ms: two request times at most this far apart may share a ranking.
    """

    def __init__(self, users: int, close_ms: int) -> None:
        self._users, self._close_ms = users, close_ms
        self._kept: OrderedDict[str, tuple[object, int, Ranking]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, user_id: str, key: object, now_ms: int) -> Ranking | None:
        """The ranking made for this user with an equal key (state, profile, model, domain) at about this time."""
        kept = self._kept.get(user_id)
        if kept is None or kept[0] != key or abs(now_ms - kept[1]) > self._close_ms:
            return None
        return kept[2]

    def put(self, user_id: str, key: object, now_ms: int, ranking: Ranking) -> None:
        """Keeps a ranking in place of the user's one before."""
        if self._users == 0:
            return
        with self._lock:
            self._kept[user_id] = (key, now_ms, ranking)
            self._kept.move_to_end(user_id)
            if len(self._kept) > self._users:
                self._kept.popitem(last=False)
