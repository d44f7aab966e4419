"""Compiled passes over the labels of items (graph/labels.py)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from driftline.graph.compiled import compiled

if TYPE_CHECKING:
    from driftline.graph.arrays import Float32, Int32
    from driftline.graph.counts import Float64

_I, _II = "Array(int32, 1, 'C', readonly=True)", "Array(int32, 2, 'C', readonly=True)"
_F, _DD = "Array(float32, 1, 'C', readonly=True)", "Array(float64, 2, 'C', readonly=True)"
LEAST_SHARE = 1e-5
"""Added to a label's share of what is taken, so that no logarithm is of 0."""
COLUMNS = (
    "cosine", "cosine_last", "rarest", "brand_items", "brand_weight", "brand_last", "brand_share", "brand_share_long",
    "trend", "trend_best", "share", "branded", "labels",
)  # fmt: skip
"""What `label_columns` writes, in order."""


@compiled(f"int64({_II}, {_I}, {_F}, {_F}, float32, float32[::1], float32[::1], int32[::1])")
def tastes(
    labels: Int32,
    items: Int32,
    weight: Float32,
    logs: Float32,
    log_items: float,
    out: Float32,
    counted: Float32,
    touched: Int32,
) -> int:
    """Adds the labels of items up, each by the weight of its item and by how few items have it.

    Args:
        labels: [n, s] of all items; -1 = none.
        items: [m] of a history; weight: [m].
        logs: [l] logs of how many items have a label; log_items: that of how many there are.
        out: [l] zeros, the sums; counted: [l] zeros, how many of the items have it.
        touched: [m * s] labels that were added to.

    Returns:
        How many labels were.
    """
    t = 0
    for place in range(len(items)):
        if items[place] >= len(labels):
            continue
        for slot in range(labels.shape[1]):
            label = labels[items[place], slot]
            if label < 0:
                continue
            if counted[label] == 0:
                touched[t] = label
                t += 1
            counted[label] += 1
            out[label] += weight[place] * (log_items - logs[label])
    return t


@compiled(f"void({_II}, {_I}, {_F}, float32, {_F}, float32[::1])")
def cosines(labels: Int32, items: Int32, logs: Float32, log_items: float, taste: Float32, out: Float32) -> None:
    """Products of a taste [l] with the labels of items [c], as unit vectors; 0 for an item without labels."""
    for place in range(len(items)):
        total, square = 0.0, 0.0
        for slot in range(labels.shape[1] if items[place] < len(labels) else 0):
            label = labels[items[place], slot]
            if label >= 0:
                rarity = log_items - logs[label]
                total += rarity * taste[label]
                square += rarity * rarity
        out[place] = total / math.sqrt(square) if square > 0 else 0.0


@compiled(f"void({_II}, {_I}, {_F}, float32, {_F}, {_F}, {_F}, {_F}, {_DD}, float64[::1], float32[:, ::1])")
def label_columns(
    labels: Int32,
    items: Int32,
    logs: Float32,
    log_items: float,
    taste: Float32,
    latest: Float32,
    weighed: Float32,
    counted: Float32,
    taken: Float64,
    total: Float64,
    out: Float32,
) -> None:
    """COLUMNS of candidates.

    Args:
        labels, logs, log_items: as above; the first slot of an item is its brand.
        items: [c] candidates.
        taste, latest: [l] unit vectors of the history and of its newest items.
        weighed, counted: [l] of the history, see `tastes`; `weighed` as a share of its items.
        taken: [l, 2] decayed takes of labels, at a short and a long half-life; total: [2].
        out: [len(COLUMNS), c] zeros.
    """
    for place in range(len(items)):
        item = items[place]
        if item >= len(labels):
            continue
        product, newest, square, rarest = 0.0, 0.0, 0.0, 0.0
        trends, best, shares, there = 0.0, 0.0, 0.0, 0
        for slot in range(labels.shape[1]):
            label = labels[item, slot]
            if label < 0:
                continue
            rarity = log_items - logs[label]
            product += rarity * taste[label]
            newest += rarity * latest[label]
            square += rarity * rarity
            short = math.log(taken[label, 0] / max(total[0], 1e-300) + LEAST_SHARE)
            trend = short - math.log(taken[label, 1] / max(total[1], 1e-300) + LEAST_SHARE)
            if slot == 0:
                out[3, place], out[4, place] = math.log1p(counted[label]), weighed[label]
                out[5, place] = 1.0 if latest[label] > 0 else 0.0
                out[6, place], out[7, place], out[11, place] = short, short - trend, 1.0
                continue
            if counted[label] > 0:
                rarest = max(rarest, rarity)
            best = trend if there == 0 else max(best, trend)
            trends += trend
            shares += short
            there += 1
        if square > 0:
            out[0, place], out[1, place] = product / math.sqrt(square), newest / math.sqrt(square)
        out[2, place] = rarest
        if there:
            out[8, place], out[9, place], out[10, place] = trends / there, best, shares / there
        out[12, place] = math.log1p(there)


@compiled(f"void({_I}, int32, int32[:, ::1])")
def to_front(rows: Int32, item: int, recent: Int32) -> None:
    """Puts an item first in rows of lists [l, r], which hold each item once, the last one taken first; -1 = no more."""
    for row in rows:
        if row < 0:
            continue
        before = item
        for place in range(recent.shape[1]):
            here = recent[row, place]
            recent[row, place] = before
            if here == item or here < 0:
                break
            before = here
