"""HSTU's layers for training: windows end to end without padding, forward and backward pass by hand.

    u, q [A, D] of rows that ask, v, k [P, D] of all rows -> W = silu(q k^T + bias) / N, causal -> u * LN(W v) [A, D]

All rows ask in the lower layers; of the last one only those that the loss reads. Products are BLAS's, those of the
attention window after window; between them are compiled passes (model/step_kernel.py). Time buckets are computed once
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
from driftline.model.compiled import compiled
from driftline.model.step_kernel import gated, normalised, silu, through_gate, through_norm, through_weights, weigh

# B windows, L rows of one, P rows of all, A rows that ask (a in one window), S squares of all lengths together,
# R a x L matrices of all windows together, D model width, H heads, K width of a head

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


class PackedLayer(torch.autograd.Function):
    """One block of HSTU over windows end to end, both passes by hand; `HSTULayer` says what it computes."""

    @staticmethod
    def forward(
        ctx: Any, x_PD: Tensor, uvqk: Tensor, out_weight: Tensor, out_bias: Tensor, position: Tensor, time: Tensor,
        of: OfLayer,
    ) -> Tensor:  # fmt: skip
        """[A, D]: the rows that ask."""
        x, (P, D), (u, v, q, k) = x_PD.numpy(), x_PD.shape, np.split(uvqk.numpy(), 4, axis=1)
        asking, rows_A = of.asking, of.asking.rows
        w_uq, w_vk = np.concatenate((u, q), 1), np.concatenate((v, k), 1)
        h, rate_P = np.empty((P, D), np.float32), np.empty(P, np.float32)
        normalised(x, h, rate_P)
        h_AD = h if of.all_ask else h[rows_A]
        uq, vk = h_AD @ w_uq, h @ w_vk
        slope_uq, slope_vk = np.empty_like(uq), np.empty_like(vk)
        silu(uq, slope_uq)
        silu(vk, slope_vk)
        weights, slopes = np.empty((2, of.heads * asking.areas[-1]), np.float32)
        mixed = np.empty((len(uq), D), np.float32)
        biases, scale = (position.numpy(), time.numpy()), np.float32(1 / of.n)
        pieces = list(_pieces(of.packing, asking, of.heads, D))
        for one in pieces:
            weights_aL, slopes_aL = weights[one.area].reshape(one.shape), slopes[one.area].reshape(one.shape)
            np.matmul(uq[one.asked, one.second], vk[one.rows, one.second].T, out=weights_aL)
            weigh(weights_aL, slopes_aL, one.places, one.buckets, *biases, scale)
            np.matmul(weights_aL, vk[one.rows, one.first], out=mixed[one.asked, one.first])
        gated_AD = gated(uq, mixed, of.lots_PD, rows_A, of.rate)
        y = gated_AD @ out_weight.numpy().T
        y += out_bias.numpy()
        y += x if of.all_ask else x[rows_A]
        ctx.of, ctx.pieces, ctx.sizes = of, pieces, (len(position), len(time))
        ctx.kept = h, rate_P, h_AD, w_uq, w_vk, uq, vk, slope_uq, slope_vk, weights, slopes, mixed, gated_AD
        ctx.out_weight = out_weight.numpy()
        return torch.from_numpy(y)

    @staticmethod
    def backward(ctx: Any, grad_AD: Tensor) -> tuple[Tensor | None, ...]:
        """Once: what the forward pass kept is used up."""
        h, rate_P, h_AD, w_uq, w_vk, uq, vk, slope_uq, slope_vk, weights, slopes, grad_mixed, gated_AD = ctx.kept
        of, grad_y, D = ctx.of, grad_AD.contiguous().numpy(), h.shape[1]
        rows_A = of.asking.rows
        grad_position, grad_time = (np.zeros(size, np.float32) for size in ctx.sizes)
        grad_uq, grad_vk = np.empty_like(uq), np.empty_like(vk)
        through_gate(grad_y @ ctx.out_weight, uq, grad_mixed, grad_uq, of.lots_PD, rows_A, of.rate)
        for one in ctx.pieces:
            grad = grad_mixed[one.asked, one.first]
            grad_aL = grad @ vk[one.rows, one.first].T
            slopes_aL = slopes[one.area].reshape(one.shape)
            through_weights(grad_aL, slopes_aL, one.places, one.buckets, grad_position, grad_time)
            np.matmul(weights[one.area].reshape(one.shape).T, grad, out=grad_vk[one.rows, one.first])
            np.matmul(grad_aL, vk[one.rows, one.second], out=grad_uq[one.asked, one.second])
            np.matmul(grad_aL.T, uq[one.asked, one.second], out=grad_vk[one.rows, one.second])
        grad_uq *= slope_uq
        grad_vk *= slope_vk
        of_uq, of_vk = h_AD.T @ grad_uq, h.T @ grad_vk
        grad_uvqk = np.concatenate((of_uq[:, :D], of_vk[:, :D], of_uq[:, D:], of_vk[:, D:]), 1)
        grad_x = grad_vk @ w_vk.T
        if of.all_ask:
            grad_x += grad_uq @ w_uq.T
        else:  # rows are distinct
            grad_x[rows_A] += grad_uq @ w_uq.T
        through_norm(grad_x, h, rate_P, grad_y, rows_A)
        grads = grad_x, grad_uvqk, grad_y.T @ gated_AD, grad_y.sum(0), grad_position, grad_time
        return *map(torch.from_numpy, grads), None


@dataclass(frozen=True, slots=True)
class OfLayer:
    """What a layer's pass is told beside rows and weights.

    Attributes:
        packing: where the windows lie; asking: the rows that ask, each once.
        heads: H; n: constant N.
        lots_PD: [P, D] float32 uniform random numbers of the dropout, [0, D] = none.
        rate: of the dropout.
    """

    packing: Packing
    asking: Asking
    heads: int
    n: int
    lots_PD: Float32
    rate: np.float32

    @property
    def all_ask(self) -> bool:
        """Whether every row does."""
        return len(self.asking.rows) == int(self.packing.starts[-1])


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
