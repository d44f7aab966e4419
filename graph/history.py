"""One user's past, digested once a request: what the signals, the recallers and the features all read.

Only events with a positive action weight count as touches; the others (returns) are kept apart. A group is every
touch of one time stamp, or each touch by itself. It knows nothing of the stream: a `UserView` in, arrays out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from driftline.graph.arrays import Float32, Int32, Int64
from driftline.graph.history_kernel import DAY_MS, digest, traits
from driftline.graph.view import UserView

__all__ = ["DAY_MS", "TRAITS", "HistoryDigest", "history_of", "traits_of"]


@dataclass(frozen=True, slots=True)
class HistoryDigest:
    """Distinct items of one user, the most recently touched first.

    Attributes:
        items: [m] int32 dense indices.
        first_ms, last_ms: [m] int64 times of the first and the last touch.
        times: [m] float32, groups that held the item.
        weight: [m] float32, summed action weights.
        last_group: [m] int32, number of the last group that held it, counted back from the newest (0).
        group_age: [m] int32, groups since and including the first that held it.
        previous_ms: [m] int64, time of the touch before the last group; = last_ms without one.
        price, value: [m] float32 of the last touch; NaN = none.
        returned: [m] float32, -sum of the negative weights.
        basket: [k] int32, distinct items of the newest group.
        group_ms: [g] int64 times of the groups, oldest first.
        row_ms: [touches] int64, times of all touches, item after item.
        row_start: [m] int64, where the run of `row_ms` of each item starts.
    """

    items: Int32
    first_ms: Int64
    last_ms: Int64
    times: Float32
    weight: Float32
    last_group: Int32
    group_age: Int32
    previous_ms: Int64
    price: Float32
    value: Float32
    returned: Float32
    basket: Int32
    group_ms: Int64
    row_ms: Int64
    row_start: Int64

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.group_ms)

    @property
    def touches(self) -> int:
        """Number of touching events."""
        return len(self.row_ms)

    def decayed(self, now_ms: int, half_life_ms: float, limit: int | None = None) -> Float32:
        """Weights [m] or [limit] of the last touches, 1 now and a half after each half-life."""
        weight: Float32 = np.exp2(-self._half_lives(now_ms, half_life_ms, limit))
        return weight

    def relative(self, now_ms: int, half_life_ms: float) -> Float32:
        """`decayed` [m], the largest above a half however long ago that was: no past fades out of float32's range.

        Whole half-lives are left out, so all ratios stay what they were to the bit.
        """
        halved = self._half_lives(now_ms, half_life_ms)
        weight: Float32 = np.exp2(np.floor(halved.min(initial=np.float32(np.inf))) - halved)
        return weight

    def _half_lives(self, now_ms: int, half_life_ms: float, limit: int | None = None) -> Float32:
        """Ages [m] or [limit] of the last touches."""
        age = (now_ms - self.last_ms[:limit]).astype(np.float32)
        return np.maximum(age, 0) * np.float32(1 / half_life_ms)


TRAITS = ("groups", "items", "basket", "price", "value", "span", "since")


def traits_of(past: HistoryDigest, now_ms: int, unit_ms: float = DAY_MS) -> Float32:
    """What kind of user this is: logs of the TRAITS [7] float32, ages in a unit, NaN = not known."""
    return traits(past.price, past.value, past.group_ms, past.touches, now_ms, unit_ms)  # type: ignore[no-any-return]


def history_of(view: UserView, items: int | None = None, ordered: bool = False) -> HistoryDigest:
    """Digest a view.

    Args:
        view: one user.
        items: number of known items; touches of further ones are left out. None = all with an index are known.
        ordered: touches of one time stamp came one after the other (`state.groups: sessions`).
    """
    known = np.iinfo(np.int32).max if items is None else items
    return HistoryDigest(*digest(view.items, view.t_ms, view.weight, view.value, view.price, known, ordered))
