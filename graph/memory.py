"""The learnt functions of the continuous-time dynamic graph as those who apply events have them: arrays of weights.

What a node remembers is a vector. An event (u, i, t) makes a raw message for each side, the message function
turns it into a message, and a GRU cell turns memory and message into the new memory. Reading (attention over the
last-K temporal neighbours, `graph/embed.py`) happens at request time and never changes a memory. This module knows
nothing of storage or of the order of events; `graph/ctdg.py` applies it, `graph/memory_net.py` trains it. A worker does
without torch, which was a third of its start.

Source: TGN (arXiv 2006.10637, section 3.1), DynLLM (arXiv 2405.07580, section 3).
Departures: users and items have message functions and updaters of their own (the graph is bipartite, as in JODIE,
arXiv 1908.01207); rows of one group are aggregated by their mean; an item brings a fixed random code, drawn from its
id, so that memories can tell items apart without a table of learnt ids.

Dimension keys: M memory_dim, G message_dim, T time_dim, C CODE_DIM, E EDGE_DIM.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.configs.settings import Graph
from driftline.graph.arrays import Float32

CODE_DIM = 32
EDGE_DIM = 3
MS_PER_DAY = 86_400_000
LARGEST = np.finfo(np.float32).max
PACKED = (
    "time.w", "time.b", "message_function.0.weight", "message_function.0.bias", "message_function.2.weight",
    "message_function.2.bias", "memory_updater.weight_ih", "memory_updater.bias_ih", "memory_updater.weight_hh",
    "memory_updater.bias_hh",
)  # fmt: skip
"""Weights of a side in the order in which `graph.kernel` takes them."""


class Side:
    """Message function and memory updater of one side, users or items.

    Args:
        weights: by name, [out, in] as torch.nn's Linear and GRUCell have them.
    """

    def __init__(self, weights: Mapping[str, Float32]) -> None:
        self._weights = weights
        self._packed: tuple[Float32, ...] = ()

    def packed(self) -> tuple[Float32, ...]:
        """The weights as `graph.kernel` reads them."""
        if not self._packed:
            self._packed = tuple(np.array(self._weights[name].T, np.float32, order="C") for name in PACKED)
        return self._packed


class GraphMemory:
    """Both sides; its weights are one graph version and do not change.

    Raw message to a user: its memory before the group, the item's memory and code, the edge, days since its last
    update. To an item: its memory, the user's memory before the group, the edge, days since its last update.

    Attributes:
        arrays: the weights by name, float32.

    Args:
        settings: dimensions, and the seed of the first version.
        arrays: the weights of another version; None = the first one.

    Raises:
        ValueError: they do not belong to a graph of these settings.
    """

    def __init__(self, settings: Graph, arrays: Mapping[str, Any] | None = None) -> None:
        first = _first_weights(settings)
        self.settings = settings
        self.arrays = first if arrays is None else _fitting(first, arrays)
        for weight in self.arrays.values():
            weight.setflags(write=False)
        self.user, self.item = (
            Side({name.removeprefix(side): w for name, w in self.arrays.items() if name.startswith(side)})
            for side in ("user.", "item.")
        )

    def version(self) -> str:
        """sha256 of the weights, in order of their names."""
        digest = hashlib.sha256()
        for name, value in sorted(self.arrays.items()):
            digest.update(name.encode() + value.astype("<f4").tobytes())
        return digest.hexdigest()


def _fitting(first: Mapping[str, Float32], arrays: Mapping[str, Any]) -> dict[str, Float32]:
    """A copy of the weights in the order of the first ones."""
    if first.keys() != arrays.keys():
        raise ValueError(f"got weights named {sorted(arrays)!r:.300}, expected {', '.join(first)}")
    found = {name: np.array(arrays[name], order="C") for name in first}
    for name, expected in first.items():
        value = found[name]
        if value.shape != expected.shape or value.dtype != np.float32:
            raise ValueError(
                f"weight {name} is {value.dtype} of the shape {value.shape}, expected float32 of {expected.shape}"
            )
    return found


def frequencies(settings: Graph) -> Float32:
    """Of the time encoding, [T] radians a day: periods of the settings, at equal factors.

    Much shorter ones turn the rounding of long times into noise: float32 holds a year to about a second.
    """
    dim = settings.time_dim
    first, last = (np.float32(math.log10(p)) for p in (settings.shortest_period_h / 24, settings.longest_period_days))
    n, step = np.arange(dim), float(last - first) / (dim - 1)
    powers = np.where(n < dim // 2, first + step * n, last - step * (dim - 1 - n))
    periods_days = (10.0**powers).astype(np.float32)
    return np.float32(2 * math.pi) * (np.float32(1) / periods_days)


def _first_weights(settings: Graph) -> dict[str, Float32]:
    """The seeded version 0: what torch.nn draws for these layers, where it adds and multiplies at once to the bit."""
    draw = _Uniform(settings.seed)
    memory, message, time = settings.memory_dim, settings.message_dim, settings.time_dim
    weights: dict[str, Float32] = {}
    for side, other in (("user", memory + CODE_DIM), ("item", memory)):
        weights |= {f"{side}.time.w": frequencies(settings), f"{side}.time.b": np.zeros(time, np.float32)}
        for layer, width in ((0, memory + other + EDGE_DIM + time), (2, message)):
            name = f"{side}.message_function.{layer}"
            gain = math.sqrt(2.0 / 6) / math.sqrt(width)  # of Kaiming's uniform draw with a = sqrt(5)
            weights[f"{name}.weight"] = draw((message, width), math.sqrt(3.0) * gain)
            weights[f"{name}.bias"] = draw((message,), 1 / math.sqrt(width))
        cell = {"weight_ih": (3 * memory, message), "weight_hh": (3 * memory, memory)}
        for kind, shape in {**cell, "bias_ih": (3 * memory,), "bias_hh": (3 * memory,)}.items():
            weights[f"{side}.memory_updater.{kind}"] = draw(shape, 1 / math.sqrt(memory))
    return weights


class _Uniform:
    """Uniform draws of float32 as torch's CPU generator makes them: 24 bits of a Mersenne twister each."""

    def __init__(self, seed: int) -> None:
        seeded: Any = np.random.RandomState(seed).get_state(legacy=False)
        self._bits = np.random.MT19937()
        self._bits.state = seeded

    def __call__(self, shape: tuple[int, ...], bound: float) -> Float32:
        """[shape] from -bound to bound."""
        drawn = (self._bits.random_raw(math.prod(shape)) & 0xFFFFFF) * 2.0**-24
        low, high = np.float32(-bound), np.float32(bound)
        return (drawn * float(high - low) + float(low)).astype(np.float32).reshape(shape)


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
