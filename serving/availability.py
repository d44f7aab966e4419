"""Which items may be recommended now: what the topic `items` says, laid over what a snapshot says.

    topic `items`: the newest record of each id      wins
    withdrawn.json: ids withdrawn some time ago      where the topic has no record of the id any more
    snapshot: `available`, as of its publishing      everything else

An item is withdrawn by `available: false` or by a record without a value (a tombstone), and offered again by a newer
record that does not say so. A record that is older than one of the item in another partition says nothing. A snapshot
also says where in the topic each item's record stood (`listing`): when that place is still inside the topic and no
record of the item is there, compaction has taken it after a tombstone that nobody here saw, so the item is withdrawn,
too.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import orjson

from driftline.serving.arrays import Array
from driftline.serving.models import Served
from driftline.serving.partitions import LastWords
from driftline.serving.sizes import short_title
from driftline.serving.snapshot import Snapshot
from driftline.serving.withdrawn import WithdrawnFile

LOG = logging.getLogger(__name__)
CATALOGUE = "catalogue"
"""Key of `Meta.extra`: the topic that a snapshot's listing speaks of."""

Place = tuple[int, int]
"""Partition and offset of a record."""
Bounds = Mapping[int, Place]
"""First offset and end by partition."""


class ItemRecords:
    """What records of `items` say, by id. Remembers keys that are not the id itself, as some serialisers write them."""

    def __init__(self) -> None:
        self._other_keys: dict[bytes, str] = {}

    def read(self, key: bytes | None, value: bytes | None) -> tuple[str, bool]:
        """The id that a record speaks of, and whether it offers the item. A record without a value withdraws.

        Raises:
            ValueError, KeyError, TypeError: it is not a record of an item.
        """
        if not value:
            return self.deleted(key), False
        data = orjson.loads(value)
        item_id, available = data["item_id"], data.get("available")
        if not isinstance(item_id, str) or not (available in (None, "") or isinstance(available, bool)):
            raise ValueError(
                f"got item_id {item_id!r:.100} and available {available!r:.100}; expected text, and true or false"
            )
        self.note(key, item_id)
        return item_id, available is not False

    def note(self, key: bytes | None, item_id: str) -> None:
        """Remembers under which key an item stands."""
        if key is not None and key != item_id.encode():
            self._other_keys[key] = item_id

    def deleted(self, key: bytes | None) -> str:
        """The id that a record without a value deletes.

        Raises:
            ValueError: it has no key, or one that is not UTF-8.
        """
        if not key:
            raise ValueError("got neither key nor value; expected the item's id as key")
        return self._other_keys.get(key) or key.decode()


def _why(error: Exception) -> str:
    if isinstance(error, orjson.JSONDecodeError):
        return f"not JSON: {error}"
    if isinstance(error, KeyError):
        return "it has no item_id"
    return str(error) if isinstance(error, ValueError) else "not a JSON object"


def vanished(listing: Mapping[str, Place], known: Collection[str], bounds: Bounds) -> list[str]:
    """Ids whose record stood at a place that the topic still spans, and that it has no record of: they were deleted.

    Args:
        listing: where the last record of each id stood.
        known: ids that the whole topic, read from its beginning, has a record of, deleted or not.
        bounds: of the topic as it was read; a place outside belongs to a topic that was made anew or cut.
    """
    inside = {p: range(first, end) for p, (first, end) in bounds.items()}
    return [
        item_id
        for item_id, (partition, offset) in listing.items()
        if item_id not in known and offset in inside.get(partition, ())
    ]


def listing_of(snapshot: Snapshot, ids: Collection[str], topic: str) -> dict[str, Place]:
    """Where the records of a snapshot's items stood in a topic; {} if it does not say, or speaks of another one."""
    part = snapshot.parts.get("items", {})
    if snapshot.meta.extra.get(CATALOGUE) != topic or "listed_offset" not in part:
        return {}
    places = zip(ids, part["listed_partition"].tolist(), part["listed_offset"].tolist(), strict=False)
    return {item_id: (partition, offset) for item_id, partition, offset in places if offset >= 0}


@dataclass(frozen=True, slots=True)
class _View:
    """What holds between two changes; `withdrawn` are ids that may not be recommended, whatever a snapshot says."""

    version: int = 0
    withdrawn: frozenset[str] = frozenset()
    bounds: Bounds | None = None


