"""One user's query as `graph.embed.GraphReader` computes it for many: one compiled call, no framework's overhead.

Sums are taken in another order than there (a query meets the key's weights before the neighbours do), so results
differ by rounding; a test holds them equal within 1e-5.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from driftline.graph.arrays import Float32
from driftline.graph.compiled import compiled, inlined
from driftline.graph.embed import GraphReader

# k neighbours, M memory_dim, E EDGE_DIM, D embed_dim, F facets, X text_dim


class QueryReader:
    """Follows a reader when its weights change in place.

    Args:
        reader: whose weights are used, without copying them.
    """

    def __init__(self, reader: GraphReader) -> None:
        self._reader = reader
        self._time = _shared(reader.time.w), _shared(reader.time.b)
        self._query, self._key, self._value = _weights(reader.query), _weights(reader.key), _weights(reader.value)
        self._facet_key, self._facet_value = _weights(reader.facet_key), _weights(reader.facet_value)
        self._hidden, self._out = _weights(reader.out[0]), _weights(reader.out[2])

    def __deepcopy__(self, memo: dict[int, Any]) -> QueryReader:
        """Over the copy of the reader: its arrays are the reader's own."""
        return QueryReader(copy.deepcopy(self._reader, memo))

    def query(
        self, memory_M: Float32, idle_days: float, items_kD: Float32, age_days_k: Float32, edges_kE: Float32
    ) -> Float32:
        """The query vector [D].

        Args:
            memory_M: the user's memory.
            idle_days: since its last update, 0 for a new user.
            items_kD: vectors of the last neighbours.
            age_days_k: days since each of them.
            edges_kE: their edge features.
        """
        layers = (*self._query, *self._key, *self._value, *self._hidden, *self._out)
        out: Float32 = _asked(memory_M, idle_days, items_kD, age_days_k, edges_kE, *self._time, *layers)
        return out

    def fuse(self, query_D: Float32, facets_FX: Float32) -> Float32:
        """The query vector [D] joined with profile facets; rows of zeros are facets that are not there."""
        facets = facets_FX[facets_FX.any(1)]
        if not len(facets):
            return query_D
        share_F = _attention(query_D, facets, self._facet_key)
        return query_D + _through(self._facet_value, share_F @ facets)


_F, _FF = "Array(float32, 1, 'C', readonly=True)", "Array(float32, 2, 'C', readonly=True)"


@inlined
def _onto(weight: Float32, x: Float32, out: Float32) -> None:
    """Adds weight [o, i] @ x [i] to out [o]."""
    for o in range(len(weight)):
        total = np.float32(0)
        for i in range(len(x)):
            total += weight[o, i] * x[i]
        out[o] += total


@compiled(f"float32[::1]({_F}, float32, {_FF}, {_F}, {_FF}, {_F}, {_F}" + f", {_FF}, {_F}" * 5 + ")")
def _asked(
    memory: Float32, idle_days: float, items_kD: Float32, age_days: Float32, edges_kE: Float32, w: Float32, b: Float32,
    query: Float32, query_bias: Float32, key: Float32, key_bias: Float32, value: Float32, value_bias: Float32,
    hidden: Float32, hidden_bias: Float32, last: Float32, last_bias: Float32,
) -> Float32:  # fmt: skip
    """`QueryReader.query`; a sum over neighbours stands in the order of the neighbours."""
    M, T, D, k = len(memory), len(w), len(query), len(items_kD)
    state = np.empty(M + T + D, np.float32)  # what the last layers read: memory, time, what attention brought
    state[:M] = memory
    for t in range(T):
        state[M + t] = np.cos(idle_days * w[t] + b[t])
    state[M + T :] = 0
    asked = query_bias.copy()
    _onto(query, state[: M + T], asked)
    at_key, constant = np.zeros(key.shape[1], np.float32), np.float32(0)
    for d in range(D):
        constant += asked[d] * key_bias[d]
        for i in range(len(at_key)):
            at_key[i] += asked[d] * key[d, i]
    around, share = np.empty((k, len(at_key)), np.float32), np.empty(k, np.float32)
    most, total = -np.float32(np.inf), np.float32(0)
    for n in range(k):
        around[n, :D] = items_kD[n]
        for t in range(T):
            around[n, D + t] = np.cos(age_days[n] * w[t] + b[t])
        around[n, D + T :] = edges_kE[n]
        share[n] = constant
        for i in range(len(at_key)):
            share[n] += around[n, i] * at_key[i]
        share[n] /= np.sqrt(np.float32(D))
        most = max(most, share[n])
    for n in range(k):
        share[n] = np.exp(share[n] - most)
        total += share[n]
    mean = np.zeros(len(at_key), np.float32)
    for n in range(k):
        share[n] /= total
        for i in range(len(mean)):
            mean[i] += share[n] * around[n, i]
    if k:
        state[M + T :] = mean[:D] + value_bias
        _onto(value, mean, state[M + T :])
    inside = hidden_bias.copy()
    _onto(hidden, state, inside)
    out = state[M + T :] + last_bias
    _onto(last, np.maximum(inside, np.float32(0)), out)
    return out


def _attention(query_D: Float32, rows: Float32, key: tuple[Float32, Float32]) -> Float32:
    """What each row counts for a query; they sum to 1."""
    weight, bias = key
    logits = (rows @ (query_D @ weight) + query_D @ bias) / np.float32(len(query_D) ** 0.5)
    share: Float32 = np.exp(logits - logits.max(initial=-np.inf))
    share /= share.sum()
    return share


def _through(layer: tuple[Float32, Float32], x: Float32) -> Float32:
    out: Float32 = layer[0] @ x + layer[1]
    return out


def _weights(layer: torch.nn.Module) -> tuple[Float32, Float32]:
    return _shared(layer.get_parameter("weight")), _shared(layer.get_parameter("bias"))


def _shared(weight: torch.Tensor) -> Float32:
    return weight.detach().numpy()
