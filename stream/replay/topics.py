"""What the topics of a running system hold, as the replay without forgotten users reads it."""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from driftline.configs.settings import Settings
from driftline.stream.events.records import Record, record_of
from driftline.stream.kafka.reading import first_offsets, read_all
from driftline.stream.owned.versions import GraphVersion, decode_version, load_version, version_path
from driftline.stream.process.by_item import BY_ITEM
from driftline.stream.process.intake import INTERACTIONS
from driftline.stream.replay.adoptions import read_chains
from driftline.stream.replay.without import Log

VERSIONS_HELD = 8
"""Decoded at once: partitions follow one another through the same few."""


def read_log(settings: Settings, bootstrap: str, folder: Path) -> Log:
    """Everything that workers read, up to where the topics end now.

    Args:
        folder: takes the graph versions of the topic; is to stay as long as the log is used.

    Raises:
        BrokerError: a topic can't be read.
        StateError: an adoption is missing in `graph-versions`.
    """
    chains = read_chains(settings, bootstrap, lambda sha256, blob: _file(folder, sha256).write_bytes(blob))

    @lru_cache(maxsize=VERSIONS_HELD)
    def version_of(sha256: str) -> GraphVersion:
        path = _file(folder, sha256)
        if version_path(settings, sha256).exists() or not path.exists():
            return load_version(settings, sha256)  # what this host adopted: others of the name may have come since
        return decode_version(settings, path.read_bytes())

    users, first = _read(settings, bootstrap, INTERACTIONS)
    items, first_items = _read(settings, bootstrap, BY_ITEM) if len(users) > 1 else ({}, {})
    return Log(
        users=users,
        items=items,
        adoptions={number: [(one["offset"], one["sha256"]) for one in chain] for number, chain in chains.items()},
        version_of=version_of,
        first=first | first_items,
    )


def _read(settings: Settings, bootstrap: str, name: str) -> tuple[dict[int, list[Record]], dict[tuple[str, int], int]]:
    logs = defaultdict[int, list[Record]](list)
    for received in read_all(settings.broker, bootstrap, name):
        logs[received.partition].append(record_of(received))
    firsts = first_offsets(settings.broker, bootstrap, name)  # asked last: what went meanwhile may not have been read
    return {n: logs[n] for n in firsts}, {(name, partition): offset for partition, offset in firsts.items()}


def _file(folder: Path, sha256: str) -> Path:
    return folder / f"{sha256}.safetensors"
