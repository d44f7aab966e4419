"""Counts over a stream that simple arms share: decayed popularity, basket pairs, last purchases, a daily clock.

Decayed counts are kept in the frame of a reference time, w * exp((t - t0) / tau), and read as of now; the frame
moves before the factor grows large. Arrays grow by doubling, so the catalogue is open.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from driftline.graph.arrays import Int32, Int64
from driftline.stream.replay.arms import Arrival, Request

DAY_MS = 86_400_000
MAX_EXPONENT = 50.0


def grown(array: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The array, doubled with zeros until it holds `size` entries."""
    if size <= len(array):
        return array
    larger = np.zeros(max(size, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger


class DecayedCount:
    """Sum over an item's positive rows of exp(-age / tau_days); tau_days = infinity counts them."""

    def __init__(self, tau_days: float = math.inf) -> None:
        self._tau_ms = tau_days * DAY_MS
        self._t0_ms: int | None = None
        self._sum = np.zeros(1024)

    def add(self, items: Int32, t_ms: int) -> None:
        """Count distinct or repeated items at a time not before the last."""
        if len(items) == 0:
            return
        self._sum = grown(self._sum, int(items.max()) + 1)
        if self._t0_ms is None:
            self._t0_ms = t_ms
        exponent = (t_ms - self._t0_ms) / self._tau_ms
        if exponent > MAX_EXPONENT:
            self._sum *= math.exp(-exponent)
            self._t0_ms, exponent = t_ms, 0.0
        np.add.at(self._sum, items, math.exp(exponent))

    def now(self, pool: int, t_ms: int) -> NDArray[np.float64]:
        """Decayed counts [pool] as of a time."""
        self._sum = grown(self._sum, pool)
        if self._t0_ms is None:
            return np.zeros(pool)
        return self._sum[:pool] * math.exp(-(t_ms - self._t0_ms) / self._tau_ms)


class Daily:
    """Says whether the first request of a new day (UTC) has come."""

    def __init__(self) -> None:
        self._day = -1

    def due(self, t_ms: int) -> bool:
        """True once a day; the caller then refreshes."""
        day = t_ms // DAY_MS
        if day == self._day:
            return False
        self._day = day
        return True


def positive_items(arrival: Arrival) -> Int32:
    """Distinct positive items [n] of a group, ascending."""
    return np.unique(arrival.group.items[arrival.group.positive])


def basket_parts(request: Request, arrival: Arrival) -> tuple[list[tuple[Int32, float]], int]:
    """The group's basket as signed item sets whose outer products sum to the new pairs, and when the basket began.

    A basket is a group, together with the user's earlier rows of the same group_id: a session that arrives click by
    click adds its union so far and takes back what was there before. Weighed by the time of the basket's first row,
    as all its parts must be, the sum stays positive semidefinite however long a basket grows.
    """
    new = positive_items(arrival)
    if len(new) == 0:
        return [], request.t_ms
    log = arrival.log
    keys = log.group_key[arrival.rows[arrival.group.positive]]
    past = request.history
    same = past[np.isin(log.group_key[past], keys[keys != 0]) & log.positive[past]] if keys.any() else past[:0]
    if len(same) == 0:
        return [(new, 1.0)], request.t_ms
    earlier = np.unique(log.item[same])
    return [(np.union1d(earlier, new), 1.0), (earlier, -1.0)], int(log.t_ms[same].min())


def basket_matrix(baskets: list[tuple[Int32, float]], pool: int) -> tuple[sp.csr_matrix, NDArray[np.float32]]:
    """Baskets as a sparse 0/1 matrix [n, pool] float32, and their weights [n]."""
    sizes = np.array([len(items) for items, _ in baskets], np.int64)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    indices = np.concatenate([items for items, _ in baskets]) if baskets else np.zeros(0, np.int32)
    data = np.ones(len(indices), np.float32)
    matrix = sp.csr_matrix((data, indices, indptr), shape=(len(baskets), pool))
    return matrix, np.array([weight for _, weight in baskets], np.float32)


def enlarged(matrix: sp.csr_matrix, size: int) -> sp.csr_matrix:
    """The same matrix with empty rows and columns up to [size, size]."""
    ends = np.pad(matrix.indptr, (0, size - matrix.shape[0]), mode="edge")
    return sp.csr_matrix((matrix.data, matrix.indices, ends), shape=(size, size))


def refreshed(before: sp.csr_matrix, pairs: sp.csr_matrix, rows: Int64, neighbors: int) -> sp.csr_matrix:
    """What `nearest` gives, from what it gave before, where only some rows may be others now.

    Args:
        before: [m, m], m <= n, of the counts before.
        pairs: [n, n] counts.
        rows: ascending; those that are not among them hold the counts of before, and so do their partners.
        neighbors: as in `nearest`.
    """
    before = enlarged(before, pairs.shape[0])
    kept = np.ones(pairs.shape[0], np.bool_)
    kept[rows] = False
    sizes = np.diff(before.indptr)
    inside = np.repeat(kept, sizes)
    ends = np.concatenate([[0], np.cumsum(np.where(kept, sizes, 0))])
    same = sp.csr_matrix((before.data[inside], before.indices[inside], ends), shape=before.shape)
    return sp.csr_matrix(same + nearest(pairs, neighbors, rows))


def nearest(pairs: sp.csr_matrix, neighbors: int, rows: Int64 | None = None) -> sp.csr_matrix:
    """The `neighbors` largest cosines of each row.

    Args:
        pairs: [n, n] counts; the diagonal holds how often an item occurs.
        neighbors: kept entries of a row, the diagonal left out.
        rows: ascending, those that are asked for; the others stay empty. None = all.

    Returns:
        [n, n] float32.
    """
    n = pairs.shape[0]
    occurs = pairs.diagonal()
    inverse = 1.0 / np.sqrt(np.where(occurs > 0, occurs, 1.0))
    indptr, indices, data = pairs.indptr, pairs.indices, pairs.data * inverse[pairs.indices]
    kept_indices, kept_data, sizes = [], [], np.zeros(n, np.int64)
    for i in range(n) if rows is None else rows.tolist():
        row = slice(indptr[i], indptr[i + 1])
        columns, values = indices[row], data[row] * inverse[i]
        other = (columns != i) & (values > 0)
        columns, values = columns[other], values[other]
        if len(values) > neighbors:
            top = np.argpartition(-values, neighbors - 1)[:neighbors]
            columns, values = columns[top], values[top]
        kept_indices.append(columns)
        kept_data.append(values)
        sizes[i] = len(columns)
    if not kept_data:
        none = np.zeros(0, np.int32)
        return sp.csr_matrix((np.zeros(0, np.float32), none, np.zeros(n + 1, np.int32)), shape=(n, n))
    ends = np.concatenate([[0], np.cumsum(sizes)])
    return sp.csr_matrix((np.concatenate(kept_data), np.concatenate(kept_indices), ends), shape=(n, n))


class LastPurchases:
    """When each user last took each item, as a users x items matrix that is refreshed on demand."""

    def __init__(self, tau_days: float) -> None:
        self._tau_ms = tau_days * DAY_MS
        self._user, self._item, self._t_ms = (np.zeros(0, np.int64) for _ in range(3))
        self._pending: list[tuple[int, Int32, int]] = []

    def add(self, user: int, items: Int32, t_ms: int) -> None:
        """Note a group's distinct items."""
        if len(items):
            self._pending.append((user, items, t_ms))

    def matrix(self, pool: int, t_ms: int) -> sp.csr_matrix:
        """Matrix [users, pool] float64 of exp(-(age of the last purchase) / tau) as of a time."""
        if self._pending:
            sizes = [len(items) for _, items, _ in self._pending]
            user = np.repeat([u for u, _, _ in self._pending], sizes)
            item = np.concatenate([items for _, items, _ in self._pending]).astype(np.int64)
            times = np.repeat([t for _, _, t in self._pending], sizes)
            self._keep_last(user, item, times)
            self._pending.clear()
        users = int(self._user.max()) + 1 if len(self._user) else 0
        value = np.exp((self._t_ms - t_ms) / self._tau_ms)
        return sp.csr_matrix((value, (self._user, self._item)), shape=(users, pool))

    def _keep_last(self, user: Int64, item: Int64, t_ms: Int64) -> None:
        user, item = np.concatenate([self._user, user]), np.concatenate([self._item, item])
        t_ms = np.concatenate([self._t_ms, t_ms])
        order = np.lexsort((np.arange(len(user)), item, user))
        user, item, t_ms = user[order], item[order], t_ms[order]
        last = np.ones(len(user), np.bool_)
        last[:-1] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
        self._user, self._item, self._t_ms = user[last], item[last], t_ms[last]


def last_taken(request: Request) -> tuple[Int32, Int64]:
    """Distinct items [n] of the user's earlier positive rows, and the time [n] of the last of each."""
    log, rows = request.log, request.history
    rows = rows[log.positive[rows]][::-1]
    items, first = np.unique(log.item[rows], return_index=True)
    return items, log.t_ms[rows[first]]


def last_group(request: Request) -> Int32:
    """Distinct items [n] of the user's newest earlier group with a positive row."""
    log, rows = request.log, request.history
    rows = rows[log.positive[rows]]
    newest = rows[log.group_of[rows] == log.group_of[rows[-1]]] if len(rows) else rows
    return np.unique(log.item[newest])
