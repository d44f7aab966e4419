"""The users nearest to a history, and what they took: user-kNN over decayed vectors of the most recent users."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Int32, Int64
from driftline.graph.rows import key64
from driftline.graph.sparse import NOTHING, best_of_users, owners_of

if TYPE_CHECKING:
    from driftline.graph.arrays import Arrays, Float32

_Index = tuple["Int64", "Int32", "Float32", dict[int, int]]
"""Where each item's owners begin, these and their values, and each user's row."""

OWNERS = 4096
"""Users that an item leads to at most, the most recently active ones: what everybody has tells nobody apart."""
SHARE = 256
"""One group for so many users must have been observed before the matrix is rebuilt: where groups are rarer than
refreshes, most of the time would go into building what hardly changed."""


class UserVectors:
    """Decayed item vectors of the most recent users, and the users nearest to a history.

    The matrix is rebuilt when `refresh_ms` of event time has passed and enough was observed meanwhile (SHARE), from the
    last touches that were observed by then; the asking user's own vector is always the live one.

    Attributes:
        latest: user key -> (items [m] int32, last touches [m] int64), the most recently active user last.
    """

    def __init__(
        self, users: int, half_life_ms: float, fresh_half_life_ms: float, refresh_ms: int, nearest: int
    ) -> None:
        self.users, self.refresh_ms, self.nearest = users, refresh_ms, nearest
        self.half_life_ms, self.fresh_half_life_ms = half_life_ms, fresh_half_life_ms
        self.latest: OrderedDict[int, tuple[Int32, Int64]] = OrderedDict()
        self.built_ms = -1
        self._since = 0
        """Groups that were observed since the matrix was built."""
        none = np.zeros(0, np.float32)
        self._set(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros(0, np.int32), none, none)

    def observe(self, user_id: str, items: Int32, last_ms: Int64, t_ms: int) -> None:
        """Replace a user's vector by the given distinct items and last touches, and rebuild when it is time."""
        due = t_ms - self.built_ms >= self.refresh_ms and self._since * SHARE >= len(self.latest)
        if self.built_ms < 0 or due:
            self._build(t_ms)
        self._since += 1
        key = key64(user_id)
        self.latest.pop(key, None)
        self.latest[key] = (items, last_ms)
        if len(self.latest) > self.users:
            self.latest.popitem(last=False)

    def forget(self, user_id: str) -> None:
        """Drops a user's vector, of the matrix that is read, too."""
        key = key64(user_id)
        self.latest.pop(key, None)
        own = self._row.get(key)
        if own is None:
            return
        first, end = int(self._start[own]), int(self._start[own + 1])
        start = np.delete(self._start, own + 1)
        start[own + 1 :] -= end - first
        gone = slice(first, end)
        kept = (np.delete(self._items, gone), np.delete(self._value, gone), np.delete(self._fresh, gone))
        self._set(np.delete(self._keys, own), start, *kept)

    def _flat(self) -> tuple[NDArray[np.uint64], Int64, Int32, Int64]:
        keys = np.fromiter(self.latest, np.uint64, len(self.latest))
        start = np.zeros(len(keys) + 1, np.int64)
        np.cumsum([len(items) for items, _ in self.latest.values()], out=start[1:])
        if len(keys) == 0:
            return keys, start, np.zeros(0, np.int32), np.zeros(0, np.int64)
        items = np.concatenate([items for items, _ in self.latest.values()])
        return keys, start, items, np.concatenate([last for _, last in self.latest.values()])

    def _build(self, t_ms: int) -> None:
        self.built_ms, self._since = t_ms, 0
        keys, start, items, last_ms = self._flat()
        age_ms, of_user = np.maximum(t_ms - last_ms, 0), np.diff(start)
        halved, value = age_ms * (-1 / self.half_life_ms), np.zeros(0, np.float32)
        fresh = np.exp2(age_ms * (-1 / self.fresh_half_life_ms)).astype(np.float32)
        # unit vectors, each in the scale of its user's newest touch: squares of what is years old are 0 in float32
        if len(items):
            first = start[:-1][of_user > 0]
            newest, held = np.ceil(np.maximum.reduceat(halved, first)), of_user[of_user > 0]
            value = np.exp2(halved - np.repeat(newest, held)).astype(np.float32)
            value /= np.repeat(np.sqrt(np.add.reduceat(value * value, first)), held)
        self._set(keys, start, items, value, fresh)

    def _set(
        self,
        keys: NDArray[np.uint64],
        start: Int64,
        items: Int32,
        value: Float32,
        fresh: Float32,
        before: UserVectors | None = None,
    ) -> None:
        """Takes a matrix over; its indices are those of `before` where that has the same."""
        for array in (keys, start, items, value, fresh):
            array.flags.writeable = False  # they are replaced and never written to: a snapshot takes them as they are
        self._keys, self._start, self._items, self._value, self._fresh = keys, start, items, value, fresh
        same = before if before is not None and all(map(np.array_equal, self._matrix, before._matrix)) else None
        self._by_item, self._owner, self._owner_value, self._row = same._index if same else self._indexed()

    @property
    def _matrix(self) -> tuple[NDArray[np.generic], ...]:
        return self._keys, self._start, self._items, self._value, self._fresh

    @property
    def _index(self) -> _Index:
        return self._by_item, self._owner, self._owner_value, self._row

    def _indexed(self) -> _Index:
        owners = owners_of(self._start, self._items, self._value, OWNERS)  # users stand as they were last active
        return *owners, {key: i for i, key in enumerate(self._keys.tolist())}

    def sums(self, user_id: str, items: Int32, weight: Float32, n: int) -> tuple[Int32, Float32]:
        """What the nearest users took, weighted by their similarity, the asking user left out.

        Args:
            user_id: who asks.
            items: [m] int32 distinct items of the history.
            weight: [m] float32 live decayed weights.
            n: number of items.

        Returns:
            items [t] int32 and [2, t] float32: sums of these users' unit vectors, and of their fresh touches.
        """
        items, sums, *_ = self.best(user_id, items, weight, n, 0, NOTHING)
        return items, sums

    def best(
        self, user_id: str, items: Int32, weight: Float32, n: int, k: int, touched: Int32
    ) -> tuple[Int32, Float32, Int32, Float32, Int32, Float32]:
        """`sums`, and by either of them the k best untouched items and their scores, as `best_rows` has them."""
        known = items < len(self._by_item) - 1
        if not known.all():
            items, weight = items[known], weight[known]
        own = self._row.get(key64(user_id), -1)
        by_item, by_user = (
            (self._by_item, self._owner, self._owner_value),
            (self._start, self._items, self._value, self._fresh),
        )
        return best_of_users(items, weight, by_item, by_user, own, self.nearest, n, k, touched)

    def arrays(self, prefix: str, latest: bool = True) -> Arrays:
        """Everything that is learnt, by name; without `latest` what answers need. Never written to again."""
        out: Arrays = {
            f"{prefix}.built_ms": np.array([self.built_ms], np.int64),
            f"{prefix}.matrix_keys": self._keys,
            f"{prefix}.matrix_start": self._start,
            f"{prefix}.matrix_items": self._items,
            f"{prefix}.matrix_value": self._value,
            f"{prefix}.matrix_fresh": self._fresh,
        }
        if latest:
            keys, start, items, last_ms = self._flat()
            out |= {f"{prefix}.keys": keys, f"{prefix}.start": start}
            out |= {f"{prefix}.items": items, f"{prefix}.last_ms": last_ms}
            out[f"{prefix}.since"] = np.array([self._since], np.int64)
        return out

    def restore(self, arrays: Arrays, prefix: str, before: UserVectors | None = None) -> None:
        """Take over what `arrays` gave; without `latest` nothing can be observed.

        Args:
            before: may have the same matrix; what is computed of it is not computed again then.
        """
        if f"{prefix}.keys" in arrays:
            keys, start = arrays[f"{prefix}.keys"], arrays[f"{prefix}.start"].tolist()
            items, last_ms = arrays[f"{prefix}.items"], arrays[f"{prefix}.last_ms"]
            self.latest = OrderedDict(
                (key, (np.asarray(items[a:b], np.int32), np.asarray(last_ms[a:b], np.int64)))
                for key, a, b in zip(keys.tolist(), start[:-1], start[1:], strict=True)
            )
        self.built_ms = int(arrays[f"{prefix}.built_ms"][0])
        self._since = int(arrays.get(f"{prefix}.since", [0])[0])
        self._set(
            np.asarray(arrays[f"{prefix}.matrix_keys"], np.uint64),
            np.asarray(arrays[f"{prefix}.matrix_start"], np.int64),
            np.asarray(arrays[f"{prefix}.matrix_items"], np.int32),
            np.asarray(arrays[f"{prefix}.matrix_value"], np.float32),
            np.asarray(arrays[f"{prefix}.matrix_fresh"], np.float32),
            before,
        )
