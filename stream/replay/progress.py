"""What a replay shows on stderr while it runs: one bar for each of its steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_S = 60.0


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Gives the function (step, done, total) that `stream.replay.replay` calls."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    if not console.is_terminal:
        yield progress_lines()
        return
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)

        yield show


def progress_lines(now_s: Callable[[], float] = time.monotonic) -> Callable[[str, int, int], None]:
    """The same for a log: of each step a line a minute, and one at its end.

    Args:
        now_s: the clock.
    """
    begun: dict[str, tuple[float, int]] = {}
    told: dict[str, float] = {}

    def show(step: str, done: int, total: int) -> None:
        now = now_s()
        start_s, start = begun.setdefault(step, (now, done))
        ended = done >= total
        if now - told.setdefault(step, start_s) < LINE_S and not ended:
            return
        told[step] = now
        rest = f"; {_minutes((now - start_s) / (done - start) * (total - done))} left" if done > start else ""
        word = f" in {_minutes(now - start_s)}" if ended else rest
        print(f"{step}: {done:,} of {total:,}{word}", file=sys.stderr, flush=True)

    return show


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
