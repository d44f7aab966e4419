"""PyTorch Geometric's TGN with our weights: what memories have to be, one event at a time, and how fast it is there.

PyG has one updater and one clock for all nodes, starts every clock at zero and counts whole numbers of time; a graph
that is to be compared with it is made so by `as_pyg_has_it`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn.models.tgn import LastAggregator, MeanAggregator, TGNMemory

from driftline.configs.settings import Graph
from driftline.graph.arrays import Float32
from driftline.graph.ctdg import TemporalGraph
from driftline.graph.memory import EDGE_DIM, MS_PER_DAY, GraphMemory
from driftline.graph.memory_net import MemoryNet


class _Messages(nn.Module):
    """The message function of one side behind PyG's interface; column 0 of the raw message is the item."""

    def __init__(self, model: MemoryNet, codes: Tensor, to_users: bool) -> None:
        super().__init__()
        self.side, self.codes, self.to_users = model.user if to_users else model.item, codes, to_users
        self.out_channels = model.settings.message_dim

    def forward(self, z_src: Tensor, z_dst: Tensor, raw_msg: Tensor, t_enc: Tensor) -> Tensor:
        """Messages [B, G]."""
        code, edge = self.codes[raw_msg[:, 0].long()], raw_msg[:, 1:]
        parts = (z_src, z_dst, code, edge) if self.to_users else (z_src, z_dst, edge)
        messages: Tensor = self.side.message_function(torch.cat((*parts, t_enc), 1))
        return messages


class _Days(nn.Module):
    """The time encoder behind PyG's interface."""

    def __init__(self, encoder: nn.Module, dim: int) -> None:
        super().__init__()
        self.encoder, self.out_channels = encoder, dim
        self.lin = nn.Linear(1, 1)  # PyG asks it for the device

    def reset_parameters(self) -> None:
        """PyG calls it; ours keeps its weights."""

    def forward(self, dt: Tensor) -> Tensor:
        """Encodes [B] whole milliseconds."""
        encoded: Tensor = self.encoder((dt.double().view(-1, 1) / MS_PER_DAY).float())
        return encoded


def as_pyg_has_it(graph: TemporalGraph) -> None:
    """Gives both sides one updater and one clock, and lets every clock start at zero."""
    arrays = graph.model.arrays
    shared = [name for name in arrays if name.startswith(("item.memory_updater.", "item.time."))]
    users = {name: arrays[name.replace("item.", "user.", 1)] for name in shared}
    graph.model = GraphMemory(graph.model.settings, arrays | users)
    graph.users["last_update_ms"][:] = 0
    graph.items["last_update_ms"][:] = 0


class Peer:
    """PyG's memory of a graph's nodes, users first.

    Args:
        settings: of the graph.
        graph: after `as_pyg_has_it`, before its first event.
        mean: messages of a batch to one node are averaged, which makes a batch a group; else the last one counts.
    """

    def __init__(self, settings: Graph, graph: TemporalGraph, mean: bool = False) -> None:
        self.users, items = graph.users.size, graph.items.size
        codes = torch.from_numpy(graph.items["code"][:items].copy())
        model = MemoryNet(graph.model)
        to_users, to_items = _Messages(model, codes, True), _Messages(model, codes, False)
        aggregator = MeanAggregator() if mean else LastAggregator()
        memory: Any = TGNMemory(
            self.users + items, 1 + EDGE_DIM, settings.memory_dim, settings.time_dim, to_users, aggregator
        )
        memory.msg_s_module, memory.msg_d_module = to_users, to_items
        memory.time_enc = _Days(model.user.time, settings.time_dim)
        memory.gru.load_state_dict(model.user.memory_updater.state_dict())
        memory.eval()
        memory.reset_state()  # switching to eval runs the updater on every node once
        self._memory = memory

    @torch.no_grad()
    def apply(self, users: list[int], items: list[int], t_ms: list[int], edges: Float32, batch: int = 1) -> None:
        """Applies events in batches of so many rows."""
        item = torch.tensor(items)
        raw = torch.cat((item[:, None].float(), torch.from_numpy(edges)), 1)
        rows = (torch.tensor(users), item + self.users, torch.tensor(t_ms), raw)
        for part in zip(*(torch.split(column, batch) for column in rows), strict=True):
            self._memory.update_state(*part)

    def difference(self, graph: TemporalGraph) -> float:
        """Largest difference of any element of any memory."""
        ours = np.concatenate((graph.users["memory"][: self.users], graph.items["memory"][: graph.items.size]))
        return float(np.abs(self._memory.memory.detach().numpy() - ours).max())
