"""The trained graph: next-link loss for the message functions, time encoders, updaters and the reader.

The learner watches the groups that a `TemporalGraph` applies. What it keeps of a node is its last raw message and
the memory from before it, so that a training step can recompute the memory with the weights that are being trained
(truncated back-propagation through one update, as TGN trains). A step sees the items as they were before the first
new group of its batch: nothing of a new target is in what scores it. A rehearsed sample sees the items of that same
moment, and so what its own event left in them; scoring never does.

Source: TGN (arXiv 2006.10637, section 3.2 and algorithm 1). Departures: softmax over all seen items while they are
few, else over shared uniform negatives; several positives in one group share the loss.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from driftline.configs.settings import Graph
from driftline.graph.arrays import Float32, Int64
from driftline.graph.codes import Codes, is_small
from driftline.graph.embed import GraphReader
from driftline.graph.item_pass import item_vectors
from driftline.graph.links import Links
from driftline.graph.memory import CODE_DIM, EDGE_DIM, MS_PER_DAY, GraphMemory, edge_features, elapsed_days, item_code
from driftline.graph.memory_net import MemoryNet
from driftline.graph.query import QueryReader
from driftline.graph.rows import fields_of, key64
from driftline.graph.texts import TextTable
from driftline.graph.touched import Touched
from driftline.graph.view import Group, ProfileVectors, UserView

if TYPE_CHECKING:
    from driftline.graph.ctdg import TemporalGraph

ROWS = 20
"""Rows of a user's last group that its memory is recomputed from."""
AT_ONCE = 8192
"""Items whose vectors all follow each training step; of more items they follow in turns."""
TURN = 2048
"""Such items with each step, beside those that were touched or trained on."""
ID, ID_SQUARE = "id", "id_square"
"""Columns that a graph with a ranking of its own has: a trained vector of each item, and its squared gradients."""
ID_RATE = 0.02
"""Of their learning, by Adagrad: an item that comes once moves as far as one that comes daily."""
USERS = 20_000
"""Most recent users whose memory can be recomputed; that of others is read as it is stored."""


@dataclass(slots=True)
class _Sample:
    """One request and what followed."""

    view: UserView
    now_ms: int
    pre: Float32  # [M]
    raw: Float32  # [r, dim_in + 1] raw messages of the user's last group, r = 0 for a new user
    targets: NDArray[np.int32]
    near: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))  # [c] items that links judged
    prior: Float32 = field(default_factory=lambda: np.zeros(0, np.float32))  # [c] what they said, without the memories


