"""The partition that owns a user: where Java and kafka-python by default send a record that is keyed by user_id."""

from __future__ import annotations

from functools import lru_cache

from kafka.partitioner.default import murmur2


@lru_cache(maxsize=65_536)
def partition_of(user_id: str, partitions: int) -> int:
    """The owner of a user: murmur2 of the id's UTF-8 bytes, modulo the number of partitions of `interactions`."""
    return int((murmur2(user_id.encode()) & 0x7FFFFFFF) % partitions)
