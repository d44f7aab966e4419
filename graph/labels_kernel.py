"""Compiled passes over the labels of items (graph/labels.py)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from driftline.graph.compiled import compiled, inlined

if TYPE_CHECKING:
    from driftline.graph.arrays import Float32, Int32
    from driftline.graph.counts import Float64

_I, _II = "Array(int32, 1, 'C', readonly=True)", "Array(int32, 2, 'C', readonly=True)"
_F, _D = "Array(float32, 1, 'C', readonly=True)", "Array(float64, 1, 'C', readonly=True)"
_DD = "Array(float64, 2, 'C', readonly=True)"
LEAST_RARITY = np.float32(0.01)
"""Of a label that all items have: where they have no other, they are alike, whichever way logarithms are rounded."""
LEAST_SHARE = 1e-5
"""Added to a label's share of what is taken, so that no logarithm is of 0."""
COLUMNS = (
    "cosine",  # of the labels to those of the history
    "cosine_last",  # to those of its newest items
    "rarest",  # how few items have the rarest category that the history has, too
    "brand_items",  # log of how many of the history's items are of the brand
    "brand_weight",  # their share of them
    "brand_last",  # 1 = one of the newest is
    "brand_share",  # log of the brand's share of what is taken, of late
    "brand_share_long",  # and for long
    "trend",  # of the categories: log share of late over that for long, their mean
    "trend_best",  # the largest
    "share",  # log share of late, their mean
    "branded",  # 1 = it has a brand
    "categories",  # log of how many it has
)
"""What `label_columns` writes of an item, in order; 0 where it has no such label."""


@inlined
def _rarity(log_items: float, log: Any) -> Any:
    """Log of how many items there are for one that has a label."""
    return max(np.float32(log_items - log), LEAST_RARITY)


@inlined
def _enter(named: Int32, place: Int32) -> None:
    """Writes down where each label stands among these [t]; `_leave` takes it back."""
    for at in range(len(named)):
        place[named[at]] = at


@inlined
def _leave(named: Int32, place: Int32) -> None:
    for at in range(len(named)):
        place[named[at]] = -1


@compiled(
    f"int64({_II}, {_I}, {_F}, int64, {_F}, float32, int32[::1], int32[::1], float32[::1], float32[::1], float32[::1])"
)
def tastes(
    labels: Int32,
    items: Int32,
    weight: Float32,
    newest: int,
    logs: Float32,
    log_items: float,
    place: Int32,
    named: Int32,
    out: Float32,
    latest: Float32,
    counted: Float32,
) -> int:
    """Adds the labels of items up, each by the weight of its item and by how few items have it.

    Args:
        labels: [n, s] of all items, the brand first, categories from the second slot on; -1 = none, or no more.
        items: [m] of a history; weight: [m]; newest: so many of the first ones are its newest.
        logs: [l] logs of how many items have a label; log_items: that of how many there are.
        place: [l] -1, before and after.
        named: [m * s] the labels; out, latest, counted: [m * s] zeros, of each the sum, that of the newest items, and
            how many items have it.

    Returns:
        How many labels there are.
    """
    t = 0
    for i in range(len(items)):
        if items[i] >= len(labels):
            continue
        for slot in range(labels.shape[1]):
            label = labels[items[i], slot]
            if label < 0:
                if slot > 0:
                    break
                continue
            if place[label] < 0:
                place[label], named[t] = t, label
                t += 1
            at = place[label]
            value = weight[i] * _rarity(log_items, logs[label])
            counted[at] += 1
            out[at] += value
            if i < newest:
                latest[at] += value
    _leave(named[:t], place)
    return t


@compiled(f"void({_II}, {_I}, {_F}, float32, {_I}, {_F}, int32[::1], float32[::1])")
def cosines(
    labels: Int32,
    items: Int32,
    logs: Float32,
    log_items: float,
    named: Int32,
    taste: Float32,
    place: Int32,
    out: Float32,
) -> None:
    """Products [c] of a taste [t] for labels [t] with the labels of items [c], as unit vectors; 0 without labels.

    Other arguments as in `tastes`.
    """
    _enter(named, place)
    for i in range(len(items)):
        total, square = 0.0, 0.0
        for slot in range(labels.shape[1] if items[i] < len(labels) else 0):
            label = labels[items[i], slot]
            if label < 0:
                if slot > 0:
                    break
                continue
            rarity, at = _rarity(log_items, logs[label]), place[label]
            square += rarity * rarity
            if at >= 0:
                total += rarity * taste[at]
        out[i] = total / math.sqrt(square) if square > 0 else 0.0
    _leave(named, place)


@compiled(
    f"void({_II}, {_I}, {_F}, float32, {_I}, {_F}, {_F}, {_F}, float32, {_DD}, {_D}, int32[::1], float32[:, ::1])"
)
def label_columns(
    labels: Int32,
    items: Int32,
    logs: Float32,
    log_items: float,
    named: Int32,
    taste: Float32,
    latest: Float32,
    counted: Float32,
    read: float,
    taken: Float64,
    total: Float64,
    place: Int32,
    out: Float32,
) -> None:
    """COLUMNS of candidates.

    Args:
        labels, logs, log_items, place: as in `tastes`.
        items: [c] candidates.
        named: [t] labels of the history; taste, latest: [t] unit vectors of it and of its newest items.
        counted: [t] how many of its items have a label; read: how many there are, at least 1.
        taken: [l, 2] decayed takes of labels, at a short and a long half-life; total: [2].
        out: [len(COLUMNS), c] zeros.
    """
    _enter(named, place)
    for i in range(len(items)):
        item = items[i]
        if item >= len(labels):
            continue
        product, newest, square, rarest = 0.0, 0.0, 0.0, 0.0
        trends, best, shares, there = 0.0, 0.0, 0.0, 0
        for slot in range(labels.shape[1]):
            label = labels[item, slot]
            if label < 0:
                if slot > 0:
                    break
                continue
            rarity, at = _rarity(log_items, logs[label]), place[label]
            square += rarity * rarity
            if at >= 0:
                product += rarity * taste[at]
                newest += rarity * latest[at]
            short = math.log(taken[label, 0] / max(total[0], 1e-300) + LEAST_SHARE)
            trend = short - math.log(taken[label, 1] / max(total[1], 1e-300) + LEAST_SHARE)
            if slot == 0:
                if at >= 0:
                    out[3, i], out[4, i] = math.log1p(counted[at]), counted[at] / read
                    out[5, i] = 1.0 if latest[at] > 0 else 0.0
                out[6, i], out[7, i], out[11, i] = short, short - trend, 1.0
                continue
            if at >= 0:
                rarest = max(rarest, rarity)
            best = trend if there == 0 else max(best, trend)
            trends += trend
            shares += short
            there += 1
        if square > 0:
            out[0, i], out[1, i] = product / math.sqrt(square), newest / math.sqrt(square)
        out[2, i] = rarest
        if there:
            out[8, i], out[9, i], out[10, i] = trends / there, best, shares / there
        out[12, i] = math.log1p(there)
    _leave(named, place)


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


@compiled(f"void({_I}, int32, int32[:, ::1])")
def take_out(rows: Int32, item: int, recent: Int32) -> None:
    """Takes an item out of rows of such lists."""
    for row in rows:
        last = recent.shape[1] - 1
        found = False
        for place in range(last + 1):
            found |= recent[row, place] == item
            if found:
                recent[row, place] = recent[row, place + 1] if place < last else -1
