"""How a process is asked to end in order."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType


def stop_on_signals() -> Callable[[], bool]:
    """From here on SIGTERM and Ctrl-C only make the returned function true, so that work ends in order.

    A list and no Event: a signal may interrupt the very code that holds an Event's lock.
    """
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return lambda: bool(stopped)
