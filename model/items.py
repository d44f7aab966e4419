"""The table of item vectors: open ids, growing by doubling, each row with an optimiser state of its own.

Item vector = learnt id vector + projection of a frozen text vector, so that an item which nobody has touched
yet already lies near items whose text is alike. Rows are dense indices in order of first sight.

Source: row-wise lazy Adam is Adam (Kingma and Ba, arXiv 1412.6980) applied to the rows of a step only, with a
step count for each row, so that a new item's first steps are bias-corrected like any other row's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.backbone import unit

# N rows in use, C capacity, U rows of one step, D width of an item vector, E width of a text vector

INIT_STD = 0.02
BETAS = (0.9, 0.98)
EPSILON = 1e-8
FIRST_CAPACITY = 1024


class ItemVectors:
    """Id vectors, text vectors and Adam moments of all items.

    Args:
        dim: D.
        text_dim: E; 0 = no text.
        generator: source of the initial id vectors and of the projection.

    Attributes:
        project: [E, D] parameter, the projection of text vectors; the owner's optimiser steps it.
    """

    def __init__(self, dim: int, text_dim: int, generator: torch.Generator) -> None:
        self.dim = dim
        self.text_dim = text_dim
        self._generator = generator
        self._has_text = False
        self._n = 0
        self._id = torch.zeros(0, dim)
        self._mean = torch.zeros(0, dim)
        self._square = torch.zeros(0, dim)
        self._steps = torch.zeros(0)
        self._text = torch.zeros(0, text_dim)
        scale = INIT_STD if text_dim else 0.0
        self.project = torch.nn.Parameter(torch.empty(text_dim, dim).normal_(0, scale, generator=generator))

    def __len__(self) -> int:
        return self._n

    def grow(self, n: int) -> None:
        """Makes rows 0..n-1 usable; new id vectors are drawn in order of the rows."""
        if n <= self._n:
            return
        if n > len(self._id):
            capacity = max(FIRST_CAPACITY, 2 * len(self._id), n)
            self._id, self._mean, self._square, self._steps, self._text = (
                grown_rows(z, capacity) for z in (self._id, self._mean, self._square, self._steps, self._text)
            )
        self._id[self._n : n].normal_(0, INIT_STD, generator=self._generator)
        self._n = n

    def set_text(self, row: int, vector: Tensor) -> None:
        """Sets the frozen text vector [E] float32 of one item, growing the table to it."""
        if vector.shape != (self.text_dim,):
            raise ValueError(
                f"text vector of shape {tuple(vector.shape)} for a table of width {self.text_dim}; "
                "give vectors of the encoder that the table was made for"
            )
        self.grow(row + 1)
        self._text[row] = vector
        self._has_text = True

    def leaf(self, rows_U: Tensor) -> Tensor:
        """A copy of the id vectors [U, D] of distinct rows, to take a gradient and give it to `step`."""
        return self._id[rows_U].requires_grad_()

    def compose(self, leaf_UD: Tensor, rows_U: Tensor) -> Tensor:
        """The item vectors [U, D] of the rows whose id vectors are `leaf_UD`."""
        return leaf_UD + self._text[rows_U] @ self.project if self._has_text else leaf_UD

    def vectors(self) -> Tensor:
        """All item vectors [N, D], without gradient."""
        with torch.no_grad():
            return self.compose(self._id[: self._n], torch.arange(self._n))

    def matrix(self) -> Tensor:
        """All item vectors [N, D], L2-normalised, without gradient."""
        return unit(self.vectors())

    def step(self, rows_U: Tensor, grad_UD: Tensor, learning_rate: float) -> None:
        """One Adam step of distinct rows."""
        beta1, beta2 = BETAS
        steps_U = self._steps[rows_U] + 1
        mean_UD = self._mean[rows_U].lerp_(grad_UD, 1 - beta1)
        square_UD = self._square[rows_U].mul_(beta2).addcmul_(grad_UD, grad_UD, value=1 - beta2)
        rate_U1 = learning_rate / (1 - beta1**steps_U)[:, None]
        root_UD = (square_UD / (1 - beta2**steps_U)[:, None]).sqrt_().add_(EPSILON)
        self._id[rows_U] -= rate_U1 * mean_UD / root_UD
        self._mean[rows_U], self._square[rows_U], self._steps[rows_U] = mean_UD, square_UD, steps_U

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of every array, rows in use only."""
        names = ("_id", "_mean", "_square", "_steps", "_text")
        state = {name[1:]: getattr(self, name)[: self._n].clone() for name in names}
        return state | {"project": self.project.detach().clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        self._n = len(state["id"])
        self._has_text = bool(state["text"].any())
        for name in ("id", "mean", "square", "steps", "text"):
            setattr(self, f"_{name}", state[name].clone())
        with torch.no_grad():
            self.project.copy_(state["project"])


def grown_rows(old: Tensor, capacity: int) -> Tensor:
    """A copy with more rows, the new ones zero."""
    new = torch.zeros(capacity, *old.shape[1:])
    new[: len(old)] = old
    return new
