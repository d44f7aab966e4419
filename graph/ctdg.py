"""Continuous-time dynamic graph: users and items are nodes, events are edges, every node has a memory.

Events are applied one by one in their meaning and in t-batches in fact: an event waits only for the last earlier
event of its item and for the last earlier *group* of its user (rows of one group read the state from before the
group). Events that wait for nothing left form one t-batch. Any cut of a log into calls of `apply` gives the same
memories to the bit (`graph.memory.tiled`; messages of a group are summed in row order).

Source: t-batches, JODIE (arXiv 1908.01207, section 4.2). Times are int64 unix milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.settings import Graph
from graph.memory import CODE_DIM, EDGE_DIM, MS_PER_DAY, Float32, GraphMemory, item_code

Int64 = NDArray[np.int64]


class Nodes:
    """Named columns over dense node indices; they grow by doubling."""

    def __init__(self, **columns: tuple[int, type | str]) -> None:
        self.size = 0
        self.columns = {name: np.zeros((64, width) if width else 64, dtype) for name, (width, dtype) in columns.items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def add(self) -> int:
        """A new row of zeros; its index."""
        capacity = len(next(iter(self.columns.values())))
        if self.size == capacity:
            for name, column in self.columns.items():
                self.columns[name] = np.concatenate((column, np.zeros_like(column)))
        self.size += 1
        return self.size - 1


@dataclass(slots=True)
class _Runs:
    """Runs of one call: rows of a user that share one pre-group state, in order of their first row."""

    user: list[int]
    group: list[int]
    t_ms: list[int]
    after: list[int]  # t-batch after which the pre-group state is known
    done: list[int]  # t-batch of the last row
    fresh: list[bool]  # False: the group was opened by an earlier call


class TemporalGraph:
    """Memories of all nodes and the rule by which events change them.

    Attributes:
        users: columns memory, pre [M], message_sum [G], message_count, group (key64), group_ms, pre_update_ms,
            last_update_ms.
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
        )
        self.items = Nodes(memory=(memory, np.float32), code=(CODE_DIM, np.float32), last_update_ms=(0, np.int64))

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
        users: Sequence[int],
        items: Sequence[int],
        t_ms: Sequence[int],
        groups: Sequence[int],
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
        assert edges.shape == (len(users), EDGE_DIM)  # a caller's bug, never input
        pre = np.empty((len(users), self.users["pre"].shape[1]), np.float32)
        if len(users) == 0:
            return pre
        runs, run_of, level_of = self._plan(users, items, t_ms, groups, update_items)
        u, i, t = np.asarray(users), np.asarray(items), np.asarray(t_ms, np.int64)
        order = np.argsort(level_of, kind="stable")
        starts = np.searchsorted(level_of[order], np.arange(1, level_of.max() + 2))
        after, done = np.asarray(runs.after), np.asarray(runs.done)
        messages = np.empty((len(users), self.users["message_sum"].shape[1]), np.float32)
        for level in range(1, len(starts)):
            self._open_runs(runs, np.flatnonzero(after == level - 1))
            rows = order[starts[level - 1] : starts[level]]
            pre[rows] = self.users["pre"][u[rows]]
            messages[rows] = self._user_messages(pre[rows], u[rows], i[rows], t[rows], edges[rows])
            if update_items:
                self._update_items(pre[rows], i[rows], t[rows], edges[rows])
            closing = np.flatnonzero(done == level)
            self._close_runs(runs, closing, u, messages, np.flatnonzero(np.isin(run_of, closing)))
        return pre

    def apply_items(self, items: Sequence[int], t_ms: Sequence[int], user_memory: Float32, edges: Float32) -> None:
        """The items' half of events whose users live in another partition.

        Args:
            items: [n] dense item indices, in order of arrival.
            t_ms: [n] event times.
            user_memory: [n, M] float32, each user's memory from before its group.
            edges: [n, EDGE_DIM] float32.
        """
        i, t = np.asarray(items), np.asarray(t_ms, np.int64)
        waiting = np.arange(len(i))
        while len(waiting):
            first = np.sort(np.unique(i[waiting], return_index=True)[1])
            rows = waiting[first]
            self._update_items(user_memory[rows], i[rows], t[rows], edges[rows])
            waiting = np.delete(waiting, first)

    def _plan(
        self,
        users: Sequence[int],
        items: Sequence[int],
        t_ms: Sequence[int],
        groups: Sequence[int],
        items_wait: bool,
    ) -> tuple[_Runs, Int64, Int64]:
        """Runs, the run of each row [n], and the t-batch of each row [n], counted from 1."""
        runs = _Runs([], [], [], [], [], [])
        open_group, open_ms = self.users["group"], self.users["group_ms"]
        current: dict[int, int] = {}
        item_level: dict[int, int] = {}
        run_of, level_of = np.empty(len(users), np.int64), np.empty(len(users), np.int64)
        for row, (user, item, t, group) in enumerate(zip(users, items, t_ms, groups, strict=True)):
            run = current.get(user, -1)
            if run < 0 or not group or group != runs.group[run] or t != runs.t_ms[run]:
                continues = run < 0 and bool(group) and group == open_group[user] and t == open_ms[user]
                runs.after.append(runs.done[run] if run >= 0 else 0)
                runs.done.append(0)
                runs.user.append(user)
                runs.group.append(group)
                runs.t_ms.append(t)
                runs.fresh.append(not continues)
                run = current[user] = len(runs.user) - 1
            level = 1 + max(item_level.get(item, 0) if items_wait else 0, runs.after[run])
            item_level[item] = level
            runs.done[run] = max(runs.done[run], level)
            run_of[row], level_of[row] = run, level
        return runs, run_of, level_of

    def _open_runs(self, runs: _Runs, which: Int64) -> None:
        fresh = [run for run in which.tolist() if runs.fresh[run]]
        if not fresh:
            return
        index, columns = [runs.user[run] for run in fresh], self.users
        columns["pre"][index] = columns["memory"][index]
        columns["pre_update_ms"][index] = columns["last_update_ms"][index]
        columns["message_sum"][index] = 0
        columns["message_count"][index] = 0
        columns["group"][index] = np.array([runs.group[run] for run in fresh], np.uint64)
        columns["group_ms"][index] = [runs.t_ms[run] for run in fresh]

    def _user_messages(self, pre: Float32, u: Int64, i: Int64, t: Int64, edges: Float32) -> Float32:
        """Messages [b, G] of one t-batch to the users."""
        memory, code = self.items["memory"][i], self.items["code"][i]
        days = elapsed_days(t, self.users["pre_update_ms"][u])
        return self.model.user.tiled("messages", np.concatenate((pre, memory, code, edges, days), 1))

    def _update_items(self, pre: Float32, i: Int64, t: Int64, edges: Float32) -> None:
        """One t-batch: no item twice."""
        memory, last = self.items["memory"][i], self.items["last_update_ms"][i]
        messages = self.model.item.tiled("messages", np.concatenate((memory, pre, edges, elapsed_days(t, last)), 1))
        self.items["memory"][i] = self.model.item.tiled("update", np.concatenate((messages, memory), 1))
        self.items["last_update_ms"][i] = np.maximum(t, last)

    def _close_runs(self, runs: _Runs, which: Int64, u: Int64, messages: Float32, rows: Int64) -> None:
        """memory = GRU(pre, mean of the group's messages so far) for the runs whose last row is in."""
        if len(which) == 0:
            return
        columns = self.users
        np.add.at(columns["message_sum"], u[rows], messages[rows])
        np.add.at(columns["message_count"], u[rows], 1)
        index = [runs.user[run] for run in which.tolist()]
        mean = columns["message_sum"][index] / columns["message_count"][index][:, None].astype(np.float32)
        columns["memory"][index] = self.model.user.tiled("update", np.concatenate((mean, columns["pre"][index]), 1))
        columns["last_update_ms"][index] = [runs.t_ms[run] for run in which.tolist()]


def elapsed_days(t_ms: Int64, since_ms: NDArray[Any]) -> Float32:
    """Days [n, 1] float32 from `since_ms` to `t_ms`, 0 where there was no earlier event (since < 0), never below 0."""
    since = since_ms.astype(np.int64)
    return (np.where(since < 0, 0, np.maximum(t_ms - since, 0)) / MS_PER_DAY).astype(np.float32)[:, None]
