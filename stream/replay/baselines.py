"""The simple arms: what any engine has to beat, each with its usual parameters and open to any catalogue.

Sources: item-item cosine: Sarwar et al., WWW 2001; user-user neighbourhoods on decayed profiles: Ding and Li, CIKM
2005; EASE: Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019 (arXiv 1905.03375), here on
baskets instead of users, with time-decayed rows. `_recent` multiplies by the log of recent popularity.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import scipy.linalg.lapack as lapack
import scipy.sparse as sp
from numpy.typing import NDArray

from driftline.graph.arrays import Int32
from driftline.stream.replay.arms import Arm, Arrival, Ranking, Request, Slate
from driftline.stream.replay.counters import (
    DAY_MS,
    MAX_EXPONENT,
    Daily,
    DecayedCount,
    LastPurchases,
    basket_matrix,
    basket_parts,
    enlarged,
    last_group,
    last_taken,
    positive_items,
    refreshed,
)

EASE_ITEMS = 12_000
"""Items that EASE takes at most. The inverse is cubic in them: 4,000 take a second, 12,000 half a minute and 1.2 GB."""
EASE_PER_ROW = 5e8
"""Operations (items cubed, for an inverse) that each row learnt since the last refresh of EASE allows the next one.

Some five milliseconds a row. A shop of 4,000 items needs 130 rows a day to be refreshed daily; 9,500 items are
refreshed every 1,700 rows. Rows are counted, not seconds, so that two runs refresh alike.
"""
NO_PAIRS = "no group, and no session, holds two items that were wanted, so there is nothing that was taken together"
"""Why an arm is void that reads baskets."""


class SimpleArm:
    """What the arms below share."""

    refresh_cpu_s = 0.0
    trained_share = 1.0

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, split_ms: int) -> None:
        """Nothing changes at the split."""


class Popularity(SimpleArm):
    """Counts of an item's positive rows, decayed or not."""

    def __init__(self, name: str = "popularity", tau_days: float = math.inf) -> None:
        super().__init__(name)
        self._count = DecayedCount(tau_days)

    def score(self, request: Request) -> Slate:
        """The same order for every user."""
        return Slate(Ranking(self._count.now(request.pool, request.t_ms)))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Count the group."""
        self._count.add(positive_items(arrival), request.t_ms)


class PersonalRecency(SimpleArm):
    """How often and how lately this user took an item; ties and the rest by recent popularity."""

    def __init__(self, name: str = "personal_recency") -> None:
        super().__init__(name)
        self._count = DecayedCount(30.0)

    def score(self, request: Request) -> Slate:
        """Sum over the purchases of exp(-age / 30 d), + .01 for each, + .001 exp(-age of the last / 365 d)."""
        popularity = self._count.now(request.pool, request.t_ms)
        scores = popularity * (1e-9 / max(1.0, popularity.max(initial=0.0)))
        log, rows = request.log, request.history
        rows = rows[log.positive[rows]]
        age_days = (request.t_ms - log.t_ms[rows]) / DAY_MS
        np.add.at(scores, log.item[rows], np.exp(-age_days / 30.0) + 0.01)
        items, last_ms = last_taken(request)
        scores[items] += 0.001 * np.exp(-(request.t_ms - last_ms) / DAY_MS / 365.0)
        return Slate(Ranking(scores))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Count the group; the user's own past is read from the request."""
        self._count.add(positive_items(arrival), request.t_ms)


