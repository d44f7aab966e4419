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
    """Adds to a table of rows [n, slots]; those that have no slot yet are merged, the heaviest stay."""
    k, mark = partner.shape[1], np.full(len(partner) + 1, -1, np.int32)  # the last answers for empty slots
    fresh = source_weight[:, None] * target_weight
    rows_p, rows_w = partner[source], weight[source]
    mark[target] = np.arange(len(target))
    own, hit = mark[source], mark[rows_p]
    same = np.flatnonzero(own >= 0)
    fresh[same, own[same]] = 0
    row, slot = np.nonzero(hit >= 0)
    at = hit[row, slot]
    rows_w[row, slot] += fresh[row, at]
    fresh[row, at] = 0
    left = np.flatnonzero(np.count_nonzero(fresh, axis=1))
    everyone = np.concatenate((fresh[left], rows_w[left]), axis=1)
    partners = np.concatenate((np.broadcast_to(target, (len(left), len(target))), rows_p[left]), axis=1)
    keep = np.argpartition(-everyone, k - 1, axis=1)[:, :k]
    rows_w[left] = masses = np.take_along_axis(everyone, keep, 1)
    rows_p[left] = np.where(masses > 0, np.take_along_axis(partners, keep, 1), -1)
    partner[source], weight[source] = rows_p, rows_w
