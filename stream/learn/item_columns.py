"""The part "items" of a snapshot, kept as columns, so that a new item or title costs itself and not the catalogue."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from driftline.graph.arrays import grown
from driftline.serving.arrays import Array

ItemRow = tuple[str, str, str, bool, int, int]
"""What a snapshot says of one item: id, title, domain, whether it may be recommended, partition and offset of its
record in the topic `items`, -1 = it has none. A plain tuple, which the garbage collector leaves alone."""


class ItemColumns:
    """Columns by dense index; arrays that were handed out stay as they are."""

    def __init__(self) -> None:
        self._n = 0
        self._strings: dict[str, list[bytes]] = {"id": [], "title": [], "domain": []}
        self._arrays: dict[str, Array] = {
            "available": np.zeros(0, np.bool_),
            "listed_partition": np.zeros(0, np.int32),
            "listed_offset": np.zeros(0, np.int64),
        }
        self._out: dict[str, Array] = {}

    def update(self, rows: Mapping[int, ItemRow]) -> dict[str, Array]:
        """The arrays after some rows changed; new ones must close up with those that are there."""
        if not rows and self._out:
            return self._out
        stale = {name for name in self._strings if not self._out}
        for index, row in sorted(rows.items()):
            for name, text in zip(self._strings, row[:3], strict=True):
                values, value = self._strings[name], text.encode()
                if index == len(values):
                    values.append(value)
                elif values[index] != value:
                    values[index] = value
                else:
                    continue
                stale.add(name)
        self._n = len(self._strings["id"])
        for name, column in self._arrays.items():
            column = self._arrays[name] = grown(column, self._n)
            at = 3 + list(self._arrays).index(name)
            column[list(rows)] = [row[at] for row in rows.values()]
            self._out = self._out | {name: column[: self._n].copy()}
        for name in stale:
            values = self._strings[name]
            ends = np.zeros(self._n + 1, np.int64)
            np.cumsum(np.fromiter(map(len, values), np.int64, self._n), out=ends[1:])
            self._out = self._out | {f"{name}.utf8": np.frombuffer(b"".join(values), np.uint8), f"{name}.ends": ends}
        return self._out