class Availability:
    """Filled by one thread, in the order begin, take, ..., taken, take, ..., taken; read by all others.

    Args:
        topic: its full name.
        file: keeps withdrawn ids for later starts; None = nothing is kept.
    """

    def __init__(self, topic: str = "items", file: WithdrawnFile | None = None) -> None:
        self._topic, self._file = topic, file
        self._kept = file.read() if file is not None else frozenset()
        """Ids that are withdrawn unless the topic offers them."""
        self._records, self._words = ItemRecords(), LastWords()
        self._said: dict[str, bool] = {}
        self._titles: dict[str, str] = {}
        """Of items that no model knows yet: snapshots have titles of their own."""
        self._withdrawn = set(self._kept)
        self._reading: dict[str, bool] | None = None
        self._bounds: Bounds | None = None
        self._view, self._changed = _View(1, self._kept), False
        self._masks: dict[bool, tuple[Served, int, Served]] = {}
        """The last answer of `over` for a model and for the popular items; more would keep old models in memory."""
        self._found: list[str] = []
        """Ids that were found deleted, for the thread that fills this to write down."""
        self.invalid = 0
        """Records that could not be read."""

    @property
    def withdrawn(self) -> frozenset[str]:
        """Ids that may not be recommended, as far as topic and file say."""
        return self._view.withdrawn

    def begin(self, bounds: Bounds) -> None:
        """The topic is read from its beginning; until its present end is reached, what was known before holds."""
        self._reading, self._bounds = {}, bounds
        self._words = LastWords(self._file.words if self._file is not None else None)

    def take(self, key: bytes | None, value: bytes | None, partition: int = 0, t_ms: int = 0) -> None:
        """One record, its partition and its time; one that can't be read is counted and changes nothing."""
        try:
            item_id, offered = self._records.read(key, value)
        except (ValueError, KeyError, TypeError) as error:
            self.invalid += 1
            LOG.warning(
                "a record of %s with key %.100r is no item (%s): what was known of the item before holds, so "
                "one that it was to withdraw is still offered; `driftline dlq list` shows it, send it again with "
                '"available": false', self._topic, key, _why(error),
            )  # fmt: skip
            return
        if not self._words.is_last(item_id, partition, t_ms):
            return
        self._note_title(item_id, value)
        if self._reading is not None:
            self._reading[item_id] = offered
        elif self._said.get(item_id) is not offered:
            self._said[item_id], self._changed = offered, True
            (self._withdrawn.discard if offered else self._withdrawn.add)(item_id)

    def title(self, item_id: str) -> str:
        """What the topic calls an item, as long as no model knows it; "" = nothing."""
        return self._titles.get(item_id, "")

    def lists(self, item_id: str) -> bool:
        """Whether the topic has a record of an item."""
        return item_id in self._said

    def _note_title(self, item_id: str, value: bytes | None) -> None:
        item = orjson.loads(value) if value else {}
        title = item.get("title") or item.get("text")
        if isinstance(title, str) and title:
            self._titles[item_id] = short_title(title)
        else:
            self._titles.pop(item_id, None)

    def _leave_titles_to(self, served: Served) -> None:
        for item_id in list(self._titles):
            if served.scorer.table.find(item_id) >= 0:
                self._titles.pop(item_id, None)

    def taken(self, at_end: bool) -> None:
        """After some records: makes them hold. `at_end`: all that the topic had at `begin` were taken."""
        if self._reading is not None and at_end:
            self._said, self._reading, self._changed = self._reading, None, True
            out = {item_id for item_id, offered in self._said.items() if not offered}
            self._withdrawn = out.union(item_id for item_id in self._kept if item_id not in self._said)
        if self._reading is not None:
            return
        if self._file is not None and self._file.changed():
            self._keep(self._file.read())
        if self._found:
            found, self._found = self._found, []
            self._keep(self._kept.union(item_id for item_id in found if item_id not in self._said))
        if self._changed:
            self._changed = False
            self._view = _View(self._view.version + 1, frozenset(self._withdrawn), self._bounds)
            if self._file is not None:
                self._keep(self._file.merge(self._withdrawn, self._is_offered, self._words.of))

    def _is_offered(self, item_id: str) -> bool:
        return self._said.get(item_id, False)

    def _keep(self, item_ids: frozenset[str]) -> None:
        """Ids that the file has; those of which the topic has no record are withdrawn for it."""
        self._kept = item_ids
        new = {item_id for item_id in item_ids if item_id not in self._said} - self._withdrawn
        if new:
            self._withdrawn |= new
            self._changed = True

    def over(self, served: Served) -> Served:
        """A model with what may be recommended now; where it is none but what is popular, with titles of the topic."""
        view, kind = self._view, bool(served.snapshot.version)
        given, version, result = self._masks.get(kind, (None, 0, served))
        if given is not served or version != view.version:
            if kind:
                self._leave_titles_to(served)
            titles = served.titles if kind else [self.title(item_id) for item_id in served.scorer.table.ids]
            result = replace(served, offered=self._offered(served, view), titles=titles)
            self._masks[kind] = served, view.version, result
        return result

    def _offered(self, served: Served, view: _View) -> Array:
        table, said = served.scorer.table, self._said
        offered = served.offered.copy()
        for index in np.flatnonzero(~offered).tolist():
            offered[index] = said.get(table.ids[index], False)
        gone = list(view.withdrawn)
        if view.bounds is not None:
            unseen = vanished(listing_of(served.snapshot, table.ids, self._topic), said, view.bounds)
            self._found += unseen
            gone += unseen
        places = np.array([table.find(item_id) for item_id in gone], np.int64)
        offered[places[places >= 0]] = False
        return offered
