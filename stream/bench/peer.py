"""The graph beside PyTorch Geometric: speed and agreement on streams of four kinds, and who knows the last neighbours.

Each stream goes through the graph as a worker's epochs would, and a first part of it through PyG with the same weights,
one event at a time (a basket at a time where there are baskets), on one thread each, in the same run and by the
processor's clock. In batches of 200 PyG lets events read memories from before the batch: what that costs in agreement
stands beside its speed.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.nn.models.tgn import LastNeighborLoader

from driftline.configs.settings import Graph, Settings
from driftline.graph.arrays import Float32
from driftline.graph.chunks import whole_users
from driftline.graph.ctdg import TemporalGraph
from driftline.graph.memory import EDGE_DIM
from driftline.graph.rows import Event, decode_item, decode_user, key64
from driftline.stream.bench.tgn import Peer, as_pyg_has_it
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import MemoryStore

USERS, ITEMS = 8000, 1000  # as many as edit Wikipedia's most edited pages in a month
PEER_SHARE = 25
"""Of so many events PyG gets one; of baskets, ten."""
EPOCH, BATCH, BASKET, ZIPF = 512, 200, 20, 1.3
SINGLE = 2000
K = 10
SECOND_MS = 1000


@dataclass(frozen=True, slots=True)
class Stream:
    """Events of a kind, [n] each."""

    users: list[int]
    items: list[int]
    t_ms: list[int]
    groups: list[int]
    edges: Float32

    def part(self, start: int, end: int) -> tuple[Any, ...]:
        """Arguments of `TemporalGraph.apply`."""
        rows = slice(start, end)
        return self.users[rows], self.items[rows], self.t_ms[rows], self.groups[rows], self.edges[rows]


def edits(n: int) -> Stream:
    """Single events, users half of the time at the item that they were at before, as who edits a page does."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, USERS, n)
    items = rng.integers(0, ITEMS, n)
    last: dict[int, int] = {}
    for row in np.flatnonzero(rng.random(n) < 0.5).tolist():
        items[row] = last.setdefault(int(users[row]), int(items[row]))
    return _stream(users, items, np.arange(n) * SECOND_MS, np.zeros(n, np.int64))


def hubs(n: int) -> Stream:
    """Single events whose items follow a Zipf law: one in four or so meets the same item."""
    rng = np.random.default_rng(1)
    items = np.minimum(rng.zipf(ZIPF, n) - 1, ITEMS - 1)
    return _stream(rng.integers(0, USERS, n), items, np.arange(n) * SECOND_MS, np.zeros(n, np.int64))


