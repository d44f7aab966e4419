"""What scorers read: one user at one request time, one group that is to be learnt, and the table of items.

Everything here is in dense item indices of one process. `ItemTable` hands them out in order of first sight and
never reuses one; `key64` joins it to the stored rows, which hold no dense index.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32, Int64
from driftline.graph.rows import UserRow, key64

if TYPE_CHECKING:
    from collections.abc import Iterable

    from driftline.graph.contexts import Context


class ItemTable:
    """Append-only table of the items of one process: dense index <-> id <-> key64."""

    def __init__(self, item_ids: Iterable[str] = ()) -> None:
        self.ids: list[str] = []
        self._by_key: dict[int, int] = {}
        for item_id in item_ids:
            self.add(item_id)

    @classmethod
    def after(cls, before: ItemTable, item_ids: list[str]) -> ItemTable:
        """The table of some ids; `before` itself where it has these and no others: nothing may be added to either."""
        known = len(before)
        if before.ids != item_ids[:known]:
            return cls(item_ids)
        if len(item_ids) == known:
            return before
        self = cls()
        self.ids, self._by_key = before.ids.copy(), before._by_key.copy()
        for item_id in item_ids[known:]:
            self.add(item_id)
        return self

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, item_id: str) -> int:
        """The dense index of an id, a new one if it was never seen."""
        index = self._by_key.setdefault(key64(item_id), len(self.ids))
        if index == len(self.ids):
            self.ids.append(item_id)
        return index

    def find(self, item_id: str) -> int:
        """The dense index of an id, -1 if it was never seen."""
        return self._by_key.get(key64(item_id), -1)

    def lookup(self, keys: NDArray[np.uint64]) -> Int32:
        """Dense indices [n] int32 of key64s [n]; -1 where the item is unknown here."""
        return np.fromiter(map(self._by_key.get, keys.tolist(), repeat(-1)), np.int32, len(keys))


FACETS = ("crowd", "interests", "categories", "brands")
"""What a profile says of a user, in this order."""


@dataclass(frozen=True, slots=True)
class ProfileVectors:
    """What an LLM wrote about a user, as vectors; joined at read time, never part of the memory.

    Attributes:
        facets: [4, text_dim] float32 unit vectors of FACETS; a zero row = no facet.
        valid_from_ms: event time from which it may be used.
        version: counts up for each user.
        source: which client wrote it ("template" or "llm:...").
    """

    facets: Float32
    valid_from_ms: int
    version: int = 0
    source: str = "template"


@dataclass(frozen=True, slots=True, weakref_slot=True)
class UserView:
    """One user at one request time. All arrays are in (time, offset) order, the newest last.

    Attributes:
        items: [n] int32 dense item indices, -1 = unknown to this process.
        t_ms: [n] int64 event times, none later than the request; who scores sees to that, as a row holds all it has.
        weight: [n] float32 action weights.
        value: [n] float32, NaN = none.
        price: [n] float32, NaN = none.
        group: [n] uint64 group keys, 0 = an event of its own.
        action: [n] uint32 action codes.
        events: events in total (the history may be shorter).
        first_ms: time of the first event, -1 = none.
        memory: [memory_dim] float32 node memory.
        last_update_ms: time of the memory's last update, -1 = none.
        domain: last domain, "" = none.
        profile: valid at the request time, or None.
        context: of the request, one value for each field of `signals.context`, "" = not given; () = all of them.
    """

    user_id: str
    items: Int32
    t_ms: Int64
    weight: Float32
    value: Float32
    price: Float32
    group: NDArray[np.uint64]
    action: NDArray[np.uint32]
    events: int = 0
    first_ms: int = -1
    memory: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))
    last_update_ms: int = -1
    domain: str = ""
    profile: ProfileVectors | None = None
    context: Context = ()


def view_of(
    row: UserRow | None,
    table: ItemTable,
    user_id: str = "",
    profile: ProfileVectors | None = None,
    context: Context = (),
) -> UserView:
    """The view of a stored row; None gives the view of a user never seen."""
    if row is None:
        empty = np.zeros(0, np.float32)
        return UserView(
            user_id, np.zeros(0, np.int32), np.zeros(0, np.int64), empty, empty, empty,
            np.zeros(0, np.uint64), np.zeros(0, np.uint32), profile=profile, context=context,
        )  # fmt: skip
    events = row.events_array()
    return UserView(
        user_id=row.user_id,
        items=table.lookup(events["item"]),
        t_ms=events["t"],
        weight=events["weight"],
        value=events["value"],
        price=events["price"],
        group=events["group"],
        action=events["action"],
        events=row.events,
        first_ms=row.first_ms,
        memory=row.memory,
        last_update_ms=row.last_update_ms,
        domain=row.domain,
        profile=profile,
        context=context,
    )


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one user at one time stamp that are learnt together: a basket, a session's click, one event.

    Attributes:
        user_id: whose group it is.
        t_ms: its time.
        items: [b] int32 dense item indices.
        weight, value, price: [b] float32, as in UserView.
        positive: [b] bool, rows that the user wanted (targets); returns and the like are not.
        domain: "" = none.
        context: of the request that it answered, as in UserView.
    """

    user_id: str
    t_ms: int
    items: Int32
    weight: Float32
    value: Float32
    price: Float32
    positive: NDArray[np.bool_]
    domain: str = ""
    context: Context = ()
