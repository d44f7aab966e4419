"""HSTU's attention for training: windows end to end without padding, forward and backward pass by hand.

    u, q [A, D] of rows that ask, v, k [P, D] of all rows -> W = silu(q k^T + bias) / N, causal -> u * LN(W v) [A, D]

All rows ask in the lower layers; of the last one only those that the loss reads. Products are BLAS's, window after
window; what lies between them is one compiled pass that also keeps the derivative of W. Time buckets are computed once
for all layers and both passes. `HSTULayer.forward` is the same on padded windows, left to autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from driftline.graph.arrays import Float32, Int64
from driftline.model.compiled import compiled, inlined

# B windows, L rows of one, P rows of all, A rows that ask (a in one window), S squares of all lengths together,
# R a x L matrices of all windows together, D model width, H heads, K width of a head

NORM_EPSILON = np.float32(1e-6)
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Packing:
    """Where the windows of a batch lie.

    Attributes:
        starts: [B + 1] int64, the first row of each window and the end.
        squares: [B + 1] int64, the same of L x L matrices one after the other.
        places: [P] int64, the place of each row in its window.
        buckets: [S] uint8 time buckets, row first; those of later events are unset.
    """

    starts: Int64
    squares: Int64
    places: Int64
    buckets: Bytes

    @classmethod
    def of(cls, t_ms: Sequence[Int64], edges_ms: Int64) -> Packing:
        """Of windows with times [L + 1] each: row i asks at entry i + 1."""
        lengths = np.array([len(t) - 1 for t in t_ms], np.int64)
        starts, squares = np.append(0, lengths.cumsum()), np.append(0, (lengths * lengths).cumsum())
        buckets = _buckets_of_windows(np.concatenate(t_ms), starts, squares, edges_ms)
        return cls(starts, squares, np.arange(starts[-1]) - np.repeat(starts[:-1], lengths), buckets)

    def gaps(self) -> Int64:
        """Buckets [P] of the times between each row's event and its request."""
        lengths = np.diff(self.starts)
        at = np.repeat(self.squares[:-1], lengths) + self.places * (np.repeat(lengths, lengths) + 1)
        found: Int64 = self.buckets[at].astype(np.int64)
        return found


@dataclass(frozen=True, slots=True)
class Asking:
    """Rows of a packing that read the rows up to them.

    Attributes:
        rows: [A] int64 numbers of rows, window after window.
        starts: [B + 1] int64, the first of each window and the end.
        areas: [B + 1] int64, the same of a x L matrices one after the other.
    """

    rows: Int64
    starts: Int64
    areas: Int64

    @classmethod
    def of(cls, packing: Packing, places: Sequence[Int64] | None = None) -> Asking:
        """Places [a] of each window; None = all rows."""
        lengths = np.diff(packing.starts)
        if places is None:
            return cls(np.arange(packing.starts[-1]), packing.starts, packing.squares)
        counts = np.array([len(one) for one in places], np.int64)
        rows = np.concatenate([one + start for one, start in zip(places, packing.starts, strict=False)])
        return cls(rows, np.append(0, counts.cumsum()), np.append(0, (counts * lengths).cumsum()))


@compiled("uint8[::1](int64[::1], int64[::1], int64[::1], int64[::1])")
def _buckets_of_windows(t_ms: Int64, starts: Int64, squares: Int64, edges_ms: Int64) -> Bytes:
    out = np.zeros(squares[-1], np.uint8)
    for b in range(len(starts) - 1):
        rows, first = starts[b + 1] - starts[b], starts[b] + b  # each window has a time more than rows
        for i in range(rows):
            bucket, asked_ms, at = 0, t_ms[first + i + 1], squares[b] + i * rows
            for j in range(i, -1, -1):
                apart_ms = abs(asked_ms - t_ms[first + j])
                while bucket < len(edges_ms) and apart_ms >= edges_ms[bucket]:
                    bucket += 1
                while bucket > 0 and apart_ms < edges_ms[bucket - 1]:
                    bucket -= 1
                out[at + j] = bucket
    return out


