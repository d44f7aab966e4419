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
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from configs.settings import Graph

CODE_DIM = 32
EDGE_DIM = 3
MS_PER_DAY = 86_400_000
TILE = 32
"""Rows of every matrix product in the stream: a fixed shape gives each row the same bits in any company."""

Float32 = NDArray[np.float32]


class TimeEncoder(nn.Module):
    """Harmonic encoding of an elapsed time: cos(w dt + b), periods from an hour to three years at the start.

    Shorter periods would only turn the rounding of long times into noise: float32 holds a year to about a second.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        periods_days = torch.logspace(math.log10(1 / 24), math.log10(3 * 365), dim)
        self.w = nn.Parameter(2 * math.pi / periods_days)
        self.b = nn.Parameter(torch.zeros(dim))

    def forward(self, dt_days: Tensor) -> Tensor:
        """Encodes [B, 1] float32 days as [B, T]."""
        return torch.cos(dt_days * self.w + self.b)


class Side(nn.Module):
    """Message function and memory updater of one side, users or items."""

    def __init__(self, settings: Graph, other_dim: int) -> None:
        super().__init__()
        self.time = TimeEncoder(settings.time_dim)
        self.dim_in = settings.memory_dim + other_dim + EDGE_DIM
        self.message_function = nn.Sequential(
            nn.Linear(self.dim_in + settings.time_dim, settings.message_dim),
            nn.ReLU(),
            nn.Linear(settings.message_dim, settings.message_dim),
        )
        self.memory_updater = nn.GRUCell(settings.message_dim, settings.memory_dim)
        self._tiles: dict[str, int] = {}

    def messages(self, raw: Tensor) -> Tensor:
        """Raw messages [B, dim_in + 1], elapsed days in the last column, to messages [B, G]."""
        messages: Tensor = self.message_function(torch.cat((raw[:, :-1], self.time(raw[:, -1:])), 1))
        return messages

    def update(self, message_and_memory: Tensor) -> Tensor:
        """[B, G + M] to the new memory [B, M]."""
        split = self.memory_updater.input_size
        memory: Tensor = self.memory_updater(message_and_memory[:, :split], message_and_memory[:, split:])
        return memory

    def tiled(self, name: Literal["messages", "update"], rows: Float32) -> Float32:
        """`messages` or `update` of [n, d] in tiles of TILE rows, the last one padded with zeros.

        The result of a row does not depend, to the bit, on how many rows come with it or where it stands. Some
        processors round a row by its place in a tile where the output is narrow: there each row is a tile of its own.
        """
        function: Callable[[Tensor], Tensor] = getattr(self, name)
        if name not in self._tiles:
            self._tiles[name] = TILE if _same_in_every_place(function, rows.shape[1]) else 1
        n, tile = len(rows), self._tiles[name]
        padded = np.zeros((-(-n // tile) * tile, rows.shape[1]), np.float32)
        padded[:n] = rows
        with torch.inference_mode():
            return np.concatenate([function(part).numpy() for part in torch.split(torch.from_numpy(padded), tile)])[:n]


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


def _same_in_every_place(function: Callable[[Tensor], Tensor], width: int) -> bool:
    """Whether this machine gives a row of a tile the same bits wherever it stands."""
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((TILE, width), np.float32))
    with torch.inference_mode():
        first = function(rows)
        return all(torch.equal(function(rows.roll(n, 0)), first.roll(n, 0)) for n in range(1, TILE))


def item_code(key: int) -> Float32:
    """The fixed code [CODE_DIM] float32 of an item: standard normal, drawn from its key64."""
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(CODE_DIM, np.float32)


def edge_features(weight: Float32, value: Float32, price: Float32) -> Float32:
    """Edge features [n, EDGE_DIM]: action weight, signed log of the value, log of the price; NaN becomes 0."""
    value, price = np.nan_to_num(value), np.nan_to_num(price)
    return np.stack((weight, np.sign(value) * np.log1p(np.abs(value)), np.log1p(np.maximum(price, 0))), 1)
