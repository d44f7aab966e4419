"""A whole log as columns, cut into groups: what one replay reads, and nothing that an arm may not see.

A group is every row of one user at one time stamp, or a row by itself where rows are ordered; groups come in the order
of their first row. Items get dense indices in the order in which they enter the pool (`seen`: with their first group;
`items`: at `valid_from_ms`, or with their first group if that is earlier), so the pool of a request is a prefix of the
item indices.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from driftline.configs.errors import InputError
from driftline.graph.arrays import Int32, Int64
from driftline.graph.contexts import Context, context_of
from driftline.graph.rows import Event, action_code, key64
from driftline.graph.view import Group
from driftline.stream.events.columns import Columns
from driftline.stream.replay.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from driftline.configs.settings import Action

NEVER_MS = np.iinfo(np.int64).max


class EventLog:
    """Columns and groups of one log.

    Attributes:
        t_ms: [n] int64; weight, value, price: [n] float32; positive: [n] bool; user: [n] int32.
        item: [n] int32 dense index in order of entry into the pool.
        group_key: [n] uint64 key64 of group_id, 0 = none; action_code: [n] uint32.
        user_ids, item_ids: by dense index.
        group_rows: [n] int64, rows ordered by group; group g is group_rows[group_start[g]:group_start[g + 1]].
        group_start: [g + 1] int64; group_user: [g] int32; group_t_ms: [g] int64.
        pool: [g + 1] int64, candidates of group g's request; the last entry is the size after the last group.
        entered_ms: [items] int64, when an item entered the pool.
        held_out: [items] bool, items whose past was taken out of the log on purpose.
        own_item: [users] int32 dense index of a user among the items, -1 where they share no ids.
        offset: [n] int64 ascending, offsets of the rows; dropped duplicates left gaps.
    """

    def __init__(
        self,
        columns: Columns,
        action_of: Callable[[str], Action],
        valid_from_ms: Mapping[str, int] | None = None,
        held_out: Container[str] = (),
        ordered: bool = False,
        context: Sequence[str] = (),
        one_id_space: bool = False,
    ) -> None:
        """Group and index the rows.

        Args:
            columns: the rows.
            action_of: the configured meaning of an action.
            valid_from_ms: item id -> time from which it is a candidate, seen or not; others from their first group on.
            held_out: ids of items whose past was taken out of the log on purpose.
            ordered: rows of one user and time came one after the other, each is a group of its own.
            context: unknown fields of a row that are known of its request.
            one_id_space: users are items, too: candidates from the group after their first one.

        Raises:
            InputError: there are no rows.
        """
        if len(columns) == 0:
            raise InputError("the log holds 0 events; replay needs at least one: check --events and --limit")
        self.columns, self._context = columns, tuple(context)
        self.t_ms = columns.t_ms
        self.offset = np.arange(len(columns)) if columns.offset is None else columns.offset
        self.value, self.price = columns.value, columns.price
        self.user, self.user_ids = columns.user_id
        codes, names = columns.action
        meanings = [action_of(name) for name in names]
        self.weight = np.array([m.weight for m in meanings], np.float32)[codes]
        least = np.array([-np.inf if m.positive_from is None else m.positive_from for m in meanings], np.float32)[codes]
        self.positive = np.array([m.positive for m in meanings], np.bool_)[codes] & ~(self.value < least)
        self.action_code = np.array([action_code(name) for name in names], np.uint32)[codes]
        group_codes, group_names = columns.group_id
        self.group_key = np.array([0] + [key64(name) for name in group_names], np.uint64)[group_codes + 1]
        self._cut_groups(ordered)
        self._index_items(valid_from_ms, one_id_space)
        self.held_out = np.array([item_id in held_out for item_id in self.item_ids], np.bool_)

    def __len__(self) -> int:
        return len(self.t_ms)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.group_user)

    def _cut_groups(self, ordered: bool) -> None:
        n = len(self)
        order = np.lexsort((np.arange(n), self.user, self.t_ms))
        user, t = self.user[order], self.t_ms[order]
        new = np.ones(n, np.bool_)
        new[1:] = ordered | (user[1:] != user[:-1]) | (t[1:] != t[:-1])
        number = np.cumsum(new) - 1
        first_row = order[new]  # rows of one group are ascending, so its first row is its arrival
        rank = np.empty(len(first_row), np.int64)
        rank[np.argsort(first_row, kind="stable")] = np.arange(len(first_row))
        self.group_of = np.empty(n, np.int64)
        self.group_of[order] = rank[number]
        self.group_rows: Int64 = np.argsort(self.group_of, kind="stable")
        self.group_start: Int64 = np.searchsorted(self.group_of[self.group_rows], np.arange(len(first_row) + 1))
        first = np.sort(first_row)
        self.group_user: Int32 = self.user[first]
        self.group_t_ms: Int64 = self.t_ms[first]

    @cached_property
    def sessions(self) -> Sessions:
        """Which session each group is of."""
        return Sessions.of(self)

    def _index_items(self, valid_from_ms: Mapping[str, int] | None, one_id_space: bool) -> None:
        file_codes, names = self.columns.item_id
        catalogue = names if valid_from_ms is None else list(dict.fromkeys([*valid_from_ms, *names]))
        if one_id_space:
            catalogue = list(dict.fromkeys([*catalogue, *self.user_ids]))
        place = {name: i for i, name in enumerate(catalogue)}
        codes = np.array([place[name] for name in names], np.int64)[file_codes]
        last = self.groups
        group = np.full(len(catalogue), last, np.int64)  # first group with the item
        row = np.full(len(catalogue), len(self), np.int64)
        position = np.empty(len(self), np.int64)
        position[self.group_rows] = np.arange(len(self))
        np.minimum.at(group, codes, self.group_of)
        np.minimum.at(row, codes, position)
        people = np.array([place.get(name, -1) for name in self.user_ids], np.int64)
        if one_id_space:
            np.minimum.at(group, people[self.group_user], np.arange(last))
            np.minimum.at(row, people[self.group_user], self.group_start[1:] - 1)
        entry = group + 1  # a candidate from the next group on
        time = np.where(group < last, self.group_t_ms[np.minimum(group, last - 1)], NEVER_MS)
        if valid_from_ms is not None:
            start = np.array([valid_from_ms.get(name, NEVER_MS) for name in catalogue], np.int64)
            by_start = np.searchsorted(self.group_t_ms, start, side="left")
            row[by_start < entry] = 0  # not by its first row: when that comes is the future
            entry = np.minimum(entry, np.where(by_start < last, by_start, last + 1))
            time = np.minimum(time, start)
        order = np.lexsort((np.arange(len(catalogue)), row, time, entry))
        dense = np.empty(len(catalogue), np.int32)
        dense[order] = np.arange(len(catalogue), dtype=np.int32)
        self.item: Int32 = dense[codes]
        self.item_ids = [catalogue[i] for i in order]
        self.own_item: Int32 = dense[people] if one_id_space else np.full(len(people), -1, np.int32)
        self.entered_ms: Int64 = time[order]
        self.pool: Int64 = np.searchsorted(entry[order], np.arange(last + 1), side="right")

    def rows_of(self, number: int) -> Int64:
        """Row numbers [b] of a group, ascending."""
        return self.group_rows[self.group_start[number] : self.group_start[number + 1]]

    def group(self, number: int) -> Group:
        """The group as scorers learn it."""
        rows = self.rows_of(number)
        return Group(
            user_id=self.user_ids[self.group_user[number]],
            t_ms=int(self.group_t_ms[number]),
            items=self.item[rows],
            weight=self.weight[rows],
            value=self.value[rows],
            price=self.price[rows],
            positive=self.positive[rows],
            domain=self.domain_of(int(rows[-1])),
            context=self.context_of(number),
        )

    def context_of(self, number: int) -> Context:
        """The context of a group's request: that of its first row."""
        if not self._context:
            return ()
        extra = self.columns.extra
        return context_of(None if extra is None else extra[self.group_rows[self.group_start[number]]], self._context)

    def contexts(self) -> NDArray[np.object_] | None:
        """[n] unknown fields of each row that are of its context alone; None where there are none."""
        if not self._context or self.columns.extra is None:
            return None
        rows = [{k: row[k] for k in self._context if k in row} if row else None for row in self.columns.extra]
        return np.array([*rows, None], object)[:-1]

    def domain_of(self, row: int) -> str:
        """The domain of a row, "" = none."""
        codes, names = self.columns.domain
        return names[codes[row]] if codes[row] >= 0 else ""

    def event(self, row: int) -> Event:
        """A row as a validated event with its offset."""
        columns = self.columns

        def text(column: tuple[Int32, list[str]]) -> str | None:
            codes, names = column
            return names[codes[row]] if codes[row] >= 0 else None

        value, price = float(self.value[row]), float(self.price[row])
        return Event(
            user_id=self.user_ids[self.user[row]],
            item_id=self.item_ids[self.item[row]],
            timestamp_ms=int(self.t_ms[row]),
            action=text(columns.action) or "interact",
            event_id=None if columns.event_id is None else columns.event_id[row],
            value=None if np.isnan(value) else value,
            price=None if np.isnan(price) else price,
            group_id=text(columns.group_id),
            domain=text(columns.domain),
            extra={} if columns.extra is None else dict(columns.extra[row] or {}),
            offset=int(self.offset[row]),
        )

    def split_ms(self, share: float) -> int:
        """Time of the row at `share` of the positive rows; groups of this time and later are scored.

        Raises:
            InputError: no row is positive.
        """
        t = self.t_ms[self.positive]
        if len(t) == 0:
            raise InputError(
                f"none of {len(self)} events has an action that counts as positive; "
                "set `actions: {NAME: {positive: true}}` for what users want"
            )
        return int(t[min(int(share * len(t)), len(t) - 1)])
