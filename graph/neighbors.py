"""Item-item and user-user neighbours that are learnt group by group and need no gradient.

`PartnerTable` keeps a bounded number of partners for each item with exponentially decayed weights; `UserVectors`
keeps the decayed item vectors of the most recent users and finds the nearest ones. Both count decay forward:
what arrives at t is stored as weight * 2^((t - origin) / half-life), so nothing that is stored ever needs touching, and
the origin moves before float32 runs out of range.

Source: forward decay, Cormode, Shkapenyuk, Srivastava, Xu (ICDE 2009).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from graph.rows import key64
from graph.view import Int32, Int64

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from graph.rows import Float32

Arrays = dict[str, "NDArray[Any]"]
Kind = TypeVar("Kind", bound=np.generic)

REBASE_HALF_LIVES = 60.0
"""Stored weights grow to 2^60 at most before the origin moves; float32 holds 2^127."""


def grown(array: NDArray[Kind], n: int, fill: float = 0) -> NDArray[Kind]:
    """The array with at least n rows: itself, or a copy that is at least doubled, new rows filled."""
    if len(array) >= n:
        return array
    out = np.full((max(n, 2 * len(array), 64), *array.shape[1:]), fill, array.dtype)
    out[: len(array)] = array
    return out


class PartnerTable:
    """At most `slots` partners of each item with decayed weights; the lightest make room.

    A new pair replaces the lightest partner of a full row if it is at least as heavy by then. Singletons fade, so rows
    keep what recurs and, below it, what is recent.
    """

    def __init__(self, slots: int, half_life_ms: float) -> None:
        self.slots, self.half_life_ms = slots, half_life_ms
        self.origin_ms = -1
        self.n = 0
        self.partner: Int32 = np.full((0, slots), -1, np.int32)
        self.weight: Float32 = np.zeros((0, slots), np.float32)
        self.out: Float32 = np.zeros(0, np.float32)
        self.into: Float32 = np.zeros(0, np.float32)
        self._mark: Int32 = np.full(1, -1, np.int32)  # the last entry stays -1: it answers for empty slots

    def _scale(self, t_ms: int) -> float:
        if self.origin_ms < 0:
            self.origin_ms = t_ms
        passed = (t_ms - self.origin_ms) / self.half_life_ms
        if passed > REBASE_HALF_LIVES:
            for array in (self.weight, self.out, self.into):
                array *= np.float32(2.0**-passed)
            self.origin_ms, passed = t_ms, 0.0
        return float(2.0**passed)

    def ensure(self, n: int) -> None:
        """Make room for items 0..n-1."""
        if n > self.n:
            self.n = n
            self.partner = grown(self.partner, n, -1)
            self.weight = grown(self.weight, n)
            self.out, self.into = grown(self.out, n), grown(self.into, n)
            if len(self._mark) <= len(self.out):
                self._mark = np.full(len(self.out) + 1, -1, np.int32)

    def add(self, source: Int32, target: Int32, source_weight: Float32, target_weight: Float32, t_ms: int) -> None:
        """Add source_weight[i] * target_weight[j] to every pair (source[i], target[j]) of different items.

        Args:
            source: [s] int32 distinct items whose rows change.
            target: [m] int32 distinct items.
            source_weight: [s] float32; target_weight: [m] float32, as of t_ms.
            t_ms: time of the pairs.
        """
        s, m = len(source), len(target)
        if s == 0 or m == 0:
            return
        scale = np.float32(self._scale(t_ms))
        source_weight = source_weight * scale
        self.out[source] += source_weight
        self.into[target] += target_weight * scale
        fresh = source_weight[:, None] * target_weight
        rows_p, rows_w = self.partner[source], self.weight[source]
        mark = self._mark
        mark[target] = np.arange(m, dtype=np.int32)
        own = mark[source]
        hit = mark[rows_p]
        mark[target] = -1
        same = np.flatnonzero(own >= 0)
        fresh[same, own[same]] = 0
        row, slot = np.nonzero(hit >= 0)
        at = hit[row, slot]
        rows_w[row, slot] += fresh[row, at]
        fresh[row, at] = 0
        new = np.count_nonzero(fresh, axis=1)
        left = np.flatnonzero(new)
        if len(left):
            self._insert(rows_p, rows_w, fresh, target, left)
        self.partner[source], self.weight[source] = rows_p, rows_w

    def _insert(self, rows_p: Int32, rows_w: Float32, fresh: Float32, target: Int32, left: Int64) -> None:
        """Merge the pairs that have no slot yet into rows `left`; the heaviest `slots` stay."""
        k = self.slots
        everyone = np.concatenate((fresh[left], rows_w[left]), axis=1)  # fresh first: at equal weight the newer stays
        partners = np.concatenate((np.broadcast_to(target, (len(left), len(target))), rows_p[left]), axis=1)
        keep = np.argpartition(-everyone, k - 1, axis=1)[:, :k]
        weight = np.take_along_axis(everyone, keep, 1)
        rows_w[left] = weight
        rows_p[left] = np.where(weight > 0, np.take_along_axis(partners, keep, 1), -1)

    def scores(self, source: Int32, weight: Float32, n: int) -> Float32:
        """Weighted sum of the sources' normalised rows, over items 0..n-1.

        Args:
            source: [s] int32 distinct items; those that the table does not know are left out.
            weight: [s] float32.
            n: number of items.

        Returns:
            [n] float32, 0 where nothing points.
        """
        known = source < self.n
        source, weight = source[known], weight[known]
        if len(source) == 0:
            return np.zeros(n, np.float32)
        per_row = weight / np.sqrt(np.maximum(self.out[source], 1e-30))
        mass = self.weight[source] * per_row[:, None]
        total = np.bincount(self.partner[source].ravel() + 1, weights=mass.ravel(), minlength=n + 1)
        m = min(n, self.n)
        out = np.zeros(n, np.float32)
        out[:m] = total[1 : m + 1] / np.sqrt(np.maximum(self.into[:m], 1e-30))
        return out

    def strongest(self, source: Int32, weight: Float32, item: int) -> tuple[int, float]:
        """Which source contributes most to an item's score: (item, normalised weight), (-1, 0) if none does."""
        known = source < self.n
        source, weight = source[known], weight[known]
        if len(source) == 0 or item >= self.n:
            return -1, 0.0
        held = np.where(self.partner[source] == item, self.weight[source], 0).sum(1)
        share = held * weight / np.sqrt(np.maximum(self.out[source], 1e-30))
        best = int(np.argmax(share))
        if share[best] <= 0:
            return -1, 0.0
        return int(source[best]), float(held[best] / np.sqrt(max(self.out[source[best]] * self.into[item], 1e-30)))

    def arrays(self, prefix: str) -> Arrays:
        """Everything that is learnt, by name."""
        n = self.n
        return {
            f"{prefix}.partner": self.partner[:n].copy(),
            f"{prefix}.weight": self.weight[:n].copy(),
            f"{prefix}.out": self.out[:n].copy(),
            f"{prefix}.into": self.into[:n].copy(),
            f"{prefix}.origin_ms": np.array([self.origin_ms], np.int64),
        }

    def restore(self, arrays: Arrays, prefix: str) -> None:
        """Take over what `arrays` gave; the arrays are not copied, so a read-only map stays shared."""
        self.partner = np.asarray(arrays[f"{prefix}.partner"], np.int32)
        self.weight = np.asarray(arrays[f"{prefix}.weight"], np.float32)
        self.out = np.asarray(arrays[f"{prefix}.out"], np.float32)
        self.into = np.asarray(arrays[f"{prefix}.into"], np.float32)
        self.origin_ms = int(arrays[f"{prefix}.origin_ms"][0])
        self.n = len(self.partner)
        self._mark = np.full(self.n + 1, -1, np.int32)


