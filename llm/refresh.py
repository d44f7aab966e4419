"""When a user is due for a new profile, and which requests the profiler takes when it can't take all.

Both are pure: a request falls due by counts of events, the queue is told the time. The worker asks `due_version`, the
profiler keeps a `RequestQueue`; the stream never waits for either.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar

from driftline.configs.settings import Profiles


def due_version(before: int, after: int, settings: Profiles) -> int:
    """The version of the profile that falls due when a user's events grow from `before` to `after`; 0 = none.

    The first is due at `first_events`, a further one after every `refresh_events` more. Several that fall due in one
    step are one request, with the version of the last.
    """
    version = _versions(after, settings)
    return version if version > _versions(before, settings) else 0


def _versions(events: int, settings: Profiles) -> int:
    return 0 if events < settings.first_events else 1 + (events - settings.first_events) // settings.refresh_events


REMEMBERED = 100_000
"""Users from which on those that may have a new profile anyway are forgotten."""


class Request(Protocol):
    """What the queue reads of a request."""

    @property
    def user_id(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> int: ...  # noqa: D102
    @property
    def as_of_ms(self) -> int: ...  # noqa: D102


R = TypeVar("R", bound=Request)


class RequestQueue(Generic[R]):
    """Requests that wait for the model: one a user, bounded, within `profiles.max_per_minute`.

    A newer request of a user replaces the one that waits and keeps its place. Past the bound the one that has waited
    longest is dropped: its user will ask again.

    Attributes:
        replaced, dropped, too_soon: requests that were not taken, by reason.
    """

    def __init__(self, settings: Profiles) -> None:
        self._settings = settings
        self._waiting: OrderedDict[str, R] = OrderedDict()
        self._last_ms: dict[str, int] = {}
        self._allowance = float(settings.max_per_minute)
        self._at_s: float | None = None
        self.replaced = self.dropped = self.too_soon = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, request: R) -> None:
        """Takes a request in, or counts why not: `min_interval_ms` of event time lie between two profiles of a user."""
        last_ms = self._last_ms.get(request.user_id)
        if last_ms is not None and request.as_of_ms - last_ms < self._settings.min_interval_ms:
            self.too_soon += 1
            return
        waiting = self._waiting.get(request.user_id)
        if waiting is not None:
            self.replaced += 1
            if waiting.version > request.version:
                return
        self._waiting[request.user_id] = request
        if len(self._waiting) > self._settings.queue:
            self._waiting.popitem(last=False)
            self.dropped += 1

    def drop(self, user_id: str) -> None:
        """Takes a user's request out."""
        self._waiting.pop(user_id, None)
        self._last_ms.pop(user_id, None)

    def take(self, now_s: float) -> list[R]:
        """The next batch, as far as the budget goes; the longest wait first.

        Args:
            now_s: any clock that does not go back.
        """
        per_s = self._settings.max_per_minute / 60
        if self._at_s is not None:
            gained = max(0.0, now_s - self._at_s) * per_s
            self._allowance = min(float(self._settings.max_per_minute), self._allowance + gained)
        self._at_s = now_s
        n = min(self._settings.batch, len(self._waiting), int(self._allowance))
        batch = [self._waiting.popitem(last=False)[1] for _ in range(n)]
        self._allowance -= n
        for request in batch:
            self._last_ms[request.user_id] = request.as_of_ms
        if len(self._last_ms) > REMEMBERED and batch:
            since_ms = batch[-1].as_of_ms - self._settings.min_interval_ms
            self._last_ms = {user: t_ms for user, t_ms in self._last_ms.items() if t_ms > since_ms}
        return batch