@inlined
def _norm_of(x: Float32) -> tuple[np.float32, np.float32]:
    """Mean and 1 / standard deviation of a row."""
    mean, square = np.float32(0), np.float32(0)
    for d in range(len(x)):
        mean += x[d]
    mean = np.float32(mean / np.float32(len(x)))
    for d in range(len(x)):
        square += (x[d] - mean) * (x[d] - mean)
    return mean, np.float32(1) / np.sqrt(square / np.float32(len(x)) + NORM_EPSILON)


@compiled("void(float32[:, ::1], float32[:, ::1], int64[::1], uint8[::1], float32[::1], float32[::1], float32)")
def _weigh(
    scores_aL: Float32, slopes_aL: Float32, places: Int64, buckets: Bytes, position: Float32, time: Float32,
    scale: np.float32,
) -> None:  # fmt: skip
    """Scores become weights in place; their derivatives go to `slopes`. Buckets [L * L] are those of all rows."""
    rows = scores_aL.shape[1]
    for a in range(len(places)):
        i = places[a]
        at = i * rows
        for j in range(i + 1):
            score = scores_aL[a, j] + position[i - j] + time[buckets[at + j]]
            gate = np.float32(1) / (np.float32(1) + np.exp(-score))
            scores_aL[a, j] = score * gate * scale
            slopes_aL[a, j] = gate * (np.float32(1) + score * (np.float32(1) - gate)) * scale
        for j in range(i + 1, rows):
            scores_aL[a, j] = 0
            slopes_aL[a, j] = 0


@compiled("void(float32[:, ::1], float32[:, ::1], int64[::1], uint8[::1], float32[::1], float32[::1])")
def _through_weights(
    grad_aL: Float32, slopes_aL: Float32, places: Int64, buckets: Bytes, grad_position: Float32, grad_time: Float32
) -> None:
    """Gradients of weights become those of scores in place; the bias takes its part."""
    rows = grad_aL.shape[1]
    for a in range(len(places)):
        i = places[a]
        at = i * rows
        for j in range(rows):
            grad_aL[a, j] *= slopes_aL[a, j]
        for j in range(i + 1):
            grad_position[i - j] += grad_aL[a, j]
            grad_time[buckets[at + j]] += grad_aL[a, j]


@compiled("float32[:, ::1](float32[:, ::1], float32[:, ::1])")
def _gated(uq_A2D: Float32, mixed_AD: Float32) -> Float32:
    out = np.empty_like(mixed_AD)
    for p in range(len(mixed_AD)):
        mean, rate = _norm_of(mixed_AD[p])
        for d in range(mixed_AD.shape[1]):
            out[p, d] = uq_A2D[p, d] * (mixed_AD[p, d] - mean) * rate
    return out


@compiled("void(float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[:, ::1])")
def _through_gate(grad_AD: Float32, uq_A2D: Float32, mixed_AD: Float32, grad_uq_A2D: Float32) -> None:
    """The gradient of u goes to its place, that of `mixed` takes the place of `mixed`."""
    D = mixed_AD.shape[1]
    for p in range(len(mixed_AD)):
        mean, rate = _norm_of(mixed_AD[p])
        total, product = np.float32(0), np.float32(0)
        for d in range(D):
            normal = (mixed_AD[p, d] - mean) * rate
            grad_uq_A2D[p, d] = grad_AD[p, d] * normal
            total += grad_AD[p, d] * uq_A2D[p, d]
            product += grad_AD[p, d] * uq_A2D[p, d] * normal
        total, product = total / np.float32(D), product / np.float32(D)
        for d in range(D):
            normal = (mixed_AD[p, d] - mean) * rate
            mixed_AD[p, d] = (grad_AD[p, d] * uq_A2D[p, d] - total - normal * product) * rate