def baskets(n: int) -> Stream:
    """Groups of BASKET different items."""
    rng, first = np.random.default_rng(2), np.arange(n) // BASKET
    items = np.concatenate([rng.choice(ITEMS, BASKET, replace=False) for _ in range(-(-n // BASKET))])[:n]
    return _stream(rng.integers(0, USERS, n)[first * BASKET], items, first * SECOND_MS * BASKET, first + 1)


def beside_pyg(settings: Graph, events: int) -> dict[str, Any]:
    """Rates and agreement by kind of stream of so many events."""
    kinds: dict[str, tuple[Callable[[int], Stream], tuple[int, bool]]] = {
        "per_event": (edits, (1, False)),
        "batch_200": (edits, (BATCH, False)),
        "hub": (hubs, (1, False)),
        "baskets": (baskets, (BASKET, True)),
    }
    figures: dict[str, Any] = {name: _compared(settings, make(events), *how) for name, (make, how) in kinds.items()}
    return figures | {"insert_ms": _single(settings)}


def wrong_last_k(settings: Settings, events: int) -> dict[str, Any]:
    """Nodes whose last K neighbours are not the last K: in a processor's rows, and in PyG's loader at batch 200."""
    stream = hubs(events)
    truth: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=K))
    loader: Any = LastNeighborLoader(USERS + ITEMS, K)
    for user, item in zip(stream.users, stream.items, strict=True):
        truth[user].append(USERS + item)
        truth[USERS + item].append(user)
    nodes = (torch.tensor(stream.users), torch.tensor(stream.items) + USERS)
    for part in zip(*(torch.split(column, BATCH) for column in nodes), strict=True):
        loader.insert(*part)
    names = {USERS + item: key64(f"i{item}") for item in range(ITEMS)} | {u: key64(f"u{u}") for u in range(USERS)}
    held = _held(settings, stream)
    ours = sum(held[names[node]][-K:] != [names[other] for other in last] for node, last in truth.items())
    theirs = sum(_neighbours(loader, node) != sorted(last) for node, last in truth.items())
    return {"nodes": len(truth), "ours": ours, "pyg": theirs}


def _compared(settings: Graph, stream: Stream, batch: int, mean: bool) -> dict[str, Any]:
    """One kind of stream: all of it through the graph for the rate, its first events through both."""
    graph = _graph(settings)
    seconds = min(_timed(lambda: _run(_graph(settings), stream, len(stream.users))) for _ in range(3))
    as_pyg_has_it(graph)
    peer, n = Peer(settings, graph, mean), len(stream.users) // PEER_SHARE * (1 if batch == 1 else 10)
    _run(graph, stream, n)
    rows = (stream.users[:n], stream.items[:n], stream.t_ms[:n], stream.edges[:n])
    peer_s = _timed(lambda: peer.apply(*rows, batch=batch))
    ours, theirs = len(stream.users) / seconds, n / peer_s
    return {
        "ours_eps": round(ours),
        "pyg_eps": round(theirs),
        "ratio": round(ours / theirs, 1),
        "max_abs_diff": peer.difference(graph),
    }


def _single(settings: Graph) -> dict[str, float]:
    graph, stream, times_ms = _graph(settings), edits(SINGLE), []
    for row in range(SINGLE):
        times_ms.append(1000 * _timed(lambda row=row: graph.apply(*stream.part(row, row + 1))))  # type: ignore[misc]
    return {f"p{q}": round(float(np.percentile(times_ms, q)), 4) for q in (50, 99)}


def _run(graph: TemporalGraph, stream: Stream, n: int) -> None:
    for start in range(0, n, EPOCH):
        graph.apply(*stream.part(start, min(start + EPOCH, n)))


def _timed(call: Callable[[], Any]) -> float:
    started = time.process_time()  # one thread does all: who else is on the machine changes the ratio less
    call()
    return time.process_time() - started


def _graph(settings: Graph) -> TemporalGraph:
    graph = TemporalGraph(settings)
    for _ in range(USERS):
        graph.add_user()
    for item in range(ITEMS):
        graph.add_item(key64(f"i{item}"))
    return graph


def _held(settings: Settings, stream: Stream) -> dict[int, list[int]]:
    """Last neighbours by key64 as the rows of a processor hold them."""
    store = MemoryStore()
    processor, rows = Processor(settings, store), zip(stream.users, stream.items, stream.t_ms, strict=True)
    log = [Record(n, Event(f"u{user}", f"i{item}", t)) for n, (user, item, t) in enumerate(rows)]
    for start in range(0, len(log), EPOCH):
        processor.commit(processor.apply(log[start : start + EPOCH]))
    users = [decode_user(value) for _, value in whole_users(store)]
    items = [decode_item(value) for _, value in store.scan(b"i:")]
    held = {key64(row.user_id): row.events_array()["item"].tolist() for row in users}
    return held | {key64(row.item_id): np.frombuffer(row.ring, "<u8")[::2].tolist() for row in items}


def _neighbours(loader: Any, node: int) -> list[int]:
    return sorted(loader.neighbors[node][loader.e_id[node] >= 0].tolist())


def _stream(users: NDArray[Any], items: NDArray[Any], t_ms: NDArray[Any], groups: NDArray[Any]) -> Stream:
    edges = np.random.default_rng(3).standard_normal((len(users), EDGE_DIM)).astype(np.float32)
    return Stream(users.tolist(), items.tolist(), t_ms.tolist(), groups.tolist(), edges)
