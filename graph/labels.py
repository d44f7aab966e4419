"""Labels of items - a brand, categories - and what is taken of each: counted, never trained.

    set(index, labels)             what the catalogue says of an item
    add(items, t_ms)               a group was taken
    taste(items) -> Taste          what labels a history has, rare ones counting more

A label is a word that several items share, so a new item starts with what is known of its labels. Numbers are given in
order of first sight; a label's list holds the items that were taken last, or are new.

Source: weights by inverse document frequency, Salton and Buckley, 1988; content profiles of users, Lops, de Gemmis and
Semeraro, 2011, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from driftline.graph.arrays import Float32, Int32, UInt64, grown
from driftline.graph.counts import DecayedCounts
from driftline.graph.labels_kernel import tastes, to_front
from driftline.graph.rows import key64
from driftline.graph.touched import Touched

if TYPE_CHECKING:
    from driftline.graph.arrays import Arrays

# n items, l labels, s labels of an item at most

MOST = 24
"""Labels of an item that are read, its brand among them."""
LISTED = 64
"""Items of a label that are kept at hand."""


@dataclass(frozen=True, slots=True)
class Taste:
    """The labels of some items.

    Attributes:
        weight: [l] float32 unit vector, or zeros.
        counted: [l] float32 how many of the items have a label.
        named: [t] int32 the labels that any has.
    """

    weight: Float32
    counted: Float32
    named: Int32


class Labels:
    """Labels by dense index of their item.

    Args:
        half_lives_ms: a short and a long one, of what is taken.

    Attributes:
        of: [n, MOST] int32 labels of items, the brand first; -1 = none.
        logs: [l] float32 logs of how many items have a label, a number that counts at least 1.
        recent: [l, LISTED] int32 items of a label, the last one taken first; -1 = no more.
        taken: decayed takes by label.
    """

    def __init__(self, half_lives_ms: tuple[float, float]) -> None:
        self.of: Int32 = np.full((0, MOST), -1, np.int32)
        self.logs: Float32 = np.zeros(0, np.float32)
        self.recent: Int32 = np.full((0, LISTED), -1, np.int32)
        self.taken = DecayedCounts(half_lives_ms, 0)
        self._n = 0
        self._items: Float32 = np.zeros(0, np.float32)
        self._keys: UInt64 = np.zeros(0, np.uint64)
        self._numbers: dict[int, int] = {}
        self._touched = {name: Touched() for name in ("of", "logs", "recent", "items")}

    def __len__(self) -> int:
        """How many labels there are."""
        return len(self._numbers)

    def ensure(self, n: int) -> None:
        """Make room for items 0..n-1."""
        self._n, self.of = max(self._n, n), grown(self.of, n, -1)

    def set(self, index: int, brand: str, categories: Sequence[str]) -> None:
        """Says of an item what it is labelled with; further categories than there is room for are left out."""
        self.ensure(index + 1)
        names = dict.fromkeys(f"category:{name.strip().casefold()}" for name in categories if name.strip())
        numbers = [self._number(f"brand:{brand.strip().casefold()}") if brand.strip() else -1]
        numbers += [self._number(name) for name in list(names)[: MOST - 1]]
        row = np.full(MOST, -1, np.int32)
        row[: len(numbers)] = numbers
        if np.array_equal(row, self.of[index]):
            return
        for labels, step in ((self.of[index], -1), (row, 1)):
            labels = labels[labels >= 0]
            self._items[labels] += step
            self.logs[labels] = np.log(np.maximum(self._items[labels], 1))
            self._mark(labels)
        self.of[index] = row
        self._touched["of"].add(np.array([index]))
        to_front(row, index, self.recent)

    def _mark(self, labels: Int32) -> None:
        for name in ("logs", "recent", "items"):
            self._touched[name].add(labels)

    def _number(self, name: str) -> int:
        key, n = key64(name), len(self._numbers)
        number = self._numbers.setdefault(key, n)
        if number == n:
            self._keys, self._items = grown(self._keys, n + 1), grown(self._items, n + 1)
            self.logs, self.recent = grown(self.logs, n + 1), grown(self.recent, n + 1, -1)
            self.taken.ensure(n + 1)
            self._keys[n] = key
        return number

    def add(self, items: Int32, t_ms: int) -> None:
        """Counts distinct items [b] that were taken at a time."""
        labels = self.of[items]
        rows, counts = np.unique(labels[labels >= 0], return_counts=True)
        self.taken.add(rows, counts.astype(np.float64), t_ms)
        self._touched["recent"].add(rows)
        for item in items.tolist():
            to_front(self.of[item], item, self.recent)

    @property
    def log_items(self) -> float:
        """Log of how many items there are."""
        return math.log(max(self._n, 1))

    def taste(self, items: Int32, weight: Float32) -> Taste:
        """Of items [m] with weights [m]."""
        out, counted = np.zeros((2, len(self.logs)), np.float32)
        named = np.empty(len(items) * MOST, np.int32)
        named = named[: tastes(self.of, items, weight, self.logs, self.log_items, out, counted, named)]
        norm = float(np.linalg.norm(out[named]))
        if norm > 0:
            out[named] /= np.float32(norm)
        return Taste(out, counted, named)

    def arrays(self) -> Arrays:
        """Everything, by name; views."""
        n = len(self)
        out: Arrays = {"of": self.of[: self._n], "logs": self.logs[:n], "recent": self.recent[:n]}
        return out | {"items": self._items[:n], "keys": self._keys[:n]} | self.taken.arrays("taken", n)

    def touched(self) -> dict[str, Touched]:
        """Which rows of `arrays` changed, for the large ones."""
        return self._touched | self.taken.touched("taken")

    def restore(self, arrays: Arrays) -> None:
        """Takes over what `arrays` gave, as it is: who goes on learning gives copies."""
        self.of, self.logs, self.recent = arrays["of"], arrays["logs"], arrays["recent"]
        self._n, self._items, self._keys = len(self.of), arrays["items"], arrays["keys"]
        self._numbers = {key: number for number, key in enumerate(self._keys.tolist())}
        self.taken.restore(arrays, "taken")
        for touched in self._touched.values():
            touched.everything()
