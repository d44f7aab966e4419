"""Training windows out of the rehearsal log, and the rows of a batch that are asked: compiled, all windows at once.

Windows lie end to end; `starts` say where each begins. What a window and an asked row are stands in
model/rehearsal.py and model/batch.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Bool, Int32, Int64
from driftline.graph.compiled import compiled, inlined

Float64 = NDArray[np.float64]
# W windows, N events, H groups, G rows asked for a next group, T targets, R asked rows, all of all windows together

ITEMS, ENDS, ROWS, TARGETS = range(4)
"""Rows of `starts` [4, W + 1]; times have one entry a window more than items."""
_L = "int64[::1]"
_LOG = f"{_L}, {_L}, {_L}, {_L}, int32[::1], boolean[::1]"


@inlined
def _chain(number: int, first: int, events: int, previous: Int64, t_ms: Int64, size: Int64, chain: Int64) -> int:
    """Numbers of a user's groups up to one, by time and arrival, until they hold so many events; returns how many."""
    count = 0
    while number >= first and events > 0 and count < len(chain):
        at = number % len(size)
        chain[count] = number
        count += 1
        events -= size[at]
        number = previous[at]
    for i in range(count // 2):
        chain[i], chain[count - 1 - i] = chain[count - 1 - i], chain[i]
    for i in range(1, count):
        one, at = chain[i], i
        time = t_ms[one % len(size)]
        while at > 0:
            other = t_ms[chain[at - 1] % len(size)]
            if other < time or (other == time and chain[at - 1] < one):
                break
            chain[at] = chain[at - 1]
            at -= 1
        chain[at] = one
    return count


@compiled(f"{_L}(int64, int64, int64, {_L}, {_L}, {_L})")
def chain_of(number: int, first: int, max_len: int, previous: Int64, t_ms: Int64, size: Int64) -> Int64:
    """Numbers [g] of a user's groups up to a number, oldest first, that hold at least `max_len` events or all."""
    chain = np.empty(max_len, np.int64)
    return chain[: _chain(number, first, max_len, previous, t_ms, size, chain)].copy()


@compiled(
    f"Tuple((int64[:, ::1], {_L}, {_L}, {_L}, {_L}, {_L}, {_L}, boolean[::1]))({_L}, int64, int64, {_LOG}, int32[::1])"
)
def windows_of(
    numbers: Int64, first: int, max_len: int,
    previous: Int64, t_ms: Int64, begin: Int64, size: Int64, items: Int32, wanted: Bool, place: Int32,
) -> Any:  # fmt: skip
    """The windows that end with the requests for some groups.

    Args:
        numbers: [W] of the groups; first: the oldest group that is there.
        max_len: events of a window at most.
        previous, t_ms, begin, size: of the groups, each at its number modulo their length.
        items, wanted: of the events; a group's begin at `begin`.
        place: [more than any item], all 0 before and after.

    Returns:
        starts [4, W + 1], and of all windows: items [N], times [N + W], ends [H], rows [G], targets [T], counts [G],
        repeated [T]; within a window they are as in `Window`.
    """
    windows, groups = len(numbers), len(size)
    chains = np.empty((windows, max_len + 1), np.int64)
    lengths, cuts = np.empty(windows, np.int64), np.empty(windows, np.int64)
    starts = np.zeros((4, windows + 1), np.int64)
    for w in range(windows):
        asked, chain, count, events = numbers[w] % groups, chains[w], 0, 0
        met = _chain(previous[asked], first, max_len, previous, t_ms, size, chain[:max_len])
        for i in range(met):  # what came first but happened later is not in it
            if t_ms[chain[i] % groups] <= t_ms[asked]:
                chain[count] = chain[i]
                events += size[chain[i] % groups]
                count += 1
        chain[count] = numbers[w]
        lengths[w], cuts[w] = count, max(0, events - max_len)
        starts[:, w + 1] = starts[:, w]
        starts[ITEMS, w + 1] += events - cuts[w]
        end = 0
        for i in range(count):
            end += size[chain[i] % groups]
            if end <= cuts[w]:
                continue
            following, targets = chain[i + 1] % groups, 0
            for at in range(begin[following], begin[following] + size[following]):
                targets += wanted[at]
            starts[ENDS, w + 1] += 1
            starts[ROWS, w + 1] += targets > 0
            starts[TARGETS, w + 1] += targets
    n, h, g, t = starts[0, -1], starts[1, -1], starts[2, -1], starts[3, -1]
    of_items, of_times, of_ends = np.empty(n, np.int64), np.empty(n + windows, np.int64), np.empty(h, np.int64)
    of_rows, of_counts = np.empty(g, np.int64), np.empty(g, np.int64)
    of_targets, repeated = np.empty(t, np.int64), np.empty(t, np.bool_)
    n, h, g, t = 0, 0, 0, 0
    for w in range(windows):
        chain, cut, end, start, seen = chains[w], cuts[w], 0, n, 0
        for i in range(lengths[w]):
            at = chain[i] % groups
            for event in range(begin[at], begin[at] + size[at]):
                if end >= cut:
                    of_items[n], of_times[n + w] = items[event], t_ms[at]
                    if place[items[event]] == 0:
                        place[items[event]] = n - start + 1
                    n += 1
                end += 1
        of_times[n + w] = t_ms[numbers[w] % groups]
        end = 0
        for i in range(lengths[w]):
            end += size[chain[i] % groups]
            if end <= cut:
                continue
            of_ends[h] = end - cut
            h += 1
            following, before = chain[i + 1] % groups, t
            for event in range(begin[following], begin[following] + size[following]):
                if wanted[event]:
                    of_targets[t], seen = items[event], place[items[event]]
                    repeated[t] = 0 < seen <= end - cut
                    t += 1
            if t > before:
                of_rows[g], of_counts[g] = end - cut - 1, t - before
                g += 1
        for event in range(start, n):
            place[of_items[event]] = 0
    return starts, of_items, of_times, of_ends, of_rows, of_targets, of_counts, repeated


@inlined
def _shuffle(items: Int64, order: Float64, out: Int64) -> None:
    """Writes items in the order of their random numbers."""
    by = np.argsort(order, kind="mergesort")
    for i in range(len(items)):
        out[i] = items[by[i]]


@compiled(
    f"Tuple(({_L}, {_L}, {_L}, {_L}, {_L}, {_L}, float32[::1]))"
    f"(int64[:, ::1], {_L}, {_L}, {_L}, {_L}, {_L}, {_L}, boolean[::1], float64[::1], float64[::1],"
    " float64, float64, float64)"
)
def asked_rows(
    starts: Int64, items: Int64, t_ms: Int64, ends: Int64, rows: Int64, targets: Int64, counts: Int64, repeated: Bool,
    order: Float64, drawn: Float64, inside_share: float, inside_weight: float, repeat_weight: float,
) -> Any:  # fmt: skip
    """Shuffles inside groups, draws rows inside them, and puts down what each asked row is asked for.

    Args:
        starts, items, t_ms, ends, rows, targets, counts, repeated: as `windows_of` gives them.
        order, drawn: [N] uniform random numbers: for the order inside groups, and which rows are drawn.
        inside_share, inside_weight, repeat_weight: see the section `model` of the settings.

    Returns:
        items [N] in their new order, where the asked rows of each window begin [W + 1], asked rows [R] as places in
        their windows, their times [R] and numbers of targets [R], targets and their weights.
    """
    windows = starts.shape[1] - 1
    asked_starts, of_targets = np.zeros(windows + 1, np.int64), 0
    for w in range(windows):
        base, row = starts[ITEMS, w], 0
        asked = starts[ROWS, w + 1] - starts[ROWS, w]
        of_targets += starts[TARGETS, w + 1] - starts[TARGETS, w]
        for h in range(starts[ENDS, w], starts[ENDS, w + 1]):
            while row < ends[h]:
                if row < ends[h] - 1 and drawn[base + row] < inside_share:
                    asked += 1
                    of_targets += ends[h] - row - 1
                row += 1
        asked_starts[w + 1] = asked_starts[w] + asked
    shuffled, places = np.empty_like(items), np.empty(asked_starts[-1], np.int64)
    ms, numbers = np.empty(asked_starts[-1], np.int64), np.empty(asked_starts[-1], np.int64)
    wanted, weights = np.empty(of_targets, np.int64), np.empty(of_targets, np.float32)
    r, t = 0, 0
    for w in range(windows):
        base = starts[ITEMS, w]
        row = 0
        for h in range(starts[ENDS, w], starts[ENDS, w + 1]):
            _shuffle(items[base + row : base + ends[h]], order[base + row : base + ends[h]], shuffled[base + row :])
            row = ends[h]
        target = starts[TARGETS, w]
        for g in range(starts[ROWS, w], starts[ROWS, w + 1]):
            places[r], ms[r], numbers[r] = rows[g], t_ms[base + w + rows[g] + 1], counts[g]
            total = 0.0
            for at in range(target, target + counts[g]):
                total += repeat_weight if repeated[at] else 1.0
            for at in range(target, target + counts[g]):
                wanted[t] = targets[at]
                weights[t] = (repeat_weight if repeated[at] else 1.0) / max(total, 1e-9)
                t += 1
            target += counts[g]
            r += 1
        row = 0
        for h in range(starts[ENDS, w], starts[ENDS, w + 1]):
            while row < ends[h]:
                left = ends[h] - row - 1
                if left and drawn[base + row] < inside_share:
                    places[r], ms[r], numbers[r] = row, t_ms[base + w + row + 1], left
                    for at in range(row + 1, ends[h]):
                        wanted[t], weights[t] = shuffled[base + at], inside_weight / left
                        t += 1
                    r += 1
                row += 1
    return shuffled, asked_starts, places, ms, numbers, wanted, weights