class GraphLearner:
    """Trains a `MemoryNet` and its `GraphReader` on the stream; scores with them.

    Arrays are over the engine's item table. A group is applied within `around`. Text vectors are read from a table that
    others share and its owner keeps, if one is given.
    """

    def __init__(self, settings: Graph, text_dim: int, texts: TextTable | None = None) -> None:
        self.settings, self.text_dim = settings, text_dim
        self.texts, self._shared = (TextTable(text_dim), False) if texts is None else (texts, True)
        self.memory = MemoryNet(GraphMemory(settings))
        self.reader = GraphReader(settings, text_dim)
        self.trained = settings.weights == "trained"
        self._rng = np.random.default_rng(settings.seed)
        self._raw_of_user: dict[str, tuple[Float32, Float32]] = {}
        self._batch: list[_Sample] = []
        self._log: deque[_Sample] = deque(maxlen=settings.rehearsal_groups)
        self._pending: list[tuple[NDArray[np.int32], Float32, Float32]] = []
        self._entered: list[tuple[Group, Float32, int]] = []
        """Groups that the graph is about to apply, with their users' memories and times from before."""
        self.size = 0
        self._columns: dict[str, Float32] = {
            "memory": np.zeros((0, settings.memory_dim), np.float32),
            "code": np.zeros((0, CODE_DIM), np.float32),
            "then": np.zeros((0, settings.memory_dim), np.float32),  # memory when the open batch began
            "before": np.zeros((0, settings.memory_dim), np.float32),  # memory before the last raw message
            "raw": np.zeros((0, self.memory.item.dim_in + 1), np.float32),
            "vector": np.zeros((0, settings.embed_dim), np.float32),
        }
        self._stale: set[int] = set()
        self._query = QueryReader(self.reader)
        self._asked: tuple[ref[UserView], int, Float32] | None = None
        """The last query, which two plugs ask for; None once anything has changed, or nobody has the view any more."""
        self._changed: set[int] = set()  # since the last step
        self._codes: Codes | None = None
        self._touched = Touched()  # rows of "vector"
        self.links: Links | None = None
        self.steps = 0
        self.loss = 0.0

    def prepare(self) -> None:
        """Makes what a step takes, before the first one has to wait for it."""
        _ = self._optimizer

    @cached_property
    def _optimizer(self) -> torch.optim.Adam:
        """Made for who learns: one loads torch's compiler, seconds that who only scores is spared."""
        parameters = [*self.memory.parameters(), *self.reader.parameters()]
        return torch.optim.Adam(parameters, lr=self.settings.learning_rate, fused=True)

    def rank_alone(self, one_id_space: bool = False) -> None:
        """Counts links as well, from before the first item on: `scores` then ranks by them and by the memories.

        Args:
            one_id_space: an item whose id is a user's is that user.
        """
        self.links = Links(self.settings, one_id_space)
        rows, dim = len(self._columns["code"]), self.settings.embed_dim
        self._columns |= {ID: np.zeros((rows, dim), np.float32), ID_SQUARE: np.zeros((rows, 1), np.float32)}

    # -- what the engine reads ---------------------------------------------------------------------------------

    def user_vector(self, view: UserView, now_ms: int) -> Float32:
        """[D] float32: the query of one user at a request time, without its profile."""
        asked = self._asked
        if asked is not None and asked[0]() is view and asked[1] == now_ms:
            return asked[2]
        last = np.flatnonzero(view.items >= 0)[-self.settings.neighbors :]
        memory = view.memory if len(view.memory) else np.zeros(self.settings.memory_dim, np.float32)
        query = self._query.query(
            memory,
            (now_ms - view.last_update_ms) / MS_PER_DAY if view.last_update_ms >= 0 else 0.0,
            self.item_matrix()[view.items[last]],
            ((now_ms - view.t_ms[last]) / MS_PER_DAY).astype(np.float32),
            edge_features(view.weight[last], view.value[last], view.price[last]),
        )
        self._asked = ref(view, self._let_go), now_ms, query
        return query

    def _let_go(self, view: ref[UserView]) -> None:
        asked = self._asked
        if asked is not None and asked[0] is view:
            self._asked = None

    def fused_vector(self, query: Float32, facets: Float32) -> Float32:
        """[D] float32: a query joined with profile facets [4, X]."""
        return self._query.fuse(query, facets)

    def scores(self, view: UserView, now_ms: int) -> Float32:
        """[N] float32 of all items, the highest is first: by memories, and by links where these are counted."""
        dots: Float32 = self.item_matrix() @ self.user_vector(view, now_ms)
        if self.links is None:
            return dots
        return self.links.scores(view, now_ms, np.arange(self.size, dtype=np.int32), dots)

    def item_matrix(self) -> Float32:
        """[N, D] float32: vectors of all items, current to the last applied group."""
        if self._stale:
            self._compose(np.fromiter(self._stale, np.int64, len(self._stale)))
            self._stale.clear()
        return self._columns["vector"][: self.size]

    def item_codes(self) -> Codes | None:
        """Codes of the matrix, None while it is small."""
        self.item_matrix()
        if self._codes is None and not is_small(self.size, self.settings.embed_dim):
            self._codes = Codes(self.settings.embed_dim)
            for at in range(0, self.size, AT_ONCE):
                rows = np.arange(at, min(self.size, at + AT_ONCE))
                self._codes.set(rows, self._columns["vector"][rows])
        return self._codes

    def _compose(self, rows: Int64) -> None:
        everything = len(rows) == self.size  # needs no copy: they are distinct
        which = slice(self.size) if everything else rows
        texts = self.texts.first(self.size) if everything else self.texts[rows]
        with torch.inference_mode():
            memory, code = (torch.from_numpy(self._columns[name][which]) for name in ("memory", "code"))
            vectors = self.reader.items(memory, code, torch.from_numpy(texts)).numpy()
        if ID in self._columns:
            vectors = vectors + self._columns[ID][which]
        self._columns["vector"][which] = vectors
        if everything:
            rows = np.arange(self.size)
        self._touched.add(rows)
        if self._codes is not None:
            self._codes.set(rows, vectors)

    # -- what the driver calls ---------------------------------------------------------------------------------

    def add_item(self, index: int, item_id: str, text: Float32 | None = None) -> None:
        """Makes room for an item of the table, or gives it its text vector [X]."""
        while len(self._columns["code"]) <= index:
            for name, column in self._columns.items():
                more = np.zeros((max(64, len(column)), column.shape[1]), np.float32)
                self._columns[name] = np.concatenate((column, more))
        if index >= self.size:
            self.size = index + 1
        self._asked = None
        key = key64(item_id)
        self._columns["code"][index] = item_code(key)
        if self.links is not None:
            self.links.add_item(index, key)
        if text is not None:
            self.texts.set(index, text)
        self._touch([index])

    def text_changed(self, index: int) -> None:
        """Takes note that the shared table has a new text of an item."""
        self._asked = None
        self._touch([index])

    @contextmanager
    def around(
        self,
        graph: TemporalGraph,
        user: int,
        nodes_now: Callable[[], NDArray[np.int64]],
        view: UserView,
        group: Group,
        sample: bool = True,
    ) -> Iterator[None]:
        """Takes a group in: the graph applies it within the context, and changes nothing else there.

        On entry it keeps what the group's rows will read and takes the group as a sample; on exit it takes the items'
        new memories and learns when a batch of groups is full.

        Args:
            graph: not yet changed by the group.
            user: the user's node, -1 for a new one.
            nodes_now: gives the item nodes [b] of the group, -1 for those that the graph does not have yet.
            view: the user's view before the group.
            group: with table indices.
            sample: False = the group is not learnt from.
        """
        self.enter(graph, user, view, group, sample)
        nodes = nodes_now()
        known = nodes >= 0
        memory = np.where(known[:, None], graph.items["memory"][nodes], np.float32(0))
        item_last = np.where(known, graph.items["last_update_ms"][nodes], -1)
        yield
        self.take_in(graph, nodes_now(), memory, item_last)

    def enter(self, graph: TemporalGraph, user: int, view: UserView, group: Group, sample: bool = False) -> None:
        """The first half of `around`, for several groups of different users before `take_in` of all of them."""
        judged: tuple[Any, ...] = ()
        if self.links is not None:
            judged = self._links_learn(self.links, view, group, sample)
        pre = graph.users["memory"][user].copy() if user >= 0 else np.zeros(self.settings.memory_dim, np.float32)
        last_ms = int(graph.users["last_update_ms"][user]) if user >= 0 else -1
        if sample and self.trained and len(view.items) and group.positive.any():
            old_pre, old_raw = self._raw_of_user.get(group.user_id, (pre, np.zeros((0, 0), np.float32)))
            targets = np.unique(group.items[group.positive])
            self._batch.append(_Sample(view, group.t_ms, old_pre, old_raw, targets, *judged))
        self._entered.append((group, pre, last_ms))

    def take_in(self, graph: TemporalGraph, nodes: Int64, memory: Float32, item_last: Int64) -> None:
        """The second half of `around`: the graph has applied the groups that entered, of n rows.

        Args:
            graph: as it is now.
            nodes: [n] item nodes of their rows, group after group.
            memory: [n, M] memories of these from before the row's group, zeros for those that the graph did not have.
            item_last: [n] times of their last updates by then, -1 = none.
        """
        groups, pres, lasts = zip(*self._entered, strict=True)
        self._entered.clear()
        sizes = np.array([len(group.items) for group in groups])
        items, weight, value, price = (
            np.concatenate([getattr(group, name) for group in groups]) for name in ("items", "weight", "value", "price")
        )
        t = np.repeat([group.t_ms for group in groups], sizes)
        edges, pre_rows = edge_features(weight, value, price), np.repeat(np.stack(pres), sizes, 0)
        days = elapsed_days(t, np.repeat(lasts, sizes))
        to_user = np.concatenate((pre_rows, memory, self._columns["code"][items], edges, days), 1)
        for group, pre, end in zip(groups, pres, np.cumsum(sizes).tolist(), strict=True):
            self._raw_of_user.pop(group.user_id, None)
            first = end - len(group.items)
            self._raw_of_user[group.user_id] = (pre, to_user[first : min(end, first + ROWS)].copy())
        while len(self._raw_of_user) > USERS:
            del self._raw_of_user[next(iter(self._raw_of_user))]
        to_item = np.concatenate((memory, pre_rows, edges, elapsed_days(t, item_last)), 1)
        self._pending.append((items, memory, to_item))
        self.refresh(graph, items, nodes)
        rows = sum(len(sample.targets) for sample in self._batch)
        if len(self._batch) >= self.settings.batch_groups and rows >= self.settings.batch_rows:
            self._step()
        if not self._batch:
            for items, memory, raw in self._pending:
                self._columns["before"][items], self._columns["raw"][items] = memory, raw
                self._columns["then"][items] = self._columns["memory"][items]
            self._pending.clear()

    def _links_learn(self, links: Links, view: UserView, group: Group, sample: bool) -> tuple[Any, ...]:
        """Links learn and take in a group; what they said of the items that were looked at, before they learnt."""
        judged: tuple[Any, ...] = ()
        if sample and group.positive.any() and self.size:
            dots = self.item_matrix() @ self.user_vector(view, group.t_ms)
            judged = links.learn(view, group.t_ms, np.unique(group.items[group.positive]), dots)
        links.observe(group, view)
        return judged

    def refresh(self, graph: TemporalGraph, items: NDArray[np.integer[Any]], nodes: NDArray[np.int64]) -> None:
        """Takes the memories that a graph has of items [b]; their `nodes` are -1 where it has none."""
        self._asked = None
        self._columns["memory"][items] = np.where((nodes >= 0)[:, None], graph.items["memory"][nodes], 0)
        self._touch(items.tolist())

    def _touch(self, items: Iterable[int]) -> None:
        self._stale.update(items)
        self._changed.update(items)

    def forget(self, user_id: str) -> None:
        """Drops what is kept of a user; the weights stay as they are."""
        self._raw_of_user.pop(user_id, None)
        self._asked = None
        self._batch = [sample for sample in self._batch if sample.view.user_id != user_id]
        others = (sample for sample in self._log if sample.view.user_id != user_id)
        self._log = deque(others, maxlen=self._log.maxlen)

    def freeze(self) -> None:
        """Drops the samples that wait for a step: none will come."""
        self._batch.clear()

    # -- training ----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        batch, self._batch = self._batch + self._rehearsed(), []
        views, now_ms = [s.view for s in batch], [s.now_ms for s in batch]
        pool, targets = self._pool(batch)
        item_vectors = self._recomputed_items(pool)
        ids = torch.from_numpy(self._columns[ID][pool]).requires_grad_() if ID in self._columns else None
        if ids is not None:
            item_vectors = item_vectors + ids
        queries = self._queries(views, now_ms, self._recomputed_users(batch), item_vectors, pool)
        judged = [n for n, sample in enumerate(batch) if len(sample.near)]
        if judged:
            loss = self._loss_beside(queries[judged], item_vectors, pool, [batch[n] for n in judged])
        else:
            loss = self._loss(queries, item_vectors, targets)
        has_profile = [n for n, view in enumerate(views) if view.profile is not None]
        if has_profile:  # what a profile says trains the join alone: the graph without it stays a graph without it
            facets = torch.from_numpy(np.stack([views[n].profile.facets for n in has_profile]))  # type: ignore[union-attr]
            fused = self.reader.fuse(queries[has_profile].detach(), facets)
            joined = self._loss(fused, item_vectors.detach(), targets[has_profile])
            loss = loss + joined * len(has_profile) / len(batch)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([*self.memory.parameters(), *self.reader.parameters()], 1.0)
        self._optimizer.step()
        if ids is not None and ids.grad is not None:
            self._ids_step(pool, ids.grad.numpy())
        self.steps += 1
        self.loss = 0.99 * self.loss + 0.01 * float(loss.detach()) if self.steps > 1 else float(loss.detach())
        self._follow(pool)
        self._asked = None

    def _follow(self, pool: Int64) -> None:
        """Vectors after a step: what they are depends on steps and touches alone, never on when somebody asked."""
        if self.size <= AT_ONCE:
            self._touch(range(self.size))
            return
        turn = (self.steps * TURN + np.arange(TURN)) % self.size
        changed = np.fromiter(self._changed, np.int64, len(self._changed))
        self._compose(np.unique(np.concatenate((pool, changed, turn))))
        self._stale.clear()
        self._changed.clear()

    def _rehearsed(self) -> list[_Sample]:
        """Earlier samples that join the new ones of a step; these join the log."""
        drawn = self._rng.integers(0, len(self._log), self.settings.rehearsed) if self._log else ()
        rehearsed = [self._log[n] for n in drawn]
        self._log.extend(self._batch)
        return rehearsed

    def _pool(self, batch: list[_Sample]) -> tuple[NDArray[np.int64], Tensor]:
        """Items [P] that a step's softmax runs over, and the targets [B, P], rows summing to 1."""
        wanted = np.unique(np.concatenate([s.targets for s in batch])).astype(np.int64)
        if self.size <= self.settings.full_softmax:
            pool = np.arange(self.size)
        else:
            near = [s.view.items[np.flatnonzero(s.view.items >= 0)[-self.settings.neighbors :]] for s in batch]
            drawn = self._rng.integers(0, self.size, self.settings.negatives)
            judged = [s.near for s in batch]
            pool = np.unique(np.concatenate([wanted, drawn, *near, *judged])).astype(np.int64)
        targets = torch.zeros(len(batch), len(pool))
        for row, sample in enumerate(batch):
            targets[row, np.searchsorted(pool, sample.targets)] = 1 / len(sample.targets)
        return pool, targets

    def _recomputed_items(self, pool: NDArray[np.int64]) -> Tensor:
        names = ("raw", "before", "then", "code")
        everything = len(pool) == self.size  # needs no copy
        rows = slice(self.size) if everything else pool
        raw, before, then, code = (torch.from_numpy(self._columns[name][rows]) for name in names)
        text = torch.from_numpy(self.texts.first(self.size) if everything else self.texts[pool])
        return item_vectors(self.memory.item, self.reader, raw, before, then, code, text)

    def _recomputed_users(self, batch: list[_Sample]) -> Tensor:
        stored = torch.from_numpy(np.stack([s.view.memory for s in batch]))
        rows = [s.raw for s in batch if len(s.raw)]
        if not rows:
            return stored
        from torch_geometric.utils import scatter  # 90 MB that a process which only scores does without

        counts = torch.tensor([len(s.raw) for s in batch])
        messages = self.memory.user.messages(torch.from_numpy(np.concatenate(rows)))
        owner = torch.repeat_interleave(torch.arange(len(batch)), counts)
        mean = scatter(messages, owner, dim_size=len(batch), reduce="mean")
        pre = torch.from_numpy(np.stack([s.pre for s in batch]))
        memory = self.memory.user.update(torch.cat((mean, pre), 1))
        return torch.where((counts > 0)[:, None], as_stored(memory, stored), stored)

    def _queries(
        self, views: list[UserView], now_ms: list[int], memory: Tensor, vectors: Tensor, pool: NDArray[np.int64]
    ) -> Tensor:
        """Query vectors [B, D]; `vectors` [P, D] are those of the sorted items `pool` [P], neighbours included."""
        k = self.settings.neighbors
        lasts = [np.flatnonzero(view.items >= 0)[-k:] for view in views]
        mask = np.arange(k) < np.array([[len(last)] for last in lasts])

        def filled(name: str) -> NDArray[Any]:
            each = [getattr(view, name)[last] for view, last in zip(views, lasts, strict=True)]
            out = np.zeros(mask.shape, each[0].dtype)
            out[mask] = np.concatenate(each)
            return out

        updated, now = np.array([view.last_update_ms for view in views]), np.array(now_ms)
        idle = np.where(updated >= 0, (now - updated) / MS_PER_DAY, 0).astype(np.float32)
        age = np.where(mask, (now[:, None] - filled("t_ms")) / MS_PER_DAY, 0).astype(np.float32)
        edges = edge_features(*(filled(name).ravel() for name in ("weight", "value", "price")))
        items = np.where(mask, filled("items"), pool[0])
        chosen = vectors[np.searchsorted(pool, items)] * torch.from_numpy(mask)[:, :, None]
        arrays = (torch.from_numpy(a) for a in (age, edges.reshape(*mask.shape, EDGE_DIM), mask))
        return self.reader.users(memory, torch.from_numpy(idle), chosen, *arrays)

    def _loss(self, queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        return -(functional.log_softmax(queries @ items.T, 1) * targets).sum(1).mean()

    def _loss_beside(self, queries: Tensor, items: Tensor, pool: Int64, batch: list[_Sample]) -> Tensor:
        """What memories add to links: softmax over what links looked at, their scores and chances as the prior."""
        most = max(len(sample.near) for sample in batch)
        place, prior = np.zeros((len(batch), most), np.int64), np.full((len(batch), most), -1e9, np.float32)
        right = np.zeros((len(batch), most), np.float32)
        for row, sample in enumerate(batch):
            c = len(sample.near)
            place[row, :c], prior[row, :c] = np.searchsorted(pool, sample.near), sample.prior
            right[row, :c] = np.isin(sample.near, sample.targets)
        right /= np.maximum(right.sum(1, keepdims=True), 1)
        logits = (queries @ items.T).gather(1, torch.from_numpy(place)) + torch.from_numpy(prior)
        return -(functional.log_softmax(logits, 1) * torch.from_numpy(right)).sum(1).mean()

    def _ids_step(self, pool: Int64, gradient: Float32) -> None:
        """Adagrad, a rate for each item."""
        square = self._columns[ID_SQUARE]
        square[pool, 0] += (gradient * gradient).mean(1)
        self._columns[ID][pool] -= ID_RATE * gradient / (np.sqrt(square[pool, :1]) + np.float32(1e-8))

    # -- checkpoints and snapshots -----------------------------------------------------------------------------

    def version(self) -> GraphMemory:
        """A copy of the memory functions as they are now, for a worker to adopt."""
        return self.memory.memory()

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Reader weights and item columns, for a serving snapshot: `from_arrays` reads them. Views."""
        weights = {f"reader.{k}": v.detach().numpy() for k, v in self.reader.state_dict().items()}
        codes = self.item_codes()
        of_codes = {} if codes is None else codes.arrays("item_vectors", self.size)
        return {**weights, "item_vectors": self.item_matrix(), **of_codes}

    def touched(self) -> dict[str, Touched]:
        """Which rows changed, for those of `arrays` that change by rows."""
        return {"item_vectors": self._touched} | ({} if self._codes is None else self._codes.touched("item_vectors"))

    @classmethod
    def from_arrays(cls, settings: Graph, arrays: Mapping[str, NDArray[np.generic]]) -> GraphLearner:
        """A learner that only scores."""
        learner = cls(settings, arrays["reader.item_text.weight"].shape[1])
        learner.trained = False
        state = {
            k.removeprefix("reader."): torch.from_numpy(np.array(v))
            for k, v in arrays.items()
            if k.startswith("reader.")
        }
        learner.reader.load_state_dict(state)
        vectors = np.asarray(arrays["item_vectors"], np.float32)
        learner._columns["vector"] = vectors
        learner._codes = Codes.from_arrays(vectors.shape[1], dict(arrays), "item_vectors")
        learner.size = len(vectors)
        return learner

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning goes on from: weights, optimiser, raw messages, the open batch, RNG."""
        return {
            "memory": self.memory.state_dict(),
            "reader": self.reader.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "columns": {k: v[: self.size].copy() for k, v in self._columns.items()},
            "raw_of_user": dict(self._raw_of_user),
            "batch": [_plain(sample) for sample in self._batch],
            "log": [_plain(sample) for sample in self._log],
            "pending": list(self._pending),
            "stale": set(self._stale),
            "changed": set(self._changed),
            **({} if self._shared else {"texts": {k: v.copy() for k, v in self.texts.arrays().items()}}),
            "rng": self._rng.bit_generator.state,
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Goes on where `state_dict` was taken, to the bit."""
        self.memory.load_state_dict(state["memory"])  # type: ignore[arg-type]
        self.reader.load_state_dict(state["reader"])  # type: ignore[arg-type]
        self._optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self._columns = {k: state["columns"][k].copy() for k in self._columns}  # type: ignore[index]
        self._codes = None
        if not self._shared:
            self.texts.restore(state["texts"])  # type: ignore[arg-type]
        self.size = len(self._columns["code"])
        self._touched.everything()
        self._raw_of_user = dict(state["raw_of_user"])  # type: ignore[call-overload]
        self._batch = [_sample(fields) for fields in state["batch"]]  # type: ignore[attr-defined]
        self._pending = list(state["pending"])  # type: ignore[call-overload]
        log = (_sample(fields) for fields in state["log"])  # type: ignore[attr-defined]
        self._log = deque(log, maxlen=self.settings.rehearsal_groups)
        self._stale, self._asked = set(state["stale"]), None  # type: ignore[call-overload]
        self._changed = set(state["changed"])  # type: ignore[call-overload]
        self._rng.bit_generator.state = state["rng"]  # type: ignore[assignment]
        self.steps = int(state["steps"])  # type: ignore[call-overload]


def _plain(sample: _Sample) -> dict[str, Any]:
    """A sample as plain values and arrays, for a checkpoint."""
    view, profile = fields_of(sample.view), sample.view.profile
    view["profile"] = None if profile is None else fields_of(profile)
    return fields_of(sample) | {"view": view}


def _sample(fields: dict[str, Any]) -> _Sample:
    """What `_plain` took apart."""
    profile = fields["view"]["profile"]
    view = UserView(**fields["view"] | {"profile": None if profile is None else ProfileVectors(**profile)})
    return _Sample(**fields | {"view": view})


def as_stored(recomputed: Tensor, stored: Tensor) -> Tensor:
    """The stored memory in value, the recomputed one in gradient.

    A memory that the stream holds was written by earlier weights than those in training. The reader must learn on
    what it will read.
    """
    return recomputed + (stored - recomputed).detach()
