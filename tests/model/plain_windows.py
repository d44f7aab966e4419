"""The oracles of `model.windows_kernel`: windows group by group, and the asked rows of one window after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from driftline.model.rehearsal import Window


class PlainLog:
    """All groups of all users in lists; `capacity` and `max_len` as in `RehearsalLog`."""

    def __init__(self, capacity, max_len):
        self.capacity, self.max_len, self.groups = capacity, max_len, []

    def add(self, user, items, wanted, t_ms):
        mine = [n for n, other in enumerate(self.groups) if other[0] == user]
        self.groups.append((user, items.tolist(), wanted.tolist(), t_ms, mine[-1] if mine else -1))

    def forget(self, user):
        self.groups = [(None, [], [], g[3], -1) if g[0] == user else g for g in self.groups]

    def chain(self, number):
        chain, events = [], self.max_len
        while number >= max(0, len(self.groups) - self.capacity) and events > 0:
            chain.append(number)
            events -= len(self.groups[number][1])
            number = self.groups[number][4]
        return sorted(chain, key=lambda n: (self.groups[n][3], n))

    def window(self, number):
        asked_ms = self.groups[number][3]
        chain = [n for n in self.chain(self.groups[number][4]) if self.groups[n][3] <= asked_ms]
        items = [item for n in chain for item in self.groups[n][1]]
        t_ms = [self.groups[n][3] for n in chain for _ in self.groups[n][1]]
        cut, end = max(0, len(items) - self.max_len), 0
        ends, rows, targets, counts, repeated = [], [], [], [], []
        for n, following in zip(chain, [*chain[1:], number], strict=False):
            end += len(self.groups[n][1])
            if end <= cut:
                continue
            ends.append(end - cut)
            _, new, wanted, _, _ = self.groups[following]
            picked = [item for item, one in zip(new, wanted, strict=True) if one]
            if picked:
                rows.append(end - cut - 1)
                targets += picked
                counts.append(len(picked))
                repeated += [item in items[cut:end] for item in picked]
        arrays = (np.array(z, np.int64) for z in (items[cut:], [*t_ms[cut:], asked_ms], ends, rows, targets, counts))
        return Window(*arrays, np.array(repeated, np.bool_))


def build(windows, settings, random):
    """Items, asked places, times, counts, targets and weights of a batch, window after window."""
    ordered = [shuffled(w, random) for w in sorted(windows, key=lambda w: len(w.items))]
    asked = [(next_groups(w, settings), inside_groups(w, settings, random)) for w in ordered]
    joined = [[np.concatenate(both) for both in zip(*one, strict=True)] for one in asked]
    flat = (np.concatenate([one[n] for one in joined]) for n in range(1, 5))
    return [w.items for w in ordered], [one[0] for one in joined], *flat


def shuffled(window, random):
    """The window with a new order inside each of its groups; asked rows keep their place and their past."""
    n = len(window.items)
    group = np.searchsorted(window.ends, np.arange(n), side="right")
    return replace(window, items=window.items[np.lexsort((random.random(n), group))])


def next_groups(window, settings):
    """The last row of each group, asked for the next group; every row weighs 1, or 0 if nothing in it counts."""
    weight = np.where(window.repeated, settings.repeat_weight, 1.0)
    row = np.repeat(np.arange(len(window.rows)), window.counts)
    total = np.bincount(row, weight, len(window.rows))
    weights = (weight / np.maximum(total, 1e-9)[row]).astype(np.float32)
    return window.rows, window.t_ms[window.rows + 1], window.counts, window.targets, weights


def inside_groups(window, settings, random):
    """A drawn share of the rows inside groups, each asked for what is left of its group."""
    drawn = random.random(len(window.items)) < settings.inside_share
    drawn[window.ends - 1] = False
    rows = np.flatnonzero(drawn)
    ends = window.ends[np.searchsorted(window.ends, rows, side="right")]
    counts = ends - rows - 1
    targets = [window.items[row + 1 : end] for row, end in zip(rows, ends, strict=True)]
    weights = np.repeat(settings.inside_weight / np.maximum(counts, 1), counts).astype(np.float32)
    return rows, window.t_ms[rows + 1], counts, np.concatenate([np.zeros(0, np.int64), *targets]), weights
