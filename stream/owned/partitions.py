"""The partitions that a worker owns now: their stores, their processors, and where reading them goes on.

Its offset lies in its store; the group's offset in Kafka is only a hint for people. `stream/owned/opening.py` says
when a partition is opened and closed. Directories under `state.root`:

    partition-P   user rows of partition P of `interactions` (with one partition also the item rows)
    items-P       item rows of partition P of `interactions.by-item` (several partitions only)
    layout.json   what all of them were made with (stream/state/layout.py)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from driftline.configs.errors import StateError
from driftline.configs.faults import point
from driftline.configs.settings import Settings
from driftline.graph.arrays import Float32
from driftline.graph.memory import GraphMemory
from driftline.stream.events.records import Outgoing
from driftline.stream.owned.versions import GraphVersion, adopted
from driftline.stream.process.by_item import BY_ITEM
from driftline.stream.process.intake import INTERACTIONS
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor
from driftline.stream.state.layout import hold_to_layout
from driftline.stream.state.store import RocksStore, partition_path

VERSIONS_BYTES = 64 << 20
"""Of a partition's older graph versions in memory: some fifty of 4,000 items, with one partition those of an hour."""
Send = Callable[[Sequence[Outgoing]], Awaitable[None]]
"""Sends records and returns when the broker has acknowledged all of them."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the broker still has of a partition: offsets from `first` to `end` - 1."""

    first: int
    end: int


class Partitions:
    """Open partitions of one worker.

    Args:
        count, item_count: partitions of `interactions` and `interactions.by-item`; 0 = as many as of the first.
        send: for what an earlier life of the partition committed but did not send.
        version_of: the graph version of a sha256 that a store says it adopted.

    Attributes:
        counts: how many partitions each of both topics had, by name: ids hash to them.
        differences: what to tell people of a state that was made with other settings, "" = nothing.
    """

    def __init__(
        self,
        settings: Settings,
        count: int,
        send: Send,
        version_of: Callable[[str], GraphVersion],
        item_count: int = 0,
    ) -> None:
        self.settings, self.counts = settings, {INTERACTIONS: count, BY_ITEM: item_count or count}
        self.users: dict[int, Processor] = {}
        self.items: dict[int, ItemProcessor] = {}
        self._send, self._version_of = send, version_of
        self.differences = hold_to_layout(settings, count, item_count)

    async def open_users(self, partition: int, abandoned: threading.Event | None = None) -> bool:
        """Opens a partition of `interactions` and sends what its last owner left unsent; False if it was open.

        It reads items, event ids and undo records in a thread of its own; users are read when they come.

        Raises:
            LockedError: another process holds it.
            StateError: its directory can't be opened.
            Abandoned: `abandoned` was set meanwhile.
        """
        if partition in self.users:
            return False
        processor = await asyncio.to_thread(self._load_users, partition, abandoned)
        try:
            await self._send(processor.unsent)
        except BaseException:
            processor.store.close()
            raise
        processor.acknowledged = True
        processor.clear_outbox()
        self.users[partition] = processor
        return True

    async def open_items(self, partition: int, abandoned: threading.Event | None = None) -> bool:
        """Opens a partition of `interactions.by-item`; returns and raises as `open_users` does."""
        if partition in self.items:
            return False
        self.items[partition] = await asyncio.to_thread(self._load_items, partition, abandoned)
        return True

    def close(self, users: Sequence[int], items: Sequence[int]) -> None:
        """Closes partitions that belong to somebody else now; what is known to be sent is not sent again by them."""
        for user_partition in users:
            if (processor := self.users.pop(user_partition, None)) is not None:
                try:
                    processor.clear_outbox()
                finally:
                    processor.store.close()
        for item_partition in items:
            if (item_processor := self.items.pop(item_partition, None)) is not None:
                item_processor.store.close()

    def close_all(self) -> None:
        """Closes everything."""
        self.close(list(self.users), list(self.items))

    def _load_users(self, partition: int, abandoned: threading.Event | None) -> Processor:
        with self._store(partition_path(self.settings.state.root, partition), abandoned) as store:
            version = self._adopted(store)
            return Processor(
                self.settings,
                store,
                partition=partition,
                partitions=self.counts[INTERACTIONS],
                model=version.model if version else None,
                item_vectors=version.item_vectors if version else None,
                version_of=self._weights_of,
                versions_bytes=VERSIONS_BYTES,
                item_partitions=self.counts[BY_ITEM],
            )

    def _load_items(self, partition: int, abandoned: threading.Event | None) -> ItemProcessor:
        with self._store(self.settings.state.root / f"items-{partition}", abandoned) as store:
            version = self._adopted(store)
            return ItemProcessor(self.settings, store, partition, version.model if version else None)

    @contextmanager
    def _store(self, path: Path, abandoned: threading.Event | None) -> Iterator[RocksStore]:
        """A directory, open; closed again if what is done with it fails."""
        store = RocksStore(path, self.settings.state.sync, 0.0, abandoned=abandoned)
        try:
            point("opening")
            yield store
        except BaseException:
            store.close()
            raise

    def _weights_of(self, sha256: str) -> tuple[GraphMemory, dict[str, Float32]]:
        version = self._version_of(sha256)
        return version.model, version.item_vectors

    def _adopted(self, store: RocksStore) -> GraphVersion | None:
        sha256, _ = adopted(store)
        return self._version_of(sha256) if sha256 else None


def check_partitions(prefix: str, now: Mapping[str, int], before: Mapping[str, int]) -> None:
    """Returns when the topics of events have no more partitions than at the start.

    Args:
        prefix: of all names.
        now: partitions by name without prefix.
        before: the same of all of them, what the ids hash to.

    Raises:
        StateError: one has more.
    """
    for name, count in now.items():
        if count > before[name]:
            raise StateError(
                f"topic {prefix}{name} has {count} partitions, it had {before[name]}: ids hash to partitions, so this "
                "number is for life. Take another broker.prefix, state.root and trainer.root and produce the log "
                "again, or make the topic anew with the old number."
            )


def check_position(name: str, partition: int, next_offset: int, bounds: Bounds) -> None:
    """Returns when the broker still has every record from `next_offset` on.

    Raises:
        StateError: the topic is another one than the state was made from, or old records are gone.
    """
    where = f"partition {partition} of {name}"
    if next_offset > bounds.end:
        raise StateError(
            f"the state of {where} is at offset {next_offset}, but the topic ends at {bounds.end}: it was made from "
            "another topic or the topic was made anew. Move the state directory away to rebuild it from this topic."
        )
    if next_offset < bounds.first and next_offset > 0:
        raise StateError(
            f"the state of {where} is at offset {next_offset}, but the topic begins at {bounds.first}: "
            f"{bounds.first - next_offset} records were deleted before they were applied. Restore the topic, or move "
            "the state directory away to start from what is left."
        )
