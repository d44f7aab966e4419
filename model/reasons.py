"""Why an item is in a slate: the strongest signal that speaks for it, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from driftline.graph.history import DAY_MS, HistoryDigest
from driftline.model.recall import BIT, SCORED, Pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driftline.graph.arrays import Float32
    from driftline.graph.neighbors import PartnerTable
    from driftline.graph.signals import Signals
    from driftline.graph.view import ItemTable

STRONG_RANK = 50
"""A recaller's opinion is a reason down to this rank."""
_TABLES = {
    "basket_history": "basket",
    "basket_last": "basket",
    "basket_fresh": "basket_fresh",
    "following": "following",
    "onward": "onward",
}
"""The table of Signals behind a recaller."""
_BITS = [(name, int(BIT[name])) for name in SCORED]


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason.

    Attributes:
        kind: "repeat", "bought_with", "next_after", "similar_users", "similar_text", "popular", "new" or "recalled".
        text: for people.
        item: the other item that it speaks of, -1 = none.
    """

    kind: str
    text: str
    item: int = -1


def explain(
    past: HistoryDigest, now_ms: int, places: Sequence[int], signals: Signals, table: ItemTable, pool: Pool
) -> list[Reason]:
    """One reason for each of some candidates.

    Args:
        past: the user's digest; now_ms: request time.
        places: [k] of candidates in the pool.
        signals: the counted state; table: names of items; pool: the recallers' opinions.
    """
    own = {item: i for i, item in enumerate(past.items.tolist())}
    chosen = np.asarray(places, np.int64)
    weight = past.relative(now_ms, signals.user_half_life_ms)[: signals.settings.recent]
    return [
        _repeat(past, own[item], now_ms) if item in own else _novel(past, weight, item, bits, signals, table, pool)
        for item, bits in zip(pool.candidates[chosen].tolist(), pool.recalled[chosen].tolist(), strict=True)
    ]


def _repeat(past: HistoryDigest, at: int, now_ms: int) -> Reason:
    times = int(past.times[at])
    ago = _span((now_ms - int(past.last_ms[at])) / DAY_MS)
    if times > 2:
        every = _span((int(past.last_ms[at]) - int(past.first_ms[at])) / DAY_MS / (times - 1)).removeprefix("a ")
        return Reason("repeat", f"you come back to this about every {every}; the last time was {ago} ago")
    return Reason("repeat", f"you had this {'twice' if times == 2 else 'once'}; the last time was {ago} ago")


def _novel(
    past: HistoryDigest, weight: Float32, item: int, bits: int, signals: Signals, table: ItemTable, pool: Pool
) -> Reason:
    """`weight` [s] is that of the newest items, as recallers have it."""
    ranks = {name: pool.scored[name].rank(item) for name, bit in _BITS if bits & bit}
    best = min(ranks, key=lambda name: ranks[name], default="")
    if not best or ranks[best] > STRONG_RANK:
        return _listed(bits)
    source = past.items[: len(weight)]
    if best in ("basket_last", "following"):
        source, weight = past.basket, np.ones(len(past.basket), np.float32)
    if best in _TABLES:
        partners: PartnerTable = getattr(signals, _TABLES[best])
        other, _ = partners.strongest(source, weight, item)
        if other >= 0:
            kind, words = ("bought_with", "often taken with") if "basket" in best else ("next_after", "often follows")
            return Reason(kind, f"{words} {table.ids[other]}", other)
    if best in ("user_knn", "user_knn_fresh"):
        return Reason("similar_users", "liked by people with a history like yours")
    if best in ("text_history", "text_last"):
        return Reason("similar_text", "described like what you took before")
    return _listed(bits)


def _listed(bits: int) -> Reason:
    for name, kind, text in (
        ("domain", "popular", "popular where you are"),
        ("popularity", "popular", "popular now"),
        ("first_buyers", "popular", "many people take this for the first time now"),
        ("newest", "new", "new in the catalogue"),
    ):
        if bits & int(BIT[name]):
            return Reason(kind, text)
    return Reason("recalled", "fits what you did lately")


def _span(days: float) -> str:
    for unit, length in (("day", 1.0), ("hour", 1 / 24), ("minute", 1 / 1440)):
        if days >= length:
            n = round(days / length)
            return f"{n} {unit}{'s' if n > 1 else ''}"
    return "a minute"
