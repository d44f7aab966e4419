"""Arms that only remember who wrote to whom: what a graph has to beat where users and items are the same people.

Source: EdgeBank, Poursafaei et al., "Towards better evaluation for dynamic link prediction", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from driftline.stream.replay.arms import Arm, Arrival, Ranking, Request, Slate


class Pairs:
    """Those with whom the user had an event last come first; all others are tied behind them.

    Args:
        name: of the arm.
        own: events by the user count.
        reversed_: events on the user, by those who are items themselves, count.
    """

    refresh_cpu_s = 0.0
    trained_share = 1.0

    def __init__(self, name: str, own: bool, reversed_: bool) -> None:
        self.name, self._own, self._reversed = name, own, reversed_
        self._item_of: dict[str, int] = {}
        self._last_ms: dict[str, dict[str, int]] = {}  # user -> id of the other -> when
        self._known = 0

    def start(self, split_ms: int) -> None:
        """Nothing changes at the split."""

    def score(self, request: Request) -> Slate:
        """The time of the last event of a pair."""
        self._know(request)
        scores = np.full(request.pool, -1.0)
        for other, t_ms in self._last_ms.get(request.user_id, {}).items():
            if (item := self._item_of.get(other, request.pool)) < request.pool:
                scores[item] = t_ms
        return Slate(Ranking(scores))

    def _know(self, request: Request) -> None:
        ids = request.log.item_ids[self._known : request.pool]
        self._item_of |= {item_id: n for n, item_id in enumerate(ids, self._known)}
        self._known = max(self._known, request.pool)

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Both sides of each positive row."""
        user, ids = request.user_id, request.log.item_ids
        for item in np.unique(arrival.group.items[arrival.group.positive]).tolist():
            if self._own:
                self._last_ms.setdefault(user, {})[ids[item]] = request.t_ms
            if self._reversed:
                self._last_ms.setdefault(ids[item], {})[user] = request.t_ms


PAIRS: dict[str, Callable[[], Arm]] = {
    "own_pairs": lambda: Pairs("own_pairs", own=True, reversed_=False),
    "reversed_pairs": lambda: Pairs("reversed_pairs", own=False, reversed_=True),
    "pairs": lambda: Pairs("pairs", own=True, reversed_=True),
}
"""The arms by name."""
