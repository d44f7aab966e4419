"""A user's vector from what is new: HSTU over cached keys and values, exact whatever is cached.

    window + request time -> state of the user -> rows that are new or not final -> last row -> unit vector

The last row is provisional, as its bias holds the time of the request; so an event that follows redoes two rows. A
late event redoes the rows after it. Absolute positions tie a row to the place where its window begins: windows
therefore move on by a block of events (`window_of`), and the first request after that encodes the window anew.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from driftline.graph.arrays import Float32, Int32, Int64
from driftline.model.history_cache import HistoryCache, WindowState
from driftline.model.hstu import HSTU, HSTULayer, bucket_edges_ms
from driftline.model.hstu_rows import (
    LayerWeights,
    buckets_of_rows,
    candidate_rows,
    keys_of_rows,
    last_known,
    layer_rows,
)

# n events of a window, r rows that are computed, C candidates, D model width

BLOCKS = 16
"""A window moves on by this part of its length at once."""
NORM_EPSILON = np.float32(1e-6)


class History(NamedTuple):
    """One user's events before a request, in (time, offset) order, newest last.

    Attributes:
        items: [n] item rows, -1 = unknown or undone, skipped.
        t_ms: [n] int64 milliseconds.
        user: whose they are, "" = nothing is cached.
        first: how many of the user's events came before these.
    """

    items: Int32 | Int64
    t_ms: Int64
    user: str = ""
    first: int = 0


def window_of(history: History, known: int, max_len: int) -> tuple[Int64, Int64]:
    """The events that are read: items [n] and times [n] int64, n at most `max_len`.

    It begins at the first event whose number among all of the user's is a multiple of `max_len // BLOCKS` (or 0) and
    that leaves no more than `max_len` known ones. So it depends on nothing but the history, and it keeps its beginning
    while a block of events is added.

    Args:
        history: what the user did.
        known: items below this number are known.
        max_len: events at most.
    """
    items, t_ms, _, first = history
    read: tuple[Int64, Int64] = last_known(items, t_ms, first, known, max_len, BLOCKS)
    return read


class WindowEncoder:
    """HSTU's forward pass by rows; follows the backbone when its weights change in place.

    Args:
        backbone: whose weights are used, without copying them.
    """

    def __init__(self, backbone: HSTU) -> None:
        self._backbone = backbone
        self.max_len, self.n, self.position = backbone.max_len, backbone.n, _shared(backbone.position)
        self.gap = None if backbone.gap is None else _shared(backbone.gap)
        layers = [cast(HSTULayer, layer) for layer in backbone.layers]
        self.heads = layers[0].heads
        self.layers: list[LayerWeights] = [
            (
                _shared(one.uvqk), _shared(one.out.weight), _shared(one.out.bias),
                _shared(one.bias.position), _shared(one.bias.time),
            )
            for one in layers
        ]  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> WindowEncoder:
        """Over the copy of the backbone: its arrays are the backbone's own."""
        return WindowEncoder(copy.deepcopy(self._backbone, memo))

    def empty(self) -> WindowState:
        """The state of a window without events."""
        return WindowState.empty(len(self.layers), self.position.shape[1])

    def last_row(
        self, state: WindowState, items: Int64, t_ms: Int64, now_ms: int, vectors: Callable[[Int64], Float32]
    ) -> Float32:
        """The unit vector [D] of a window's last row, and the state brought up to the window.

        Args:
            state: of an earlier window of the user, changed in place.
            items, t_ms: [n], n >= 1.
            now_ms: the request time.
            vectors: of item rows [r] the vectors [r, D] float32, not normalised.
        """
        n, start = len(items), state.rows_before(items, t_ms)
        state.rows = start
        state.reserve(n, self.max_len)
        buckets_rn = buckets_of_rows(np.append(t_ms, now_ms), start, _edges_ms())
        y_rD = self._inputs(vectors(items[start:]), start)
        if self.gap is not None:
            y_rD += self.gap[buckets_rn[:, start:].diagonal()]
        last = len(self.layers) - 1
        for layer, weights in enumerate(self.layers):
            keys, values = state.keys[layer], state.values[layer]
            if layer == last:
                keys_of_rows(y_rD[:-1], start, keys, values, weights[0])
                y_rD, buckets_rn, start = y_rD[-1:], buckets_rn[-1:], n - 1
            layer_rows(y_rD, start, keys, values, buckets_rn, *weights, self.heads, self.n)
        state.items, state.t_ms, state.rows = items, t_ms, n - 1
        vector: Float32 = _unit(y_rD[-1:])[0]
        return vector

    def candidates(self, state: WindowState, now_ms: int, vectors_CD: Float32) -> Float32:
        """Unit vectors [C, D] of items as the event after the window: each reads the window and itself.

        Args:
            state: as `last_row` left it for the same time.
            now_ms: when the items would be taken.
            vectors_CD: of the candidates, not normalised.
        """
        rows = len(state.items)
        times_ms = np.append(state.t_ms, (now_ms, now_ms))
        buckets_n = buckets_of_rows(times_ms, rows, _edges_ms())[0, :rows]
        y_CD = self._inputs(vectors_CD, rows, same_place=True)
        if self.gap is not None:
            y_CD += self.gap[0]  # asked at its own time
        for keys, values, weights in zip(state.keys, state.values, self.layers, strict=True):
            y_CD = candidate_rows(y_CD, keys[:rows], values[:rows], buckets_n, weights, self.heads, self.n)
        return _unit(y_CD)

    def _inputs(self, vectors_rD: Float32, start: int, same_place: bool = False) -> Float32:
        places = slice(start, start + (1 if same_place else len(vectors_rD)))
        scale = np.float32(self.position.shape[1] ** 0.5)
        out: Float32 = np.ascontiguousarray(vectors_rD, np.float32) * scale + self.position[places]
        return out


