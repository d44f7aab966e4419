"""What HSTU and SASRec have in common: the interface that the sequence learner trains and serves.

A backbone turns item vectors and times into one unit vector a row. It knows no item ids, no users, no loss and
no optimiser. Dropout draws from a generator of its own, so a restored learner continues bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from driftline.graph.arrays import Float32

# B windows in a batch, L rows of the longest window, M = L + 1 times, D width of an item vector

NORM_EPSILON = 1e-6


class Backbone(Protocol):
    """A causal encoder of event sequences."""

    max_len: int

    def forward(self, x_BLD: Tensor, t_ms_BM: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Encodes windows that are padded on the right.

        Args:
            x_BLD: float32 item vectors; rows past a window's length may hold anything finite.
            t_ms_BM: int64 event times in milliseconds. Entry i + 1 is the time of the event that row i
                predicts, so entry `length` is the request time; later entries repeat it.
            dropout: None = off.

        Returns:
            [B, L, D] float32 unit vectors. Row i depends on rows 0..i and times 0..i+1 alone.
        """
        ...


@dataclass(slots=True)
class Dropout:
    """Inverted dropout from an explicit generator.

    Attributes:
        rate: share of entries set to zero, 0 <= rate < 1.
        generator: source of the masks; part of a learner's checkpoint.
    """

    rate: float
    generator: torch.Generator

    def __call__(self, x: Tensor) -> Tensor:
        """Drops entries of a tensor of any shape."""
        if self.rate == 0.0:
            return x
        keep = torch.rand(x.shape, generator=self.generator) >= self.rate
        return x * keep / (1.0 - self.rate)

    def lots(self, shape: tuple[int, ...]) -> tuple[Float32, float]:
        """The random numbers that `__call__` would draw for a shape, none without dropout, and the rate: what has less
        is dropped."""
        if self.rate == 0.0:
            return np.zeros((0, *shape[1:]), np.float32), 0.0
        return torch.rand(shape, generator=self.generator).numpy(), self.rate


def unit(x: Tensor) -> Tensor:
    """L2-normalises the last dimension; a zero vector stays zero."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp(min=NORM_EPSILON)
