"""What a demo plays: which data, under which configuration, and in which words it speaks of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from driftline.stream.bundled import GAMES, SHOP

DAY_MS = 86_400_000
START_OF_2020_MS = 1_577_836_800_000


@dataclass(frozen=True, slots=True)
class Scene:
    """One demo.

    Attributes:
        events, items: files in the schema; the events in order of time.
        config: preset or file that all parts run with.
        live_ms: so much time at the end of the events is streamed live; what is before it is loaded in bulk.
        live: that time in words.
        user: what a user is called.
        acts, acted: what users do to items.
        action: as the events call it.
        shown: how a title is written.
        profiles: whether a language model writes of users.
        settings: more of the environment, over the demo's own.
        from_ms: events before are left out.
    """

    events: Path
    items: Path
    config: str
    live_ms: int
    live: str
    user: str
    acts: str
    acted: str
    action: str
    shown: Callable[[str], str] = str
    profiles: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    from_ms: int = 0


SCENES = {
    "shop": Scene(
        SHOP.events, SHOP.items, SHOP.preset, 14 * DAY_MS, "the last two weeks",
        "customer", "buys", "bought", "purchase", shown=str.title,
    ),
    "games": Scene(
        GAMES.events, GAMES.items, GAMES.preset, 120 * DAY_MS, "the last four months",
        "player", "plays", "played", "play",
        # single events cost the trainer as much as the baskets of a shop
        settings={
            "DRIFTLINE__TRAINER__CATCH_UP_SHARE": "0.1",
            "DRIFTLINE__TRAINER__CATCH_UP_EVENTS": "500",
            "DRIFTLINE__PROFILES__PROMPTS": "games",
        },
        from_ms=START_OF_2020_MS,
    ),
}  # fmt: skip
"""Of the bundled data, by name."""
