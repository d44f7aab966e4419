"""Item-item neighbours that are learnt group by group and need no gradient.

`PartnerTable` keeps a bounded number of partners for each item with exponentially decayed weights. Decay is counted
forward: what arrives at t is stored as weight * 2^((t - origin) / half-life), so nothing that is stored ever needs
touching, and the origin moves before float32 runs out of range.

Source: forward decay, Cormode, Shkapenyuk, Srivastava, Xu (ICDE 2009).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graph.arrays import Arrays, grown
from graph.view import Int32, Int64

if TYPE_CHECKING:
    from graph.rows import Float32

REBASE_HALF_LIVES = 60.0
"""Stored weights grow to 2^60 at most before the origin moves; float32 holds 2^127."""


class PartnerTable:
    """At most `slots` partners of each item with decayed weights; the lightest make room.

    A new pair replaces the lightest partner of a full row if it is at least as heavy by then. Singletons fade, so rows
    keep what recurs and, below it, what is recent.
    """

    def __init__(self, slots: int, half_life_ms: float) -> None:
        self.slots, self.half_life_ms = slots, half_life_ms
        self.origin_ms = -1
        self.n = 0
        self.partner: Int32 = np.full((0, slots), -1, np.int32)
        self.weight: Float32 = np.zeros((0, slots), np.float32)
        self.out: Float32 = np.zeros(0, np.float32)
        self.into: Float32 = np.zeros(0, np.float32)
        self._mark: Int32 = np.full(1, -1, np.int32)  # the last entry stays -1: it answers for empty slots

    def _scale(self, t_ms: int) -> float:
        if self.origin_ms < 0:
            self.origin_ms = t_ms
        passed = (t_ms - self.origin_ms) / self.half_life_ms
        if passed > REBASE_HALF_LIVES:
            for array in (self.weight, self.out, self.into):
                array *= np.float32(2.0**-passed)
            self.origin_ms, passed = t_ms, 0.0
        return float(2.0**passed)

    def ensure(self, n: int) -> None:
        """Make room for items 0..n-1."""
        if n > self.n:
            self.n = n
            self.partner = grown(self.partner, n, -1)
            self.weight = grown(self.weight, n)
            self.out, self.into = grown(self.out, n), grown(self.into, n)
            if len(self._mark) <= len(self.out):
                self._mark = np.full(len(self.out) + 1, -1, np.int32)

    def add(self, source: Int32, target: Int32, source_weight: Float32, target_weight: Float32, t_ms: int) -> None:
        """Add source_weight[i] * target_weight[j] to every pair (source[i], target[j]) of different items.

        Args:
            source: [s] int32 distinct items whose rows change.
            target: [m] int32 distinct items.
            source_weight: [s] float32; target_weight: [m] float32, as of t_ms.
            t_ms: time of the pairs.
        """
        s, m = len(source), len(target)
        if s == 0 or m == 0:
            return
        scale = np.float32(self._scale(t_ms))
        source_weight = source_weight * scale
        self.out[source] += source_weight
        self.into[target] += target_weight * scale
        fresh = source_weight[:, None] * target_weight
        rows_p, rows_w = self.partner[source], self.weight[source]
        mark = self._mark
        mark[target] = np.arange(m, dtype=np.int32)
        own = mark[source]
        hit = mark[rows_p]
        mark[target] = -1
        same = np.flatnonzero(own >= 0)
        fresh[same, own[same]] = 0
        row, slot = np.nonzero(hit >= 0)
        at = hit[row, slot]
        rows_w[row, slot] += fresh[row, at]
        fresh[row, at] = 0
        new = np.count_nonzero(fresh, axis=1)
        left = np.flatnonzero(new)
        if len(left):
            self._insert(rows_p, rows_w, fresh, target, left)
        self.partner[source], self.weight[source] = rows_p, rows_w

    def _insert(self, rows_p: Int32, rows_w: Float32, fresh: Float32, target: Int32, left: Int64) -> None:
        """Merge the pairs that have no slot yet into rows `left`; the heaviest `slots` stay."""
        k = self.slots
        everyone = np.concatenate((fresh[left], rows_w[left]), axis=1)  # fresh first: at equal weight the newer stays
        partners = np.concatenate((np.broadcast_to(target, (len(left), len(target))), rows_p[left]), axis=1)
        keep = np.argpartition(-everyone, k - 1, axis=1)[:, :k]
        weight = np.take_along_axis(everyone, keep, 1)
        rows_w[left] = weight
        rows_p[left] = np.where(weight > 0, np.take_along_axis(partners, keep, 1), -1)

    def scores(self, source: Int32, weight: Float32, n: int) -> Float32:
        """Weighted sum of the sources' normalised rows, over items 0..n-1.

        Args:
            source: [s] int32 distinct items; those that the table does not know are left out.
            weight: [s] float32.
            n: number of items.

        Returns:
            [n] float32, 0 where nothing points.
        """
        known = source < self.n
        source, weight = source[known], weight[known]
        if len(source) == 0:
            return np.zeros(n, np.float32)
        per_row = weight / np.sqrt(np.maximum(self.out[source], 1e-30))
        mass = self.weight[source] * per_row[:, None]
        total = np.bincount(self.partner[source].ravel() + 1, weights=mass.ravel(), minlength=n + 1)
        m = min(n, self.n)
        out = np.zeros(n, np.float32)
        out[:m] = total[1 : m + 1] / np.sqrt(np.maximum(self.into[:m], 1e-30))
        return out

    def strongest(self, source: Int32, weight: Float32, item: int) -> tuple[int, float]:
        """Which source contributes most to an item's score: (item, normalised weight), (-1, 0) if none does."""
        known = source < self.n
        source, weight = source[known], weight[known]
        if len(source) == 0 or item >= self.n:
            return -1, 0.0
        held = np.where(self.partner[source] == item, self.weight[source], 0).sum(1)
        share = held * weight / np.sqrt(np.maximum(self.out[source], 1e-30))
        best = int(np.argmax(share))
        if share[best] <= 0:
            return -1, 0.0
        return int(source[best]), float(held[best] / np.sqrt(max(self.out[source[best]] * self.into[item], 1e-30)))

    def arrays(self, prefix: str) -> Arrays:
        """Everything that is learnt, by name."""
        n = self.n
        return {
            f"{prefix}.partner": self.partner[:n].copy(),
            f"{prefix}.weight": self.weight[:n].copy(),
            f"{prefix}.out": self.out[:n].copy(),
            f"{prefix}.into": self.into[:n].copy(),
            f"{prefix}.origin_ms": np.array([self.origin_ms], np.int64),
        }

    def restore(self, arrays: Arrays, prefix: str) -> None:
        """Take over what `arrays` gave; the arrays are not copied, so a read-only map stays shared."""
        self.partner = np.asarray(arrays[f"{prefix}.partner"], np.int32)
        self.weight = np.asarray(arrays[f"{prefix}.weight"], np.float32)
        self.out = np.asarray(arrays[f"{prefix}.out"], np.float32)
        self.into = np.asarray(arrays[f"{prefix}.into"], np.float32)
        self.origin_ms = int(arrays[f"{prefix}.origin_ms"][0])
        self.n = len(self.partner)
        self._mark = np.full(self.n + 1, -1, np.int32)
