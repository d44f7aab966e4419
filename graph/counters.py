"""What an item counts of its events, compiled: popularity, latest price and the last users, event by event.

Everything that is compiled stands in this file (`graph.compiled`). Halving is computed here and not by a library, so
that a popularity has the same bits on every processor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Int64
from driftline.graph.compiled import compiled, inlined

Float64 = NDArray[np.float64]

COUNTERS = ("count", "first_ms", "last_ms", "popularity", "price", "ring", "ring_count")
"""Columns of the items, [I] but for `ring` [I, 2 K]: the last K users as (key64, t_ms), the place after `ring_count`
mod K is the next to be written."""
_COLUMNS = "Tuple((int64[::1], int64[::1], int64[::1], float64[::1], float64[::1], uint64[:, ::1], int64[::1]))"
_LN2 = math.log(2)
_SERIES = tuple(1 / math.factorial(n) for n in range(14))
_S0, _S1, _S2, _S3, _S4, _S5, _S6, _S7, _S8, _S9, _S10, _S11, _S12, _S13 = _SERIES
_MOST_HALVINGS = 1000.0  # beyond them nothing is left


@inlined
def _halved(times: float) -> float:
    """2^-times for times >= 0: a whole power of 2 times the Taylor series of the rest, |rest| <= ln(2)/2."""
    if times > _MOST_HALVINGS:
        return 0.0
    n = np.int64(times + 0.5)
    r = (n - times) * _LN2
    p = _S13 * r + _S12
    p = p * r + _S11
    p = p * r + _S10
    p = p * r + _S9
    p = p * r + _S8
    p = p * r + _S7
    p = p * r + _S6
    p = p * r + _S5
    p = p * r + _S4
    p = p * r + _S3
    p = p * r + _S2
    p = p * r + _S1
    return (p * r + _S0) * np.int64((1023 - n) << 52).view(np.float64)


@compiled(f"void(int64[::1], int64[::1], float64[::1], float64[::1], uint64[::1], float64, {_COLUMNS})")
def count_events(
    item_of: Int64,
    t_of: Int64,
    gains: Float64,
    prices: Float64,
    users: NDArray[np.uint64],
    half_life_ms: float,
    items: tuple[NDArray[Any], ...],
) -> None:
    """Counts events in order.

    Args:
        item_of: [N] dense indices.
        t_of: [N] event times, unix milliseconds.
        gains: [N] what each adds to the popularity.
        prices: [N], NaN = not given.
        users: [N] key64.
        half_life_ms: of the popularity.
        items: the columns COUNTERS.
    """
    count, first_ms, last_ms, popularity, price, ring, ring_count = items
    size = ring.shape[1] // 2
    for row in range(item_of.shape[0]):
        i, t = item_of[row], t_of[row]
        age_ms = max(t - last_ms[i], 0) if last_ms[i] >= 0 else 0
        popularity[i] = popularity[i] * _halved(age_ms / half_life_ms) + gains[row]
        count[i] += 1
        first_ms[i] = t if first_ms[i] < 0 else min(first_ms[i], t)
        last_ms[i] = max(last_ms[i], t)
        if not np.isnan(prices[row]):
            price[i] = prices[row]
        at = 2 * (ring_count[i] % size)
        ring[i, at], ring[i, at + 1] = users[row], np.uint64(t)
        ring_count[i] += 1
