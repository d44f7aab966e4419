"""How many of the groups a trainer learns: all while it keeps up, and as many as it has time for while it does not.

A backlog that will soon be gone is learnt whole. Where more comes than can be learnt it would stay as long as it is,
and with it the time until an event is in a model: the share falls until the backlog does. As much is learnt then, of
events that are seconds old in place of minutes.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

TICK_S = 1.0
"""Between two changes of the share."""
TICKS = 5
"""So many say what comes a second (their median, so no burst does) and what can be taken (their mean, with pauses)."""
CALM = 0.1
"""A lag of less than this part of the largest one is none."""
SOON_S = 60.0
"""A lag that is gone within so long is no reason to learn less."""
UP, DOWN = 0.05, 0.8
"""What is added to the share where there is time, and by what it is multiplied where there is none."""


class EvenShare:
    """Takes a share of what passes, evenly spread, also where the share changes."""

    def __init__(self, share: float = 1.0) -> None:
        self.share, self.owed = share, 0.0

    def takes_next(self) -> bool:
        """Whether the next one is taken."""
        self.owed += self.share
        taken = self.owed > 1.0 - 1e-9
        self.owed -= taken
        return taken


class Pace:
    """The share of the groups that is learnt.

    Args:
        most: records of lag with more of which `least` of the groups are learnt.
        least: in (0, 1].
    """

    def __init__(self, most: int, least: float) -> None:
        self._most, self._least, self._calm = most, least, CALM * most
        self._share = 1.0
        self._before: tuple[int, int, float] | None = None
        self._low = most
        """The smallest lag since then."""
        self._came: deque[float] = deque(maxlen=TICKS)
        self._took: deque[float] = deque(maxlen=TICKS)
        self.even = EvenShare()

    def share(self, lag: int) -> float:
        """Of the groups, with so many records to take."""
        return self._least if lag > self._most else self._share

    def see(self, lag: int, taken: int, now_s: float) -> None:
        """Adapts the share; the log's end was just asked for.

        Args:
            lag: records that are to be taken.
            taken: records that were, ever.
            now_s: of a clock that never goes back.
        """
        lag_before, taken_before, before_s = self._before or (lag, taken, now_s)
        waited_s, self._low = now_s - before_s, min(self._low, lag)
        if waited_s >= TICK_S:
            took = (taken - taken_before) / waited_s
            self._came.append((lag - lag_before) / waited_s + took)
            if self._low <= self._calm:  # it may have waited for some to come, which says nothing of what it can take
                self._took.clear()
            elif took:  # else it waited for another partition
                self._took.append(took)
            self._adapt(lag, median(self._came), fmean(self._took) if self._took else None)
        if waited_s >= TICK_S or self._before is None:
            self._before, self._low = (lag, taken, now_s), lag

    def _adapt(self, lag: int, came: float, can: float | None) -> None:
        """By records a second that came, and that can be taken with the present share, if that is known."""
        needed = came + max(0.0, lag - self._calm) / SOON_S
        if lag > self._most:  # who learns all takes `least` of what is taken now, or more
            self._share = 1.0 if can is not None and needed <= self._least * can else self._least
        elif self._low <= self._calm or (can is not None and needed <= can):
            self._share = min(1.0, self._share + UP)
        elif can is not None and len(self._came) == TICKS:  # one slow group right at the start says nothing
            self._share = max(self._least, DOWN * self._share)

    def takes_next(self, lag: int) -> bool:
        """Whether the next group is learnt, with so many records to take."""
        self.even.share = self.share(lag)
        return self.even.takes_next()
