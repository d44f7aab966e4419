"""What long work shows on stderr: a bar for each step with rate and time left; lines where it is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn

from driftline.stream.headway import duration

LINE_S = 60.0
EARLY_S = 15.0
"""The first line comes earlier where it can say how long the rest takes."""
Show = Callable[[str, int, int | None], None]
"""(step, done, total); None = nobody knows how much there is."""


@contextmanager
def progress_bars() -> Iterator[Show]:
    """Gives the function that work calls: it shows bars on a terminal, else a line early and one a minute."""
    console = Console(stderr=True)
    if not console.is_terminal:
        lines = ProgressLines()
        yield lines
        lines.end()
        return
    columns = (TextColumn("{task.description:<28}"), BarColumn(), _Told(""), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield show


class _Told(TextColumn):
    """How many of how many, and how fast."""

    def render(self, task: Task) -> str:  # type: ignore[override]
        """The cell."""
        total = None if task.total is None else int(task.total)
        return f"{_of(int(task.completed), total)}{_rate(int(task.completed), task.elapsed or 0.0)}"


@dataclass(slots=True)
class _Step:
    start_s: float
    start: int
    told_s: float
    told: int
    done: int
    total: int | None
    ended: bool = False


class ProgressLines:
    """The same for a log: of each step a line early, one a minute, and one at its end.

    Args:
        now_s: the clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._steps: dict[str, _Step] = {}

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """A step has come so far."""
        now = self._now_s()
        one = self._steps.get(step)
        if one is None or (one.ended and done < one.done):  # or it begins again
            one = self._steps[step] = _Step(now, done, now, done, done, total)
        one.done, one.total = done, total
        if total is not None and done >= total:
            self._end(step, one, now)
        elif now - one.told_s >= (EARLY_S if total is not None and one.told_s == one.start_s else LINE_S):
            rate = _rate(done - one.told, now - one.told_s)  # since the last line: what comes may cost more than before
            left = ""
            if total is not None and done > one.told:
                left = f"; {duration((now - one.told_s) / (done - one.told) * (total - done))} left"
            one.told_s, one.told = now, done
            _tell(f"{step}: {_of(done, total)}{rate}{left}")

    def end(self) -> None:
        """The last line of steps whose end nobody knew."""
        for step, one in self._steps.items():
            if not one.ended:
                self._end(step, one, self._now_s())

    def _end(self, step: str, one: _Step, now: float) -> None:
        one.ended, one.told_s = True, now
        took = now - one.start_s
        rate = _rate(one.done - one.start, took)
        _tell(f"{step}: {_of(one.done, one.total)} in {duration(took)}{rate}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _of(done: int, total: int | None) -> str:
    return f"{done:,}" if total is None else f"{done:,} of {total:,}"


def _rate(done: int, seconds: float) -> str:
    """ ", 8,242/s", or a minute where that says more; "" as long as it would be a guess."""
    if seconds < 0.2 or done <= 0:
        return ""
    return f", {done / seconds:,.0f}/s" if done >= seconds else f", {60 * done / seconds:,.1f}/min"
