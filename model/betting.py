"""How much better one of two rankings is, with bounds that hold at every moment at once: one may look at any time.

Two rankings of the same request have scores a, b in [0, 1]. Somebody who claims that a is at most (1 + r) b in the mean
takes bets: capital *= 1 + bet * (a - (1 + r) b). While the claim is true of every request, given all that came before,
the capital is a non-negative supermartingale, so it comes to 2 / (1 - confidence) with a chance of at most
(1 - confidence) / 2, ever (Ville's inequality). Gains r whose takers, this side or the other, lost so much are outside
the interval. Nothing is asked of the requests but that: they need be neither independent nor alike, so rows of one user
need no clusters, and stopping as soon as an interval says enough is no cheating.

Source: Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting (JRSS B 2024, arXiv 2010.09686):
the hedged capital process (sections 4.2 to 4.4) with bets of the predictable plug-in. Departures: the claim is about a
ratio of two means, on a grid; the variance that bets rest on is that of a - b and starts from `PRIOR`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from driftline.model.standing import Gain

if TYPE_CHECKING:
    from driftline.graph.arrays import Arrays

# P comparisons, G claims

GAINS: NDArray[np.float64] = 0.01 * np.sinh(np.linspace(-4.6, 5.3, 249))
"""[G] relative gains that are claimed, from -50% to +100%, .04% apart around 0."""
MOST = 0.9
"""Share of the capital that a bet can lose."""
PRIOR = 0.01
"""Variance of a - b before the first request, which counts as one of that variance."""


class Bets:
    """P comparisons, each with bets on both sides of every claim.

    Args:
        count: P.
        confidence: of each interval.
    """

    def __init__(self, count: int, confidence: float) -> None:
        self.confidence = confidence
        self._sums = np.zeros((count, 4))  # requests, a, b, (a - b)^2
        self._capital = np.zeros((count, 2, len(GAINS)))  # its log, of those who bet on more, and on less

    def take(self, place: int, a: float, b: float) -> None:
        """Takes in the scores of one request, of comparison `place`."""
        sums = self._sums[place]
        n, mean = sums[0] + 1, (sums[1] - sums[2]) / (sums[0] + 1)
        variance = max((PRIOR + sums[3]) / n - mean * mean, 1e-8)
        bet = math.sqrt(2 * math.log(2 / (1 - self.confidence)) / (variance * n * math.log1p(n)))
        result = a - (1 + GAINS) * b
        self._capital[place, 0] += np.log1p(np.minimum(bet, MOST / (1 + GAINS)) * result)
        self._capital[place, 1] += np.log1p(-min(bet, MOST) * result)
        sums += (1, a, b, (a - b) ** 2)

    def gain(self, place: int) -> Gain:
        """What is known of comparison `place` by now; bounds lie on the first claims that are lost."""
        n, a, b, _ = self._sums[place].tolist()
        more, less = self._capital[place] >= math.log(2 / (1 - self.confidence))
        above, below = int(np.argmin([*more, False])), int(np.argmin([*less[::-1], False]))
        low = float(GAINS[above - 1]) if above else -math.inf
        high = float(GAINS[-below]) if below else math.inf
        return Gain(a / b - 1 if b else math.nan, low, high, int(n))

    def begin(self, place: int) -> None:
        """Forgets what was taken in of comparison `place`."""
        self._sums[place], self._capital[place] = 0, 0

    def arrays(self, prefix: str) -> Arrays:
        """All of it, by name."""
        return {f"{prefix}.sums": self._sums.copy(), f"{prefix}.capital": self._capital.copy()}

    def restore(self, arrays: Arrays, prefix: str) -> None:
        """Goes on where `arrays` was taken."""
        self._sums, self._capital = (np.array(arrays[f"{prefix}.{name}"], np.float64) for name in ("sums", "capital"))
