"""The trained graph: next-link loss for the message functions, time encoders, updaters and the reader.

The learner watches the groups that a `TemporalGraph` applies. What it keeps of a node is its last raw message and
the memory from before it, so that a training step can recompute the memory with the weights that are being trained
(truncated back-propagation through one update, as TGN trains). A step sees the items as they were before the first
new group of its batch: nothing of a new target is in what scores it. A replayed sample sees the items of that same
moment, and so what its own event left in them; scoring never does.

Source: TGN (arXiv 2006.10637, section 3.2 and algorithm 1). Departures: softmax over all seen items while they are
few, else over shared uniform negatives; several positives in one group share the loss.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from configs.settings import Graph
from graph.ctdg import TemporalGraph, elapsed_days
from graph.embed import GraphReader
from graph.memory import CODE_DIM, EDGE_DIM, MS_PER_DAY, Float32, GraphMemory, edge_features, item_code
from graph.rows import key64
from graph.view import Group, UserView

ROWS = 20
"""Rows of a user's last group that its memory is recomputed from."""
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


class GraphLearner:
    """Trains a `GraphMemory` and its `GraphReader` on the stream; scores with them.

    Arrays are over the engine's item table. Call `before` ahead of applying a group, `after` behind it.
    """

    def __init__(self, settings: Graph, text_dim: int) -> None:
        self.settings, self.text_dim = settings, text_dim
        self.memory = GraphMemory(settings)
        self.reader = GraphReader(settings, text_dim)
        self.trained = settings.weights == "trained"
        parameters = [*self.memory.parameters(), *self.reader.parameters()]
        self._optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
        self._rng = np.random.default_rng(settings.seed)
        self._raw_of_user: dict[str, tuple[Float32, Float32]] = {}
        self._batch: list[_Sample] = []
        self._log: deque[_Sample] = deque(maxlen=settings.replay_groups)
        self._pending: list[tuple[NDArray[np.int32], Float32, Float32]] = []
        self.size = 0
        self._columns: dict[str, Float32] = {
            "memory": np.zeros((0, settings.memory_dim), np.float32),
            "code": np.zeros((0, CODE_DIM), np.float32),
            "text": np.zeros((0, text_dim), np.float32),
            "then": np.zeros((0, settings.memory_dim), np.float32),  # memory when the open batch began
            "before": np.zeros((0, settings.memory_dim), np.float32),  # memory before the last raw message
            "raw": np.zeros((0, self.memory.item.dim_in + 1), np.float32),
            "vector": np.zeros((0, settings.embed_dim), np.float32),
        }
        self._stale: set[int] = set()
        self.steps = 0
        self.loss = 0.0

    # -- what the engine reads ---------------------------------------------------------------------------------

    def user_vector(self, view: UserView, now_ms: int) -> Float32:
        """[D] float32: the query of one user at a request time, without its profile."""
        with torch.inference_mode():
            memory = view.memory if len(view.memory) else np.zeros(self.settings.memory_dim, np.float32)
            near = np.unique(view.items[view.items >= 0][-self.settings.neighbors :]).astype(np.int64)
            vectors = torch.from_numpy(self.item_matrix()[near])
            return self._queries([view], [now_ms], torch.from_numpy(memory)[None], vectors, near)[0].numpy()

    def fused_vector(self, query: Float32, facets: Float32) -> Float32:
        """[D] float32: a query joined with profile facets [4, X]."""
        with torch.inference_mode():
            return self.reader.fuse(torch.from_numpy(query)[None], torch.from_numpy(facets)[None])[0].numpy()

    def item_matrix(self) -> Float32:
        """[N, D] float32: vectors of all items, current to the last applied group."""
        if self._stale:
            rows = np.fromiter(self._stale, np.int64, len(self._stale))
            with torch.inference_mode():
                columns = (torch.from_numpy(self._columns[name][rows]) for name in ("memory", "code", "text"))
                self._columns["vector"][rows] = self.reader.items(*columns).numpy()
            self._stale.clear()
        return self._columns["vector"][: self.size]

    # -- what the driver calls ---------------------------------------------------------------------------------

    def add_item(self, index: int, item_id: str, text: Float32 | None = None) -> None:
        """Makes room for an item of the table, or gives it its text vector [X]."""
        while len(self._columns["code"]) <= index:
            for name, column in self._columns.items():
                more = np.zeros((max(64, len(column)), column.shape[1]), np.float32)
                self._columns[name] = np.concatenate((column, more))
        if index >= self.size:
            self.size = index + 1
        self._columns["code"][index] = item_code(key64(item_id))
        if text is not None:
            self._columns["text"][index] = text
        self._stale.add(index)

    def before(
        self,
        graph: TemporalGraph,
        user: int,
        nodes: NDArray[np.int64],
        view: UserView,
        group: Group,
        sample: bool = True,
    ) -> None:
        """Keeps what a group's rows will read; takes the group as a sample.

        Args:
            graph: not yet changed by the group.
            user: the user's node, -1 for a new one.
            nodes: [b] item nodes of the group, -1 for new ones.
            view: the user's view before the group.
            group: with table indices.
            sample: False = the group is not learnt from.
        """
        dim = self.settings.memory_dim
        pre = graph.users["memory"][user].copy() if user >= 0 else np.zeros(dim, np.float32)
        last_ms = int(graph.users["last_update_ms"][user]) if user >= 0 else -1
        known = (nodes >= 0)[:, None]
        memory = np.where(known, graph.items["memory"][nodes], np.float32(0))
        item_last = np.where(nodes >= 0, graph.items["last_update_ms"][nodes], -1)
        t = np.full(len(nodes), group.t_ms, np.int64)
        edges = edge_features(group.weight, group.value, group.price)
        if sample and self.trained and len(view.items) and group.positive.any():
            old_pre, old_raw = self._raw_of_user.get(group.user_id, (pre, np.zeros((0, 0), np.float32)))
            self._batch.append(_Sample(view, group.t_ms, old_pre, old_raw, np.unique(group.items[group.positive])))
        pre_rows = np.repeat(pre[None], len(nodes), 0)
        days = elapsed_days(t, np.full(len(nodes), last_ms))
        to_user = np.concatenate((pre_rows, memory, self._columns["code"][group.items], edges, days), 1)
        self._raw_of_user.pop(group.user_id, None)
        self._raw_of_user[group.user_id] = (pre, to_user[:ROWS])
        while len(self._raw_of_user) > USERS:
            del self._raw_of_user[next(iter(self._raw_of_user))]
        to_item = np.concatenate((memory, pre_rows, edges, elapsed_days(t, item_last)), 1)
        self._pending.append((group.items, memory, to_item))

    def after(self, graph: TemporalGraph, nodes: NDArray[np.int64], group: Group) -> None:
        """Takes the items' new memories; learns when a batch of groups is full."""
        self._columns["memory"][group.items] = graph.items["memory"][nodes]
        if len(self._batch) >= self.settings.batch_groups:
            self._step()
        if not self._batch:
            for items, memory, raw in self._pending:
                self._columns["before"][items], self._columns["raw"][items] = memory, raw
                self._columns["then"][items] = self._columns["memory"][items]
            self._pending.clear()
        self._stale.update(group.items.tolist())

    def freeze(self) -> None:
        """Drops the samples that wait for a step: none will come."""
        self._batch.clear()

    # -- training ----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        batch, self._batch = self._batch + self._replayed(), []
        views, now_ms = [s.view for s in batch], [s.now_ms for s in batch]
        pool, targets = self._pool(batch)
        item_vectors = self._recomputed_items(pool)
        queries = self._queries(views, now_ms, self._recomputed_users(batch), item_vectors, pool)
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
        self.steps += 1
        self.loss = 0.99 * self.loss + 0.01 * float(loss.detach()) if self.steps > 1 else float(loss.detach())
        self._stale.update(range(self.size))

    def _replayed(self) -> list[_Sample]:
        """Earlier samples that join the new ones of a step; these join the log."""
        drawn = self._rng.integers(0, len(self._log), self.settings.replayed) if self._log else ()
        replayed = [self._log[n] for n in drawn]
        self._log.extend(self._batch)
        return replayed

    def _pool(self, batch: list[_Sample]) -> tuple[NDArray[np.int64], Tensor]:
        """Items [P] that a step's softmax runs over, and the targets [B, P], rows summing to 1."""
        wanted = np.unique(np.concatenate([s.targets for s in batch])).astype(np.int64)
        if self.size <= self.settings.full_softmax:
            pool = np.arange(self.size)
        else:
            near = [s.view.items[np.flatnonzero(s.view.items >= 0)[-self.settings.neighbors :]] for s in batch]
            drawn = self._rng.integers(0, self.size, self.settings.negatives)
            pool = np.unique(np.concatenate([wanted, drawn, *near])).astype(np.int64)
        targets = torch.zeros(len(batch), len(pool))
        for row, sample in enumerate(batch):
            targets[row, np.searchsorted(pool, sample.targets)] = 1 / len(sample.targets)
        return pool, targets

    def _recomputed_items(self, pool: NDArray[np.int64]) -> Tensor:
        names = ("raw", "before", "then", "code", "text")
        raw, before, then, code, text = (torch.from_numpy(self._columns[name][pool]) for name in names)
        memory = self.memory.item.update(torch.cat((self.memory.item.messages(raw), before), 1))
        seen = raw.abs().sum(1, keepdim=True) > 0
        return self.reader.items(torch.where(seen, as_stored(memory, then), then), code, text)

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
        count, k = len(views), self.settings.neighbors
        items = np.full((count, k), pool[0] if len(pool) else 0, np.int64)
        age, edges = np.zeros((count, k), np.float32), np.zeros((count, k, EDGE_DIM), np.float32)
        mask, idle = np.zeros((count, k), bool), np.zeros(count, np.float32)
        for row, (view, now) in enumerate(zip(views, now_ms, strict=True)):
            last = np.flatnonzero(view.items >= 0)[-k:]
            n = len(last)
            items[row, :n], mask[row, :n] = view.items[last], True
            age[row, :n] = (now - view.t_ms[last]) / MS_PER_DAY
            edges[row, :n] = edge_features(view.weight[last], view.value[last], view.price[last])
            idle[row] = (now - view.last_update_ms) / MS_PER_DAY if view.last_update_ms >= 0 else 0
        if not len(pool):
            vectors = torch.zeros(1, self.settings.embed_dim)
        chosen = vectors[np.searchsorted(pool, items)] * torch.from_numpy(mask)[:, :, None]
        arrays = (torch.from_numpy(a) for a in (age, edges, mask))
        return self.reader.users(memory, torch.from_numpy(idle), chosen, *arrays)

    def _loss(self, queries: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        return -(functional.log_softmax(queries @ items.T, 1) * targets).sum(1).mean()

    # -- checkpoints and snapshots -----------------------------------------------------------------------------

    def version(self) -> GraphMemory:
        """A copy of the memory functions as they are now, for a worker to adopt."""
        copy = GraphMemory(self.settings)
        copy.load_state_dict(self.memory.state_dict())
        return copy

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Reader weights and item columns, for a serving snapshot: `from_arrays` reads them."""
        weights = {f"reader.{k}": v.detach().numpy().copy() for k, v in self.reader.state_dict().items()}
        return {**weights, "item_vectors": self.item_matrix().copy()}

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
        learner.size = len(vectors)
        return learner

    def state_dict(self) -> dict[str, object]:
        """Everything that learning goes on from: weights, optimiser, raw messages, the open batch, RNG."""
        return {
            "memory": self.memory.state_dict(),
            "reader": self.reader.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "columns": {k: v[: self.size].copy() for k, v in self._columns.items()},
            "raw_of_user": dict(self._raw_of_user),
            "batch": list(self._batch),
            "log": list(self._log),
            "pending": list(self._pending),
            "stale": set(self._stale),
            "rng": self._rng.bit_generator.state,
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Goes on where `state_dict` was taken, to the bit."""
        self.memory.load_state_dict(state["memory"])  # type: ignore[arg-type]
        self.reader.load_state_dict(state["reader"])  # type: ignore[arg-type]
        self._optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self._columns = {k: v.copy() for k, v in state["columns"].items()}  # type: ignore[attr-defined]
        self.size = len(self._columns["code"])
        self._raw_of_user = dict(state["raw_of_user"])  # type: ignore[call-overload]
        self._batch, self._pending = list(state["batch"]), list(state["pending"])  # type: ignore[call-overload]
        self._log = deque(state["log"], maxlen=self.settings.replay_groups)  # type: ignore[call-overload]
        self._stale = set(state["stale"])  # type: ignore[call-overload]
        self._rng.bit_generator.state = state["rng"]  # type: ignore[assignment]
        self.steps = int(state["steps"])  # type: ignore[call-overload]


def as_stored(recomputed: Tensor, stored: Tensor) -> Tensor:
    """The stored memory in value, the recomputed one in gradient.

    A memory that the stream holds was written by earlier weights than those in training. The reader must learn on
    what it will read.
    """
    return recomputed + (stored - recomputed).detach()
