"""The rows of one partition: its users and items, the graph between them, and what changed since the last commit.

Which events are applied, and in which order, the processor says; here they change the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from driftline.configs.settings import Settings
from driftline.graph.arrays import Float32, Int64
from driftline.graph.chunks import user_key
from driftline.graph.ctdg import TemporalGraph
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event, UserRow
from driftline.stream.process.batch import EventBatch
from driftline.stream.process.items import ItemNodes, item_key
from driftline.stream.process.prices import UsualPrice
from driftline.stream.process.users import Pending, UserNodes
from driftline.stream.state.store import StateStore

Ended = tuple[Event, UserRow | None]
"""An event that started a row anew, with the row from before if it is that of a user, None for an item."""


class Rows:
    """Users, items and what a price usually is.

    Args:
        settings: the whole configuration.
        store: where the rows lie; those of items are loaded, those of users when they are needed.
        local_items: whether the item rows live here, too.
        model: the graph version that the store adopted last; default is the seeded version 0.

    Attributes:
        pending: what the next commit has to write, None = delete.
    """

    def __init__(self, settings: Settings, store: StateStore, local_items: bool, model: GraphMemory | None) -> None:
        self.settings, self.store, self.local_items = settings, store, local_items
        self.graph = TemporalGraph(settings.graph, model)
        self.users = UserNodes(settings, self.graph, store)
        self.items = ItemNodes(settings, self.graph)
        self.prices = UsualPrice()
        self.pending: Pending = {}
        self._taken: Pending = {}
        self.items.load(store)
        (prices,) = store.get([UsualPrice.KEY])
        self.prices.load(prices)

    def take_pending(self) -> Pending:
        """What the next commit has to write."""
        self.users.finish(self.pending)
        taken, self.pending = self.pending, {}
        self._taken = self._taken | taken if self._taken else taken
        return taken

    def committed(self) -> None:
        """What was taken for one commit stands in the store now."""
        self.users.committed()
        if self.users.uncommitted <= 0:
            self._taken = {}

    def before(self, events: Sequence[Event]) -> Pending:
        """Stored values of what events are about to change, as of the last applied one; None = there is none.

        Chunks of histories join when it is known which ones change, see `apply`.
        """
        touched = [user_key(user_id) for user_id in dict.fromkeys([event.user_id for event in events])]
        if self.local_items:
            touched += [item_key(item_id) for item_id in dict.fromkeys([event.item_id for event in events])]
        return self.values([*touched, UsualPrice.KEY])

    def values(self, keys: list[bytes]) -> Pending:
        """Stored values as of the last applied event, by key; None = there is none."""
        pending, taken, stored = self.pending, self._taken, self.users.stored
        missing = [key for key in keys if key not in pending and key not in taken and key not in stored]
        stored.update(zip(missing, self.store.get(missing), strict=True))
        here = taken | pending if taken else pending
        return {key: here[key] if key in here else stored[key] for key in keys}

    def has(self, user_id: str) -> bool:
        """Whether a user has a row, with events or without."""
        return self.values([user_key(user_id)])[user_key(user_id)] is not None

    def restore(self, before: Pending) -> None:
        """Puts back what `before` gave."""
        self.pending |= before
        if UsualPrice.KEY in before:
            self.prices.load(before[UsualPrice.KEY])
        self.users.restore(
            {key[2:].decode(): value for key, value in before.items() if key.startswith(b"u:")},
            {key: value for key, value in before.items() if key.startswith(b"h:")},
        )
        for key, value in before.items():
            if key.startswith(b"i:"):
                self.items.restore(key[2:].decode(), value)

    def apply(self, events: list[Event], memories: list[tuple[Int64, Float32]], before: Pending) -> list[Ended]:
        """Applies events in order.

        Args:
            events: within one of `ttl.spans`.
            memories: takes offsets [n] and their users' [n, M] from before their groups (several partitions only).
            before: takes the stored values of the chunks of histories that change.
        """
        users = self.users.indices_of([event.user_id for event in events])
        items = self.items.indices_of([event.item_id for event in events], self.pending)
        ended = self._start_anew(events, users, items, before) if self.settings.state.ttl_ms else []
        batch = EventBatch.of(events, users, items, self.settings)
        pre = self.graph.apply(batch.users, batch.items, batch.t_ms, batch.moments, batch.edges(), self.local_items)
        if not self.local_items:
            memories.append((batch.offset, pre))
        self.users.record(batch, self.items.keys(batch.items), self.pending, before)
        if self.local_items:
            self.items.record(batch, self.pending)
        self.prices.add(events)
        self.pending[UsualPrice.KEY] = self.prices.encode()
        return ended

    def found_by(self, events: Sequence[Event], fresh: Sequence[Event]) -> tuple[list[str], list[str]]:
        """Users and items of events who have rows when they come, each as often as one comes.

        Args:
            events, fresh: in order of offsets; the fresh ones are not applied yet.
        """
        users = self.users.events_of(list(dict.fromkeys([event.user_id for event in events])))
        items = {event.item_id: self.items.events_of(event.item_id) for event in events} if self.local_items else {}
        first_user, first_item = dict[str, int](), dict[str, int]()
        for event in fresh:
            first_user.setdefault(event.user_id, event.offset)
            first_item.setdefault(event.item_id, event.offset)
        return (
            [e.user_id for e in events if users[e.user_id] or first_user.get(e.user_id, e.offset) < e.offset],
            [
                e.item_id
                for e in events
                if e.item_id in items and (items[e.item_id] or first_item.get(e.item_id, e.offset) < e.offset)
            ],
        )

    def count_too_late(self, user_ids: list[str], item_ids: list[str]) -> None:
        """Counts events that came too late to be applied, where there are rows: nobody else gets one for it."""
        self.users.count_too_late(user_ids, self.pending)
        if item_ids:
            self.items.count_too_late(item_ids, self.pending)

    def forget(self, user_ids: Collection[str]) -> None:
        """Takes users out of all rows, see stream/process/forget.py."""
        self.users.remove(sorted(user_ids), self.pending)
        if self.local_items:
            self.items.forget(user_ids, self.pending)

    def settle_items(self, restored: list[bytes], events: Sequence[Event]) -> None:
        """Writes the items that were put back and that no event touched since, or removes them where none is left.

        Args:
            restored: keys of what was put back; those of users are passed over.
            events: that were applied since.
        """
        if self.local_items:
            touched = {event.item_id for event in events}
            ids = (key[2:].decode() for key in dict.fromkeys(restored) if key.startswith(b"i:"))
            self.items.settle([item_id for item_id in ids if item_id not in touched], self.pending)

    def sweep(self, before_ms: int) -> tuple[list[tuple[str, int]], int]:
        """Removes the rows whose last event is older than `before_ms`: users and their events, how many of items."""
        users = self.users.sweep(before_ms, self.pending)
        return users, self.items.sweep(before_ms, self.pending) if self.local_items else 0

    def _start_anew(self, events: list[Event], users: list[int], items: list[int], before: Pending) -> list[Ended]:
        times = [event.timestamp_ms for event in events]
        anew = self.users.start_anew(users, times, self.pending, before)
        ended: list[Ended] = [(events[n], row) for n, row in anew.items()]
        if self.local_items:
            ended += [(events[n], None) for n in self.items.start_anew(items, times)]
        return ended
