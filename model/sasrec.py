"""SASRec: the softmax self-attention backbone that HSTU is compared with, same interface and size.

It reads the order of events and ignores their times.

Source: Kang and McAuley, "Self-Attentive Sequential Recommendation", arXiv 1808.09781, section 3, in the form
that the HSTU authors compare with: pre-norm queries, GELU-free feed-forward of the model's width, L2-normalised
output for a sampled softmax loss in place of the paper's binary cross-entropy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.model.backbone import Dropout, unit

# B windows, L rows of the longest window, D model width, H heads, K width of a head

NORM_EPSILON = 1e-8


def _linear(dim: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(dim, dim)
    nn.init.xavier_normal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class SASRecLayer(nn.Module):
    """Softmax attention and a feed-forward network of the same width.

    Args:
        dim: D, divisible by heads.
        heads: H.
    """

    def __init__(self, dim: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out, self.inner, self.outer = (_linear(dim, generator) for _ in range(6))

    def forward(self, x_BLD: Tensor, dropout: Dropout | None) -> Tensor:
        """Returns [B, L, D] float32."""
        B, L, D = x_BLD.shape
        drop = dropout or (lambda z: z)
        query_BLD = F.layer_norm(x_BLD, (D,), eps=NORM_EPSILON)
        q, k, v = (
            z.view(B, L, self.heads, D // self.heads).transpose(1, 2)
            for z in (self.q(query_BLD), self.k(x_BLD), self.v(x_BLD))
        )  # [B, H, L, K]
        later_LL = torch.ones(L, L, dtype=torch.bool).triu(1)
        scores_BHLL = (q @ k.transpose(-1, -2) * (D // self.heads) ** -0.5).masked_fill(later_LL, -torch.inf)
        mixed_BHLK = drop(scores_BHLL.softmax(-1)) @ v
        mixed_BLD = self.out(mixed_BHLK.transpose(1, 2).reshape(B, L, D))
        h_BLD = F.layer_norm(query_BLD + mixed_BLD, (D,), eps=NORM_EPSILON)
        out: Tensor = drop(self.outer(drop(F.relu(self.inner(h_BLD)))))
        return out + h_BLD


class SASRec(nn.Module):
    """The stack: x = sqrt(D) * item + position, blocks, L2 norm.

    Args:
        dim: D, width of an item vector.
        blocks: layers.
        heads: H, a divisor of dim.
        max_len: rows of a window at most.
        generator: source of the initial weights.
    """

    def __init__(self, dim: int, blocks: int, heads: int, max_len: int, generator: torch.Generator) -> None:
        super().__init__()
        self.max_len = max_len
        self.position = nn.Parameter(torch.empty(max_len, dim).normal_(0, dim**-0.5, generator=generator))
        self.layers = nn.ModuleList(SASRecLayer(dim, heads, generator) for _ in range(blocks))

    def forward(self, x_BLD: Tensor, t_ms_BM: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Encodes windows; the contract is `Backbone.forward`."""
        del t_ms_BM
        L, D = x_BLD.shape[1:]
        y_BLD = x_BLD * D**0.5 + self.position[:L]
        if dropout:
            y_BLD = dropout(y_BLD)
        for layer in self.layers:
            y_BLD = layer(y_BLD, dropout)
        return unit(y_BLD)
