"""HSTU row by row: new rows of a window over the keys and values of the rows before them, compiled.

A row's numbers do not depend on which rows are computed in the same call: every sum runs in one fixed order. So a
window that was encoded in pieces equals one that was encoded at once to the last bit, and a cache of keys and values
can be dropped or kept without a trace. Against model/hstu.py, which trains, the difference is rounding (1e-6).

Source: arXiv 2402.17152, section 3 (the layer) and section 3.4, "M-FALCON" (candidates over one cached history).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32, Int64
from driftline.model.compiled import compiled, inlined

# n rows of a window, r new rows at its end, C candidates, D model width, H heads, K width of a head

LayerWeights = tuple[Float32, Float32, Float32, Float32, Float32]
"""uvqk [D, 4D], out weight [D, D], out bias [D], position bias [N], time bias [129]."""

NORM_EPSILON = np.float32(1e-6)


def _events(kind: str) -> str:
    return f"(Array({kind}, 1, 'A', readonly=True), Array(int64, 1, 'A', readonly=True), int64, int64, int64, int64)"


@compiled(_events("int32"), _events("int64"))
def last_known(items: Int32 | Int64, t_ms: Int64, first: int, known: int, most: int, blocks: int) -> Any:
    """Items and times [n] int64 of the last known events; see `window_of` in model/incremental.py.

    Args:
        items, t_ms: [m] events; first: how many came before these.
        known: items in 0 ... known - 1 are known; most: events at most; blocks: a window moves on by most // blocks.
    """
    rows, n = np.empty(len(items), np.int64), 0
    for r in range(len(items)):
        if 0 <= items[r] < known:
            rows[n] = r
            n += 1
    earliest = first + (rows[n - most - 1] + 1 if n > most else 0)  # number of the first event that could be read
    begin = 0
    if earliest > 0:
        block = max(1, most // blocks)
        wanted = -(-earliest // block) * block - first
        while begin < n and rows[begin] < wanted:
            begin += 1
        if begin == n:
            begin = max(n - most, 0)
    out_items, out_ms = np.empty(n - begin, np.int64), np.empty(n - begin, np.int64)
    for i in range(n - begin):
        out_items[i], out_ms[i] = items[rows[begin + i]], t_ms[rows[begin + i]]
    return out_items, out_ms


@compiled("uint8[:, ::1](int64[::1], int64, int64[::1])")
def buckets_of_rows(t_ms: Int64, start: int, edges_ms: Int64) -> NDArray[np.uint8]:
    """Time buckets [r, n] of the rows from `start` on, each against all rows up to it.

    Times are about ascending, so that one comparison finds most buckets from that of the event after.

    Args:
        t_ms: [n + 1] int64; row i asks at entry i + 1, event j happened at entry j.
        start: the first row wanted.
        edges_ms: ascending int64, where bucket 1, 2, ... begins.
    """
    n = len(t_ms) - 1
    out = np.zeros((n - start, n), np.uint8)
    for r in range(n - start):
        bucket, asked_ms = 0, t_ms[start + r + 1]
        for j in range(start + r, -1, -1):
            apart_ms = abs(asked_ms - t_ms[j])
            while bucket < len(edges_ms) and apart_ms >= edges_ms[bucket]:
                bucket += 1
            while bucket > 0 and apart_ms < edges_ms[bucket - 1]:
                bucket -= 1
            out[r, j] = bucket
    return out


@inlined
def normalised(x: Float32, out: Float32) -> None:
    """Layer norm of one row [D] without weights."""
    mean, square = np.float32(0), np.float32(0)
    for d in range(len(x)):
        mean += x[d]
    mean = np.float32(mean / np.float32(len(x)))
    for d in range(len(x)):
        square += (x[d] - mean) * (x[d] - mean)
    scale = np.float32(1) / np.sqrt(square / np.float32(len(x)) + NORM_EPSILON)
    for d in range(len(x)):
        out[d] = (x[d] - mean) * scale


@inlined
def exponential(x: np.float32) -> np.float32:
    """exp(x), within 1e-6 of it for x up to 20 in size.

    A loop over it is compiled to vectors, one over the library's is not.

    Source: 2^n * 2^f with the polynomial of exp2f in the Cephes library.
    """
    y = min(max(x, np.float32(-87)), np.float32(87)) * np.float32(1.44269504)
    n = np.floor(y + np.float32(0.5))
    f = y - n
    power = np.float32(1.535336188e-4)
    power = power * f + np.float32(1.339887440e-3)
    power = power * f + np.float32(9.618437358e-3)
    power = power * f + np.float32(5.550332471e-2)
    power = power * f + np.float32(2.402264791e-1)
    power = power * f + np.float32(6.931472029e-1)
    power = power * f + np.float32(1)
    return np.float32(power * np.int32(np.int32(np.int32(n) + 127) << 23).view(np.float32))


@inlined
def silu(x: np.float32) -> np.float32:
    """x * sigmoid(x)."""
    return np.float32(x / (np.float32(1) + exponential(-x)))


@compiled(
    "void(float32[:, ::1], int64, float32[:, ::1], float32[:, ::1], uint8[:, ::1], float32[:, ::1], float32[:, ::1],"
    "float32[::1], float32[::1], float32[::1], int64, int64)"
)
def layer_rows(
    x_rD: Float32, start: int, k_nD: Float32, v_nD: Float32, buckets_rn: NDArray[np.uint8],
    uvqk: Float32, out_weight: Float32, out_bias: Float32, position: Float32, time: Float32, heads: int, n: int,
) -> None:  # fmt: skip
    """One layer over the new rows, in place.

    Args:
        x_rD: rows `start`, `start + 1`, ... of the window; become the layer's output.
        start: rows that are there already.
        k_nD, v_nD: keys and values of the window with room for the new rows, which are written.
        buckets_rn: time buckets of each new row against all rows up to it.
        uvqk, out_weight, out_bias, position, time: LayerWeights.
        heads: H.
        n: constant N.
    """
    D = x_rD.shape[1]
    K = D // heads
    h, wide = np.empty(D, np.float32), np.empty(4 * D, np.float32)
    mixed, gated = np.empty(D, np.float32), np.empty(D, np.float32)
    scale = np.float32(1) / np.float32(n)
    for r in range(len(x_rD)):
        i = start + r
        normalised(x_rD[r], h)
        wide[:] = 0
        for d in range(D):
            for c in range(4 * D):
                wide[c] += h[d] * uvqk[d, c]
        for c in range(4 * D):
            wide[c] = silu(wide[c])
        k_nD[i], v_nD[i] = wide[3 * D :], wide[D : 2 * D]
        mixed[:] = 0
        for head in range(heads):
            at = head * K
            q, into = wide[2 * D + at : 2 * D + at + K], mixed[at : at + K]
            for j in range(i + 1):
                key, value, score = k_nD[j, at : at + K], v_nD[j, at : at + K], np.float32(0)
                for c in range(K):
                    score += q[c] * key[c]
                weight = silu(score + position[i - j] + time[buckets_rn[r, j]]) * scale
                for c in range(K):
                    into[c] += weight * value[c]
        normalised(mixed, h)
        for d in range(D):
            gated[d] = wide[d] * h[d]
        for d in range(D):
            total = out_bias[d]
            for c in range(D):
                total += out_weight[d, c] * gated[c]
            x_rD[r, d] += total


@compiled("void(float32[:, ::1], int64, float32[:, ::1], float32[:, ::1], float32[:, ::1])")
def keys_of_rows(x_rD: Float32, start: int, k_nD: Float32, v_nD: Float32, uvqk: Float32) -> None:
    """Writes the keys and values of new rows as `layer_rows` does, and nothing else: for rows that nobody reads.

    Args:
        x_rD: rows `start`, `start + 1`, ... of the window.
        k_nD, v_nD, uvqk: as in `layer_rows`.
    """
    D = x_rD.shape[1]
    h = np.empty(D, np.float32)
    for r in range(len(x_rD)):
        normalised(x_rD[r], h)
        key, value = k_nD[start + r], v_nD[start + r]
        key[:], value[:] = 0, 0
        for d in range(D):
            for c in range(D):
                key[c] += h[d] * uvqk[d, 3 * D + c]
            for c in range(D):
                value[c] += h[d] * uvqk[d, D + c]
        for c in range(D):
            key[c], value[c] = silu(key[c]), silu(value[c])


@compiled("void(float32[:, ::1])")
def _silu_all(x: Float32) -> None:
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            x[r, c] = silu(x[r, c])


@compiled("float32[:, ::1](float32[:, ::1])")
def _normalised_all(x: Float32) -> Float32:
    out = np.empty_like(x)
    for r in range(len(x)):
        normalised(x[r], out[r])
    return out


@compiled("void(float32[:, ::1], float32[::1], float32)")
def _weights_of_candidates(scores_Cn: Float32, bias_n: Float32, scale: np.float32) -> None:
    for r in range(scores_Cn.shape[0]):
        for j in range(scores_Cn.shape[1]):
            scores_Cn[r, j] = silu(scores_Cn[r, j] + bias_n[j]) * scale


def candidate_rows(
    x_CD: Float32, k_nD: Float32, v_nD: Float32, buckets_n: NDArray[np.uint8], weights: LayerWeights, heads: int, n: int
) -> Float32:
    """One layer over candidates that each come next after the same rows and do not see each other.

    Args:
        x_CD: candidates as inputs of the layer.
        k_nD, v_nD: keys and values of the rows before them.
        buckets_n: time buckets of the candidates' time against those rows.
        weights: of the layer.
        heads: H.
        n: constant N.

    Returns:
        [C, D] float32, the layer's output.
    """
    uvqk, out_weight, out_bias, position, time = weights
    D, rows, scale = x_CD.shape[1], len(k_nD), np.float32(1 / n)
    wide: Float32 = np.matmul(_normalised_all(x_CD), uvqk)
    _silu_all(wide)
    u, v, q, k = (wide[:, at : at + D] for at in range(0, 4 * D, D))
    bias_n = position[rows:0:-1] + time[buckets_n]
    mixed = np.empty_like(x_CD)
    for at in range(0, D, D // heads):
        one = slice(at, at + D // heads)
        scores_Cn: Float32 = np.matmul(q[:, one], k_nD[:, one].T)
        _weights_of_candidates(scores_Cn, bias_n, scale)
        own_C1: Float32 = np.einsum("ck,ck->c", q[:, one], k[:, one])[:, None]
        _weights_of_candidates(own_C1, position[:1] + time[:1], scale)  # asked at its own time: bucket 0
        mixed[:, one] = scores_Cn @ v_nD[:, one] + own_C1 * v[:, one]
    out: Float32 = np.matmul(u * _normalised_all(mixed), out_weight.T)
    out += x_CD + out_bias
    return out
