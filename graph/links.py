"""Links: what a graph's last events say of a user and each item, counted exactly, and joined with its memories.

    columns(view, now, items) -> own events, what came back, the item's own, ways over others    graph/links_kernel.py
    scores(view, now, dots)   -> one order, by a small network that takes a step at each event    graph/links_net.py

Repeats, replies and what is popular right now are facts about the last events; a memory of a few numbers blurs them.
So they are counted, and memories add what counting can't see. An item keeps its last touches as a ring; those of a user
are in its view. Where users and items are the same people (`one_id_space`), the ring of the user's own node holds who
wrote to it: replies are read from there.

Source: EdgeBank (Poursafaei et al., NeurIPS 2022) for own pairs, TGB-Seq (arXiv 2502.02975) for where memories win and
where not, DyGFormer (arXiv 2303.13047) for what occurs together.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from driftline.graph.arrays import Float32, Int32, Int64, grown
from driftline.graph.counts import DecayedCounts
from driftline.graph.links_kernel import COLUMNS, DOT, FACTS, HALF_LIVES_MS, link_columns
from driftline.graph.links_net import LinkNet
from driftline.graph.neighbors import PartnerTable
from driftline.graph.rows import key64
from driftline.graph.touched import Touched

if TYPE_CHECKING:
    from driftline.configs.settings import Graph
    from driftline.graph.view import Group, UserView

TOGETHER_MS = 30 * 86_400_000.0
"""Half-life of what occurs together, and of a touch as its source a quarter of it."""
DOT_SCALE = np.float32(0.5)
"""Memories speak in nats; columns are of the order of 1."""
USERS = 20_000
"""Users of the last events whose habits are kept, and of whom it is known what they did before they were items."""
MET = 128
"""Last different users of an item that a user's own node remembers, beyond those of its ring."""
LOGGED = 2048
"""Newest examples that may be rehearsed."""
TOGETHER = 32
"""Items that occur together with the user's most that a step always looks at."""
SOURCES = 50
"""Newest distinct items of a user that lead to others."""


