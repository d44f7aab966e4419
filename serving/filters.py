"""What callers filter lists by: categories, brands, domains and prices of the items of one snapshot.

Nothing is computed before a request has a filter; then one mask over all items, kept for the requests after it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int32, Int64
from driftline.serving.arrays import Array, unpack_strings
from driftline.serving.near import meant

Mask = NDArray[np.bool_]
_KEPT = 16
"""Filters whose mask is kept."""
_NOTHING = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Filter:
    """ItemFilter after the checks; what is empty or infinite filters nothing."""

    categories: tuple[str, ...] = ()
    excluded_categories: tuple[str, ...] = ()
    brands: tuple[str, ...] = ()
    excluded_brands: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    min_price: float = -math.inf
    max_price: float = math.inf

    def __bool__(self) -> bool:
        return self != EVERYTHING


EVERYTHING = Filter()


class Passing(NamedTuple):
    """Which items [n] pass a filter, and codes of what is special about it."""

    mask: Mask
    reasons: tuple[str, ...]


class Labelled:
    """Sets of names by item, as `arrays.Labels` packs them; no names where a snapshot has no such column."""

    def __init__(self, items: Mapping[str, Array], name: str, n: int) -> None:
        self._items, self._name, self._n = items, name, n

    @cached_property
    def _codes(self) -> Int32:
        codes: Int32 = np.asarray(self._items.get(f"{self._name}.codes", _NOTHING), np.int32)
        return codes

    @cached_property
    def _ends(self) -> Int64:
        """[n + 1], an item that the column does not reach has no names."""
        ends: Int64 = np.asarray(self._items.get(f"{self._name}.ends", np.zeros(1)), np.int64)[: self._n + 1]
        return np.pad(ends, (0, self._n + 1 - len(ends)), "edge")

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: code for code, name in enumerate(unpack_strings(self._items, f"{self._name}.names"))}

    def unknown(self, names: Sequence[str]) -> list[str]:
        """Those of some names that no item has."""
        return [name for name in names if name not in self._by_name]

    def meant(self, names: Sequence[str]) -> list[str]:
        """Reasons with names that are near to the first of these."""
        return meant(names, self._by_name)

    def having(self, names: Sequence[str]) -> Mask:
        """Which items [n] have one of some names."""
        wanted = [self._by_name[name] for name in names if name in self._by_name]
        hits = np.flatnonzero(np.isin(self._codes[: self._ends[-1]], wanted))
        mask = np.zeros(self._n, np.bool_)
        mask[np.searchsorted(self._ends, hits, side="right") - 1] = True
        return mask

    def rows(self, items: Int32) -> list[list[int]]:
        """Codes of the names of some items."""
        ends = self._ends
        return [self._codes[ends[item] : ends[item + 1]].tolist() for item in items.tolist()]


class Attributes:
    """What one snapshot says of its items; shared by requests.

    Args:
        items: the snapshot's part "items".
        event_prices: [m] float32, price of each item's newest event, NaN = none; what the catalogue says goes first.
        domain_codes, domains: as `Served` has them.
        n: items.
    """

    def __init__(
        self,
        items: Mapping[str, Array],
        event_prices: Float32,
        domain_codes: Int32,
        domains: Mapping[str, int],
        n: int,
    ) -> None:
        self._items, self._event_prices, self._n = items, event_prices, n
        self._domain_codes, self._domains = domain_codes, domains
        self._labels = {name: Labelled(items, name, n) for name in ("category", "brand")}
        self.passing = lru_cache(_KEPT)(self._passing)
        """What passes a filter."""

    def labels(self, items: Int32) -> Float32:
        """[m, c] float32 unit rows over the categories and brands of some items; zeros = an item has none."""
        columns: dict[tuple[str, int], int] = {}
        cells = [
            (row, columns.setdefault((name, code), len(columns)))
            for name, labelled in self._labels.items()
            for row, codes in enumerate(labelled.rows(items))
            for code in codes
        ]
        out = np.zeros((len(items), len(columns)), np.float32)
        if cells:
            out[tuple(np.array(cells).T)] = 1
        return unit_rows(out)

    def _passing(self, asked: Filter) -> Passing:
        mask, reasons = np.ones(self._n, np.bool_), []
        for name, wanted, excluded in (
            ("category", asked.categories, asked.excluded_categories),
            ("brand", asked.brands, asked.excluded_brands),
        ):
            labelled = self._labels[name]
            if wanted:
                mask &= labelled.having(wanted)
            if excluded:
                mask &= ~labelled.having(excluded)
            if unknown := labelled.unknown((*wanted, *excluded)):
                reasons += [f"unknown_{name}", *labelled.meant(unknown)]
        if asked.domains:
            known = [self._domains[name] for name in asked.domains if name in self._domains]
            mask &= np.isin(self._domain_codes, known)
            if unknown := [name for name in asked.domains if name not in self._domains]:
                reasons += ["unknown_domain", *meant(unknown, filter(None, self._domains))]
        if asked.min_price > -math.inf or asked.max_price < math.inf:
            mask &= (self._prices >= asked.min_price) & (self._prices <= asked.max_price)  # NaN passes neither
        return Passing(mask, tuple(reasons))

    @cached_property
    def _prices(self) -> Float32:
        prices = np.full(self._n, np.nan, np.float32)
        for column in (self._event_prices, self._items.get("price", _NOTHING)):
            told = np.asarray(column[: self._n], np.float32)
            given = np.flatnonzero(np.isfinite(told))
            prices[given] = told[given]
        return prices


def unit_rows(rows: Float32) -> Float32:
    """Rows [m, d] of length 1; those of zeros stay."""
    lengths = np.sqrt(np.einsum("md,md->m", rows, rows))[:, None]
    return np.asarray(rows / np.maximum(lengths, np.float32(1e-12)), np.float32)
