"""The learnt functions of the continuous-time dynamic graph: time encoder, message function, memory updater.

What a node remembers is a vector. An event (u, i, t) makes a raw message for each side, the message function
turns it into a message, and a GRU cell turns memory and message into the new memory. Reading (attention over the
last-K temporal neighbours, `graph/embed.py`) happens at request time and never changes a memory. This module knows
nothing of storage or of the order of events; `graph/ctdg.py` applies it.

Source: TGN (arXiv 2006.10637, section 3.1), DynLLM (arXiv 2405.07580, section 3).
Departures: users and items have message functions and updaters of their own (the graph is bipartite, as in JODIE,
arXiv 1908.01207); rows of one group are aggregated by their mean; an item brings a fixed random code, drawn from its
id, so that memories can tell items apart without a table of learnt ids.

Dimension keys: B rows, M memory_dim, G message_dim, T time_dim, C CODE_DIM, E EDGE_DIM.
"""

from __future__ import annotations

import hashlib
import math
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from driftline.configs.settings import Graph
from driftline.graph.arrays import Float32

CODE_DIM = 32
EDGE_DIM = 3
MS_PER_DAY = 86_400_000
LARGEST = np.finfo(np.float32).max


class TimeEncoder(nn.Module):
    """Harmonic encoding of an elapsed time: cos(w dt + b), periods of the settings, at equal factors, at the start.

    Much shorter ones turn the rounding of long times into noise: float32 holds a year to about a second.
    """

    def __init__(self, settings: Graph) -> None:
        super().__init__()
        dim, shortest_days = settings.time_dim, settings.shortest_period_h / 24
        periods_days = torch.logspace(math.log10(shortest_days), math.log10(settings.longest_period_days), dim)
        self.w = nn.Parameter(2 * math.pi / periods_days)
        self.b = nn.Parameter(torch.zeros(dim))

    def forward(self, dt_days: Tensor) -> Tensor:
        """Encodes [B, 1] float32 days as [B, T]."""
        return torch.cos(dt_days * self.w + self.b)


class Side(nn.Module):
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
        of_message = (self.message_function[n].get_parameter(kind) for n in (0, 2) for kind in ("weight", "bias"))
        cell = self.memory_updater
        of_cell = (cell.weight_ih, cell.bias_ih, cell.weight_hh, cell.bias_hh)
        self._weights: tuple[Tensor, ...] = (self.time.w, self.time.b, *of_message, *of_cell)
        self._packed: tuple[Float32, ...] = ()
        self._packed_from: list[tuple[int, int]] = []

    def messages(self, raw: Tensor) -> Tensor:
        """Raw messages [B, dim_in + 1], elapsed days in the last column, to messages [B, G]."""
        messages: Tensor = self.message_function(torch.cat((raw[:, :-1], self.time(raw[:, -1:])), 1))
        return messages

    def update(self, message_and_memory: Tensor) -> Tensor:
        """[B, G + M] to the new memory [B, M]."""
        split = self.memory_updater.input_size
        memory: Tensor = self.memory_updater(message_and_memory[:, :split], message_and_memory[:, split:])
        return memory

    def packed(self) -> tuple[Float32, ...]:
        """The weights as `graph.kernel` reads them; computed anew when one of them has changed in place."""
        weights = self._weights
        state = [(id(weight), weight._version) for weight in weights]
        if state != self._packed_from:
            self._packed_from = state
            self._packed = tuple(np.array(weight.detach().numpy().T, np.float32, order="C") for weight in weights)
        return self._packed


class GraphMemory(nn.Module):
    """Both sides; its weights are one graph version.

    Raw message to a user: its memory before the group, the item's memory and code, the edge, days since its last
    update. To an item: its memory, the user's memory before the group, the edge, days since its last update.
    """

    def __init__(self, settings: Graph) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.user = Side(settings, settings.memory_dim + CODE_DIM)
            self.item = Side(settings, settings.memory_dim)
        self.settings = settings

    def version(self) -> str:
        """sha256 of the weights, in order of their names."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().numpy().astype("<f4").tobytes())
        return digest.hexdigest()


class _Codes(threading.local):
    """Draws item codes: one generator for each thread, set to a key's start, since making one takes longer."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._normal = np.random.Generator(self._bits).standard_normal
        self._state: Any = dict(self._bits.state)

    def draw(self, key: int) -> Float32:
        self._state["state"]["key"] = np.array([key, 0], np.uint64)
        self._bits.state = self._state
        return self._normal(CODE_DIM, np.float32)


_codes = _Codes()


def item_code(key: int) -> Float32:
    """The fixed code [CODE_DIM] float32 of an item: standard normal, drawn from its key64."""
    return _codes.draw(key)


def edge_features(weight: Float32, value: Float32, price: Float32) -> Float32:
    """Edge features [n, EDGE_DIM]: action weight, signed log of the value, log of the price; NaN becomes 0."""
    value, price = _number(value), _number(price)
    return np.stack((weight, np.sign(value) * np.log1p(np.abs(value)), np.log1p(np.maximum(price, 0))), 1)


def _number(x: Float32) -> Float32:
    """As numpy's nan_to_num, which takes longer."""
    out: Float32 = np.minimum(np.maximum(np.where(np.isnan(x), np.float32(0), x), -LARGEST), LARGEST)
    return out


def elapsed_days(t_ms: NDArray[np.int64], since_ms: NDArray[Any]) -> Float32:
    """Days [n, 1] float32 from `since_ms` to `t_ms`, 0 where there was no earlier event (since < 0), never below 0."""
    since = since_ms.astype(np.int64)
    return (np.where(since < 0, 0, np.maximum(t_ms - since, 0)) / MS_PER_DAY).astype(np.float32)[:, None]
