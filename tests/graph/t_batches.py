"""The oracle of `graph.kernel`: the same rule in t-batches on torch, an event at a time in its meaning only.

An event waits only for the last earlier event of its item and for the last earlier *group* of its user (rows of one
group read the state from before the group). Events that wait for nothing left form one t-batch.

Source: t-batches, JODIE (arXiv 1908.01207, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from driftline.graph.ctdg import TemporalGraph
from driftline.graph.memory import elapsed_days
from driftline.graph.memory_net import MemoryNet


@dataclass(slots=True)
class _Runs:
    """Runs of one call: rows of a user that share one pre-group state, in order of their first row."""

    user: list[int]
    group: list[int]
    t_ms: list[int]
    after: list[int]  # t-batch after which the pre-group state is known
    done: list[int]  # t-batch of the last row
    fresh: list[bool]  # False: the group was opened by an earlier call


class TBatches(TemporalGraph):
    """A graph that applies events in t-batches."""

    _net = None

    def apply(self, users, items, t_ms, groups, edges, update_items=True):
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

    def apply_items(self, items, t_ms, user_memory, edges):
        i, t = np.asarray(items), np.asarray(t_ms, np.int64)
        waiting = np.arange(len(i))
        while len(waiting):
            first = np.sort(np.unique(i[waiting], return_index=True)[1])
            rows = waiting[first]
            self._update_items(user_memory[rows], i[rows], t[rows], edges[rows])
            waiting = np.delete(waiting, first)

    def _computed(self, side, name, rows):
        """`messages` or `update` of [n, d] rows."""
        if self._net is None or self._net[0] is not self.model:
            self._net = self.model, MemoryNet(self.model)
        with torch.inference_mode():
            return getattr(getattr(self._net[1], side), name)(torch.from_numpy(rows)).numpy()

    def _plan(
        self,
        users,
        items,
        t_ms,
        groups,
        items_wait,
    ):
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

    def _open_runs(self, runs, which):
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

    def _user_messages(self, pre, u, i, t, edges):
        """Messages [b, G] of one t-batch to the users."""
        memory, code = self.items["memory"][i], self.items["code"][i]
        days = elapsed_days(t, self.users["pre_update_ms"][u])
        return self._computed("user", "messages", np.concatenate((pre, memory, code, edges, days), 1))

    def _update_items(self, pre, i, t, edges):
        """One t-batch: no item twice."""
        memory, last = self.items["memory"][i], self.items["last_update_ms"][i]
        messages = self._computed("item", "messages", np.concatenate((memory, pre, edges, elapsed_days(t, last)), 1))
        self.items["memory"][i] = self._computed("item", "update", np.concatenate((messages, memory), 1))
        self.items["last_update_ms"][i] = np.maximum(t, last)

    def _close_runs(self, runs, which, u, messages, rows):
        """memory = GRU(pre, mean of the group's messages so far) for the runs whose last row is in."""
        if len(which) == 0:
            return
        columns = self.users
        np.add.at(columns["message_sum"], u[rows], messages[rows])
        np.add.at(columns["message_count"], u[rows], 1)
        index = [runs.user[run] for run in which.tolist()]
        mean = columns["message_sum"][index] / columns["message_count"][index][:, None].astype(np.float32)
        columns["memory"][index] = self._computed("user", "update", np.concatenate((mean, columns["pre"][index]), 1))
        columns["last_update_ms"][index] = [runs.t_ms[run] for run in which.tolist()]
