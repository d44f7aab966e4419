"""Where each read of aiokafka went on from: what is missing within a read holds no records, what is missing before it
may have been read and dropped by a rebalance.

A read brings what came since the one before. Between them lie offsets without records, too (markers of transactions,
what was aborted), and whole fetches of nothing else. So a read *follows on* the last record that was handed out before
it, as long as the client's position went on unbroken.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import FetchResult

_READ: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()
"""By the client's state of a partition: its position after the last read, and the offset after the last record."""


class Followed(list[Any]):
    """Records of one read; all that the broker had from offset `follows` on, up to the last of them, are here."""

    def __init__(self, records: list[Any], follows: int) -> None:
        super().__init__(records)
        self.follows = follows


class FollowedResult(FetchResult):  # type: ignore[misc]
    """One fetch of a partition, which may be read in parts."""

    def getall(self, max_records: int | None = None) -> list[Any]:
        """The records that were not read yet, at most so many."""
        state = self._assignment.state_value(self._topic_partition)
        before = state.position if state is not None and state.has_valid_position else -1
        records: list[Any] = super().getall(max_records)
        if before < 0 or not state.has_valid_position:
            return records
        position, last = _READ.get(state, (-1, -1))
        follows = last if position == before else before
        _READ[state] = state.position, records[-1].offset + 1 if records else follows
        return Followed(records, follows) if records else records


def note_where_reads_follow_on() -> None:
    """Lets every consumer of this process hand out `Followed` reads."""
    fetcher.FetchResult = FollowedResult
