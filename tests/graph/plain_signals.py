"""The oracle of `graph.signals_kernel`: the same sums by numpy over whole rows."""

from __future__ import annotations

import numpy as np


def add_counts(rows, weight, scale, count, largest, k):
    """Adds to `count` [n, h] and to the lists [h] of the k largest rows, the largest first, equal ones by number.

    A row as large as the smallest of a full list does not enter it.
    """
    count[rows] += weight[:, None] * scale
    for h, held in enumerate(largest):
        rising = rows[count[rows, h] > (count[held, h].min() if len(held) == k else -np.inf)]
        merged = np.union1d(held, rising).astype(np.int32)
        largest[h] = merged[np.argsort(-count[merged, h], kind="stable")[:k]]


def add_pairs(source, target, source_weight, target_weight, partner, weight):
    """Adds to a table of rows [n, slots], pair by pair; one without a slot takes the lightest's if it is as heavy."""
    for one, of_one in zip(source, source_weight, strict=True):
        known = set(partner[one].tolist())
        for other, of_other in zip(target, target_weight, strict=True):
            fresh = of_one * of_other
            if other in known and other != one:
                weight[one, partner[one] == other] += fresh
        for other, of_other in zip(target, target_weight, strict=True):
            fresh, lightest = of_one * of_other, np.argmin(weight[one])
            if other not in known and other != one and fresh > 0 and fresh >= weight[one, lightest]:
                partner[one, lightest], weight[one, lightest] = other, fresh
