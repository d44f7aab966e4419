"""What a user may come back to: the items of the window have terms of their own in the logit.

    logit = w0 cosine / temperature + (coefficient + w1) log share
            + w2 + w3 [the last one] + w4 log(1 + events since) + w5 log(1 + times)
            + w6 log(1 + times right after what is last now)                           of an item in the window

A user is one vector, which can't be near to all of a hundred scattered items at once, however often such users come
back to one of them. And a backbone that rehearses windows knows their answers by heart, so what it gives its own
training says nothing of how far to trust it. These weights therefore learn on each new request, before the backbone has
seen the answer, by a step of Adam on its softmax over all items, or a sample that stands for them.

Source: why one softmax copies badly, and logits of their own for items of the input: Chang et al., "To Copy, or not to
Copy", WSDM 2024, arXiv 2310.14079. Departure: a few numbers in place of projections of the state, which learn apart
from the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from driftline.graph.arrays import Float32, Int32, Int64

# h events of a window, m distinct items of it, n items, C candidates of a step, T targets

COSINE, SHARE, WITHIN, LAST, SINCE, TIMES, NEXT = range(7)
RATE, BETAS, EPSILON = 0.003, (0.9, 0.999), 1e-8
"""Of Adam; the squares are remembered for as long as a term takes that one request in some hundreds tells about."""


@dataclass(frozen=True, slots=True)
class Weighing:
    """One request and its answer, as the weights learn from it.

    Attributes:
        similarity_C, share_C: [C] cosine / temperature and log share of the candidates.
        fixed_C: [C] coefficient * log share + log of how many items each stands for.
        own, terms: [m] places among the candidates of the window's items and their terms [m, 5], see `terms_of`.
        targets: [T] distinct places of the answers, T >= 1.
    """

    similarity_C: Float32
    share_C: Float32
    fixed_C: Float32
    own: NDArray[Any]
    terms: Float32
    targets: NDArray[Any]


class Copying:
    """The weights of a logit's terms: float64 [7], in the order of the formula, and those of a bare logit at first."""

    def __init__(self) -> None:
        self.weights = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        self._mean, self._square = np.zeros((2, len(self.weights)))
        self._steps = 0

    @classmethod
    def of(cls, weights: Float32 | NDArray[np.float64]) -> Self:
        """Of weights that were learnt elsewhere, to answer only."""
        copying = cls()
        copying.weights[: len(weights)] = weights  # earlier versions of driftline knew fewer terms
        return copying

    def logits(self, similarity_n: Float32, window: Int32 | Int64, t_ms: Int64, items: Int32 | None = None) -> Float32:
        """Logits [n] of items, popularity left out.

        Args:
            similarity_n: [n] cosines / temperature.
            window, t_ms: [h] the user's last known items in order, and their times.
            items: [n] which ones; None = items 0..n-1.
        """
        logits: Float32 = similarity_n * np.float32(self.weights[COSINE])
        own, terms = terms_of(window, t_ms)
        more = (terms @ self.weights[WITHIN:]).astype(np.float32)
        if items is None:
            logits[own] += more
        elif len(own):
            at = np.minimum(np.searchsorted(own, items), len(own) - 1)
            logits += np.where(own[at] == items, more[at], np.float32(0))
        return logits

    def learn(self, asked: Weighing) -> None:
        """A step on one request."""
        similarity_C, share_C, own, targets = asked.similarity_C, asked.share_C, asked.own, asked.targets
        logits = self.weights[COSINE] * similarity_C + self.weights[SHARE] * share_C + asked.fixed_C
        logits[own] += asked.terms @ self.weights[WITHIN:]
        chance = np.exp(logits - logits.max())
        chance /= chance.sum()
        chance[targets] -= 1 / len(targets)
        gradient = np.concatenate(((chance @ similarity_C, chance @ share_C), chance[own] @ asked.terms))
        self._steps += 1
        self._mean += (gradient - self._mean) * (1 - BETAS[0])
        self._square += (gradient * gradient - self._square) * (1 - BETAS[1])
        mean, square = (z / (1 - b**self._steps) for z, b in zip((self._mean, self._square), BETAS, strict=True))
        self.weights -= RATE * mean / (np.sqrt(square) + EPSILON)
        self.weights[COSINE] = max(self.weights[COSINE], 0.0)

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
        for name, array in (("weights", self.weights), ("mean", self._mean), ("square", self._square)):
            array[: len(state[name])] = state[name]
        self._steps = state["steps"]


def terms_of(window: Int32 | Int64, t_ms: Int64) -> tuple[NDArray[Any], Float32]:
    """The distinct items [m] of a window, and their terms [m, 5] float32 as in the formula.

    Items of one time are one group, in which order says nothing.

    Args:
        window, t_ms: [h] items and their times, in order of time.
    """
    items, from_end, place, times = np.unique(window[::-1], return_index=True, return_inverse=True, return_counts=True)
    place, group = place[::-1], np.unique(t_ms, return_inverse=True)[1]  # of each event
    since = len(t_ms) - np.searchsorted(t_ms, t_ms[::-1][from_end], side="right")
    follows = np.zeros(len(t_ms) + 1, bool)  # groups right after one with an item of the last group
    follows[group[(since == 0)[place]] + 1] = True
    after = np.bincount(place[follows[group]], minlength=len(items))
    columns = np.ones(len(items)), since == 0, np.log1p(since), np.log1p(times), np.log1p(after)
    return items, np.column_stack(columns).astype(np.float32)
