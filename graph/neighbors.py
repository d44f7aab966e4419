"""Item-item neighbours that are learnt group by group and need no gradient.

`PartnerTable` keeps a bounded number of partners for each item with exponentially decayed weights. Decay is counted
forward: what arrives at t is stored as weight * 2^((t - origin) / half-life), so nothing that is stored ever needs
touching, and the origin moves before float32 runs out of range.

Only so many items have a row (graph/slots.py): beyond that an item gets one when it is more frequent than another.

Source: forward decay, Cormode, Shkapenyuk, Srivastava, Xu (ICDE 2009).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from driftline.graph.arrays import Arrays, Int32, grown
from driftline.graph.signals_kernel import add_to_pairs
from driftline.graph.slots import Slots
from driftline.graph.sparse import NOTHING, best_partners, strongest_source
from driftline.graph.touched import Touched

if TYPE_CHECKING:
    from driftline.graph.arrays import Float32

REBASE_HALF_LIVES = 60.0
"""Stored weights grow to 2^60 at most before the origin moves; float32 holds 2^127."""


class PartnerTable:
    """At most `slots` partners of each item with decayed weights; the lightest make room.

    A new pair replaces the lightest partner of a full row if it is at least as heavy by then. Singletons fade, so rows
    keep what recurs and, below it, what is recent.

    Args:
        slots: partners of an item.
        half_life_ms: of a weight.
        rows: items with partners at most.
        ttl_ms: a row whose item had no new pair for so long is free; 0 = never.
    """

    def __init__(self, slots: int, half_life_ms: float, rows: int = 1 << 31, ttl_ms: float = 0) -> None:
        self.slots, self.half_life_ms = slots, half_life_ms
        self.rows = Slots(rows, ttl_ms)
        self.origin_ms = -1
        self.n = 0
        self.partner: Int32 = np.full((0, slots), -1, np.int32)
        self.weight: Float32 = np.zeros((0, slots), np.float32)
        self.out: Float32 = np.zeros(0, np.float32)
        self.into: Float32 = np.zeros(0, np.float32)
        self._mark: Int32 = np.full(0, -1, np.int32)

    def _scale(self, t_ms: int) -> float:
        if self.origin_ms < 0:
            self.origin_ms = t_ms
        passed = (t_ms - self.origin_ms) / self.half_life_ms
        if passed > REBASE_HALF_LIVES:
            for array in (self.weight, self.out, self.into):
                array *= np.float32(2.0**-passed)
            self.origin_ms, passed = t_ms, 0.0
            self.rows.touched.everything()
        return float(2.0**passed)

    def ensure(self, n: int) -> None:
        """Make room for items 0..n-1."""
        if n > self.n:
            self.n = n
            rows = self.rows.ensure(n)
            self.partner = grown(self.partner, rows, -1, self.rows.size)
            self.weight = grown(self.weight, rows, 0, self.rows.size)
            self.out, self.into = grown(self.out, n), grown(self.into, n)
            self._mark = grown(self._mark, n, -1)

    def add(self, source: Int32, target: Int32, source_weight: Float32, target_weight: Float32, t_ms: int) -> None:
        """Add source_weight[i] * target_weight[j] to every pair (source[i], target[j]) of different items.

        Args:
            source: [s] int32 distinct items whose rows change.
            target: [m] int32 distinct items.
            source_weight: [s] float32; target_weight: [m] float32, as of t_ms.
            t_ms: time of the pairs.
        """
        if len(source) == 0 or len(target) == 0:
            return
        scale = np.float32(self._scale(t_ms))
        source_weight = source_weight * scale
        self.out[source] += source_weight
        self.into[target] += target_weight * scale
        rows, freed = self.rows.admit(source, self.out, t_ms)
        self.partner[freed], self.weight[freed] = -1, 0
        if (rows < 0).any():
            source, source_weight, rows = source[rows >= 0], source_weight[rows >= 0], rows[rows >= 0]
        add_to_pairs(source, rows, target, source_weight, target_weight, self.partner, self.weight, self._mark)

    def sums(self, source: Int32, weight: Float32, n: int) -> tuple[Int32, Float32]:
        """Weighted sum of the sources' normalised rows, over those of items 0..n-1 that they hold.

        Args:
            source: [s] int32 distinct items; those that the table does not know are left out.
            weight: [s] float32.
            n: number of items.

        Returns:
            items [t] int32 and scores [t] float32; nothing points at any other item.
        """
        return self.best(source, weight, n, 0, NOTHING)[:2]

    def best(
        self, source: Int32, weight: Float32, n: int, k: int, touched: Int32
    ) -> tuple[Int32, Float32, Int32, Float32]:
        """`sums`, and of these the k best untouched items and their scores, as `best_rows` has them."""
        table = self.partner, self.weight, self.out, self.into
        return best_partners(source, self.rows.of(source), weight, *table, n, k, touched)

    def strongest(self, source: Int32, weight: Float32, item: int) -> tuple[int, float]:
        """Which source contributes most to an item's score: (item, normalised weight), (-1, 0) if none does."""
        rows = self.rows.of(source)
        at, held = strongest_source(source, rows, weight, self.partner, self.weight, self.out, item)
        if at < 0:
            return -1, 0.0
        one = int(source[at])
        return one, float(held) / float(np.sqrt(max(self.out[one] * self.into[item], 1e-30)))

    def arrays(self, prefix: str) -> Arrays:
        """Everything that is learnt, by name; views."""
        n, rows = self.n, self.rows.used
        return {
            f"{prefix}.partner": self.partner[:rows],
            f"{prefix}.weight": self.weight[:rows],
            f"{prefix}.out": self.out[:n],
            f"{prefix}.into": self.into[:n],
            f"{prefix}.origin_ms": np.array([self.origin_ms], np.int64),
            **self.rows.arrays(prefix),
        }

    def touched(self, prefix: str) -> dict[str, Touched]:
        """Which rows of the large ones of `arrays` changed."""
        names = (f"{prefix}.partner", f"{prefix}.weight", *self.rows.by_row(prefix))
        return dict.fromkeys(names, self.rows.touched)

    def restore(self, arrays: Arrays, prefix: str) -> None:
        """Take over what `arrays` gave; the arrays are not copied, so a read-only map stays shared."""
        self.partner = np.asarray(arrays[f"{prefix}.partner"], np.int32)
        self.weight = np.asarray(arrays[f"{prefix}.weight"], np.float32)
        self.out = np.asarray(arrays[f"{prefix}.out"], np.float32)
        self.into = np.asarray(arrays[f"{prefix}.into"], np.float32)
        self.origin_ms = int(arrays[f"{prefix}.origin_ms"][0])
        self.n = len(self.out)
        self.rows.restore(arrays, prefix, self.n)
        self._mark = np.full(self.n, -1, np.int32)
