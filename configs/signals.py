"""How a process is asked to end in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class CutShort(BaseException):
    """A signal came in the middle of work that may be left there."""


class Stopping:
    """Whether SIGTERM or Ctrl-C has come: `stopping()`.

    A list and no Event: a signal may interrupt the very code that holds an Event's lock.
    """

    def __init__(self) -> None:
        self._signals: list[int] = []
        self._cuts = False

    def __call__(self) -> bool:
        """Whether work is to end in order."""
        return bool(self._signals)

    def come(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        self._signals.append(number)
        if self._cuts:
            self._cuts = False
            raise CutShort

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """For work that leaves nothing half done wherever it ends: a signal ends it at once, one from before, too.

        Raises:
            CutShort: one came.
        """
        self._cuts = True
        try:
            if self._signals:
                raise CutShort
            yield
        finally:
            self._cuts = False


def stop_on_signals() -> Stopping:
    """From here on SIGTERM and Ctrl-C only make the returned function true, so that work ends in order."""
    stopping = Stopping()
    signal.signal(signal.SIGTERM, stopping.come)
    signal.signal(signal.SIGINT, stopping.come)
    return stopping
