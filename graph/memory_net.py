"""The learnt functions of the continuous-time dynamic graph in training; what they mean stands in `graph/memory.py`.

Dimension keys: B rows, M memory_dim, G message_dim, T time_dim, C CODE_DIM, E EDGE_DIM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from driftline.configs.settings import Graph
from driftline.graph.memory import CODE_DIM, EDGE_DIM, GraphMemory, frequencies


class TimeEncoder(nn.Module):
    """Harmonic encoding of an elapsed time: cos(w dt + b), at the start with `graph.memory.frequencies`."""

    def __init__(self, settings: Graph) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(frequencies(settings)))
        self.b = nn.Parameter(torch.zeros(settings.time_dim))

    def forward(self, dt_days: Tensor) -> Tensor:
        """Encodes [B, 1] float32 days as [B, T]."""
        return torch.cos(dt_days * self.w + self.b)


class SideNet(nn.Module):
    """Message function and memory updater of one side, users or items."""

    def __init__(self, settings: Graph, other_dim: int) -> None:
        super().__init__()
        self.time = TimeEncoder(settings)
        self.dim_in = settings.memory_dim + other_dim + EDGE_DIM
        self.message_function = nn.Sequential(
            nn.Linear(self.dim_in + settings.time_dim, settings.message_dim),
            nn.ReLU(),
            nn.Linear(settings.message_dim, settings.message_dim),
        )
        self.memory_updater = nn.GRUCell(settings.message_dim, settings.memory_dim)

    def messages(self, raw: Tensor) -> Tensor:
        """Raw messages [B, dim_in + 1], elapsed days in the last column, to messages [B, G]."""
        messages: Tensor = self.message_function(torch.cat((raw[:, :-1], self.time(raw[:, -1:])), 1))
        return messages

    def update(self, message_and_memory: Tensor) -> Tensor:
        """[B, G + M] to the new memory [B, M]."""
        split = self.memory_updater.input_size
        memory: Tensor = self.memory_updater(message_and_memory[:, :split], message_and_memory[:, split:])
        return memory


class MemoryNet(nn.Module):
    """Both sides; they begin as a graph version."""

    def __init__(self, start: GraphMemory) -> None:
        super().__init__()
        self.settings = start.settings
        with torch.random.fork_rng(devices=[]):  # what is drawn is not kept
            self.user = SideNet(start.settings, start.settings.memory_dim + CODE_DIM)
            self.item = SideNet(start.settings, start.settings.memory_dim)
        self.load_state_dict({name: torch.tensor(weight) for name, weight in start.arrays.items()})

    def memory(self) -> GraphMemory:
        """The weights as they are now, as one graph version."""
        return GraphMemory(self.settings, {name: w.detach().numpy() for name, w in self.state_dict().items()})
