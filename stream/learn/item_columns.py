"""The part "items" of a snapshot, kept as columns, so that a new item or title costs itself and not the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from driftline.graph.arrays import grown
from driftline.serving.arrays import Array, Labels


class ItemRow(msgspec.Struct, frozen=True, gc=False):
    """What a snapshot says of one item.

    No object of the garbage collector's: a first copy makes one for each item, and a full collection amid it would hold
    up learning.

    Attributes:
        brand: "" = none; available: whether it may be recommended; price: NaN = none.
        listed_partition, listed_offset: of its record in the topic `items`, -1 = it has none.
    """

    id: str
    title: str
    domain: str
    categories: Sequence[str]
    brand: str
    available: bool
    price: float
    listed_partition: int
    listed_offset: int


_TEXTS = ("id", "title", "domain")


class ItemColumns:
    """Columns by dense index; arrays that were handed out stay as they are."""

    def __init__(self) -> None:
        self._n = 0
        self._labels = {"category": Labels(), "brand": Labels()}
        self._ragged: dict[str, list[bytes]] = {name: [] for name in (*_TEXTS, *self._labels)}
        self._arrays: dict[str, Array] = {
            "available": np.zeros(0, np.bool_),
            "price": np.zeros(0, np.float32),
            "listed_partition": np.zeros(0, np.int32),
            "listed_offset": np.zeros(0, np.int64),
        }
        self._out: dict[str, Array] = {}

    def update(self, rows: Mapping[int, ItemRow]) -> dict[str, Array]:
        """The arrays after some rows changed; new ones must close up with those that are there."""
        if not rows and self._out:
            return self._out
        stale = set() if self._out else set(self._ragged)
        for index, row in sorted(rows.items()):
            cells = [text.encode() for text in (row.id, row.title, row.domain)]
            cells += [self._labels["category"].row(row.categories), self._labels["brand"].row((row.brand,))]
            for name, value in zip(self._ragged, cells, strict=True):
                values = self._ragged[name]
                if index == len(values):
                    values.append(value)
                elif values[index] != value:
                    values[index] = value
                else:
                    continue
                stale.add(name)
        self._n = len(self._ragged["id"])
        for name, column in self._arrays.items():
            column = self._arrays[name] = grown(column, self._n)
            column[list(rows)] = [getattr(row, name) for row in rows.values()]
            self._out = self._out | {name: column[: self._n].copy()}
        for name in stale:
            self._out = self._out | self._packed(name, self._ragged[name])
        return self._out

    def _packed(self, name: str, values: list[bytes]) -> dict[str, Array]:
        if name in self._labels:
            return self._labels[name].pack(name, values)
        ends = np.zeros(self._n + 1, np.int64)
        np.cumsum(np.fromiter(map(len, values), np.int64, self._n), out=ends[1:])
        return {f"{name}.utf8": np.frombuffer(b"".join(values), np.uint8), f"{name}.ends": ends}
