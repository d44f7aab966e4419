"""The bundled data: a year of invoices of a gift wholesaler, and eighteen years of played games (see NOTICE.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
EVENTS = HERE / "events.parquet"
ITEMS = HERE / "items.parquet"
PROFILES = Path(__file__).parents[2] / "configs" / "profiles" / "online_retail.jsonl.gz"
"""Profiles that a language model wrote for the shop; optional."""


@dataclass(frozen=True, slots=True)
class Bundled:
    """A data set that comes with driftline.

    Attributes:
        preset: the configuration that fits.
        profiles: written by a language model; None = there are none.
    """

    events: Path
    items: Path
    preset: str
    profiles: Path | None = None


SHOP = Bundled(EVENTS, ITEMS, "ecommerce", PROFILES)
GAMES = Bundled(HERE / "games_events.parquet", HERE / "games_items.parquet", "media")
BUNDLED = {"shop": SHOP, "games": GAMES}
