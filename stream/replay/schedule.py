"""When the profile of a request becomes valid in a replay: the live profiler's queue and budget, on the event clock.

A profile is written when `profiles.max_per_minute` has room for it, in the order in which requests wait, at most
`profiles.queue` of them and `profiles.min_interval_ms` apart for a user; it is valid then, and not sooner than
`profiles.delay_ms` after its request.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from driftline.llm.refresh import Request, RequestQueue

if TYPE_CHECKING:
    from driftline.configs.settings import Profiles

R = TypeVar("R", bound=Request)


class Asked(NamedTuple):
    """A request by what decides on it."""

    user_id: str
    version: int
    as_of_ms: int


def asked(request: Request) -> Asked:
    """What decides on a request."""
    return Asked(request.user_id, request.version, request.as_of_ms)


class Schedule(Generic[R]):
    """Requests in, the newest valid one of a user out; times are given in order of arrival."""

    def __init__(self, settings: Profiles) -> None:
        self._delay_ms = settings.delay_ms
        self._step_ms = 60_000 / settings.max_per_minute
        self._queue: RequestQueue[R] = RequestQueue(settings)
        self._next_ms = 0.0
        self._valid: dict[str, tuple[list[int], list[R]]] = {}
        self._last: R | None = None
        self._before: dict[Asked, R] = {}

    def offer(self, request: R) -> None:
        """Takes a request of now in."""
        self.advance(request.as_of_ms)
        if not len(self._queue):
            self._next_ms = max(self._next_ms, float(request.as_of_ms))
        self._queue.offer(request)

    def advance(self, now_ms: int) -> None:
        """Writes what the budget lets be written before now: what is asked for now waits for all that is asked now."""
        while len(self._queue) and self._next_ms < now_ms:
            written_ms = round(self._next_ms)
            for request in self._queue.take(self._next_ms / 1000):
                valid_ms = max(request.as_of_ms + self._delay_ms, written_ms)
                times, found = self._valid.setdefault(request.user_id, ([], []))
                at = bisect_right(times, valid_ms)
                times.insert(at, valid_ms)
                found.insert(at, request)
                if self._last is not None:
                    self._before[asked(request)] = self._other(request, self._last)
                self._last = request
            self._next_ms += self._step_ms

    def _other(self, request: R, last: R) -> R:
        """The last request that was written for another user."""
        return self._before.get(asked(last), last) if last.user_id == request.user_id else last

    def before(self, request: R) -> R | None:
        """What was written before a request, for another user; None for the first one."""
        found = self._before.get(asked(request))
        return None if found is None or found.user_id == request.user_id else found

    def newest(self, user_id: str, now_ms: int) -> tuple[int, R] | None:
        """When the newest profile that is valid at `now_ms` became so, and its request."""
        self.advance(now_ms)
        times, found = self._valid.get(user_id, ([], []))
        at = bisect_right(times, now_ms) - 1
        return None if at < 0 else (times[at], found[at])
