"""Records of several partitions in one order: of those that come next, the one with the earliest event time.

    put(partition, records) -> one queue a partition -> ready(unread) -> (partition, record), ...

A partition that is ahead waits for one that has more in the topic but nothing here. So nothing is taken before the
event time that its own partition has reached by then, and what is in order in its partition is not late beside the
others, however a consumer cuts its polls. For a partition that is read to its end the others wait only while it may
just be slow, so an idle one holds nobody up. With one partition this is the order of the offsets.

A request to forget has no event time: it waits for what the broker took before it in other partitions, since events of
the user may be among that which would bring the user back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice

from driftline.graph.rows import Event
from driftline.stream.events.records import Record
from driftline.stream.events.schema import InvalidEvent
from driftline.stream.process.forget import forgotten_user

SLOW_S = 0.25
"""A partition that is read to its end is waited for until it brought nothing for so long."""


class Merge:
    """What was read of some partitions and not taken yet.

    Args:
        partitions: their numbers.
        event_of: the event in a record. Raises InvalidEvent if it is none; such a record is taken as soon as it comes.
    """

    def __init__(self, partitions: Iterable[int], event_of: Callable[[Record], Event]) -> None:
        self._event_of = event_of
        self._queues: dict[int, deque[Record]] = {number: deque() for number in partitions}
        self._seen_s = dict.fromkeys(self._queues, float("-inf"))
        self.more = False
        """Whether the last `ready` stopped at its limit."""

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def waiting(self) -> set[int]:
        """Partitions of which records were read and not taken."""
        return {number for number, queue in self._queues.items() if queue}

    def put(self, read: dict[int, list[Record]], now_s: float) -> None:
        """Takes in what one poll read; after a silence of all partitions each of them may have something to come."""
        silent = now_s - max(self._seen_s.values()) >= SLOW_S
        for number in self._queues if read and silent else read:
            self._seen_s[number] = now_s
        for number, records in read.items():
            self._queues[number].extend(records)

    def ready(self, unread: Collection[int], now_s: float, most: int) -> Iterator[tuple[int, Record]]:
        """Takes out what no other partition can come before any more.

        Args:
            unread: partitions of which the topic holds more than was put in.
            now_s: the clock of `put`.
            most: records at most.
        """
        taken = 0
        for place in islice(self._in_order(unread, now_s), most):
            taken += 1
            yield place
        self.more = taken == most

    def _in_order(self, unread: Collection[int], now_s: float) -> Iterator[tuple[int, Record]]:
        if len(self._queues) == 1:  # who takes a record parses it
            ((number, queue),) = self._queues.items()
            while queue:
                yield number, queue.popleft()
            return
        slow = {number for number, seen_s in self._seen_s.items() if now_s - seen_s < SLOW_S} | set(unread)
        heads = {number: self._time_ms(queue[0]) for number, queue in self._queues.items() if queue}
        while heads and not any(number in slow for number in self._queues.keys() - heads.keys()):
            first = min(heads, key=lambda number: (heads[number], number))
            if heads[first] < 0 and (requests := self._requests(heads)):
                first = min(heads.keys() - self._waiting_of(requests, heads), key=lambda n: (heads[n], n))
            queue = self._queues[first]
            record = queue.popleft()
            if queue:
                heads[first] = self._time_ms(queue[0])
            else:
                del heads[first]
            yield first, record

    def _waiting_of(self, requests: dict[int, int], heads: Collection[int]) -> set[int]:
        """Partitions whose request to forget has to wait, as another one comes to what the broker took before that."""
        return {
            number
            for number, asked_ms in requests.items()
            if any(
                0 <= self._queues[other][0].timestamp_ms <= asked_ms
                and (other not in requests or (requests[other], other) < (asked_ms, number))
                for other in heads
                if other != number
            )
        }

    def _requests(self, heads: Collection[int]) -> dict[int, int]:
        """When the broker took the requests to forget among the first records of some partitions."""
        first = ((number, self._queues[number][0]) for number in heads)
        return {number: record.timestamp_ms for number, record in first if forgotten_user(record) is not None}

    def _time_ms(self, record: Record) -> int:
        try:
            event = self._event_of(record)
        except InvalidEvent:
            return -1
        record.value = event  # parsed once
        return event.timestamp_ms