class ItemKnn(SimpleArm):
    """Cosine between items over baskets, the nearest 50 of each, refreshed daily.

    Args:
        name: name of the arm.
        recent_days: with it, scores are multiplied by log1p of popularity weighted exp(-age / recent_days).
    """

    neighbors = 50

    def __init__(self, name: str = "item_knn", recent_days: float | None = None) -> None:
        super().__init__(name)
        self._recent = None if recent_days is None else DecayedCount(recent_days)
        self._pairs = sp.csr_matrix(np.zeros((0, 0), np.float32))
        self._pending: list[tuple[Int32, float]] = []
        self._daily = Daily()
        self._similar = self._pairs
        self.void = NO_PAIRS

    def score(self, request: Request) -> Slate:
        """Summed similarity to the user's past items."""
        if self._daily.due(request.t_ms):
            before = time.process_time()
            self._refresh(request.pool)
            self.refresh_cpu_s += time.process_time() - before
        scores = np.zeros(request.pool)
        known = self._similar.shape[0]
        taken = request.touched[request.touched < known]
        scores[:known] = np.asarray(self._similar[taken].sum(axis=0)).ravel()
        if self._recent is not None:
            scores *= np.log1p(self._recent.now(request.pool, request.t_ms))
        return Slate(Ranking(scores))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Keep the basket for the next refresh, count recent popularity now."""
        parts = basket_parts(request, arrival)[0]
        self._pending += parts
        self.void = self.void if all(len(items) < 2 for items, _ in parts) else ""
        if self._recent is not None:
            self._recent.add(positive_items(arrival), request.t_ms)

    def _refresh(self, pool: int) -> None:
        baskets, weight = basket_matrix(self._pending, pool)
        self._pending.clear()
        old = enlarged(self._pairs, pool)
        self._pairs = sp.csr_matrix(old + baskets.T @ sp.diags_array(weight) @ baskets)
        changed = np.unique(baskets.indices)
        partners = (old[changed].indices, self._pairs[changed].indices)  # a cosine ends where a count is 0 again
        rows = np.unique(np.concatenate([changed, *partners])).astype(np.int64)
        self._similar = refreshed(self._similar, self._pairs, rows, self.neighbors)


class UserKnn(SimpleArm):
    """The 100 users with the most similar decayed purchases; user matrix refreshed daily, the request's user live."""

    neighbors = 100
    tau_days = 60.0

    def __init__(self, name: str = "user_knn_recent", recent_days: float = 7.0) -> None:
        super().__init__(name)
        self._last = LastPurchases(self.tau_days)
        self._recent = DecayedCount(recent_days)
        self._daily = Daily()
        self._users = sp.csr_matrix(np.zeros((0, 0)))
        self._norm: NDArray[np.float64] = np.zeros(0)

    def score(self, request: Request) -> Slate:
        """Neighbours' vectors summed by cosine, times log1p of recent popularity."""
        if self._daily.due(request.t_ms):
            before = time.process_time()
            self._users = self._last.matrix(request.pool, request.t_ms)
            self._norm = np.sqrt(np.asarray(self._users.multiply(self._users).sum(axis=1)).ravel())
            self.refresh_cpu_s += time.process_time() - before
        scores = np.zeros(request.pool)
        known = self._users.shape[1]
        items, last_ms = last_taken(request)
        query = np.zeros(known)
        inside = items < known
        query[items[inside]] = np.exp((last_ms[inside] - request.t_ms) / (self.tau_days * DAY_MS))
        similar = self._users @ query / np.maximum(self._norm * np.sqrt((query**2).sum()), 1e-12)
        if request.user < len(similar):
            similar[request.user] = 0.0
        top = np.arange(len(similar))
        if len(similar) > self.neighbors:
            top = np.argpartition(-similar, self.neighbors - 1)[: self.neighbors]
        scores[:known] = similar[top] @ self._users[top]
        scores *= np.log1p(self._recent.now(request.pool, request.t_ms))
        return Slate(Ranking(scores))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Note the purchases for the next refresh, count recent popularity now."""
        items = positive_items(arrival)
        self._last.add(arrival.user, items, request.t_ms)
        self._recent.add(items, request.t_ms)


class Ease(SimpleArm):
    """EASE on time-decayed baskets, refreshed daily once scoring has begun, as far as the budget goes.

    An inverse costs the cube of the items, and a day of a small log with many items may hold few requests. A refresh
    that the rows since the last one do not cover (EASE_PER_ROW) waits for a later day.

    Args:
        name: name of the arm.
        recent_days: scores are multiplied by log1p of popularity weighted exp(-age / recent_days).
    """

    ridge = 100.0
    basket_days = 120.0
    history_days = 60.0

    def __init__(self, name: str = "ease_recent", recent_days: float = 30.0) -> None:
        super().__init__(name)
        self._recent = DecayedCount(recent_days)
        self._daily = Daily()
        self._rows = self._days = self._refreshes = 0
        self._gram: NDArray[np.float32] = np.zeros((0, 0), np.float32)  # room for more items than there are
        self._work: NDArray[np.float32] = np.zeros(0, np.float32)
        self._gram_ms = 0
        self._pending: list[tuple[Int32, float, int]] = []
        self._inverse: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self._diagonal: NDArray[np.float32] = np.zeros(0, np.float32)
        self.void = NO_PAIRS

    def score(self, request: Request) -> Slate:
        """Decayed history h times the weights B, times log1p of recent popularity.

        B = I - P diag(1 / P_jj), so h B = h - (h P) / P_jj; the weights themselves are never laid out.
        """
        if self._daily.due(request.t_ms) and self._may_refresh(request.pool):
            before = time.process_time()
            self._refresh(request.pool, request.t_ms)
            self.refresh_cpu_s += time.process_time() - before
        scores = np.zeros(request.pool)
        known = len(self._inverse)
        items, last_ms = last_taken(request)
        items, last_ms = items[items < known], last_ms[items < known]
        weight = np.exp((last_ms - request.t_ms) / (self.history_days * DAY_MS)).astype(np.float32)
        scores[:known] = -(weight @ self._inverse[items]) / self._diagonal
        scores[items] += weight
        scores *= np.log1p(self._recent.now(request.pool, request.t_ms))
        return Slate(Ranking(scores))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Keep the basket for the next refresh, count recent popularity now."""
        parts, began_ms = basket_parts(request, arrival)
        self._pending += [(items, sign, began_ms) for items, sign in parts]
        self.void = self.void if all(len(items) < 2 for items, _ in parts) else ""
        self._rows += len(arrival.rows)
        self._recent.add(positive_items(arrival), request.t_ms)

    @property
    def note(self) -> str:
        """A word for the report where the budget left days out."""
        if self._refreshes == self._days:
            return ""
        return (
            f"refreshed on {self._refreshes:,} of {self._days:,} days with requests: an inverse of "
            f"{len(self._inverse):,} items waits for {len(self._inverse) ** 3 / EASE_PER_ROW:,.0f} rows"
        )

    def _may_refresh(self, pool: int) -> bool:
        """Whether a day's refresh is paid for; the first one always is."""
        self._days += 1
        if self._refreshes and EASE_PER_ROW * self._rows < float(pool) ** 3:
            return False
        self._rows = 0
        self._refreshes += 1
        return True

    def _refresh(self, pool: int, t_ms: int) -> None:
        """P, the inverse of the Gram matrix plus the ridge, by Cholesky in float32."""
        self._make_room(pool)
        self._advance(pool, t_ms)
        system = self._work[: pool * pool].reshape((pool, pool), order="F")
        system[:] = self._gram[:pool, :pool]
        system[np.diag_indices(pool)] += self.ridge
        factor, failed = lapack.spotrf(system, lower=True, overwrite_a=True, clean=False)
        inverse, also_failed = lapack.spotri(factor, lower=True, overwrite_c=True)
        if failed or also_failed:
            raise ArithmeticError(f"the Gram matrix of {pool} items is not positive definite: LAPACK {failed}")
        for start in range(0, pool, 512):  # the upper triangle from the lower one, block by block
            end = min(start + 512, pool)
            inverse[start:end, end:] = inverse[end:, start:end].T
            square = np.tril(inverse[start:end, start:end])
            inverse[start:end, start:end] = square + np.tril(square, -1).T
        self._inverse, self._diagonal = inverse.T, np.diagonal(inverse).copy()  # symmetric: rows lie together now

    def _make_room(self, pool: int) -> None:
        if pool > len(self._gram):
            room = min(EASE_ITEMS, max(pool + pool // 8, 256))
            gram = np.zeros((room, room), np.float32)
            gram[: len(self._gram), : len(self._gram)] = self._gram
            self._gram, self._work = gram, np.zeros(room * room, np.float32)

    def _advance(self, pool: int, t_ms: int) -> None:
        """Decay the Gram matrix to a time and add the pending baskets."""
        tau_ms = self.basket_days * DAY_MS
        gram = self._gram[:pool, :pool]
        gram *= np.float32(math.exp(-(t_ms - self._gram_ms) / tau_ms))
        weighted = [(items, sign * math.exp((t - t_ms) / tau_ms)) for items, sign, t in self._pending]
        baskets, weight = basket_matrix(weighted, pool)
        new = (baskets.T @ sp.diags_array(weight) @ baskets).tocoo()
        gram[new.row, new.col] += new.data
        self._gram_ms = t_ms
        self._pending.clear()


class Transitions(SimpleArm):
    """What followed the items of the user's newest group, lately more than long ago; ties and the rest by popularity.

    Counts are kept in the frame of a reference time, as those of DecayedCount.
    """

    tau_days = 30.0

    def __init__(self, name: str = "transitions") -> None:
        super().__init__(name)
        self._popular = DecayedCount(self.tau_days)
        self._next: dict[int, dict[int, float]] = {}
        self._t0_ms: int | None = None

    def score(self, request: Request) -> Slate:
        """Counts of what followed, and popularity below any of them."""
        popularity = self._popular.now(request.pool, request.t_ms)
        scores = popularity * (1e-9 / max(1.0, popularity.max(initial=0.0)))
        fade = self._frame(request.t_ms, moves=False)
        for item in last_group(request).tolist():
            for follower, count in self._next.get(item, {}).items():
                scores[follower] += count / fade
        return Slate(Ranking(scores))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Count the group after the one before it."""
        items = positive_items(arrival)
        self._popular.add(items, request.t_ms)
        weight = self._frame(request.t_ms)
        for item in last_group(request).tolist():
            row = self._next.setdefault(item, {})
            for follower in items.tolist():
                row[follower] = row.get(follower, 0.0) + weight

    def _frame(self, t_ms: int, moves: bool = True) -> float:
        """What a count of now is stored as."""
        if self._t0_ms is None:
            self._t0_ms = t_ms
        exponent = (t_ms - self._t0_ms) / (self.tau_days * DAY_MS)
        if moves and exponent > MAX_EXPONENT:
            fade = math.exp(-exponent)
            self._next = {item: {f: n * fade for f, n in row.items()} for item, row in self._next.items()}
            self._t0_ms, exponent = t_ms, 0.0
        return math.exp(exponent)


SIMPLE_ARMS: dict[str, Callable[[], Arm]] = {
    "popularity": Popularity,
    "recent_popularity": lambda: Popularity("recent_popularity", 30.0),
    "personal_recency": PersonalRecency,
    "item_knn": ItemKnn,
    "item_knn_recent": lambda: ItemKnn("item_knn_recent", 7.0),
    "user_knn_recent": UserKnn,
    "ease_recent": Ease,
    "transitions": Transitions,
}
"""The simple arms by name."""
