"""The temporal graph: exact per event, equal to PyG's TGN one event at a time, and blind to cuts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.nn.models.tgn import LastAggregator, TGNMemory

import graph.memory
from configs.settings import Graph
from graph.ctdg import TemporalGraph
from graph.memory import CODE_DIM, EDGE_DIM, MS_PER_DAY, TILE, GraphMemory, item_code

SETTINGS = Graph(memory_dim=16, message_dim=12, time_dim=8)


def edit_stream(n: int, users: int, items: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 4 * 3_600_000, n))
    edges = rng.standard_normal((n, EDGE_DIM)).astype(np.float32)
    return rng.integers(0, users, n).tolist(), rng.integers(0, items, n).tolist(), t.tolist(), [0] * n, edges


def graph_of(users: int, items: int) -> TemporalGraph:
    graph = TemporalGraph(SETTINGS)
    for _ in range(users):
        graph.add_user()
    for key in range(items):
        graph.add_item(key + 1)
    return graph


class OurMessages(nn.Module):
    """The message function of one side behind PyG's interface; column 0 of the raw message is the item."""

    def __init__(self, model: GraphMemory, codes: torch.Tensor, to_users: bool) -> None:
        super().__init__()
        self.side, self.codes, self.to_users = model.user if to_users else model.item, codes, to_users
        self.out_channels = SETTINGS.message_dim

    def forward(self, z_src, z_dst, raw_msg, t_enc):
        code, edge = self.codes[raw_msg[:, 0].long()], raw_msg[:, 1:]
        parts = (z_src, z_dst, code, edge) if self.to_users else (z_src, z_dst, edge)
        return self.side.message_function(torch.cat((*parts, t_enc), 1))


class DayEncoder(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.out_channels = encoder, SETTINGS.time_dim
        self.lin = nn.Linear(1, 1)  # PyG asks it for the device

    def reset_parameters(self) -> None:
        """PyG calls it; ours keeps its weights."""

    def forward(self, dt):
        return self.encoder((dt.double().view(-1, 1) / MS_PER_DAY).float())


def test_memories_equal_pyg_tgn_memory_one_event_at_a_time() -> None:
    users, items, n = 12, 9, 250
    u, i, t, groups, edges = edit_stream(n, users, items)
    graph = graph_of(users, items)
    # PyG has one updater and one clock for all nodes, and starts every node's clock at zero
    graph.model.item.memory_updater.load_state_dict(graph.model.user.memory_updater.state_dict())
    graph.model.item.time.load_state_dict(graph.model.user.time.state_dict())
    graph.users["last_update_ms"][:] = 0
    graph.items["last_update_ms"][:] = 0
    codes = torch.from_numpy(np.stack([item_code(k + 1) for k in range(items)]))
    to_users, to_items = OurMessages(graph.model, codes, True), OurMessages(graph.model, codes, False)
    oracle = TGNMemory(users + items, 1 + EDGE_DIM, 16, 8, message_module=to_users, aggregator_module=LastAggregator())
    oracle.msg_s_module, oracle.msg_d_module = to_users, to_items
    oracle.time_enc = DayEncoder(graph.model.user.time)
    oracle.gru.load_state_dict(graph.model.user.memory_updater.state_dict())
    oracle.eval()
    oracle.reset_state()  # switching to eval runs the updater on every node once
    with torch.no_grad():
        for row in range(n):
            raw = torch.cat((torch.tensor([float(i[row])]), torch.from_numpy(edges[row])))[None]
            src, dst = torch.tensor([u[row]]), torch.tensor([users + i[row]])
            oracle.update_state(src, dst, torch.tensor([t[row]]), raw)
    graph.apply(u, i, t, groups, edges)
    theirs = oracle.memory.detach().numpy()
    np.testing.assert_allclose(graph.users["memory"][:users], theirs[:users], atol=1e-5)
    np.testing.assert_allclose(graph.items["memory"][:items], theirs[users:], atol=1e-5)


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


@pytest.mark.parametrize("width", [4, 7, 8, 16, 32])
@pytest.mark.parametrize("alone", [False, True])
def test_a_row_of_a_tile_has_the_same_bits_in_any_place_and_company(
    width: int, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if alone:  # as on a processor that rounds by place
        monkeypatch.setattr(graph.memory, "_same_in_every_place", lambda function, width: False)
    model = GraphMemory(SETTINGS.model_copy(update={"message_dim": width}))
    rows = np.random.default_rng(0).standard_normal((3 * TILE + 5, model.user.dim_in + 1)).astype(np.float32)
    together = model.user.tiled("messages", rows)
    order = np.random.default_rng(1).permutation(len(rows))
    assert model.user.tiled("messages", rows[order]).tobytes() == together[order].tobytes()
    assert model.user.tiled("messages", rows[7:8]).tobytes() == together[7:8].tobytes()


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
    assert item_code(12345).tobytes() == item_code(12345).tobytes()
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
