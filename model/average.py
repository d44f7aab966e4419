"""Running mean of the weights, which is what scores: single steps of an online learner are noisy.

Each item row has a step count of its own, so a new item follows its first steps closely and an old one slowly.
Rows that a step did not touch stay; rows that no step ever touched are left to the caller.

Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992, in its exponential form.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from model.hstu import HSTU
from model.items import grown_rows
from model.sasrec import SASRec

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
        stay_U1 = self._stay(self._row_steps[rows_U])[:, None]
        self._vectors[rows_U] = stay_U1 * self._vectors[rows_U] + (1.0 - stay_U1) * x_UD.detach()
        self._row_steps[rows_U] += 1

    def _stay(self, steps: Tensor) -> Tensor:
        """Share of the mean that stays at a step; 0 at the first, so the mean starts at the weights."""
        return (steps / (WARM_UP + steps)).clamp(max=self.decay)

    def fill(self, vectors_ND: Tensor) -> Tensor:
        """A copy of the item vectors [N, D] with their means where there is one."""
        vectors_ND = vectors_ND.clone()
        if not len(self._vectors):
            return vectors_ND
        n = min(len(vectors_ND), len(self._vectors))
        averaged_n1 = (self._row_steps[:n] > 0)[:, None]
        vectors_ND[:n] = torch.where(averaged_n1, self._vectors[:n], vectors_ND[:n])
        return vectors_ND

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