class PackedAttention(torch.autograd.Function):
    """u * LN(W v) of windows end to end."""

    @staticmethod
    def forward(
        ctx: Any, uq_A2D: Tensor, vk_P2D: Tensor, position: Tensor, time: Tensor, packing: Packing, asking: Asking,
        heads: int, n: int,
    ) -> Tensor:  # fmt: skip
        """[A, D]: see the top of the file."""
        uq, vk = uq_A2D.numpy(), vk_P2D.numpy()
        D = vk.shape[1] // 2
        weights, slopes = np.empty((2, heads * asking.areas[-1]), np.float32)
        mixed = np.empty((len(uq), D), np.float32)
        biases, scale = (position.numpy(), time.numpy()), np.float32(1 / n)
        for one in _pieces(packing, asking, heads, D):
            weights_aL, slopes_aL = weights[one.area].reshape(one.shape), slopes[one.area].reshape(one.shape)
            np.matmul(uq[one.asked, one.second], vk[one.rows, one.second].T, out=weights_aL)
            _weigh(weights_aL, slopes_aL, one.places, one.buckets, *biases, scale)
            mixed[one.asked, one.first] = weights_aL @ vk[one.rows, one.first]
        ctx.packing, ctx.asking, ctx.heads, ctx.sizes = packing, asking, heads, (len(position), len(time))
        ctx.kept = uq, vk, weights, slopes, mixed
        return torch.from_numpy(_gated(uq, mixed))

    @staticmethod
    def backward(ctx: Any, grad_AD: Tensor) -> tuple[Tensor | None, ...]:
        """Once: what the forward pass kept is used up."""
        uq, vk, weights, slopes, grad_mixed = ctx.kept
        grad_position, grad_time = (np.zeros(size, np.float32) for size in ctx.sizes)
        grad_uq, grad_vk = np.empty_like(uq), np.empty_like(vk)
        _through_gate(grad_AD.contiguous().numpy(), uq, grad_mixed, grad_uq)
        for one in _pieces(ctx.packing, ctx.asking, ctx.heads, vk.shape[1] // 2):
            grad = grad_mixed[one.asked, one.first]
            grad_aL = grad @ vk[one.rows, one.first].T
            slopes_aL = slopes[one.area].reshape(one.shape)
            _through_weights(grad_aL, slopes_aL, one.places, one.buckets, grad_position, grad_time)
            grad_vk[one.rows, one.first] = weights[one.area].reshape(one.shape).T @ grad
            grad_uq[one.asked, one.second] = grad_aL @ vk[one.rows, one.second]
            grad_vk[one.rows, one.second] = grad_aL.T @ uq[one.asked, one.second]
        return *map(torch.from_numpy, (grad_uq, grad_vk, grad_position, grad_time)), None, None, None, None


class _Piece(NamedTuple):
    """One head of a window: its rows and those that ask, their places, columns of u or v and of q or k."""

    rows: slice
    asked: slice
    places: Int64
    area: slice
    shape: tuple[int, int]
    buckets: Bytes
    first: slice
    second: slice


def _pieces(packing: Packing, asking: Asking, heads: int, D: int) -> Iterator[_Piece]:
    K, whole = D // heads, int(asking.areas[-1])
    starts, squares = packing.starts.tolist(), packing.squares.tolist()
    asked, areas, all_places = asking.starts.tolist(), asking.areas.tolist(), packing.places[asking.rows]
    for b in range(len(starts) - 1):
        rows, those = slice(*starts[b : b + 2]), slice(*asked[b : b + 2])
        shape = asked[b + 1] - asked[b], starts[b + 1] - starts[b]
        for head in range(heads):
            at = head * K
            yield _Piece(
                rows, those, all_places[those], slice(head * whole + areas[b], head * whole + areas[b + 1]), shape,
                packing.buckets[squares[b] : squares[b + 1]], slice(at, at + K), slice(D + at, D + at + K),
            )  # fmt: skip
