"""Several partitions of a compacted topic: those that it gets while it is read, and ids that have records in two.

Records of one id lie in two partitions where the topic got more of them, or where two clients place keys differently
(librdkafka's default is CRC32, Java's and driftline's murmur2). Offsets order a partition, nothing orders two but the
times that the broker stamped.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

LOG = logging.getLogger(__name__)
Word = tuple[int, int]
"""Time of a record in ms, as Kafka has it, and its partition."""


class LastWords:
    """Which records count: of each id the newest, in whatever order its partitions are read.

    Within a partition the later offset counts, whatever the times. Between two partitions the one that had the later
    time of the id counts, and of equal ones the higher number.

    Args:
        before: of ids, what counted when the topic was read before: compaction may have taken it since, while what is
            older stays in another partition.
    """

    def __init__(self, before: Mapping[str, Word] | None = None) -> None:
        self._held: dict[int, Word] = {hash(name): word for name, word in (before or {}).items()}
        """By hash: no names, since ids may have to be forgotten."""

    def is_last(self, name: bytes | str, partition: int, t_ms: int) -> bool:
        """Whether nothing newer is known of an id; records of a partition come in order of their offsets.

        Args:
            name: the id, always in one type.
            t_ms: of the record, as Kafka has it.
        """
        held = self._held.get(hash(name))
        if held is not None and held[1] == partition:
            t_ms = max(t_ms, held[0])
        elif held is not None and held > (t_ms, partition):
            return False
        self._held[hash(name)] = t_ms, partition
        return True

    def of(self, name: bytes | str) -> Word | None:
        """The record that counts of an id, None if none is known."""
        return self._held.get(hash(name))


def take_in_added(consumer: Any, places: Collection[Any]) -> list[Any]:
    """Lets a consumer read partitions that its topics have by now, too; asks nothing: the client knows after seconds.

    Args:
        consumer: of kafka-python, without a group.
        places: what it reads.

    Returns:
        The new ones; the others are read on from where they stand.
    """
    known: dict[str, set[int]] = {}
    for place in places:
        known.setdefault(place.topic, set()).add(place.partition)
    added = [
        type(next(iter(places)))(topic, number)
        for topic, numbers in known.items()
        for number in sorted((consumer.partitions_for_topic(topic) or set()) - numbers)
    ]
    if added:
        at = {place: consumer.position(place) for place in places}
        consumer.assign([*places, *added])
        for place, position in at.items():
            consumer.seek(place, position)
        consumer.seek_to_beginning(*added)
        LOG.warning(
            "%s: partitions were added while it was read; they are read from their beginning. Of an id with records in "
            "two partitions the newer one counts, by the broker's time",
            ", ".join(f"partition {place.partition} of {place.topic}" for place in added),
        )
    return added
