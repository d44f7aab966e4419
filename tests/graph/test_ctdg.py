"""The temporal graph: exact per event, equal to PyG's TGN one event at a time, and blind to cuts."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from tests.graph.t_batches import TBatches

from driftline.configs.settings import Graph
from driftline.graph.ctdg import TemporalGraph
from driftline.graph.memory import CODE_DIM, EDGE_DIM, MS_PER_DAY, GraphMemory, item_code
from driftline.stream.bench.tgn import Peer, as_pyg_has_it

SETTINGS = Graph(memory_dim=16, message_dim=12, time_dim=8)


def edit_stream(n: int, users: int, items: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 4 * 3_600_000, n))
    edges = rng.standard_normal((n, EDGE_DIM)).astype(np.float32)
    return rng.integers(0, users, n).tolist(), rng.integers(0, items, n).tolist(), t.tolist(), [0] * n, edges


def graph_of(users: int, items: int, kind: type[TemporalGraph] = TemporalGraph, settings: Graph = SETTINGS):
    graph = kind(settings)
    for _ in range(users):
        graph.add_user()
    for key in range(items):
        graph.add_item(key + 1)
    return graph


def test_memories_equal_pyg_tgn_memory_one_event_at_a_time() -> None:
    users, items, n = 12, 9, 250
    u, i, t, groups, edges = edit_stream(n, users, items)
    graph = graph_of(users, items)
    as_pyg_has_it(graph)
    peer = Peer(SETTINGS, graph)
    peer.apply(u, i, t, edges)
    graph.apply(u, i, t, groups, edges)
    assert peer.difference(graph) < 1e-5


def test_baskets_equal_pyg_tgn_memory_a_batch_at_a_time_with_mean_messages() -> None:
    items, size, n = 20, 7, 210
    u, _, t, _, edges = edit_stream(n, 12, items)
    rng, first = np.random.default_rng(4), [row // size * size for row in range(n)]
    i = np.concatenate([rng.choice(items, size, replace=False) for _ in range(n // size)]).tolist()
    u, t = [u[row] for row in first], [t[row] for row in first]
    graph = graph_of(12, items)
    as_pyg_has_it(graph)
    peer = Peer(SETTINGS, graph, mean=True)
    peer.apply(u, i, t, edges, batch=size)
    graph.apply(u, i, t, [row + 1 for row in first], edges)
    assert peer.difference(graph) < 1e-5


def test_any_cut_gives_the_same_bits() -> None:
    u, i, t, _, edges = edit_stream(700, 40, 30)
    rng = np.random.default_rng(5)
    groups = rng.integers(0, 4, 700).tolist()
    t = (np.asarray(t) // 1_800_000 * 1_800_000).tolist()  # many rows at one time stamp
    whole = graph_of(40, 30)
    whole.apply(u, i, t, groups, edges)
    for _ in range(3):
        cut = graph_of(40, 30)
        places = [0, *sorted(rng.choice(np.arange(1, 700), 20, replace=False).tolist()), 700]
        for a, b in itertools.pairwise(places):
            cut.apply(u[a:b], i[a:b], t[a:b], groups[a:b], edges[a:b])
        for name in ("memory", "pre", "message_sum", "message_count", "last_update_ms"):
            assert cut.users[name].tobytes() == whole.users[name].tobytes(), name
        assert cut.items["memory"].tobytes() == whole.items["memory"].tobytes()


def hub_stream(n: int, users: int, items: int):
    u, _, t, groups, edges = edit_stream(n, users, items)
    rng = np.random.default_rng(3)
    return u, np.minimum(rng.zipf(1.3, n) - 1, items - 1).tolist(), t, groups, edges


def basket_stream(n: int, users: int, items: int):
    u, i, t, _, edges = edit_stream(n, users, items)
    first = [row // 7 * 7 for row in range(n)]
    return [u[row] for row in first], i, [t[row] for row in first], [row + 1 for row in first], edges


@pytest.mark.parametrize("stream", [edit_stream, hub_stream, basket_stream])
@pytest.mark.parametrize("update_items", [True, False])
def test_one_event_after_the_other_equals_t_batches(stream, update_items: bool) -> None:
    rows = stream(900, 40, 30)
    ours, oracle = graph_of(40, 30), graph_of(40, 30, TBatches)
    for start in range(0, 900, 300):
        part = [column[start : start + 300] for column in rows]
        pre = ours.apply(*part, update_items)
        np.testing.assert_allclose(pre, oracle.apply(*part, update_items), atol=1e-5)
    for side in ("users", "items"):
        for name, column in getattr(oracle, side).columns.items():
            np.testing.assert_allclose(getattr(ours, side)[name], column, atol=1e-5, err_msg=name)


def test_the_items_half_of_events_equals_t_batches_and_the_whole_rule() -> None:
    u, i, t, groups, edges = hub_stream(400, 20, 15)
    whole, half, oracle = graph_of(20, 15), graph_of(20, 15), graph_of(20, 15, TBatches)
    pre = whole.apply(u, i, t, groups, edges)
    half.apply_items(i[:111], t[:111], pre[:111], edges[:111])
    half.apply_items(i[111:], t[111:], pre[111:], edges[111:])
    oracle.apply_items(i, t, pre, edges)
    for name in ("memory", "last_update_ms"):
        assert half.items[name].tobytes() == whole.items[name].tobytes()
        np.testing.assert_allclose(half.items[name], oracle.items[name], atol=1e-5)


@pytest.mark.parametrize("dims", [(4, 4, 2), (7, 5, 3), (33, 18, 9), (65, 40, 16)])
def test_any_width_equals_t_batches(dims: tuple[int, int, int]) -> None:
    settings = Graph(memory_dim=dims[0], message_dim=dims[1], time_dim=dims[2])
    rows = edit_stream(200, 9, 9)
    graphs = [graph_of(9, 9, kind, settings) for kind in (TemporalGraph, TBatches)]
    pre = [graph.apply(*rows) for graph in graphs]
    np.testing.assert_allclose(pre[0], pre[1], atol=1e-5)
    np.testing.assert_allclose(graphs[0].users["memory"], graphs[1].users["memory"], atol=1e-5)
    np.testing.assert_allclose(graphs[0].items["memory"], graphs[1].items["memory"], atol=1e-5)


def test_a_memory_does_not_depend_on_the_processor() -> None:
    """Fixed bits: sums of one order and functions of our own give the same on every machine."""
    graph, rng = graph_of(5, 5), np.random.default_rng(2)
    weights = {
        name: (rng.integers(-64, 64, w.shape) / 256).astype(np.float32) for name, w in graph.model.arrays.items()
    }
    graph.model = GraphMemory(graph.model.settings, weights)
    rows = basket_stream(120, 5, 5)
    graph.items["code"][:5] = rng.integers(-64, 64, (5, CODE_DIM)) / 64
    graph.apply(*rows[:4], (rng.integers(-64, 64, (120, EDGE_DIM)) / 64).astype(np.float32))
    bits = graph.users["memory"].tobytes() + graph.items["memory"].tobytes()
    assert hashlib.sha256(bits).hexdigest()[:16] == "dca1b5e9bdb7efcb"


def test_another_version_is_read_from_where_it_is_set() -> None:
    rows = edit_stream(50, 5, 5)
    ours, oracle = graph_of(5, 5), graph_of(5, 5, TBatches)
    for graph in (ours, oracle):
        graph.apply(*rows)
        arrays = graph.model.arrays
        turned = {"user.memory_updater.weight_hh": -arrays["user.memory_updater.weight_hh"]}
        graph.model = GraphMemory(graph.model.settings, arrays | turned | {"item.time.b": arrays["item.time.b"] + 1})
        graph.apply(*rows)
    np.testing.assert_allclose(ours.users["memory"], oracle.users["memory"], atol=1e-5)
    np.testing.assert_allclose(ours.items["memory"], oracle.items["memory"], atol=1e-5)


def test_times_of_twenty_years_and_of_nothing_are_encoded_as_torch_does() -> None:
    rows = ([0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 20 * 365 * MS_PER_DAY, 20 * 365 * MS_PER_DAY], [0] * 4)
    edges = np.ones((4, EDGE_DIM), np.float32)
    ours, oracle = graph_of(2, 2), graph_of(2, 2, TBatches)
    np.testing.assert_allclose(ours.apply(*rows, edges), oracle.apply(*rows, edges), atol=1e-5)
    np.testing.assert_allclose(ours.users["memory"], oracle.users["memory"], atol=1e-5)


def test_memories_at_their_bounds_stay_finite() -> None:
    graph, oracle = graph_of(2, 2), graph_of(2, 2, TBatches)
    edges = np.full((4, EDGE_DIM), 1e4, np.float32) * np.array([[1], [-1], [1], [-1]], np.float32)
    for one in (graph, oracle):
        one.apply([0, 1, 0, 1], [0, 0, 1, 1], [1, 2, 3, 4], [0] * 4, edges)
    assert np.isfinite(graph.users["memory"]).all()
    np.testing.assert_allclose(graph.users["memory"], oracle.users["memory"], atol=1e-5)


def test_rows_of_a_group_read_the_user_from_before_the_group() -> None:
    edges = np.ones((3, EDGE_DIM), np.float32)
    graph = graph_of(1, 3)
    graph.apply([0, 0, 0], [0, 1, 2], [5, 5, 5], [77, 77, 77], edges)
    reverse = graph_of(1, 3)
    reverse.apply([0, 0, 0], [2, 1, 0], [5, 5, 5], [77, 77, 77], edges)
    assert graph.items["memory"][:3].tobytes() == reverse.items["memory"][:3].tobytes()
    np.testing.assert_allclose(graph.users["memory"][0], reverse.users["memory"][0], atol=1e-7)
    apart = graph_of(1, 3)
    apart.apply([0, 0, 0], [0, 1, 2], [5, 5, 5], [0, 0, 0], edges)
    assert not np.allclose(apart.users["memory"][0], graph.users["memory"][0])


def test_item_codes_are_normal_vectors_drawn_from_the_id() -> None:
    for key in (12345, 1, 2**63 + 5, 2**64 - 1, 12345):
        fresh = np.random.Generator(np.random.Philox(key=key)).standard_normal(CODE_DIM, np.float32)
        assert item_code(key).tobytes() == fresh.tobytes()
    assert item_code(12345).shape == (CODE_DIM,)
    many = np.stack([item_code(key) for key in range(1, 500)])
    assert abs(float(many.std()) - 1) < 0.02
    assert abs(float(np.corrcoef(many[0], many[1])[0, 1])) < 0.7


def test_times_past_2_to_the_31_milliseconds_stay_exact() -> None:
    graph = graph_of(1, 1)
    start = 1_700_000_000_123
    graph.apply([0, 0], [0, 0], [start, start + 1], [0, 0], np.zeros((2, EDGE_DIM), np.float32))
    assert graph.users["last_update_ms"][0] == start + 1
    assert graph.items["last_update_ms"][0] == start + 1
