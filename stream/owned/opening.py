"""When partitions are opened and closed: beside the event loop, whatever Kafka's group is doing.

    assigned by Kafka --> closed here? --> open in a thread --> sought to the store's offset --> read
                               |                 '-- locked or abandoned: the next one, and again
                               '-- open already: kept open, read on

A rebalance only says what is assigned. No state is read in it: a member whose callback runs for longer than the session
is put out of the group, and all of its peers load its partitions for nothing. What stays assigned stays open; what
is assigned to somebody else is closed, which is what its new owner waits for. A directory that another process holds
is asked for again and again while everything else goes on.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable

from faust.types import TP

from driftline.configs.errors import LockedError
from driftline.stream.state.store import Abandoned

LOG = logging.getLogger(__name__)
RETRY_S = 0.5
"""Between two tries at directories that others hold."""
SAY_AGAIN_S = 60.0


class Opener:
    """Holds what is open to what is assigned.

    Args:
        open_one: opens a partition unless it is open, and gives up when the event is set.
        close: closes partitions that are open.
        is_open: whether a partition is open.
        begin: reading of a partition that has just been opened and is still assigned may begin.
        patience_s: a lock is waited for so long before people are told.

    Attributes:
        waiting: partitions that are assigned and not open, with the reason in words, "" = it is being read.
    """

    def __init__(
        self,
        open_one: Callable[[TP, threading.Event], Awaitable[bool]],
        close: Callable[[Iterable[TP]], None],
        is_open: Callable[[TP], bool],
        begin: Callable[[TP], Awaitable[None]],
        patience_s: float,
    ) -> None:
        self._open_one, self._close, self._is_open, self._begin = open_one, close, is_open, begin
        self._patience_s = patience_s
        self.waiting: dict[TP, str] = {}
        self._assigned: frozenset[TP] = frozenset()
        self._known: set[TP] = set()
        self._changed = asyncio.Event()
        self._opening: tuple[TP, threading.Event] | None = None
        self._locked_since: dict[TP, float] = {}
        self._said_s: dict[TP, float] = {}

    def assign(self, assigned: Iterable[TP]) -> None:
        """Takes note of what is assigned now; returns at once."""
        self._assigned = frozenset(assigned)
        if self._opening is not None and self._opening[0] not in self._assigned:
            self._opening[1].set()
        for tp in self._known - self._assigned:
            self._locked_since.pop(tp, None)
            self._said_s.pop(tp, None)
            if self._is_open(tp):
                self._close([tp])
        self._known = {tp for tp in self._known if self._is_open(tp)} | self._assigned
        self._note_waiting()
        self._changed.set()

    def abandon(self) -> None:
        """The process ends: what is being opened is not wanted any more."""
        if self._opening is not None:
            self._opening[1].set()

    def is_assigned(self, tp: TP) -> bool:
        """Whether a partition is this worker's now."""
        return tp in self._assigned

    async def run(self) -> None:
        """Opens what is missing, for ever."""
        while True:
            self._changed.clear()
            opened = [await self._try(tp) for tp in sorted(self._missing()) if not self._changed.is_set()]
            if not any(opened) and not self._changed.is_set():
                await self._wait(RETRY_S if self._missing() else None)

    async def _wait(self, seconds: float | None) -> None:
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return

    def _missing(self) -> list[TP]:
        return [tp for tp in self._assigned if not self._is_open(tp)]

    async def _try(self, tp: TP) -> bool:
        """Opens one partition; False if it has to be tried again."""
        self._opening = (tp, threading.Event())
        self.waiting.setdefault(tp, "")
        try:
            await self._open_one(*self._opening)
        except Abandoned:
            return False
        except asyncio.CancelledError:  # the process ends: it would wait for the thread that reads
            self.abandon()
            raise
        except LockedError as error:
            self._note_locked(tp, str(error))
            return False
        finally:
            self._opening = None
        if tp not in self._assigned:
            self._close([tp])
            return True
        self._locked_since.pop(tp, None)
        self._note_waiting()
        await self._begin(tp)
        return True

    def _note_locked(self, tp: TP, why: str) -> None:
        """Tells people of a lock that is held for long, once a minute."""
        now = time.monotonic()
        waited_s = now - self._locked_since.setdefault(tp, now)
        if waited_s < self._patience_s or tp not in self._assigned:
            return
        self.waiting[tp] = why
        if now - self._said_s.get(tp, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said_s[tp] = now
            LOG.warning(
                "partition %d of %s stands still: %s It is asked for again until it is free; everything else goes on.",
                tp.partition, tp.topic, why,
            )  # fmt: skip

    def _note_waiting(self) -> None:
        self.waiting = {tp: self.waiting.get(tp, "") for tp in self._missing()}
