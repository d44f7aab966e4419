"""A list whose items are not all alike: the next one is good by its score and unlike those before it.

Source: maximal marginal relevance, Carbonell and Goldstein (SIGIR 1998). Departure: scores count from 0 to 1 over the
items that are looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Float32

LOOKED_AT = 4
"""Items that are looked at for each that is wanted."""
_LEAST, _MOST = 100, 1000
"""Such items at least, and at most unless more are wanted."""


def looked_at(k: int) -> int:
    """How many of the best items a list of k is chosen from."""
    return max(k, min(max(LOOKED_AT * k, _LEAST), _MOST))


def spread(vectors: Float32, scores: Float32, k: int, diversity: float) -> NDArray[np.intp]:
    """Places of k items, the first one first.

    Args:
        vectors: [m, d] unit rows, or zeros for an item of which nothing is known: it counts as like those before it as
            the open items are on average, so that it is neither sought for what nobody knows of it nor left out.
        scores: [m], the largest first.
        k: how many at most.
        diversity: 0 = the first k, 1 = each the one least like those before it.
    """
    m = len(scores)
    span = max(float(scores[0] - scores[-1]), 1e-12) if m else 1.0
    worth = (1 - diversity) * (scores - scores[-1:]) / span
    nearest = np.zeros(m, np.float32)
    open_here, known = np.ones(m, np.bool_), vectors.any(1)
    chosen: list[int] = []
    for _ in range(min(k, m)):
        if (others := open_here & known).any():
            nearest[~known] = nearest[others].mean()
        place = int(np.argmax(np.where(open_here, worth - diversity * nearest, -np.inf))) if chosen else 0
        chosen.append(place)
        open_here[place] = False
        np.maximum(nearest, vectors @ vectors[place], out=nearest)
    return np.array(chosen, np.intp)
