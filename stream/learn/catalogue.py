"""The catalogue as the trainer knows it: what `items` says of each item, and which items are withdrawn.

The topic is read from its beginning at every start, but it forgets: once compaction has taken a deleted item's record
and then its tombstone, nothing there tells that the item was deleted, while its events in `interactions` would bring it
back. So deleted ids outlive the topic, with the time and the partition of the record that said it, in the trainer's
checkpoint and in the file beside the snapshots; and the checkpoint (or, for a trainer without one, the current
snapshot) knows where each record stood, so that one that is gone is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from driftline.configs.errors import SnapshotError
from driftline.graph.arrays import Float32
from driftline.graph.labels import Labelled
from driftline.graph.view import ItemTable
from driftline.llm.encoder import TextEncoder
from driftline.serving.arrays import unpack_strings
from driftline.serving.availability import Bounds, ItemRecords, Place, listing_of, vanished
from driftline.serving.partitions import LastWords
from driftline.serving.snapshot import open_snapshot
from driftline.serving.withdrawn import WithdrawnFile
from driftline.stream.events.schema import InvalidEvent, Item, item_of
from driftline.stream.learn.item_columns import ItemRow

NOWHERE: Place = (0, -1)


class Catalogue:
    """Items by id, where their records stand, and the ids that were deleted.

    Args:
        topic: full name of the topic `items`.
        snapshots: directory of the snapshots, beside which withdrawn ids are kept.
    """

    def __init__(self, topic: str, snapshots: Path) -> None:
        self.topic, self._snapshots = topic, snapshots
        self.items: dict[str, Item] = {}
        self.says_else = False
        """Whether the last record that was taken says something else of an item than the one before."""
        self.changed: dict[str, str] = {}
        """Descriptions by id, of items that say something else since `take_changed`, be it by their labels alone; "" =
        the item says nothing any more."""
        self._records, self._file = ItemRecords(), WithdrawnFile(snapshots)
        self._deleted = set(self._file.read())
        self._words = LastWords(self._file.words)
        self._unavailable: set[str] = set()
        self._listing: dict[str, Place] = {}
        self._listed_before: dict[str, Place] | None = None
        self._touched = False
        self._news: set[str] = set()
        self._told = 0  # items of the table whose rows were taken once

    def take(self, value: bytes | None, key: bytes | None = None, place: Place = NOWHERE, t_ms: int = 0) -> str:
        """One record, its place and its time; the id that it speaks of.

        A record that is older than one of the item in another partition changes nothing.

        Raises:
            InvalidEvent: it is not an item.
        """
        self._touched, self.says_else = True, False
        if not value:
            item_id = _deleted_id(self._records, key)
            return self._delete(item_id) if self._words.is_last(item_id, place[0], t_ms) else item_id
        try:
            item = item_of(orjson.loads(value))
        except orjson.JSONDecodeError as error:
            raise InvalidEvent("not_json", str(error)) from None
        item_id, known = item.item_id, self.items.get(item.item_id)
        self._records.note(key, item_id)
        if not self._words.is_last(item_id, place[0], t_ms):
            return item_id
        if _said(item) != _said(known):
            self.changed[item_id] = item.description()
        self.says_else = item != known
        self._news.add(item_id)
        self.items[item_id], self._listing[item_id] = item, place
        self._deleted.discard(item_id)
        (self._unavailable.discard if item.available else self._unavailable.add)(item_id)
        return item_id

    def read_whole(self, bounds: Bounds, table: ItemTable) -> bool:
        """After the whole topic was taken from its beginning: what it had a record of and has none now was deleted.

        Returns:
            whether it has another record of an item of the table than it had.
        """
        before = self._snapshot_listing() if self._listed_before is None else self._listed_before
        for item_id in vanished(before, self._listing, bounds):
            self._delete(item_id)
            self._touched = True
        return any(
            before.get(item_id) != place and table.find(item_id) >= 0 for item_id, place in self._listing.items()
        )

    def take_changed(self) -> dict[str, str]:
        """Descriptions that are new since the last call, by id."""
        changed, self.changed = self.changed, {}
        return changed

    def keep_withdrawn(self) -> None:
        """Writes down what is withdrawn, and learns what others wrote: call it after records were taken."""
        if self._touched or self._file.changed():
            self._touched = False
            kept = self._file.merge(self._deleted | self._unavailable, self.is_offered, self._words.of)
            gone = {item_id for item_id in kept if item_id not in self.items}
            self._news |= gone - self._deleted
            self._deleted |= gone

    def is_offered(self, item_id: str) -> bool:
        """Whether the topic has a record that offers it."""
        item = self.items.get(item_id)
        return item is not None and item.available

    def may_recommend(self, item_id: str) -> bool:
        """Whether nothing withdraws it; an item that the catalogue never spoke of may be recommended."""
        item = self.items.get(item_id)
        return item.available if item is not None else item_id not in self._deleted

    def withdrawn(self, table: ItemTable) -> frozenset[str]:
        """Items of the table that may not be recommended."""
        return frozenset(item_id for item_id in self._deleted | self._unavailable if table.find(item_id) >= 0)

    def take_rows(self, table: ItemTable, most: int) -> dict[int, ItemRow]:
        """What a snapshot says of items of the table, by index, where it is new since it was taken.

        Args:
            table: grows at its end only.
            most: items that are looked at.
        """
        first, self._told = self._told, min(self._told + most, len(table))
        changed = [table.find(self._news.pop()) for _ in range(min(most, len(self._news)))]
        known = (index for index in changed if 0 <= index < first)
        return {index: self._row(table.ids[index]) for index in (*known, *range(first, self._told))}

    def has_rows(self, table: ItemTable) -> bool:
        """Whether `take_rows` has more."""
        return bool(self._news) or self._told < len(table)

    def _row(self, item_id: str) -> ItemRow:
        item, place = self.items.get(item_id) or Item(item_id), self._listing.get(item_id, (-1, -1))
        price = math.nan if item.price is None else item.price
        says = (item.title or item.text, item.domain, item.categories, item.brand)
        return ItemRow(item_id, *says, self.may_recommend(item_id), price, *place)

    def state_dict(self) -> dict[str, Any]:
        """What outlives the topic, for a checkpoint."""
        words = {item_id: word for item_id in sorted(self._deleted) if (word := self._words.of(item_id)) is not None}
        return {"deleted": sorted(self._deleted), "words": words, "listing": dict(self._listing)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self._deleted |= set(state["deleted"])
        words = {item_id: (int(t_ms), int(p)) for item_id, (t_ms, p) in state.get("words", {}).items()}
        self._words = LastWords(words | self._file.words)
        self._news |= self._deleted
        self._listed_before = {item_id: (int(p), int(offset)) for item_id, (p, offset) in state["listing"].items()}

    def _delete(self, item_id: str) -> str:
        self.items.pop(item_id, None)
        self._listing.pop(item_id, None)
        self._unavailable.discard(item_id)
        self._deleted.add(item_id)
        self._news.add(item_id)
        self.changed[item_id] = ""
        return item_id

    def _snapshot_listing(self) -> dict[str, Place]:
        with suppress(SnapshotError):
            snapshot = open_snapshot(self._snapshots)
            return listing_of(snapshot, unpack_strings(snapshot.parts.get("items", {}), "id"), self.topic)
        return {}


class CatalogueTexts:
    """Text vectors of the catalogue's items by id: the encoder's cache on disk keeps them, not this process.

    Args:
        catalogue: what the items say.
        encoder: None = items have no text.
    """

    def __init__(self, catalogue: Catalogue, encoder: TextEncoder | None) -> None:
        self._catalogue, self._encoder = catalogue, encoder

    def at(self, item_id: str, now_ms: int) -> Float32 | None:
        """[text_dim] float32 unit vector of what the catalogue says as it is read, None = the item says nothing."""
        item = self._catalogue.items.get(item_id)
        text = "" if item is None else item.description()
        return self._encoder.encode([text])[0] if self._encoder is not None and text else None


class CatalogueLabels:
    """Brands and categories of the catalogue's items by id.

    Args:
        catalogue: what the items say.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def at(self, item_id: str, now_ms: int) -> Labelled:
        """Those that the catalogue gives as it is read; an item that it does not name has none."""
        item = self._catalogue.items.get(item_id)
        return ("", ()) if item is None else (item.brand, item.categories)


def _said(item: Item | None) -> tuple[str, str, tuple[str, ...]]:
    """What an item is known by: its description, its labels."""
    return ("", "", ()) if item is None else (item.description(), item.brand, tuple(item.categories))


def _deleted_id(records: ItemRecords, key: bytes | None) -> str:
    try:
        return records.deleted(key)
    except ValueError as error:
        raise InvalidEvent("missing_field", str(error)) from None
