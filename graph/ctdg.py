"""Continuous-time dynamic graph: users and items are nodes, events are edges, every node has a memory.

Events are applied one by one (`graph.kernel`), each to the state that all earlier ones left; rows of one group read
their user's state from before the group. Any cut of a log into calls of `apply` gives the same memories to the bit.

Times are int64 unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftline.configs.settings import Graph
from driftline.graph.arrays import Float32, Int64
from driftline.graph.kernel import ITEMS, USERS, apply_events, apply_to_items
from driftline.graph.memory import CODE_DIM, EDGE_DIM, GraphMemory, item_code

Kind = TypeVar("Kind", bound=np.generic)


class Nodes:
    """Named columns over dense node indices; they grow by doubling, and what was removed is used again.

    Attributes:
        size: indices given out so far, those of removed nodes among them.
        columns: by name; `used` says which indices are nodes.
    """

    def __init__(self, **columns: tuple[int, type | str]) -> None:
        self.size = 0
        self.columns = {name: np.zeros((64, width) if width else 64, dtype) for name, (width, dtype) in columns.items()}
        self.columns["used"] = np.zeros(64, np.bool_)
        self._free: list[int] = []

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def keep(self, **columns: tuple[int, type | str]) -> None:
        """Adds columns that others keep beside these, before the first row."""
        for name, (width, dtype) in columns.items():
            self.columns[name] = np.zeros((len(self.columns["used"]), width) if width else 64, dtype)

    def some(self, names: Iterable[str]) -> tuple[NDArray[Any], ...]:
        """Columns by name, in order."""
        return tuple(self.columns[name] for name in names)

    def add(self) -> int:
        """A new row of zeros; its index."""
        if self._free:
            index = self._free.pop()
        else:
            index = self.size
            if index == len(self.columns["used"]):
                for name, column in self.columns.items():
                    self.columns[name] = np.concatenate((column, np.zeros_like(column)))
            self.size += 1
        self.columns["used"][index] = True
        return index

    def remove(self, indices: Sequence[int]) -> None:
        """Takes nodes away; a later `add` may give an index of theirs to another."""
        for column in self.columns.values():
            column[indices] = 0
        self._free += indices


class TemporalGraph:
    """Memories of all nodes and the rule by which events change them.

    Attributes:
        users: columns memory, pre [M], message_sum [G], message_count, group (key64), group_ms, pre_update_ms,
            last_update_ms; behind, which is never set outside of `apply`.
        items: columns memory [M], code [CODE_DIM], last_update_ms.
        model: the adopted graph version.
    """

    def __init__(self, settings: Graph, model: GraphMemory | None = None) -> None:
        self.model = model or GraphMemory(settings)
        memory, message = settings.memory_dim, settings.message_dim
        self.users = Nodes(
            memory=(memory, np.float32),
            pre=(memory, np.float32),
            message_sum=(message, np.float32),
            message_count=(0, np.int64),
            group=(0, np.uint64),
            group_ms=(0, np.int64),
            pre_update_ms=(0, np.int64),
            last_update_ms=(0, np.int64),
            behind=(0, np.bool_),
        )
        self.items = Nodes(memory=(memory, np.float32), code=(CODE_DIM, np.float32), last_update_ms=(0, np.int64))
        self._watched: list[tuple[Float32, Int64]] | None = None

    def add_user(self) -> int:
        """A new user node without events."""
        index = self.users.add()
        for name in ("group_ms", "pre_update_ms", "last_update_ms"):
            self.users[name][index] = -1
        return index

    def add_item(self, key: int) -> int:
        """A new item node without events; `key` is the item's key64."""
        index = self.items.add()
        self.items["last_update_ms"][index] = -1
        self.items["code"][index] = item_code(key)
        return index

    def apply(
        self,
        users: ArrayLike,
        items: ArrayLike,
        t_ms: ArrayLike,
        groups: ArrayLike,
        edges: Float32,
        update_items: bool = True,
    ) -> Float32:
        """Applies events in order.

        Args:
            users: [n] dense user indices.
            items: [n] dense item indices.
            t_ms: [n] event times, not decreasing.
            groups: [n] key64 of the group, 0 = an event of its own.
            edges: [n, EDGE_DIM] float32, see `graph.memory.edge_features`.
            update_items: False where the items' memories are owned elsewhere and only read here.

        Returns:
            [n, M] float32, the memory of each row's user from before its group.
        """
        n, width = len(edges), self.users["pre"].shape[1]
        pre, asked = np.empty((n, width), np.float32), 0 if self._watched is None else n
        before = np.empty((asked, width), np.float32), np.empty(asked, np.int64)
        rows = (_array(users, np.int64), _array(items, np.int64), _array(t_ms, np.int64), _array(edges, np.float32))
        keys = _array(groups, np.uint64)
        assert edges.shape == (len(rows[0]), EDGE_DIM)  # a caller's bug, never input
        weights = self.model.user.packed(), self.model.item.packed()
        apply_events(rows, keys, update_items, self.users.some(USERS), self.items.some(ITEMS), *weights, pre, *before)
        if self._watched is not None:
            self._watched.append(before)
        return pre

    @contextmanager
    def watched(self) -> Iterator[list[tuple[Float32, Int64]]]:
        """Takes, for each call of `apply` within, what each row's item was before the row: memory [n, M], time [n]."""
        self._watched = []
        try:
            yield self._watched
        finally:
            self._watched = None

    def apply_items(self, items: ArrayLike, t_ms: ArrayLike, user_memory: Float32, edges: Float32) -> None:
        """The items' half of events whose users live in another partition.

        Args:
            items: [n] dense item indices, in order of arrival.
            t_ms: [n] event times.
            user_memory: [n, M] float32, each user's memory from before its group.
            edges: [n, EDGE_DIM] float32.
        """
        rows = (_array(items, np.int64), _array(t_ms, np.int64), _array(user_memory, np.float32))
        apply_to_items(*rows, _array(edges, np.float32), self.items.some(ITEMS), self.model.item.packed())


def _array(values: ArrayLike, dtype: type[Kind]) -> NDArray[Kind]:
    """The values as the kernel takes them: contiguous, writable, of one type."""
    return np.require(values, dtype, ["C", "W"])
