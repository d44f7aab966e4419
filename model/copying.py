"""What a user may come back to: the items of the window have terms of their own in the logit.

    logit = w0 cosine / temperature + (coefficient + w1) log share
            + w2 + w3 [the last one] + w4 log(1 + events since) + w5 log(1 + times)     of an item in the window

A user is one vector, which can't be near to all of a hundred scattered items at once, however often such users come
back to one of them. And a backbone that rehearses windows knows their answers by heart, so what it gives its own
training says nothing of how far to trust it. These weights therefore learn on each new request, before the backbone has
seen the answer, by a step of Adam on its softmax: over the window, the answer, and a sample that stands for all others.

Source: why one softmax copies badly, and logits of their own for items of the input: Chang et al., "To Copy, or not to
Copy", WSDM 2024, arXiv 2310.14079. Departure: a few numbers in place of projections of the state, which learn apart
from the backbone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from driftline.graph.arrays import Float32, Int32, Int64

# h events of a window, m distinct items of it, n items, C candidates of a step, T targets

COSINE, SHARE, WITHIN, LAST, SINCE, TIMES = range(6)
RATE, BETAS, EPSILON = 0.003, (0.9, 0.98), 1e-8
"""Of Adam."""


class Copying:
    """The weights of a logit's terms: float64 [6], in the order of the formula, and those of a bare logit at first."""

    def __init__(self) -> None:
        self.weights = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        self._mean, self._square = np.zeros((2, len(self.weights)))
        self._steps = 0

    @classmethod
    def of(cls, weights: Float32 | NDArray[np.float64]) -> Self:
        """Of weights that were learnt elsewhere, to answer only."""
        copying = cls()
        copying.weights = np.array(weights, np.float64)
        return copying

    def logits(self, similarity_n: Float32, window: Int32 | Int64) -> Float32:
        """Logits [n] of items 0..n-1, popularity left out.

        Args:
            similarity_n: [n] cosines / temperature.
            window: [h] the user's last known items, oldest first.
        """
        logits: Float32 = similarity_n * np.float32(self.weights[COSINE])
        items, terms = terms_of(window[window < len(logits)])
        logits[items] += (terms @ self.weights[WITHIN:]).astype(np.float32)
        return logits

    def learn(
        self, similarity_C: Float32, share_C: Float32, terms_C: Float32, fixed_C: Float32, targets: Int64
    ) -> None:
        """A step on one request.

        Args:
            similarity_C, share_C: [C] cosine / temperature and log share of the candidates.
            terms_C: [C, 4], see `terms_of`, zeros of what is not in the window.
            fixed_C: [C] coefficient * log share + log of how many items each stands for.
            targets: [T] places of the answers among the candidates, T >= 1.
        """
        terms = np.column_stack((similarity_C, share_C, terms_C)).astype(np.float64)  # [C, 6]
        logits = terms @ self.weights + fixed_C
        chance = np.exp(logits - logits.max())
        gradient = terms.T @ (chance / chance.sum()) - terms[targets].mean(0)
        self._steps += 1
        self._mean += (gradient - self._mean) * (1 - BETAS[0])
        self._square += (gradient * gradient - self._square) * (1 - BETAS[1])
        mean, square = (z / (1 - b**self._steps) for z, b in zip((self._mean, self._square), BETAS, strict=True))
        self.weights -= RATE * mean / (np.sqrt(square) + EPSILON)

    def state_dict(self) -> dict[str, Any]:
        """Weights and the moments of Adam."""
        return {
            "weights": self.weights.copy(),
            "mean": self._mean.copy(),
            "square": self._square.copy(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.weights, self._mean, self._square = (np.array(state[name]) for name in ("weights", "mean", "square"))
        self._steps = state["steps"]


def terms_of(window: Int32 | Int64) -> tuple[NDArray[Any], Float32]:
    """The distinct items [m] of a window [h], and their terms [m, 4] float32: 1, the last one, since, times."""
    items, last_from_end, times = np.unique(window[::-1], return_index=True, return_counts=True)
    columns = np.ones(len(items)), last_from_end == 0, np.log1p(last_from_end), np.log1p(times)
    return items, np.column_stack(columns).astype(np.float32)
