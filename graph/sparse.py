"""Sums over the few rows that a request touches, and the best of them: compiled, without a pass over all items.

Every sum is in float64 and in the order in which its parts are given, so equal calls give equal bits.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Bool, Float32, Int32, Int64
from driftline.graph.compiled import compiled, inlined

Float64 = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]

_I, _II = "Array(int32, 1, 'C', readonly=True)", "Array(int32, 2, 'C', readonly=True)"
_F, _FF = "Array(float32, 1, 'C', readonly=True)", "Array(float32, 2, 'C', readonly=True)"
_L, _U = "Array(int64, 1, 'C', readonly=True)", "Array(uint32, 1, 'C', readonly=True)"


class Scratch(threading.local):
    """Arrays of a thread as long as the catalogue; who uses one leaves it as it was found."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def get(self, name: str, n: int, kind: type[np.generic], fill: float = 0) -> NDArray[Any]:
        """An array with at least n entries, all of them `fill`."""
        array = self._arrays.get(name)
        if array is None or len(array) < n:
            array = self._arrays[name] = np.full(max(1024, n + n // 8), fill, kind)
        return array


SCRATCH = Scratch()
NOTHING = np.zeros(0, np.int32)
_LOWEST = -(1 << 31)


@compiled(f"int64({_I}, {_I}, {_F}, {_II}, {_FF}, {_F}, {_F}, int64, float64[::1], int32[::1], float32[::1])")
def _partners(
    source: Int32,
    rows: Int32,
    weight: Float32,
    partner: Int32,
    held: Float32,
    out: Float32,
    into: Float32,
    n: int,
    total: Float64,
    items: Int32,
    scores: Float32,
) -> int:
    """Fills items and scores [t]; total [n] is zero before and after."""
    t, least = 0, np.float32(1e-30)
    for s in range(len(source)):
        row = rows[s]
        if row < 0 or row >= len(partner):
            continue
        per_row = weight[s] / np.sqrt(max(out[source[s]], least))
        for slot in range(partner.shape[1]):
            item = partner[row, slot]
            mass = held[row, slot] * per_row
            if item < 0 or item >= n or mass <= 0:
                continue
            items[t] = item  # stays if it is met for the first time: cheaper than a branch that nobody can foresee
            t += total[item] == 0
            total[item] += mass
    roots = np.empty(t, np.float32)
    for i in range(t):
        item = items[i]
        scores[i], roots[i] = total[item], into[item]
        total[item] = 0
    for i in range(t):  # by itself it is compiled to vectors
        scores[i] /= np.sqrt(max(roots[i], least))
    return t


@compiled(f"Tuple((int64, float32))({_I}, {_I}, {_F}, {_II}, {_FF}, {_F}, int32)")
def strongest_source(
    source: Int32, rows: Int32, weight: Float32, partner: Int32, held: Float32, out: Float32, item: int
) -> tuple[int, np.float32]:
    """The place in `source` of what counts most for an item, -1 = nothing does, and what it holds of it.

    Arguments as in `best_partners`.
    """
    best, of_best, most = -1, np.float32(0), np.float32(0)
    for s in range(len(source)):
        row = rows[s]
        if 0 <= row < len(partner):
            for slot in range(partner.shape[1]):
                if partner[row, slot] == item:
                    share = held[row, slot] * weight[s] / np.sqrt(max(out[source[s]], np.float32(1e-30)))
                    if share > most:
                        best, of_best, most = s, held[row, slot], share
    return best, of_best


@compiled(f"int64({_I}, {_F}, int32)")
def rank_in(best: Int32, best_scores: Float32, item: int) -> int:
    """How many scores are strictly better than that of an item of `best`; their number for any other."""
    rank = 0
    for i in range(len(best)):
        if best_scores[i] < best_scores[rank]:
            rank = i
        if best[i] == item:
            return rank
    return len(best)


@inlined
def _worse(score: float, item: np.int32, than: float, other: np.int32) -> Any:
    return score < than or (score == than and item > other)


@inlined
def _sift(score: float, item: np.int32, heap_score: Floats, heap_item: Int32, count: int) -> None:
    """Puts an entry into the place of the worst, at the root, and keeps the heap."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= count:
            break
        if child + 1 < count and _worse(
            heap_score[child + 1], heap_item[child + 1], heap_score[child], heap_item[child]
        ):
            child += 1
        if not _worse(heap_score[child], heap_item[child], score, item):
            break
        heap_score[at], heap_item[at] = heap_score[child], heap_item[child]
        at = child
    heap_score[at], heap_item[at] = score, item


@inlined
def _offer(score: float, item: np.int32, heap_score: Floats, heap_item: Int32, count: int) -> int:
    """Takes an entry in if it is among the best; returns how many the heap holds."""
    k = len(heap_score)
    if count < k:
        at = count
        while at > 0:
            above = (at - 1) // 2
            if not _worse(score, item, heap_score[above], heap_item[above]):
                break
            heap_score[at], heap_item[at] = heap_score[above], heap_item[above]
            at = above
        heap_score[at], heap_item[at] = score, item
        return count + 1
    if _worse(heap_score[0], heap_item[0], score, item):
        _sift(score, item, heap_score, heap_item, count)
    return count


@inlined
def _key(bits: np.int32) -> np.int32:
    """Of a float32's bits, and back: as an integer larger for larger numbers."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@inlined
def _reached(keys: Int32, wanted: int) -> np.int32:
    """A bound that at least so many keys reach, if there are as many, and hardly more: by their first 20 bits."""
    bound = np.int32(_LOWEST)
    for bit in range(31, 11, -1):
        higher, above = np.int32(bound + (1 << bit)), np.int32(0)  # from the lowest integer up
        for i in range(len(keys)):
            above += np.int32(keys[i] >= higher)
        if above >= wanted:
            bound = higher
    return bound


@compiled(f"Tuple((int32[::1], float32[::1]))({_I}, {_F}, int64, {_I}, float32, boolean[::1])")
def _best(
    items: Int32, scores: Float32, k: int, touched: Int32, above: np.float32, mark: Bool
) -> tuple[Int32, Float32]:
    """Finds a bound that few reach beside the k best, then sorts only what reaches it.

    The bound is one for the largest scores of many small groups: as many of these reach it, so do as many scores.
    """
    n, k, everyone = len(scores), min(k, len(scores)), len(items) == 0  # everyone: the scores are those of all items
    best, best_scores, bits = np.empty(k, np.int32), np.empty(k, np.float32), scores.view(np.int32)
    if k == 0:
        return best, best_scores
    for item in touched:
        mark[item] = True
    wanted, groups = k + len(touched), 256
    while groups < 2 * wanted:
        groups *= 2
    if n >= 3 * groups:
        largest = np.full(groups, above, np.float32)
        for first in range(0, n - groups + 1, groups):
            for i in range(groups):
                score = scores[first + i]
                largest[i] = score if score > largest[i] else largest[i]
        keys = largest.view(np.int32)
        for i in range(groups):
            keys[i] = _key(keys[i]) if largest[i] > above else np.int32(_LOWEST)
        bound = _reached(keys, wanted)
    else:
        keys = np.empty(n, np.int32)
        for i in range(n):
            left_out = mark[np.int32(i) if everyone else items[i]]
            keys[i] = np.int32(_LOWEST) if left_out or not scores[i] > above else _key(bits[i])
        bound = _reached(keys, k)
    found, m = np.empty(n, np.uint64), 0
    for i in range(n):
        if _key(bits[i]) >= bound and scores[i] > above:
            item = np.int32(i) if everyone else items[i]
            if not mark[item]:
                order = np.uint64(np.int64(_key(bits[i])) - _LOWEST)
                found[m] = order << np.uint64(32) | np.uint64(0xFFFFFFFF - item)
                m += 1
    for item in touched:
        mark[item] = False
    chosen, best_bits = np.sort(found[:m]), best_scores.view(np.int32)
    count = min(m, k)
    for j in range(count):
        entry = chosen[m - 1 - j]
        best[j] = np.int32(0xFFFFFFFF - (entry & np.uint64(0xFFFFFFFF)))
        best_bits[j] = _key(np.int32(np.int64(entry >> np.uint64(32)) + _LOWEST))
    return best[:count], best_scores[:count]


def best_rows(
    items: Int32 | None, scores: Float32, k: int, touched: Int32, n: int, above: float = 0.0
) -> tuple[Int32, Float32]:
    """The k best scores above a bound and their items, best first; equal scores go by index.

    Args:
        items: [t] int32 distinct items of the scores [t]; None = the scores are those of items 0, 1, ...
        k: how many at most.
        touched: [m] int32 items below n that are left out.
        n: number of items.
        above: bound.
    """
    mark = SCRATCH.get("mark", max(n, len(scores)), np.bool_)
    found: tuple[Int32, Float32] = _best(
        NOTHING if items is None else items, np.ascontiguousarray(scores), k, touched, np.float32(above), mark
    )
    return found


_LISTED = "int32[::1], float32[::1]"


@compiled(
    f"Tuple(({_LISTED}, {_LISTED}))({_I}, {_I}, {_F}, {_II}, {_FF}, {_F}, {_F}, int64, float64[::1], int64, {_I},"
    " boolean[::1])"
)
def _best_partners(
    source: Int32, rows: Int32, weight: Float32, partner: Int32, held: Float32, out: Float32, into: Float32, n: int,
    total: Float64, k: int, touched: Int32, mark: Bool,
) -> tuple[Int32, Float32, Int32, Float32]:  # fmt: skip
    room = min(n, len(source) * partner.shape[1])
    items, scores = np.empty(room + 1, np.int32), np.empty(room, np.float32)
    t = _partners(source, rows, weight, partner, held, out, into, n, total, items, scores)
    best, best_scores = _best(items[:t], scores[:t], k, touched, np.float32(0), mark)
    return items[:t], scores[:t], best, best_scores


def best_partners(
    source: Int32,
    rows: Int32,
    weight: Float32,
    partner: Int32,
    held: Float32,
    out: Float32,
    into: Float32,
    n: int,
    k: int = 0,
    touched: Int32 = NOTHING,
) -> tuple[Int32, Float32, Int32, Float32]:
    """Items [t] below n that the rows of some items hold, in the order in which they are met, and their sums [t]; and
    of these the k best.

    Args:
        source: [s] int32 items; rows: [s] int32 that of each, those that are none are passed over.
        weight: [s] float32, what each counts.
        partner: [r, slots] int32, -1 = empty; held: [r, slots] float32.
        out, into: [m] float32; a row is divided by the root of its item's `out`, a sum by that of its `into`.
        n: number of items.
        k, touched: as in `best_rows`.
    """
    total = SCRATCH.get("total", n, np.float64)
    mark = SCRATCH.get("mark", n, np.bool_)
    found: tuple[Int32, Float32, Int32, Float32] = _best_partners(
        source, rows, weight, partner, held, out, into, n, total, k, touched, mark
    )
    return found


@compiled(f"Tuple((int64[::1], int32[::1], float32[::1]))({_L}, {_I}, {_F}, int64)")
def owners_of(start: Int64, items: Int32, value: Float32, most: int) -> tuple[Int64, Int32, Float32]:
    """The rows of users, turned: who has each item.

    Args:
        start: [users + 1] of each user's run in items [e] and value [e].
        most: owners of an item; it keeps its last ones.

    Returns:
        start [items + 1] of each item's run in: users [o] int32 and values [o] float32, in the order of the users.
    """
    n = 0
    for item in items:
        n = max(n, item + 1)
    above = np.full(n, -most, np.int64)  # of each item's owners, those who come first and are left out
    for item in items:
        above[item] += 1
    by_item = np.zeros(n + 1, np.int64)
    for item in range(n):
        by_item[item + 1] = by_item[item] + most + min(above[item], 0)
    place = by_item[:-1].copy()
    owner, owner_value = np.empty(by_item[n], np.int32), np.empty(by_item[n], np.float32)
    for user in range(len(start) - 1):
        for at in range(start[user], start[user + 1]):
            item = items[at]
            if above[item] > 0:
                above[item] -= 1
                continue
            owner[place[item]], owner_value[place[item]] = user, value[at]
            place[item] += 1
    return by_item, owner, owner_value


@compiled(f"int64({_I}, {_F}, {_L}, {_I}, {_F}, int64, float64[::1], int32[::1], float64[::1])")
def _similar(
    items: Int32,
    weight: Float32,
    by_item: Int64,
    owner: Int32,
    owner_value: Float32,
    own: int,
    total: Float64,
    users: Int32,
    similarity: Float64,
) -> int:
    """Users [t] that share an item and their similarity [t]; total [users] is zero before and after."""
    t = 0
    for i in range(len(items)):
        for at in range(by_item[items[i]], by_item[items[i] + 1]):
            user = owner[at]
            mass = owner_value[at] * weight[i]
            if mass <= 0:
                continue
            users[t] = user  # stays if it is met for the first time, as in `_partners`
            t += total[user] == 0
            total[user] += mass
    kept = 0
    for i in range(t):
        user = users[i]
        if user != own:
            users[kept], similarity[kept] = user, total[user]
            kept += 1
        total[user] = 0
    return kept


@compiled(
    f"Tuple((int32[::1], float32[:, ::1], {_LISTED}, {_LISTED}))({_I}, float64[::1], int64, float64, {_L}, {_I}, {_F},"
    f" {_F}, int64, float64[::1], float64[::1], int64, {_I}, boolean[::1])"
)
def _best_taken(
    users: Int32,
    similarity: Float64,
    nearest: int,
    norm: float,
    start: Int64,
    taken: Int32,
    value: Float32,
    fresh: Float32,
    n: int,
    total: Float64,
    totals: Float64,
    k: int,
    touched: Int32,
    mark: Bool,
) -> Any:
    """What the nearest users took: items [t] and sums [2, t]; both totals [n] are zero before and after."""
    best, best_similarity = np.empty(nearest, np.int32), np.empty(nearest, np.float64)
    count = 0
    for i in range(len(users)):
        count = _offer(similarity[i], users[i], best_similarity, best, count)
    items, t = np.empty(n + 1, np.int32), 0
    for i in range(count):
        mass = best_similarity[i] / norm
        for at in range(start[best[i]], start[best[i] + 1]):
            item = taken[at]
            if item >= n or (value[at] == 0 and fresh[at] == 0):
                continue
            items[t] = item
            t += (total[item] == 0) & (totals[item] == 0)
            total[item] += mass * value[at]
            totals[item] += mass * fresh[at]
    sums = np.empty((2, t), np.float32)
    for i in range(t):
        item = items[i]
        sums[0, i], sums[1, i] = total[item], totals[item]
        total[item] = 0
        totals[item] = 0
    first = _best(items[:t], sums[0], k, touched, np.float32(0), mark)
    second = _best(items[:t], sums[1], k, touched, np.float32(0), mark)
    return items[:t].copy(), sums, first[0], first[1], second[0], second[1]


def best_of_users(
    items: Int32,
    weight: Float32,
    by_item: tuple[Int64, Int32, Float32],
    by_user: tuple[Int64, Int32, Float32, Float32],
    own: int,
    nearest: int,
    n: int,
    k: int = 0,
    touched: Int32 = NOTHING,
) -> tuple[Int32, Float32, Int32, Float32, Int32, Float32]:
    """Items [t] of the users nearest to a history and two sums over these users [2, t]; and the k best by either sum.

    Args:
        items: [m] int32 rows of `by_item`; weight: [m] float32.
        by_item: start [items + 1] of each item's run in: users [e] int32, values [e] float32.
        by_user: start [users + 1] of each user's run in: items [e] int32, two values [e] float32.
        own: user who is left out, -1 = nobody.
        nearest: how many users are summed at most.
        n: number of items.
        k, touched: as in `best_rows`.
    """
    users_in_all = len(by_user[0]) - 1
    users, similarity = np.empty(users_in_all + 1, np.int32), np.empty(users_in_all, np.float64)
    total = SCRATCH.get("users", users_in_all, np.float64)
    met = _similar(items, weight, *by_item, own, total, users, similarity)
    norm = max(float(np.sqrt(np.dot(weight, weight))), 1e-30)
    totals = SCRATCH.get("total", n, np.float64), SCRATCH.get("totals", n, np.float64)
    mark = SCRATCH.get("mark", n, np.bool_)
    near = users[:met], similarity[:met], min(nearest, met), norm
    found: tuple[Int32, Float32, Int32, Float32, Int32, Float32] = _best_taken(
        *near, *by_user, n, *totals, k, touched, mark
    )
    return found
