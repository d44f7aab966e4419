"""HSTU: the sequence backbone whose attention is pointwise and whose bias knows the time of the request.

Takes item vectors and int64 millisecond times, returns one unit vector a row. It does not know item ids, users,
negatives or losses (model/sequence.py, model/loss.py).

Source: Zhai et al., "Actions Speak Louder than Words", arXiv 2402.17152, section 3; layer sizes, bias and
input scale as in the authors' published research code for MovieLens (equal within 1e-5, tests/model).
Departures: windows are padded to the longest of the batch instead of a fixed length (the constant N stays), and time
differences are taken in int64 and compared with the edges of their buckets, so that millisecond clocks lose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.graph.arrays import Int64
from driftline.model.backbone import Dropout, unit
from driftline.model.packed import Asking, OfLayer, PackedLayer, Packing

# B windows, L rows of the longest window, M = L + 1 times, D model width, H heads, K width of a head
# q/k/v/u: [B, L, H, K]; scores and bias: [B, H or 1, L, L], query row first; P rows of all windows end to end

TIME_BUCKETS = 128
BUCKET_WIDTH = 0.301
NORM_EPSILON = 1e-6
INIT_STD = 0.02


@cache
def bucket_edges_ms() -> Tensor:
    """Where bucket 1, 2, ... begins: int64 milliseconds, ascending, up to 140,000 years.

    The bucket of a time difference is int(ln(max(1, |dt|)) / 0.301) of dt in seconds; counting edges is the same
    without a logarithm for each pair of events.
    """
    edges: list[int] = []
    for bucket in range(1, TIME_BUCKETS + 1):
        near = int(1000 * math.exp(BUCKET_WIDTH * bucket))
        if near >= 1 << 52:  # a float64 tells milliseconds apart up to here
            break
        edges.append(next(ms for ms in range(near - 2, near + 9) if math.log(ms / 1000) / BUCKET_WIDTH >= bucket))
    return torch.tensor(edges)


def time_buckets(t_ms_BM: Tensor) -> Tensor:
    """Bucket of the time between each row's request and each earlier event.

    Args:
        t_ms_BM: [B, M] int64 milliseconds; row i asks at entry i + 1, event j happened at entry j.

    Returns:
        [B, L, L] int64 in 0..TIME_BUCKETS: int(ln(max(1, |dt|)) / 0.301) of dt in seconds.
    """
    apart_ms_BLL = (t_ms_BM[:, 1:, None] - t_ms_BM[:, None, :-1]).abs_()
    return torch.bucketize(apart_ms_BLL, bucket_edges_ms(), right=True)


class RelativeBias(nn.Module):
    """Position bias + time bias of one layer, shared by its heads.

    Args:
        n: constant N; positions 0..N-1 back have a weight each.
    """

    def __init__(self, n: int, generator: torch.Generator) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(n).normal_(0, INIT_STD, generator=generator))
        self.time = nn.Parameter(torch.empty(TIME_BUCKETS + 1).normal_(0, INIT_STD, generator=generator))

    def forward(self, buckets_BLL: Tensor) -> Tensor:
        """The bias [B, L, L] float32 for time buckets [B, L, L] int64."""
        rows = buckets_BLL.size(-1)
        at = torch.arange(rows)
        back_LL = (at[:, None] - at[None, :]).clamp_(min=0)
        time_BLL = self.time.index_select(0, buckets_BLL.flatten()).view(buckets_BLL.shape)
        return time_BLL + self.position.index_select(0, back_LL.flatten()).view(rows, rows)


class HSTULayer(nn.Module):
    """One block: h = LN(x); u, v, q, k = split(SiLU(h W)); y = x + W_o dropout(u * LN(A v)) + b.

    A = SiLU(q k^T + bias) / N, causal, without softmax and without 1/sqrt(K).

    Args:
        dim: D, divisible by heads.
        heads: H.
        n: constant N of the attention, the same in training and serving.
    """

    def __init__(self, dim: int, heads: int, n: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.n = n
        self.uvqk = nn.Parameter(torch.empty(dim, 4 * dim).normal_(0, INIT_STD, generator=generator))
        self.out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.out.weight, generator=generator)
        nn.init.zeros_(self.out.bias)
        self.bias = RelativeBias(n, generator)

    def forward(self, x_BLD: Tensor, buckets_BLL: Tensor, dropout: Dropout | None) -> Tensor:
        """Returns [B, L, D] float32."""
        B, L, D = x_BLD.shape
        h_BLD = F.layer_norm(x_BLD, (D,), eps=NORM_EPSILON)
        u_BLD, v, q, k = torch.split(F.silu(h_BLD @ self.uvqk), D, dim=-1)
        q, k, v = (z.view(B, L, self.heads, D // self.heads).transpose(1, 2) for z in (q, k, v))  # [B, H, L, K]
        scores_BHLL = q @ k.transpose(-1, -2) + self.bias(buckets_BLL)[:, None]
        attention_BHLL = F.silu(scores_BHLL).tril() / self.n
        mixed_BLD = (attention_BHLL @ v).transpose(1, 2).reshape(B, L, D)
        gated_BLD = u_BLD * F.layer_norm(mixed_BLD, (D,), eps=NORM_EPSILON)
        out: Tensor = self.out(dropout(gated_BLD) if dropout else gated_BLD)
        return out + x_BLD

    def packed(self, x_PD: Tensor, packing: Packing, asking: Asking, dropout: Dropout | None) -> Tensor:
        """The same for windows end to end: [A, D] float32 of the rows that ask."""
        lots_PD, rate = dropout.lots(x_PD.shape) if dropout else (x_PD.detach().numpy()[:0], 0.0)
        of = OfLayer(packing, asking, self.heads, self.n, lots_PD, np.float32(rate))
        y_AD: Tensor = PackedLayer.apply(
            x_PD, self.uvqk, self.out.weight, self.out.bias, self.bias.position, self.bias.time, of
        )  # type: ignore[no-untyped-call]
        return y_AD


class HSTU(nn.Module):
    """The stack: x = sqrt(D) * item + position, blocks, L2 norm.

    Args:
        dim: D, width of an item vector.
        blocks: layers.
        heads: H, a divisor of dim.
        max_len: rows of a window at most.
        outputs: rows that are decoded after the window; they only enter N = max_len + outputs + 1.
        generator: source of the initial weights.
        gaps: a row is also told the time between its event and the next one.
    """

    def __init__(
        self,
        dim: int,
        blocks: int,
        heads: int,
        max_len: int,
        generator: torch.Generator,
        outputs: int = 1,
        gaps: bool = False,
    ) -> None:
        super().__init__()
        self.max_len = max_len
        self.n = max_len + outputs + 1
        self.position = nn.Parameter(torch.empty(self.n, dim).normal_(0, dim**-0.5, generator=generator))
        self.layers = nn.ModuleList(HSTULayer(dim, heads, self.n, generator) for _ in range(blocks))
        self.gap = nn.Parameter(torch.zeros(TIME_BUCKETS + 1, dim)) if gaps else None

    def forward(self, x_BLD: Tensor, t_ms_BM: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Encodes windows; the contract is `Backbone.forward`."""
        L, D = x_BLD.shape[1:]
        y_BLD = x_BLD * D**0.5 + self.position[:L]
        buckets_BLL = time_buckets(t_ms_BM)
        if self.gap is not None:
            y_BLD = y_BLD + self.gap[buckets_BLL.diagonal(dim1=1, dim2=2)]
        if dropout:
            y_BLD = dropout(y_BLD)
        for layer in self.layers:
            y_BLD = layer(y_BLD, buckets_BLL, dropout)
        return unit(y_BLD)

    def packed(
        self, x_PD: Tensor, packing: Packing, dropout: Dropout | None = None, asked: Sequence[Int64] | None = None
    ) -> Tensor:
        """The same for windows end to end, as training has them: unit vectors [A, D] float32.

        Args:
            x_PD: item vectors; packing: where the windows lie.
            dropout: as in `forward`.
            asked: places [a] of the rows wanted of each window; None = all.
        """
        y_PD = x_PD * x_PD.shape[1] ** 0.5 + self.position.index_select(0, torch.from_numpy(packing.places))
        if self.gap is not None:
            y_PD = y_PD + self.gap.index_select(0, torch.from_numpy(packing.gaps()))
        if dropout:
            y_PD = dropout(y_PD)
        for n, layer in enumerate(self.layers, 1):
            asking = Asking.of(packing, asked if n == len(self.layers) else None)
            y_PD = cast(HSTULayer, layer).packed(y_PD, packing, asking, dropout)
        return unit(y_PD)
