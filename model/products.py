"""Dot products of all rows of a large matrix with some vectors, in one pass over the matrix."""

from __future__ import annotations

import numpy as np

from driftline.graph.arrays import Float32
from driftline.model.compiled import compiled

_M = "Array(float32, 2, 'C', readonly=True)"


FEW = 4
"""Up to so many vectors one pass of our own is faster than a BLAS, which reads the rows once for each of a few."""


def products(rows: Float32, vectors: Float32) -> Float32:
    """Dot products [q, n] of rows [n, d] with vectors [q, d]."""
    out: Float32 = _products(rows, vectors) if len(vectors) <= FEW else vectors @ rows.T
    return out


@compiled(f"float32[:, ::1]({_M}, {_M})")
def _products(rows: Float32, vectors: Float32) -> Float32:
    out = np.empty((len(vectors), len(rows)), np.float32)
    for r in range(len(rows)):
        for q in range(len(vectors)):
            total = np.float32(0)
            for d in range(rows.shape[1]):
                total += rows[r, d] * vectors[q, d]
            out[q, r] = total
    return out
