"""A consistent copy of what a snapshot holds, taken by the thread that learns in steps of a few milliseconds.

    advance, learn, advance, learn, ..., finish

Tables that change by rows are copied by the rows that were touched since the last copy. While learning goes on between
the steps it touches rows again, which are then copied again: the last copy of a row counts. `finish` copies the little
that is left, and all other arrays, without learning between: that state is the snapshot's.

Source: pre-copy of live migration (Clark et al., "Live migration of virtual machines", NSDI 2005).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from driftline.graph.touched import Touched
from driftline.graph.view import ItemTable
from driftline.serving.arrays import Array
from driftline.serving.publisher import Rows, Taken
from driftline.stream.learn.catalogue import Catalogue
from driftline.stream.learn.item_columns import ItemRow

STEP_BYTES = 1 << 20
"""Copied between two looks at the clock."""
REST_BYTES = 8 << 20
"""What `finish` may be left with: a few milliseconds."""
STEP_ITEMS = 512

Arrays = Mapping[str, Mapping[str, Array]]
Marks = Mapping[str, Mapping[str, Touched]]


class Capture:
    """One copy.

    Args:
        arrays: of each part by name, as they are now; asked with False for those alone that change by rows.
        marks: those of them that change by rows.
        everything: of every row, whatever was copied before.

    Attributes:
        items: rows of the part "items".
    """

    def __init__(
        self,
        arrays: Callable[[bool], Arrays],
        marks: Callable[[], Marks],
        catalogue: Catalogue,
        table: ItemTable,
        everything: bool,
    ) -> None:
        self._arrays, self._marks, self._catalogue, self._table = arrays, marks, catalogue, table
        self._rows: dict[str, dict[str, list[Rows]]] = {}
        self.items: dict[int, ItemRow] = {}
        if everything:
            for touched in marks().values():
                for one in touched.values():
                    one.everything()

    def advance(self, seconds: float) -> bool:
        """Copies for about so long; whether the rest is small."""
        end_s = time.perf_counter() + seconds
        while self._catalogue.has_rows(self._table):
            self.items |= self._catalogue.take_rows(self._table, STEP_ITEMS)
            if time.perf_counter() > end_s:
                return False
        tables = list(self._tables(self._arrays(False)))
        for touched, n, row_bytes, named in tables:
            while row_bytes * touched.count(n) > STEP_BYTES:
                self._copy(touched.take(n, max(1, STEP_BYTES // row_bytes)), named)
                if time.perf_counter() > end_s:
                    return self._left(tables) < REST_BYTES
        return self._left(tables) < REST_BYTES

    def finish(self) -> Taken:
        """The copy, as of now."""
        arrays = self._arrays(True)
        self.items |= self._catalogue.take_rows(self._table, len(self._table) + STEP_ITEMS)
        for touched, n, _, named in self._tables(arrays):
            self._copy(touched.take(n), named)
        marks = self._marks()
        whole = {
            part: {name: _own(array) for name, array in named.items() if name not in marks.get(part, {})}
            for part, named in arrays.items()
        }
        shapes = {part: {name: (a.dtype, a.shape) for name, a in named.items()} for part, named in arrays.items()}
        rows = {part: {name: self._rows.get(part, {}).get(name, []) for name in named} for part, named in marks.items()}
        return Taken(shapes, rows, whole)

    def _tables(self, arrays: Arrays) -> Iterator[tuple[Touched, int, int, list[tuple[str, str, Array]]]]:
        """Marks, rows, bytes of a row, and the arrays that share the marks."""
        groups: dict[int, tuple[Touched, list[tuple[str, str, Array]]]] = {}
        for part, touched in self._marks().items():
            for name, one in touched.items():
                groups.setdefault(id(one), (one, []))[1].append((part, name, arrays[part][name]))
        for one, named in groups.values():
            n = len(named[0][2])
            yield one, n, max(1, sum(array.nbytes for _, _, array in named) // max(1, n)), named

    def _copy(self, rows: np.ndarray, named: list[tuple[str, str, Array]]) -> None:
        for part, name, array in named:
            if len(rows):
                self._rows.setdefault(part, {}).setdefault(name, []).append((rows, array[rows]))

    @staticmethod
    def _left(tables: list[tuple[Touched, int, int, list[tuple[str, str, Array]]]]) -> int:
        return sum(row_bytes * touched.count(n) for touched, n, row_bytes, _ in tables)


def _own(array: Array) -> Array:
    """The array if nobody writes to it, else a copy."""
    return array.copy() if array.flags.writeable else array
