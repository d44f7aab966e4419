"""How sure a figure is: bootstrap over seeds and users, paired between arms, and Holm's correction over claims.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993 (percentile interval); Field and Welsh,
"Bootstrapping clustered data", 2007 (whole clusters are drawn); McCarthy and Snowden, "The bootstrap and finite
population sampling", 1985 (n - 1 of n); Owen, "The pigeonhole bootstrap", 2007 (crossed factors); Holm, 1979.
A user's groups are alike, so users are drawn, not groups; all arms see the same draws. A draw takes seeds with
replacement, one less than there are, since as many would understate what three of them can tell, and then users: the
same for all of its seeds, as the users of two seeds are the same people. One seed is never drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Int32

RESAMPLES = 5000
"""A p can't be below 2 / (RESAMPLES + 1), and some sixty claims are corrected together."""
LEVEL = 0.95
CHUNK_WEIGHTS = 4_000_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arm `a` against arm `b`: lift = mean of a / mean of b - 1.

    Attributes:
        family: claims that are corrected together.
        n: groups that both arms scored; users: how many users they belong to.
        p: two-sided bootstrap probability of no difference; p_holm: corrected within the family.
    """

    a: str
    b: str
    list: str
    metric: str
    family: str
    n: int
    users: int
    mean_a: float
    mean_b: float
    lift: float
    ci: tuple[float, float]
    p: float
    p_holm: float


def bootstrap_means(
    values: NDArray[np.float64], user: Int32, seed: int = 0, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Means over groups and seeds when seeds and users are drawn with replacement, the same draws for every column.

    Args:
        values: [n, arms, seeds], no NaN; an arm that is not random has the same values for all seeds.
        user: [n] user of each row.
        seed: of the draws.
        resamples: number of draws.

    Returns:
        [resamples, arms].
    """
    _, arms, seeds = values.shape
    _, cluster = np.unique(user, return_inverse=True)
    clusters = int(cluster.max()) + 1
    sums = np.zeros((clusters, arms * seeds + 1))
    np.add.at(sums, cluster, np.column_stack([values.reshape(len(values), -1), np.ones(len(values))]))
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_WEIGHTS // clusters)
    totals = []
    for first in range(0, resamples, step):
        draws = rng.integers(0, clusters, (min(step, resamples - first), clusters))
        shifted = draws + np.arange(len(draws))[:, None] * clusters
        weights = np.bincount(shifted.ravel(), minlength=draws.size).reshape(draws.shape)
        totals.append(weights.astype(np.float64) @ sums)
    total = np.concatenate(totals)
    means = (total[:, :-1] / total[:, -1:]).reshape(resamples, arms, seeds)
    if seeds == 1:
        return np.asarray(means[:, :, 0])
    drawn = np.random.default_rng([seed, seeds]).integers(0, seeds, (resamples, 1, seeds - 1))
    return np.asarray(np.take_along_axis(means, np.broadcast_to(drawn, (resamples, arms, seeds - 1)), 2).mean(2))


def interval(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval of bootstrap samples [resamples] at LEVEL; infinite samples are ends like any other."""
    ordered = np.sort(samples)
    tail = int((1 - LEVEL) / 2 * len(ordered))
    return float(ordered[tail]), float(ordered[-1 - tail])


def two_sided_p(samples: NDArray[np.float64]) -> float:
    """Twice the smaller share of samples on either side of 0, at least 2 / (resamples + 1)."""
    n = len(samples)
    tail = min((samples <= 0).sum(), (samples >= 0).sum())
    return float(min(1.0, 2 * (tail + 1) / (n + 1)))


def lift_samples(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """a / b - 1 of bootstrap means [resamples]; 0 where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        lifts = a / b - 1.0
    return np.where(b == 0, np.where(a == 0, 0.0, np.inf), lifts)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of the p values of one family."""
    order = np.argsort(p, kind="stable")
    corrected = np.zeros(len(p))
    largest = 0.0
    for step, i in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p) - step) * p[i]))
        corrected[i] = largest
    return [float(value) for value in corrected]
