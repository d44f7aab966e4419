"""Running mean of the weights, which is what scores: single steps of an online learner are noisy.

Each item row has a step count of its own, so a new item follows its first steps closely and an old one slowly.
Rows that a step did not touch stay; rows that no step ever touched are left to the caller.

Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, in its exponential form.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftline.graph.arrays import Float32, Int64
from driftline.model.compiled import compiled
from driftline.model.hstu import HSTU
from driftline.model.items import grown_rows
from driftline.model.sasrec import SASRec

# N item rows, U item rows of one step, D width

WARM_UP = 10.0


class Average:
    """Mean backbone and mean item vectors.

    Args:
        decay: share of the mean that stays at each step, reached after some warm-up; 0 = the newest weights.
        backbone: whose weights are averaged; copied unless decay is 0.
    """

    def __init__(self, decay: float, backbone: HSTU | SASRec) -> None:
        self.decay = decay
        self.backbone = copy.deepcopy(backbone).requires_grad_(False) if decay else backbone
        self._steps = 0
        self._vectors = torch.zeros(0, 0)
        self._row_steps = torch.zeros(0)

    @torch.no_grad()
    def update(self, backbone: HSTU | SASRec, rows_U: Tensor, x_UD: Tensor) -> None:
        """Moves the mean towards the weights after a step and the item vectors [U, D] that it used."""
        if not self.decay:
            return
        stay = self._stay(torch.tensor(float(self._steps)))
        for mean, newest in zip(self.backbone.parameters(), backbone.parameters(), strict=True):
            mean.lerp_(newest, 1.0 - float(stay))
        self._steps += 1
        size = int(rows_U[-1]) + 1
        if size > len(self._vectors):
            old = self._vectors if len(self._vectors) else torch.zeros(0, x_UD.shape[1])
            self._vectors = grown_rows(old, max(size, 2 * len(old)))
            self._row_steps = grown_rows(self._row_steps, len(self._vectors))
        stay_U = self._stay(self._row_steps.index_select(0, rows_U))
        _move_rows(self._vectors.numpy(), rows_U.numpy(), stay_U.numpy(), x_UD.detach().numpy())
        self._row_steps.index_add_(0, rows_U, torch.ones(len(rows_U)))

    def _stay(self, steps: Tensor) -> Tensor:
        """Share of the mean that stays at a step; 0 at the first, so the mean starts at the weights."""
        return (steps / (WARM_UP + steps)).clamp(max=self.decay)

    def unused(self, start: int, end: int) -> Tensor:
        """Of item rows start..end-1 those without a mean."""
        out = torch.ones(max(end - start, 0), dtype=torch.bool)
        counted = self._row_steps[start:end]
        out[: len(counted)] = counted == 0
        return out.nonzero().flatten() + start

    def arrays(self, width: int) -> tuple[Float32, Float32]:
        """Steps [n] and means [n, width] of the first item rows; a row without steps, or past the end, has no mean."""
        means = self._vectors if len(self._vectors) else torch.zeros(0, width)
        return self._row_steps.numpy(), means.numpy()

    def state_dict(self) -> dict[str, Any]:
        """Copies of all means and counts."""
        return {
            "backbone": {k: v.clone() for k, v in self.backbone.state_dict().items()},
            "steps": self._steps,
            "vectors": self._vectors.clone(),
            "row_steps": self._row_steps.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.backbone.load_state_dict(state["backbone"])
        self._steps = state["steps"]
        self._vectors, self._row_steps = state["vectors"].clone(), state["row_steps"].clone()


@compiled("void(float32[:, ::1], int64[::1], float32[::1], float32[:, ::1])")
def _move_rows(means: Float32, rows_U: Int64, stay_U: Float32, x_UD: Float32) -> None:
    """Moves rows of a table towards x, of which `stay` stays out."""
    for u in range(len(rows_U)):
        for d in range(means.shape[1]):
            mean = means[rows_U[u], d]
            means[rows_U[u], d] = stay_U[u] * mean + (np.float32(1) - stay_U[u]) * x_UD[u, d]
