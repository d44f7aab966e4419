"""Events as columns: what the hot path works on. Event objects stay at the edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from driftline.configs.settings import Settings
from driftline.graph.arrays import Float32, Int64
from driftline.graph.memory import edge_features
from driftline.graph.rows import EVENT_DTYPE, Event, action_code, key64

_NAN = float("nan")


@dataclass(slots=True)
class EventBatch:
    """Events in the order in which they are applied, [n] each.

    Attributes:
        events: as they were read.
        users, items: dense indices.
        t_ms, offset: event time and place in the log.
        group: key64 of the group, 0 = an event of its own.
        action: code of the action.
        weight: of the action.
        value, price: NaN = not given.
        ordered: rows of a group came one after the other, so none of them waits for the others.
    """

    events: Sequence[Event]
    users: Int64
    items: Int64
    t_ms: Int64
    offset: Int64
    group: NDArray[np.uint64]
    action: NDArray[np.uint32]
    weight: NDArray[np.float64]
    value: NDArray[np.float64]
    price: NDArray[np.float64]
    ordered: bool = False

    @classmethod
    def of(cls, events: Sequence[Event], users: Sequence[int], items: Sequence[int], settings: Settings) -> EventBatch:
        """The columns of events.

        Args:
            events: in order.
            users, items: their dense indices; no users where only items are looked at.
            settings: say what actions weigh.
        """
        names = [event.action for event in events]
        kinds = {name: (action_code(name), settings.action(name).weight) for name in dict.fromkeys(names)}
        groups = [event.group_id for event in events]
        keys = {group: key64(group) if group else 0 for group in dict.fromkeys(groups)}
        return cls(
            events,
            np.array(users, np.int64),
            np.array(items, np.int64),
            np.array([event.timestamp_ms for event in events], np.int64),
            np.array([event.offset for event in events], np.int64),
            np.array([keys[group] for group in groups], np.uint64),
            np.array([kinds[name][0] for name in names], np.uint32),
            np.array([kinds[name][1] for name in names], np.float64),
            np.array([event.value for event in events], np.float64),  # None becomes NaN
            np.array([event.price for event in events], np.float64),
            settings.state.ordered,
        )

    @property
    def moments(self) -> NDArray[np.uint64]:
        """[n] key64 of the group whose rows are one moment, 0 = an event of its own."""
        return np.zeros_like(self.group) if self.ordered else self.group

    def edges(self) -> Float32:
        """[n, EDGE_DIM] float32, see `graph.memory.edge_features`."""
        return edge_features(*(column.astype(np.float32) for column in (self.weight, self.value, self.price)))

    def histories(self, item_keys: NDArray[np.uint64]) -> bytes:
        """EVENT_DTYPE records of all events, one after the other.

        Args:
            item_keys: [n] key64 of the events' items.
        """
        records = np.empty(len(self.events), EVENT_DTYPE)
        records["item"], records["t"], records["group"] = item_keys, self.t_ms, self.group
        records["weight"], records["value"], records["price"] = self.weight, self.value, self.price
        records["action"] = self.action
        return records.tobytes()
