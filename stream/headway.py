"""How fast something goes and how long the rest takes: for people, in one renewed line or one line a minute."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TextIO

WINDOW_S = 15.0
"""A rate is of about so long."""
FIRST_S = 5.0
"""What ends within so long is not worth a word."""
RENEW_S = 1.0
TELL_S = 60.0
"""Between two lines where one can't be renewed."""


class Rate:
    """How many a second, of the last while.

    Args:
        now_s: when it begins, on any clock that only goes on.
        done: how many were done by then.
    """

    def __init__(self, now_s: float, done: float = 0) -> None:
        self._seen = deque([(now_s, done)])

    def at(self, now_s: float, done: float) -> float:
        """Takes note of how many are done by now; per second, 0 before anything is known.

        Fewer than before are of another count, with which it begins anew.
        """
        if done < self._seen[-1][1]:
            self._seen.clear()
        self._seen.append((now_s, done))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        since_s, before = self._seen[0]
        return (done - before) / (now_s - since_s) if now_s > since_s else 0.0


class Headway:
    """Says how far something is, while much is left: renewed each second on a terminal, else once a minute.

    Args:
        who: begins the line.
        what: is done, in the plural.
        now_s: when it begins.
        to: where people read it; None = stderr.
    """

    def __init__(self, who: str, what: str, now_s: float | None = None, to: TextIO | None = None) -> None:
        self._who, self._what = who, what
        self._began_s = time.monotonic() if now_s is None else now_s
        self._to = sys.stderr if to is None else to
        self._renews = self._to.isatty()
        self._rate, self._next_s = Rate(self._began_s), self._began_s + FIRST_S
        self._says = False
        self.left_s: float | None = None
        """Seconds that the rest takes; None where that is not known."""

    def at(self, now_s: float, done: int) -> float:
        """Takes note of how many are done; per second."""
        return self._rate.at(now_s, done)

    def tell(self, done: int, left: int, more: str = "", now_s: float | None = None) -> None:
        """Takes note of it, and says it if it is time.

        Args:
            done: since the beginning.
            left: to do.
            more: what else to say of it.
            now_s: by the clock of the beginning.
        """
        now_s = time.monotonic() if now_s is None else now_s
        rate = self._rate.at(now_s, done)
        self.left_s = 0.0 if left <= 0 else left / rate if rate > 0 else None
        if left <= 0:
            self.end(f"{self._who}: nothing is left, {done:,} {self._what} so far")
        elif now_s >= self._next_s and rate > 0 and (self._says or left / rate > FIRST_S):
            self._says, self._next_s = True, now_s + (RENEW_S if self._renews else TELL_S)
            took = f", about {duration(left / rate)}"
            fast = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            self._write(f"{self._who}: {fast} {self._what}/s; {left:,} are left{took}{more}")

    def end(self, words: str) -> None:
        """Says that it is done, if anything was said before."""
        if self._says:
            self._says = False
            self._write(words, last=True)

    def _write(self, line: str, last: bool = False) -> None:
        # the cursor goes back to the beginning, so that whatever is written next takes the place of the line
        self._to.write(f"\r\x1b[2K{line}" + ("\n" if last else "\r") if self._renews else f"{line}\n")
        self._to.flush()


def duration(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
