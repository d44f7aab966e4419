"""The table of item vectors: open ids, growing by doubling, each row with an optimiser state of its own.

Item vector = learnt id vector + projection of a frozen text vector, so that an item which nobody has touched
yet already lies near items whose text is alike. Rows are dense indices in order of first sight. A row may be twice as
wide as an item's vector: the second half, which starts at zero, is what it differs by where it is read (`as_read`).

Source: row-wise lazy Adam is Adam (Kingma and Ba, arXiv 1412.6980) applied to the rows of a step only, with a
step count for each row, so that a new item's first steps are bias-corrected like any other row's.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from driftline.graph.arrays import Float32, Int64
from driftline.graph.texts import TextTable
from driftline.model.compiled import compiled

# N rows in use, C capacity, U rows of one step, D width of a row of the table, E width of a text vector

INIT_STD = 0.02
BETAS = (0.9, 0.98)
EPSILON = 1e-8
FIRST_CAPACITY = 1024
ALMOST_ALL = 7 / 8
"""Share of the rows from which projecting all texts costs less than a copy of theirs."""
NAMES = ("id", "mean", "square", "steps")
"""What a checkpoint holds of each row."""


class ItemVectors:
    """Id vectors, text vectors and Adam moments of all items.

    Args:
        dim: width of an item vector.
        text_dim: E; 0 = no text.
        generator: source of the initial id vectors and of the projection.
        texts: their text vectors, in a table that others share and its owner keeps; None = one of its own.
        untied: rows are twice as wide as a vector.

    Attributes:
        width: D.
        project: [E, D] parameter, the projection of text vectors; the owner's optimiser steps it.
        has_text: whether any item has a text vector.
    """

    def __init__(
        self,
        dim: int,
        text_dim: int,
        generator: torch.Generator,
        texts: TextTable | None = None,
        untied: bool = False,
    ) -> None:
        self.dim, self.width = dim, 2 * dim if untied else dim
        self.text_dim = text_dim
        self._generator = generator
        self.has_text = False
        self._n = 0
        self._id, self._mean, self._square = torch.zeros(3, 0, self.width)
        self._steps = torch.zeros(0)
        self.texts, self._shared = (TextTable(text_dim), False) if texts is None else (texts, True)
        scale = INIT_STD if text_dim else 0.0
        project = torch.empty(text_dim, dim).normal_(0, scale, generator=generator)
        self.project = torch.nn.Parameter(torch.cat((project, torch.zeros(text_dim, self.width - dim)), 1))

    def __len__(self) -> int:
        return self._n

    def grow(self, n: int) -> None:
        """Makes rows 0..n-1 usable; new id vectors are drawn in order of the rows."""
        if n <= self._n:
            return
        if n > len(self._id):
            capacity = max(FIRST_CAPACITY, 2 * len(self._id), n)
            self._id, self._mean, self._square, self._steps = (
                grown_rows(z, capacity) for z in (self._id, self._mean, self._square, self._steps)
            )
        self._id[self._n : n, : self.dim].normal_(0, INIT_STD, generator=self._generator)
        self._n = n

    def set_text(self, row: int, vector: Float32) -> None:
        """Sets the frozen text vector [E] float32 of one item, growing the table to it."""
        if vector.shape != (self.text_dim,):
            raise ValueError(
                f"text vector of shape {tuple(vector.shape)} for a table of width {self.text_dim}; "
                "give vectors of the encoder that the table was made for"
            )
        self.grow(row + 1)
        self.texts.set(row, vector)
        self.has_text = True

    def leaf(self, rows_U: Tensor) -> Tensor:
        """A copy of the id vectors [U, D] of distinct rows, to take a gradient and give it to `step`."""
        leaf: Tensor = self._id[rows_U].requires_grad_()
        return leaf

    def compose(self, leaf_UD: Tensor, rows_U: Tensor, project: Tensor | None = None) -> Tensor:
        """The item vectors [U, D] of ascending rows with these id vectors, by another projection if one is given."""
        if not self.has_text:
            return leaf_UD
        n, project = len(rows_U), self.project if project is None else project
        if self._n * ALMOST_ALL > n:
            return leaf_UD + torch.from_numpy(self.texts[rows_U.numpy()]) @ project
        of_all = torch.from_numpy(self.texts.first(self._n)) @ project
        return leaf_UD + (of_all if n == self._n else of_all.index_select(0, rows_U))

    def vectors(self) -> Tensor:
        """All item vectors [N, D], without gradient."""
        with torch.no_grad():
            return self.compose(self._id[: self._n], torch.arange(self._n))

    def step(self, rows_U: Tensor, grad_UD: Tensor, learning_rate: float) -> None:
        """One Adam step of distinct rows."""
        weight, mean, square, steps = (z.numpy() for z in (self._id, self._mean, self._square, self._steps))
        _adam_rows(weight, mean, square, steps, rows_U.numpy(), grad_UD.contiguous().numpy(), learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """Copies of every array, rows in use only, of texts those that nobody else keeps."""
        state: dict[str, Any] = {name: getattr(self, f"_{name}")[: self._n].clone() for name in NAMES}
        own = {} if self._shared else {name: array.copy() for name, array in self.texts.arrays().items()}
        return state | own | {"project": self.project.detach().clone(), "has_text": self.has_text}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._n = len(state["id"])
        self.has_text = state["has_text"]
        if not self._shared:
            self.texts.restore(state)
        for name in NAMES:
            setattr(self, f"_{name}", state[name].clone())
        with torch.no_grad():
            self.project.copy_(state["project"])


Rows = TypeVar("Rows", Tensor, Float32)


def as_read(x: Rows, dim: int) -> Rows:
    """What a backbone reads of rows [..., dim or 2 * dim] of the table: [..., dim]."""
    return x if x.shape[-1] == dim else x[..., :dim] + x[..., dim:]


def as_compared(x: Rows, dim: int) -> Rows:
    """What stands for an item among candidates; the rows themselves where they are no wider, as gradients add up so."""
    return x if x.shape[-1] == dim else x[..., :dim]


def grown_rows(old: Tensor, capacity: int) -> Tensor:
    """A copy with more rows, the new ones zero."""
    new = torch.zeros(capacity, *old.shape[1:])
    new[: len(old)] = old
    return new


@compiled("void(float32[:, ::1], float32[:, ::1], float32[:, ::1], float32[::1], int64[::1], float32[:, ::1], float64)")
def _adam_rows(
    weight: Float32, mean: Float32, square: Float32, steps: Float32, rows_U: Int64, grad_UD: Float32, rate: float
) -> None:
    """Adam on some rows of a table, in place."""
    beta1, beta2 = np.float32(BETAS[0]), np.float32(BETAS[1])
    for u in range(len(rows_U)):
        row = rows_U[u]
        steps[row] += np.float32(1)
        of_mean = np.float32(rate / (1 - BETAS[0] ** steps[row]))
        of_square = np.float32(1 / (1 - BETAS[1] ** steps[row]))
        for d in range(grad_UD.shape[1]):
            g = grad_UD[u, d]
            mean[row, d] += (g - mean[row, d]) * (np.float32(1) - beta1)
            square[row, d] = square[row, d] * beta2 + g * g * (np.float32(1) - beta2)
            weight[row, d] -= of_mean * mean[row, d] / (np.sqrt(square[row, d] * of_square) + np.float32(EPSILON))
