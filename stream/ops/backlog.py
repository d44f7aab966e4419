"""How far the state, and what the trainer has learnt, are behind their topics; what open transactions hold back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from kafka import TopicPartition

from driftline.configs.settings import Broker
from driftline.stream.kafka.identity import Place
from driftline.stream.kafka.reading import consumer, polled

READ_MS = 2000
STANDING = "standing.json"
"""Beside a trainer's checkpoint: the offsets in it, for people and for `driftline doctor`."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """One partition of a topic beside the offset at which somebody stands.

    Attributes:
        name: without prefix.
        next_offset: first record that is not taken in.
        missing: records that may be read and are not taken in; markers and what was aborted in between may count.
        undecided: records of, or behind, transactions that are neither committed nor aborted.
        stable: offset at which these begin, else the end of the partition.
    """

    name: str
    partition: int
    next_offset: int
    missing: int
    undecided: int
    stable: int


def backlogs(settings: Broker, bootstrap: str, standing: Mapping[Place, int]) -> list[Backlog]:
    """What topics hold beyond some offsets; a partition that does not exist is left out.

    Args:
        standing: first record that is not taken in, by place.

    Raises:
        BrokerError: the broker does not answer.
    """
    with consumer(settings, bootstrap) as committed, consumer(settings, bootstrap, "read_uncommitted") as everything:
        places = {
            place: TopicPartition(settings.prefix + place[0], place[1])
            for place in standing
            if place[1] in (committed.partitions_for_topic(settings.prefix + place[0]) or ())
        }
        stable = committed.end_offsets(list(places.values()))
        ends = everything.end_offsets(list(places.values()))
        return [
            Backlog(
                *place, standing[place], _missing(committed, at, standing[place], stable[at]),
                max(0, ends[at] - stable[at]), stable[at],
            )
            for place, at in places.items()
        ]  # fmt: skip


def write_standing(root: Path, offsets: Mapping[int, int]) -> None:
    """Notes beside a checkpoint at which offsets of `interactions` it stands."""
    unfinished = root / f"{STANDING}.tmp"
    unfinished.write_bytes(orjson.dumps({str(partition): offset for partition, offset in offsets.items()}))
    unfinished.replace(root / STANDING)


def read_standing(root: Path) -> dict[int, int]:
    """Where the trainer's last checkpoint stands, by partition; empty without one."""
    with suppress(OSError, ValueError, AttributeError):
        return {
            int(partition): int(offset) for partition, offset in orjson.loads((root / STANDING).read_bytes()).items()
        }
    return {}


def _missing(reader: Any, at: TopicPartition, next_offset: int, stable: int) -> int:
    """Records from an offset on: none where only markers follow."""
    if next_offset >= stable:
        return 0
    reader.assign([at])
    reader.seek(at, max(next_offset, reader.beginning_offsets([at])[at]))
    deadline = time.monotonic() + READ_MS / 1000
    while reader.position(at) < stable and time.monotonic() < deadline:
        for record in polled(reader, READ_MS, 1).get(at, []):
            return int(max(0, stable - record.offset))
    return int(max(0, stable - reader.position(at)))
