"""Time to live of rows: when a user or an item starts anew, and when a row that nobody can see any more goes.

    reset    an event that comes more than `state.ttl_days` after the last one of its user (or item) finds no row
    sweep    rows whose next acceptable event would be such a one are taken out of memory and store

A reset is a matter of two neighbours in the order in which events are applied, so it is the same wherever the log is
cut, and a rollback undoes it with the rest. A sweep changes what lies in the store, and so its hash: it stands before
the first record at or after each multiple of a number of offsets, and knows nothing but the event times up to there.
Rows of users that are only in the store it finds by an index, see stream/process/ages.py.

Events are applied in runs that span no more than the time to live. So within a run nobody starts anew but with their
first event, before which nothing of the run has read their row; and no undo record that is still needed names a row
that was swept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.rows import Event

SWEEP_OFFSETS = 65_536
"""Rows of a kind that a sweep takes at most, and offsets between two sweeps where a record makes no more than one of a
kind: sweeps keep up. Another number is another hash for the same log."""


def sweep_is_due(offset: int, next_offset: int, rows: int = 1) -> bool:
    """Whether a sweep stands before the record of an offset, where all below `next_offset` are applied.

    Args:
        offset, next_offset: of one partition.
        rows: of a kind that a record there makes at most.
    """
    every = max(1, SWEEP_OFFSETS // rows)
    return offset // every > (next_offset - 1) // every


def spans(events: list[Event], ttl_ms: int) -> Iterator[list[Event]]:
    """Cuts events (at least one, any order) where their times would span more than the time to live; 0 = never."""
    times = [event.timestamp_ms for event in events] if ttl_ms else [0]
    if max(times) - min(times) <= ttl_ms:
        yield events
        return
    start, first, last = 0, times[0], times[0]
    for n, t_ms in enumerate(times):
        first, last = min(first, t_ms), max(last, t_ms)
        if last - first > ttl_ms:
            yield events[start:n]
            start, first, last = n, t_ms, t_ms
    yield events[start:]


def starting_anew(last_ms: NDArray[Any], nodes: Sequence[int], times_ms: Sequence[int], ttl_ms: int) -> list[int]:
    """Which events of a run find that their node's last one is older than the time to live.

    Args:
        last_ms: time of the last event by dense index, -1 = there was none.
        nodes: [n] dense indices, one an event.
        times_ms: [n] event times, which span no more than `ttl_ms`.
        ttl_ms: 0 = none ever does.
    """
    if not ttl_ms:
        return []
    found, first = np.unique(np.asarray(nodes), return_index=True)
    last = last_ms[found]
    expired = (last >= 0) & (last < np.asarray(times_ms, np.int64)[first] - ttl_ms)
    return [int(n) for n in np.sort(first[expired])]


def to_sweep(last_ms: NDArray[Any], used: NDArray[np.bool_], before_ms: int) -> list[int]:
    """Dense indices of the rows whose last event is older than `before_ms`, and of those without any, see `go_first`.

    Whose turn it is depends on the rows, not on where they lie.
    """
    stale = np.flatnonzero(used & (last_ms < before_ms))
    return [int(index) for index in stale[go_first(last_ms[stale])]]


def go_first(last_ms: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the rows that are to be swept go at once: all, or the oldest SWEEP_OFFSETS and those of equal age."""
    if len(last_ms) <= SWEEP_OFFSETS:
        return np.ones(len(last_ms), np.bool_)
    oldest: NDArray[np.bool_] = last_ms <= np.partition(last_ms, SWEEP_OFFSETS - 1)[SWEEP_OFFSETS - 1]
    return oldest


def oldest(rows: Iterator[tuple[int, str]]) -> list[tuple[int, str]]:
    """Of (time, user_id) in order of time those that may be among the first to go, see `go_first`."""
    taken: list[tuple[int, str]] = []
    for row in rows:
        if len(taken) >= SWEEP_OFFSETS and row[0] > taken[-1][0]:
            break
        taken.append(row)
    return taken
