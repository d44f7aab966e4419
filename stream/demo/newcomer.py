"""An item that came in while the demo streamed, so that only its text and a few events speak of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from driftline.stream.demo.scene import Scene
from driftline.stream.events.files import read_columns, read_items

FEW = 3
"""Events of an item that counters know nothing of yet."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """An item, its title, the time of its first event and how many it has."""

    item_id: str
    title: str
    first_ms: int
    count: int


def newcomers_of(scene: Scene, since_ms: int) -> list[Newcomer]:
    """The titled items of a scene with few events that came in from a time on, the newest first."""
    columns = read_columns(scene.events)
    codes, names = columns.item_id
    first: dict[int, int] = {}
    for code, t in zip(codes.tolist(), columns.t_ms.tolist(), strict=True):
        first.setdefault(code, t)
    counts, items = Counter(codes.tolist()), read_items(scene.items)
    found = [
        Newcomer(names[code], items[names[code]].title, t, counts[code])
        for code, t in first.items()
        if t >= since_ms and counts[code] <= FEW and names[code] in items and items[names[code]].title
    ]
    return sorted(found, key=lambda one: one.first_ms, reverse=True)