class UserVectors:
    """Decayed item vectors of the most recent users, and the users nearest to a history.

    The matrix is rebuilt when `refresh_ms` of event time has passed, from the last touches that were observed by
    then; the asking user's own vector is always the live one.

    Attributes:
        latest: user key -> (items [m] int32, last touches [m] int64), the most recently active user last.
    """

    def __init__(
        self, users: int, half_life_ms: float, fresh_half_life_ms: float, refresh_ms: int, nearest: int
    ) -> None:
        self.users, self.refresh_ms, self.nearest = users, refresh_ms, nearest
        self.half_life_ms, self.fresh_half_life_ms = half_life_ms, fresh_half_life_ms
        self.latest: dict[int, tuple[Int32, Int64]] = {}
        self.built_ms = -1
        none = np.zeros(0, np.float32)
        self._set(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros(0, np.int32), none, none)

    def observe(self, user_id: str, items: Int32, last_ms: Int64, t_ms: int) -> None:
        """Replace a user's vector by the given distinct items and last touches, and rebuild when it is time."""
        if self.built_ms < 0 or t_ms - self.built_ms >= self.refresh_ms:
            self._build(t_ms)
        key = key64(user_id)
        self.latest.pop(key, None)
        self.latest[key] = (items, last_ms)
        if len(self.latest) > self.users:
            del self.latest[next(iter(self.latest))]

    def _flat(self) -> tuple[NDArray[np.uint64], Int64, Int32, Int64]:
        keys = np.fromiter(self.latest, np.uint64, len(self.latest))
        start = np.zeros(len(keys) + 1, np.int64)
        np.cumsum([len(items) for items, _ in self.latest.values()], out=start[1:])
        if len(keys) == 0:
            return keys, start, np.zeros(0, np.int32), np.zeros(0, np.int64)
        items = np.concatenate([items for items, _ in self.latest.values()])
        return keys, start, items, np.concatenate([last for _, last in self.latest.values()])

    def _build(self, t_ms: int) -> None:
        self.built_ms = t_ms
        keys, start, items, last_ms = self._flat()
        age_ms = np.maximum(t_ms - last_ms, 0)
        value = np.exp2(age_ms * (-1 / self.half_life_ms)).astype(np.float32)
        fresh = np.exp2(age_ms * (-1 / self.fresh_half_life_ms)).astype(np.float32)
        # a vector faded to nothing would divide by zero: scale by its own norm first
        if len(items):
            norm = np.sqrt(np.add.reduceat(np.append(value * value, np.float32(0)), np.minimum(start[:-1], len(items))))
            norm[start[1:] == start[:-1]] = 0
            value /= np.repeat(np.maximum(norm, 1e-30), np.diff(start))
        self._set(keys, start, items, value, fresh)

    def _set(self, keys: NDArray[np.uint64], start: Int64, items: Int32, value: Float32, fresh: Float32) -> None:
        self._keys, self._start, self._items, self._value, self._fresh = keys, start, items, value, fresh
        n = int(items.max()) + 1 if len(items) else 0
        owner = np.repeat(np.arange(len(keys), dtype=np.int32), np.diff(start))
        order = np.argsort(items, kind="stable")
        self._by_item = np.searchsorted(items[order], np.arange(n + 1)).astype(np.int64)
        self._owner, self._owner_value = owner[order], value[order]
        self._row = {key: i for i, key in enumerate(keys.tolist())}

    def scores(self, user_id: str, items: Int32, weight: Float32, n: int) -> Float32:
        """What the nearest users took, weighted by their similarity, the asking user left out.

        Args:
            user_id: who asks.
            items: [m] int32 distinct items of the history.
            weight: [m] float32 live decayed weights.
            n: number of items.

        Returns:
            [2, n] float32: sums of their unit vectors, and of their fresh touches.
        """
        known = items < len(self._by_item) - 1
        items, weight = items[known], weight[known]
        if len(items) == 0 or len(self._keys) == 0:
            return np.zeros((2, n), np.float32)
        at, which = _slices(self._by_item[items], self._by_item[items + 1])
        similarity = np.bincount(
            self._owner[at], weights=self._owner_value[at] * weight[which], minlength=len(self._keys)
        )
        own = self._row.get(key64(user_id))
        if own is not None:
            similarity[own] = 0
        near = (
            np.argpartition(-similarity, self.nearest)[: self.nearest]
            if len(similarity) > self.nearest
            else np.arange(len(similarity))
        )
        near = near[similarity[near] > 0]
        at, which = _slices(self._start[near], self._start[near + 1])
        norm = float(np.sqrt(np.dot(weight, weight)))
        mass = (similarity[near] / max(norm, 1e-30))[which]
        taken = self._items[at]
        sums = [np.bincount(taken, mass * weights[at], n)[:n] for weights in (self._value, self._fresh)]
        return np.stack(sums).astype(np.float32)

    def arrays(self, prefix: str) -> Arrays:
        """Everything that is learnt, by name."""
        keys, start, items, last_ms = self._flat()
        return {
            f"{prefix}.keys": keys,
            f"{prefix}.start": start,
            f"{prefix}.items": items,
            f"{prefix}.last_ms": last_ms,
            f"{prefix}.built_ms": np.array([self.built_ms], np.int64),
            f"{prefix}.matrix_keys": self._keys.copy(),
            f"{prefix}.matrix_start": self._start.copy(),
            f"{prefix}.matrix_items": self._items.copy(),
            f"{prefix}.matrix_value": self._value.copy(),
            f"{prefix}.matrix_fresh": self._fresh.copy(),
        }

    def restore(self, arrays: Arrays, prefix: str) -> None:
        """Take over what `arrays` gave."""
        keys, start = arrays[f"{prefix}.keys"], arrays[f"{prefix}.start"].tolist()
        items, last_ms = arrays[f"{prefix}.items"], arrays[f"{prefix}.last_ms"]
        self.latest = {
            key: (np.asarray(items[a:b], np.int32), np.asarray(last_ms[a:b], np.int64))
            for key, a, b in zip(keys.tolist(), start[:-1], start[1:], strict=True)
        }
        self.built_ms = int(arrays[f"{prefix}.built_ms"][0])
        self._set(
            np.asarray(arrays[f"{prefix}.matrix_keys"], np.uint64),
            np.asarray(arrays[f"{prefix}.matrix_start"], np.int64),
            np.asarray(arrays[f"{prefix}.matrix_items"], np.int32),
            np.asarray(arrays[f"{prefix}.matrix_value"], np.float32),
            np.asarray(arrays[f"{prefix}.matrix_fresh"], np.float32),
        )


def _slices(start: Int64, end: Int64) -> tuple[Int64, Int64]:
    """Positions of all the slices start[i]:end[i] one after another, and the i of each position."""
    length = end - start
    which = np.repeat(np.arange(len(start)), length)
    offset = np.cumsum(length) - length
    return np.arange(len(which)) + (start - offset)[which], which