class Links:
    """Counted links of one stream, and the network that joins them.

    Args:
        settings: of the graph.
        one_id_space: users and items are the same nodes: an item whose id is a user's is that user.
    """

    def __init__(self, settings: Graph, one_id_space: bool = False) -> None:
        self.settings, self.one_id_space = settings, one_id_space
        self.n = 0
        self._rng = np.random.default_rng(settings.seed)
        self.nets = [
            LinkNet(
                len(COLUMNS), len(FACTS), settings.link_hidden, settings.link_rate, settings.seed + 7919 * n, (DOT,)
            )
            for n in range(settings.link_members)
        ]
        self.popular = DecayedCounts(HALF_LIVES_MS, 0)
        self.together = PartnerTable(settings.neighbors, TOGETHER_MS)
        ring = settings.link_ring
        self._columns: dict[str, Any] = {
            "key": np.zeros(0, np.uint64),
            "ring_key": np.zeros((0, ring), np.uint64),
            "ring_item": np.zeros((0, ring), np.int32),
            "ring_ms": np.zeros((0, ring), np.int64),
            "count": np.zeros(0, np.int64),
            "takers": np.zeros(0, np.int64),
            "first_ms": np.zeros(0, np.int64),
            "acted_ms": np.zeros(0, np.int64),
            "acted": np.zeros(0, np.int64),
            "acted_new": np.zeros(0, np.int64),
        }
        if one_id_space:
            self._columns |= {"met": np.zeros((0, MET), np.uint64), "met_ms": np.zeros((0, MET), np.int64)}
        self._log: deque[tuple[Float32, Float32, Float32, Int64]] = deque(maxlen=LOGGED)
        self._habits: dict[int, Float32] = {}  # key64 of a user -> its linear weights, those of all taken away
        self._acted: dict[
            int, tuple[int, int, int]
        ] = {}  # of users who are no items yet: touches, first ones, the last
        self._no_habit = np.zeros(len(COLUMNS), np.float32)
        self._touched = Touched()
        self._index: dict[int, int] = {}  # key64 -> item
        self._slot: Int32 = np.zeros(0, np.int32)
        self._path: Float32 = np.zeros(0, np.float32)

    def add_item(self, index: int, key: int) -> None:
        """Makes room for an item of the table; `key` is its key64. Nothing changes for one that is there."""
        if self._index.get(key) == index:
            return
        if index >= self.n:
            self.n = index + 1
            self._make_room()
        c = self._columns
        c["key"][index], self._index[key] = key, index
        c["acted"][index], c["acted_new"][index], c["acted_ms"][index] = self._acted.pop(key, (0, 0, 0))
        self._touched.add(np.array([index]))

    def _make_room(self) -> None:
        for name, column in self._columns.items():
            self._columns[name] = grown(column, self.n)
        self._slot, self._path = grown(self._slot, self.n, -1), grown(self._path, self.n)
        self.popular.ensure(self.n)
        self.together.ensure(self.n)

    # -- reading -----------------------------------------------------------------------------------------------

    def _asked(self, view: UserView, now_ms: int) -> tuple[Any, ...]:
        """What is looked up once a request: node, key, touches, senders, partners."""
        key = key64(view.user_id)
        node = self._index.get(key, -1) if self.one_id_space else -1
        wanted = (view.weight > 0) & (view.items >= 0) & (view.items < self.n)
        items, t_ms = np.ascontiguousarray(view.items[wanted]), np.ascontiguousarray(view.t_ms[wanted])
        senders, sent_ms = self._senders(node)
        source, weight = _sources(items, t_ms, now_ms)
        together, score = self.together.sums(source, weight, self.n)
        return node, key, items, t_ms, senders, sent_ms, together, score

    def _senders(self, node: int) -> tuple[Int32, Int64]:
        """Who touched a node and when, newest first: its ring, then those who are in it no more, with their last."""
        if node < 0:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        c, ring = self._columns, self._columns["ring_ms"].shape[1]
        count = int(c["count"][node])
        place = (count - 1 - np.arange(min(count, ring))) % ring
        keys = c["ring_key"][node, place].tolist()
        before = range(len(set(keys)), min(int(c["takers"][node]), MET))
        keys += c["met"][node, before.start : before.stop].tolist()
        sent_ms = np.concatenate((c["ring_ms"][node, place], c["met_ms"][node, before.start : before.stop]))
        find = self._index.get
        return np.array([find(key, -1) for key in keys], np.int32), sent_ms

    def _meet(self, item: int, key: int, t_ms: int) -> None:
        """Puts a user first among those who touched an item; the one who did longest ago makes room."""
        met, met_ms = self._columns["met"][item], self._columns["met_ms"][item]
        here = np.flatnonzero(met == key)
        at = int(here[0]) if len(here) else MET - 1
        met[1 : at + 1], met_ms[1 : at + 1] = met[:at].copy(), met_ms[:at].copy()
        met[0], met_ms[0] = key, t_ms

    def _filled(
        self, asked: tuple[Any, ...], now_ms: int, items: Int32, dots: Float32 | None
    ) -> tuple[Float32, Float32]:
        node, key, own, t_ms, senders, sent_ms, together, score = asked
        c = self._columns
        out, facts = np.empty((len(items), len(COLUMNS)), np.float32), np.empty(len(FACTS), np.float32)
        fade = np.array([self.popular.fade(now_ms, h) for h in range(len(HALF_LIVES_MS))])
        link_columns(
            items, now_ms, node, np.uint64(key), own, t_ms, senders, sent_ms, c["ring_key"], c["ring_item"],
            c["ring_ms"], c["count"], c["takers"], c["first_ms"], c["acted_ms"], c["acted"], c["acted_new"],
            self.popular.count, fade, together, score, self._slot, self._path, out, facts,
        )  # fmt: skip
        if dots is not None:
            out[:, DOT] = dots * DOT_SCALE
        return out, facts

    def columns(
        self, view: UserView, now_ms: int, items: Int32, dots: Float32 | None = None
    ) -> tuple[Float32, Float32]:
        """Columns [c, len(COLUMNS)] of distinct items [c] and facts [len(FACTS)] of the user at a request time.

        Args:
            view: the user; now_ms: the request time.
            items: [c] int32 below n.
            dots: [c] what memories say of each; None = nothing.
        """
        return self._filled(self._asked(view, now_ms), now_ms, items, dots)

    def scores(self, view: UserView, now_ms: int, items: Int32, dots: Float32 | None = None) -> Float32:
        """[c] float32 for distinct items [c], the highest is first; arguments as in `columns`."""
        columns, facts = self.columns(view, now_ms, items, None if dots is None else dots - dots.mean())
        own = columns @ self._habits.get(key64(view.user_id), self._no_habit)
        scores: Float32 = own + np.mean([net.scores(columns, facts) for net in self.nets], 0, dtype=np.float32)
        return scores

    # -- learning ----------------------------------------------------------------------------------------------

    def learn(
        self, view: UserView, now_ms: int, targets: Int32, dots: Float32 | None = None
    ) -> tuple[Int32, Float32] | tuple[()]:
        """One step on what a request was answered with; before `observe` of the same group.

        Args:
            view: the user before the group; now_ms: its time.
            targets: [r] int32 distinct items that were right.
            dots: [n] what memories said of all items; None = nothing.

        Returns:
            items [c] that were looked at, and [c] what was said of each without the memories, with the log of its
            inverse chance of being drawn; nothing if no target is known.
        """
        targets = targets[(targets >= 0) & (targets < self.n)]
        if not len(targets) or self.n < 2:
            return ()
        asked = self._asked(view, now_ms)
        near = [asked[2], asked[4][asked[4] >= 0], _strongest(asked[6], asked[7]), targets]
        items, offset = self._drawn(np.unique(np.concatenate(near)).astype(np.int32))
        columns, facts = self._filled(asked, now_ms, items, None)
        habit = self._habits.get(asked[1], self._no_habit)
        own = columns @ habit
        said = own + np.mean([net.scores(columns, facts) for net in self.nets], 0, dtype=np.float32)
        if dots is not None:
            columns[:, DOT] = (dots[items] - dots.mean()) * DOT_SCALE
        new = columns, facts, offset + own, np.flatnonzero(np.isin(items, targets))
        again = self._rng.integers(0, len(self._log), self.settings.link_rehearsed) if self._log else ()
        examples = [new, *(self._log[n] for n in again)]
        if self.settings.link_rehearsed:
            self._log.append(new)
        for net in self.nets:
            gradients = [net.gradient(*example)[1] for example in examples]
            net.step(np.mean(gradients, 0, dtype=np.float32))
        of_columns = gradients[0][-len(COLUMNS) :].copy()  # a gradient ends with the columns' linear weights
        of_columns[DOT] = 0
        _renew(self._habits, asked[1], habit - np.float32(self.settings.link_habit) * of_columns)
        return items, said + offset

    def _drawn(self, near: Int32) -> tuple[Int32, Float32]:
        """Items near the user and some others, with the log of the inverse chance of each."""
        far = np.ones(self.n, np.bool_)
        far[near] = False
        rest = np.flatnonzero(far).astype(np.int32)
        drawn = (
            rest
            if len(rest) <= self.settings.link_sampled
            else self._rng.choice(rest, self.settings.link_sampled, False)
        )
        offset = np.zeros(len(near) + len(drawn), np.float32)
        if len(drawn):
            offset[len(near) :] = np.log(len(rest) / len(drawn))
        return np.concatenate((near, drawn)), offset

    def observe(self, group: Group, view: UserView) -> None:
        """Takes in a group; `view` is the user before it."""
        wanted = (group.weight > 0) & (group.items >= 0)
        items = np.unique(group.items[wanted]).astype(np.int32)
        if not len(items):
            return
        c, t_ms, key = self._columns, group.t_ms, key64(group.user_id)
        node = self._index.get(key, -1) if self.one_id_space else -1
        place = c["count"][items] % c["ring_ms"].shape[1]
        c["ring_key"][items, place], c["ring_item"][items, place], c["ring_ms"][items, place] = key, node, t_ms
        c["first_ms"][items] = np.where(c["count"][items] == 0, t_ms, c["first_ms"][items])
        c["count"][items] += 1
        known = (view.weight > 0) & (view.items >= 0) & (view.items < self.n)
        new = ~np.isin(items, view.items[known])
        c["takers"][items] += new
        if self.one_id_space:
            for item in items.tolist():
                self._meet(item, key, t_ms)
        if node >= 0:
            c["acted"][node] += len(items)
            c["acted_new"][node] += int(new.sum())
            c["acted_ms"][node] = max(t_ms, c["acted_ms"][node])
            self._touched.add(np.array([node]))
        elif self.one_id_space:
            acted, of_new, last_ms = self._acted.get(key, (0, 0, 0))
            _renew(self._acted, key, (acted + len(items), of_new + int(new.sum()), max(t_ms, last_ms)))
        self._touched.add(items)
        self.popular.add(items, np.ones(len(items)), t_ms)
        source, weight = _sources(view.items[known], view.t_ms[known], t_ms)
        self.together.add(source, items, weight, np.ones(len(items), np.float32), t_ms)


def _renew(kept: dict[int, Any], key: int, value: Any) -> None:
    """Sets what is kept of a user, the newest last; past USERS the oldest goes."""
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > USERS:
        del kept[next(iter(kept))]


def _strongest(items: Int32, score: Float32) -> Int32:
    """The TOGETHER items with the highest scores."""
    return items if len(items) <= TOGETHER else items[np.argpartition(-score, TOGETHER)[:TOGETHER]]


def _sources(items: Int32, t_ms: Int64, now_ms: int) -> tuple[Int32, Float32]:
    """Newest distinct items [s] of a user, the newest first, and what each counts [s]."""
    recent, at = np.unique(items[::-1][: 4 * SOURCES], return_index=True)
    order = np.argsort(at)[:SOURCES]
    age = (now_ms - t_ms[::-1][at[order]]) / (TOGETHER_MS / 4)
    return recent[order], np.exp2(-np.maximum(age, 0)).astype(np.float32)
