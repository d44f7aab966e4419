"""Who acted on somebody, where users and items share one space of ids: who was written to may write back.

An event of u with item v makes u a partner of v; asked for v, those who wrote to v lately and often come first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from driftline.graph.neighbors import PartnerTable

if TYPE_CHECKING:
    from driftline.graph.arrays import Arrays, Float32, Int32
    from driftline.graph.touched import Touched

REVERSE = ("back", "back_fresh")
"""Tables by the half-life of their pairs: that of pairs, and that of what is fresh."""
_ONE = np.ones(1, np.float32)


class Reverse:
    """Partners in the reverse direction of events.

    Args:
        on: whether ids of users are ids of items; else it holds nothing.
        neighbors: partners kept.
        half_lives_ms: of the tables in REVERSE.
        held: items with partners at most, and ms without a new one after which one makes room; 0 = never.

    Attributes:
        tables: by name; none where it is off.
    """

    def __init__(self, on: bool, neighbors: int, half_lives_ms: tuple[float, float], held: tuple[int, float]) -> None:
        lives = zip(REVERSE, half_lives_ms, strict=True)
        self.tables = {name: PartnerTable(neighbors, life, *held) for name, life in lives} if on else {}

    def ensure(self, n: int) -> None:
        """Make room for items 0..n-1."""
        for table in self.tables.values():
            table.ensure(n)

    def add(self, user: int, items: Int32, t_ms: int) -> None:
        """Count a group: `user` is its user's index among the items, -1 = none; items [b] are distinct."""
        if user < 0:
            return
        target = np.array([user], np.int32)
        for table in self.tables.values():
            table.add(items, target, np.ones(len(items), np.float32), _ONE, t_ms)

    def sums(self, user: int, n: int) -> dict[str, tuple[Int32, Float32]]:
        """Items [t] that acted on a user and their scores [t], by table; none for -1."""
        source = np.array([user] if user >= 0 else [], np.int32)
        return {name: table.sums(source, _ONE[: len(source)], n) for name, table in self.tables.items()}

    def arrays(self) -> Arrays:
        """Everything that is learnt, by name; views."""
        out: Arrays = {}
        for name, table in self.tables.items():
            out |= table.arrays(name)
        return out

    def touched(self) -> dict[str, Touched]:
        """Which rows of the large ones of `arrays` changed."""
        out: dict[str, Touched] = {}
        for name, table in self.tables.items():
            out |= table.touched(name)
        return out

    def restore(self, arrays: Arrays) -> None:
        """Take over what `arrays` gave."""
        for name, table in self.tables.items():
            table.restore(arrays, name)