class CachedEncoder:
    """Users' vectors under one version of the weights.

    Args:
        backbone: the weights.
        cache: where states are kept, perhaps together with those of other versions.
        version: of the weights, larger than that of any older ones in the cache.
    """

    def __init__(self, backbone: HSTU, cache: HistoryCache, version: int = 0) -> None:
        self.rows, self.cache, self.version = WindowEncoder(backbone), cache, version

    def encode(self, history: History, now_ms: int, known: int, vectors: Callable[[Int64], Float32]) -> Float32:
        """The unit vector [D] of a user, zeros without known events; `vectors` as in `WindowEncoder.last_row`."""
        items, t_ms = window_of(history, known, self.rows.max_len)
        if not len(items):
            self.cache.drop(history.user)
            return np.zeros(self.rows.position.shape[1], np.float32)
        state = (self.cache.take(history.user, self.version) if history.user else None) or self.rows.empty()
        vector = self.rows.last_row(state, items, t_ms, now_ms, vectors)
        if history.user:
            self.cache.put(history.user, self.version, state)
        return vector

    def warm(self, known: int, vectors: Callable[[Int64], Float32], budget_ms: float) -> int:
        """Encodes users of older versions, those who ask most first, for some wall time; returns how many."""
        until, done = time.monotonic() + budget_ms / 1000, 0
        for user, items, t_ms in self.cache.hottest(self.version):
            if time.monotonic() >= until:
                break
            if len(items) and items.max() < known:
                state = self.rows.empty()
                self.rows.last_row(state, items, t_ms, int(t_ms[-1]), vectors)
                self.cache.put(user, self.version, state)
                done += 1
        return done


@cache
def _edges_ms() -> Int64:
    return bucket_edges_ms().numpy()


def _shared(weight: torch.Tensor) -> Float32:
    return weight.detach().numpy()


def _unit(x: Float32) -> Float32:
    length: Float32 = np.sqrt((x * x).sum(1, keepdims=True))
    out: Float32 = np.divide(x, np.maximum(length, NORM_EPSILON), dtype=np.float32)
    return out
