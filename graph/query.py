"""One user's query as `graph.embed.GraphReader` computes it for many: by numpy, without a framework's overhead.

Sums are taken in another order than there (a query meets the key's weights before the neighbours do), so results
differ by rounding; a test holds them equal within 1e-5.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from driftline.graph.arrays import Float32
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
        w, b = self._time
        state = np.concatenate((memory_M, np.cos(np.float32(idle_days) * w + b)))
        around = np.concatenate((items_kD, np.cos(age_days_k[:, None] * w + b), edges_kE), 1)
        asked_D = _through(self._query, state)
        share_k = _attention(asked_D, around, self._key)
        attended_D = np.zeros_like(asked_D)
        if len(share_k):
            attended_D = share_k @ items_kD + _through(self._value, share_k @ around)
        hidden = np.maximum(_through(self._hidden, np.concatenate((state, attended_D))), 0)
        return attended_D + _through(self._out, hidden)

    def fuse(self, query_D: Float32, facets_FX: Float32) -> Float32:
        """The query vector [D] joined with profile facets; rows of zeros are facets that are not there."""
        facets = facets_FX[facets_FX.any(1)]
        if not len(facets):
            return query_D
        share_F = _attention(query_D, facets, self._facet_key)
        return query_D + _through(self._facet_value, share_F @ facets)


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
