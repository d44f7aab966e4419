"""Labels of items - a brand, categories - and what is taken of each: counted, never trained.

    set(index, brand, categories)        what the catalogue says of an item
    add(items, t_ms)                     a group was taken
    taste(items, weight) -> Taste        what labels a history has, rare ones counting more
    cosines, columns(taste, items)       what these say of other items

A label is a word that several items share, so a new item starts with what is known of its labels. Numbers are given in
order of first sight; a label's list holds the items that were taken last, or got the label since.

Source: weights by inverse document frequency, Salton and Buckley, 1988; content profiles of users, Lops, de Gemmis and
Semeraro, 2011, section 3.3.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from driftline.graph.arrays import Float32, Int32, UInt64, grown
from driftline.graph.counts import DecayedCounts
from driftline.graph.labels_kernel import cosines, label_columns, take_out, tastes, to_front
from driftline.graph.rows import key64
from driftline.graph.sparse import SCRATCH
from driftline.graph.touched import Touched

if TYPE_CHECKING:
    from driftline.graph.arrays import Arrays

# n items, l labels, t labels that a history has

Labelled = tuple[str, Sequence[str]]
"""Brand, "" = none, and categories of an item."""
MOST = 24
"""Labels of an item that are read, its brand among them."""
LISTED = 64
"""Items of a label that are kept at hand."""
MANY = 1 << 18
"""Labels that are counted, .4 KB each; further ones are passed over: where there are so many, few items share one."""


@dataclass(frozen=True, slots=True)
class Taste:
    """The labels of a history.

    Attributes:
        named: [t] int32 the labels.
        weight, latest: [t] float32 unit vectors of all its items and of the newest ones, or zeros.
        counted: [t] float32 how many of the items have a label.
        items: how many there are.
    """

    named: Int32
    weight: Float32
    latest: Float32
    counted: Float32
    items: int


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
        self._n = self._l = 0
        self._items: Float32 = np.zeros(0, np.float32)
        self._keys: UInt64 = np.zeros(0, np.uint64)
        self._numbers: dict[int, int] = {}
        self._touched = {name: Touched() for name in ("of", "logs", "recent")}

    def __len__(self) -> int:
        """How many labels there are."""
        return self._l

    def ensure(self, n: int) -> None:
        """Make room for items 0..n-1."""
        self._n, self.of = max(self._n, n), grown(self.of, n, -1)

    def set(self, index: int, brand: str, categories: Sequence[str]) -> None:
        """Says of an item what it is labelled with; further categories than there is room for are left out."""
        self.ensure(index + 1)
        names, maker = dict.fromkeys(filter(None, map(_plain, categories))), _plain(brand)
        numbers = [self._number(f"brand:{maker}") if maker else -1]
        numbers += [one for name in list(names)[: MOST - 1] if (one := self._number(f"category:{name}")) >= 0]
        before = self.of[index].tolist()
        row = numbers + [-1] * (MOST - len(numbers))
        if row == before:
            return
        self.of[index] = row
        self._touched["of"].add(np.array([index]))
        gone = np.array([label for label in before if label >= 0 and label not in row], np.int32)
        new = np.array([label for label in row if label >= 0 and label not in before], np.int32)
        for labels, step in ((gone, -1), (new, 1)):
            self._items[labels] += step
            self.logs[labels] = np.log(np.maximum(self._items[labels], 1))
            self._touched["logs"].add(labels)
            self._touched["recent"].add(labels)
        take_out(gone, index, self.recent)
        to_front(new, index, self.recent)

    def _number(self, name: str) -> int:
        """Of a label, which may be new; -1 = there are too many."""
        key, n = key64(name), self._l
        number = self._numbers.get(key, -1)
        if number < 0 and n < MANY:
            self._numbers[key] = number = n
            self._l = n + 1
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

    def taste(self, items: Int32, weight: Float32, newest: int) -> Taste:
        """Of items [m] with weights [m], the newest ones first."""
        named = np.empty(len(items) * MOST, np.int32)
        out, latest, counted = np.zeros((3, len(named)), np.float32)
        t = tastes(
            self.of, items, weight, newest, self.logs, self._log_items, self._place(), named, out, latest, counted
        )
        for one in (out[:t], latest[:t]):
            if (norm := float(np.linalg.norm(one))) > 0:
                one /= np.float32(norm)
        return Taste(named[:t], out[:t], latest[:t], counted[:t], len(items))

    def cosines(self, taste: Taste, items: Int32) -> Float32:
        """Cosines [c] of items [c] to a taste; 0 of items without labels."""
        out = np.empty(len(items), np.float32)
        cosines(self.of, items, self.logs, self._log_items, taste.named, taste.weight, self._place(), out)
        return out

    def columns(self, taste: Taste, items: Int32, out: Float32) -> None:
        """What labels say of items [c] to somebody of a taste: see COLUMNS, of which `out` [columns, c] has zeros."""
        label_columns(
            self.of, items, self.logs, self._log_items, taste.named, taste.weight, taste.latest, taste.counted,
            max(taste.items, 1), self.taken.count, self.taken.total, self._place(), out,
        )  # fmt: skip

    @property
    def _log_items(self) -> float:
        return math.log(max(self._n, 1))

    def _place(self) -> Int32:
        """[l] -1: where a label stands among those of a taste, left as it was found."""
        return SCRATCH.get("labels", len(self.logs), np.int32, -1)

    def arrays(self) -> Arrays:
        """What answers are made of, by name; views."""
        n = self._l
        return {
            "of": self.of[: self._n], "logs": self.logs[:n], "recent": self.recent[:n], **self.taken.arrays("taken", n)
        }  # fmt: skip

    def touched(self) -> dict[str, Touched]:
        """Which rows of `arrays` changed, for the large ones."""
        return self._touched | self.taken.touched("taken")

    def state(self) -> Arrays:
        """Everything, by name; views."""
        return self.arrays() | {"items": self._items[: self._l], "keys": self._keys[: self._l]}

    def restore(self, arrays: Arrays) -> None:
        """Takes over what `arrays` gave, to answer only, or `state`, as it is: who goes on learning gives copies."""
        self.of, self.logs, self.recent = arrays["of"], arrays["logs"], arrays["recent"]
        self._n, self._l = len(self.of), len(self.logs)
        self.taken.restore(arrays, "taken")
        if "keys" in arrays:
            self._items, self._keys = arrays["items"], arrays["keys"]
            self._numbers = {key: number for number, key in enumerate(self._keys.tolist())}
        for touched in self._touched.values():
            touched.everything()


def _plain(name: str) -> str:
    """A name as it is compared: its case, the blanks around it and how its accents are written make no other one."""
    return unicodedata.normalize("NFC", name.strip().casefold())
