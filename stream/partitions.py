"""The partitions that a worker owns now: their stores, their processors, and where reading them goes on.

A partition is opened when Kafka assigns it and closed when Kafka takes it away. Its offset lies in its store; the
group's offset in Kafka is only a hint for people. Directories under `state.root`:

    partition-P   user rows of partition P of `interactions` (with one partition also the item rows)
    items-P       item rows of partition P of `interactions.by-item` (several partitions only)
    layout.json   what all of them were made with (stream/layout.py)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import StateError
from configs.settings import Settings
from stream.items import ItemProcessor
from stream.layout import hold_to_layout
from stream.processor import Processor
from stream.records import Outgoing
from stream.store import RocksStore, partition_path
from stream.versions import GraphVersion, adopted

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
        count: partitions of `interactions`.
        send: for what an earlier life of the partition committed but did not send.
        version_of: the graph version of a sha256 that a store says it adopted.

    Attributes:
        differences: what to tell people of a state that was made with other settings, "" = nothing.
    """

    def __init__(self, settings: Settings, count: int, send: Send, version_of: Callable[[str], GraphVersion]) -> None:
        self.settings, self.count = settings, count
        self.users: dict[int, Processor] = {}
        self.items: dict[int, ItemProcessor] = {}
        self._send, self._version_of = send, version_of
        self.differences = hold_to_layout(settings, count)

    async def open_users(self, partition: int) -> bool:
        """Opens a partition of `interactions` and sends what its last owner left unsent; False if it was open.

        Raises:
            LockedError: another process holds it.
            StateError: its directory can't be opened.
        """
        if partition in self.users:
            return False
        store = await self._store(partition_path(self.settings.state.root, partition))
        version = self._adopted(store)
        processor = Processor(
            self.settings,
            store,
            partition=partition,
            partitions=self.count,
            model=version.model if version else None,
            item_vectors=version.item_vectors if version else None,
        )
        await self._send(processor.unsent)
        processor.acknowledged = True
        processor.clear_outbox()
        self.users[partition] = processor
        return True

    async def open_items(self, partition: int) -> bool:
        """Opens a partition of `interactions.by-item`; returns and raises as `open_users` does."""
        if partition in self.items:
            return False
        store = await self._store(self.settings.state.root / f"items-{partition}")
        version = self._adopted(store)
        self.items[partition] = ItemProcessor(self.settings, store, partition, version.model if version else None)
        return True

    def close(self, users: Sequence[int], items: Sequence[int]) -> None:
        """Closes partitions that belong to somebody else now; what is known to be sent is not sent again by them."""
        for user_partition in users:
            if (processor := self.users.pop(user_partition, None)) is not None:
                processor.clear_outbox()
                processor.store.close()
        for item_partition in items:
            if (item_processor := self.items.pop(item_partition, None)) is not None:
                item_processor.store.close()

    def close_all(self) -> None:
        """Closes everything."""
        self.close(list(self.users), list(self.items))

    async def _store(self, path: Path) -> RocksStore:
        state = self.settings.state
        return await asyncio.to_thread(RocksStore, path, state.sync, state.lock_wait_s)

    def _adopted(self, store: RocksStore) -> GraphVersion | None:
        sha256, _ = adopted(store)
        return self._version_of(sha256) if sha256 else None


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
