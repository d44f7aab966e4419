"""What a synthetic stream is asked to be."""

from __future__ import annotations

from dataclasses import dataclass

from driftline.configs.errors import InputError
from driftline.stream.events.schema import EARLIEST_MS, MAX_TIMESTAMP_MS

DAY_MS = 86_400_000
START_MS = 1_672_531_200_000
"""2023-01-01."""
MOST_USERS = 1 << 31


@dataclass(frozen=True, slots=True)
class Plan:
    """Size and behaviour of a stream; see stream/generate/world.py for what the shares mean.

    Attributes:
        users, items, events: how many there are; users draw their events, so that the quietest may have none.
        seed: of everything; one seed and one plan make the same bytes.
        days: length of the stream; start_ms: its first day.
        genres: groups of items that tastes are about; at most one an item.
        zipf: exponent of the items' popularity; activity: of the users' events.
        drift_days: a user changes one of three favourite genres this often; 0 = never.
        season: amplitude of a genre's year, in log odds.
        growth: share of the catalogue that enters after the first day.
        fresh: share of a genre's events that goes to its items of the last 30 days.
        stay: chance that an event stays in the genre of the user's one before.
        explore: share of the other events that follows everybody's taste in place of one's own.
        titles: whether items have titles and categories.
    """

    users: int
    items: int
    events: int
    seed: int = 0
    days: int = 365
    start_ms: int = START_MS
    genres: int = 40
    zipf: float = 1.1
    activity: float = 0.6
    drift_days: float = 90.0
    season: float = 0.7
    growth: float = 0.5
    fresh: float = 0.15
    stay: float = 0.3
    explore: float = 0.1
    titles: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for what can't be made."""
        for name in ("users", "items", "events", "days", "genres"):
            if not 1 <= getattr(self, name) < MOST_USERS:
                raise InputError(f"got {getattr(self, name)} {name}; expected 1 to {MOST_USERS - 1:,}")
        for name in ("growth", "fresh", "stay", "explore"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"got {name} {getattr(self, name)}; expected a share from 0 to less than 1")
        for name, most in (("zipf", 10.0), ("activity", 10.0), ("season", 10.0), ("drift_days", 1e6)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"got {name} {getattr(self, name)}; expected a number from 0 to {most:g}")
        if not EARLIEST_MS <= self.start_ms <= MAX_TIMESTAMP_MS - self.days * DAY_MS:
            raise InputError(f"got {self.days} days from {self.start_ms} ms on; expected a time between 1973 and 2100")
        if self.events > self.days * DAY_MS // 20:
            raise InputError(
                f"{self.events:,} events in {self.days} days are more than one in 20 ms; expected more --days, since "
                "every event has a millisecond of its own"
            )
