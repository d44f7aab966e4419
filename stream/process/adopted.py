"""The graph versions that a partition adopted, as far back as events may be rolled back.

An event is applied with the newest version that held when it, or any event before it in order of time, arrived. So
what a late event makes be applied again takes the version of that event, what lies before its place keeps the one it
had, and along the order of time versions never go back. This depends on the log and the adoptions alone, not on how
the log was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import orjson

from driftline.graph.arrays import Float32
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event
from driftline.stream.events.records import Outgoing
from driftline.stream.process.rows import Rows
from driftline.stream.state.store import StateStore

NEWEST, OLDER = b"m:graph", b"m:graphs"
"""Where a store keeps which versions these are."""


@dataclass(slots=True, eq=False)
class AdoptedVersion:
    """One version and where it was adopted.

    Attributes:
        offset: records from it on arrived under this version.
        sha256: of the weights; "" = the seeded version 0.
        weights: None = let go, to be read again before they are used.
        item_memory: [n, M] float32 by dense index, the item epoch (several partitions only); None = the items' rows.
    """

    offset: int
    sha256: str
    weights: GraphMemory | None
    item_memory: Float32 | None = None

    @property
    def model(self) -> GraphMemory:
        """The weights, which are in memory."""
        if self.weights is None:
            raise RuntimeError(f"graph version {self.sha256[:12]} was let go; expected it to be read before it is used")
        return self.weights

    @property
    def held_bytes(self) -> int:
        """What it takes in memory."""
        weights = 0 if self.weights is None else sum(w.nbytes for w in self.weights.arrays.values())
        return weights + (0 if self.item_memory is None else self.item_memory.nbytes)


VersionOf = Callable[[str], tuple[GraphMemory, dict[str, Float32]]]
"""Weights and item epoch of a version by sha256."""


class AdoptedVersions:
    """Versions in order of their offsets; the last is the one that holds now.

    Args:
        rows: what they are applied to; read from the newest version from here on.
        item_vectors: the item epoch that came with the newest one, whose weights the rows' graph has.
        version_of: the others by sha256; None = only the newest is taken.
        held_bytes: that the others may take in memory, those used last; the rest is read again when it is needed, for
            which `version_of` has to know every one that is adopted; -1 = any.
    """

    def __init__(
        self,
        rows: Rows,
        item_vectors: dict[str, Float32] | None,
        version_of: VersionOf | None,
        held_bytes: int = -1,
    ) -> None:
        self._rows, self._version_of, self._held_bytes = rows, version_of, held_bytes
        self._used: list[AdoptedVersion] = []
        *older, newest = places_of(rows.store)
        self._versions: list[AdoptedVersion] = []
        if version_of is not None:
            self._versions += [AdoptedVersion(*place, None) for place in older]
            if held_bytes < 0:
                for version in self._versions:
                    self._read(version)
        self._versions.append(self._version(newest, rows.graph.model, item_vectors))
        self._in_use: AdoptedVersion | None = None
        self.use(self.newest)

    def __len__(self) -> int:
        return len(self._versions)

    @property
    def newest(self) -> AdoptedVersion:
        """The version that holds now."""
        return self._versions[-1]

    @property
    def older(self) -> list[AdoptedVersion]:
        """The others, that events may still be applied again with."""
        return self._versions[:-1]

    def at(self, offset: int) -> AdoptedVersion:
        """The version that held when the record of an offset arrived."""
        return next((v for v in reversed(self._versions) if v.offset <= offset), self._versions[0])

    def adopt(self, offset: int, model: GraphMemory, item_vectors: dict[str, Float32] | None) -> AdoptedVersion:
        """Takes a version in from an offset on; without an item epoch of its own it reads the one before."""
        memory = self.newest.item_memory
        if item_vectors is not None:
            memory = self._rows.items.epoch_memory(item_vectors, self._rows.pending)
        self._versions.append(AdoptedVersion(offset, model.version(), model, memory))
        self.use(self.newest)
        self._rows.pending[OLDER] = self.encode_older()
        return self.newest

    def use(self, version: AdoptedVersion) -> None:
        """Lets what is applied next read a version."""
        if version is self._in_use:
            return
        if version.weights is None:
            self._read(version)
        self._in_use, self._rows.graph.model = version, version.model
        if version.item_memory is not None:
            version.item_memory = self._rows.items.use_memory(version.item_memory)
        self._let_go(version)

    def _read(self, version: AdoptedVersion) -> None:
        model, vectors = GraphMemory(self._rows.settings.graph), dict[str, Float32]()
        if version.sha256 and self._version_of is not None:
            model, vectors = self._version_of(version.sha256)
        read = self._version((version.offset, version.sha256), model, vectors)
        version.weights, version.item_memory = read.weights, read.item_memory

    def _let_go(self, used: AdoptedVersion) -> None:
        """Takes note of the version that is used now, and lets go of those that were not used for longest."""
        if self._held_bytes < 0:
            return
        older = set(self.older)
        self._used = [version for version in self._used if version is not used and version in older] + [used]
        sizes = [version.held_bytes for version in self._used]
        while len(self._used) > 1 and sum(sizes[:-1]) > self._held_bytes:
            oldest = self._used.pop(0)
            oldest.weights = oldest.item_memory = None
            del sizes[0]

    def forget_before(self, offset: int | None) -> bool:
        """Forgets versions that only records before an offset arrived under; None = all but the newest. True if any."""
        needed = self.newest if offset is None else self.at(offset)
        start = self._versions.index(needed)
        del self._versions[:start]
        return start > 0

    def runs(self, events: list[Event], top: int) -> Iterator[tuple[AdoptedVersion, int, list[Event]]]:
        """Events in order of time, cut where their version changes.

        Args:
            events: in order of time.
            top: the largest offset of the events before them in order of time, as far as it decides their version.

        Yields:
            The version, the largest offset before the run, and its events.
        """
        if len(self._versions) == 1:
            yield self.newest, top, events
            return
        placed = []
        for event in events:
            before, top = top, max(top, event.offset)
            placed.append((self.at(top), before, event))
        for _, run in groupby(placed, key=lambda one: one[0].offset):
            rows = list(run)
            yield rows[0][0], rows[0][1], [event for _, _, event in rows]

    def encode_older(self) -> bytes:
        """All but the newest, for the store."""
        return orjson.dumps([[version.offset, version.sha256] for version in self._versions[:-1]])

    def _version(
        self, place: tuple[int, str], model: GraphMemory, vectors: dict[str, Float32] | None
    ) -> AdoptedVersion:
        memory = None if self._rows.local_items else self._rows.items.epoch_memory(vectors or {})
        return AdoptedVersion(*place, model, memory)


def places_of(store: StateStore) -> list[tuple[int, str]]:
    """(offset, sha256) of the versions that a store says its events were applied with; the last one holds now."""
    newest, older = store.get([NEWEST, OLDER])
    now = orjson.loads(newest) if newest else {"offset": 0, "sha256": ""}
    return [*((offset, sha256) for offset, sha256 in orjson.loads(older or b"[]")), (now["offset"], now["sha256"])]


def adoption(version: AdoptedVersion, partition: int, before: bytes | None) -> tuple[bytes, Outgoing]:
    """What the store keeps and the topic says of an adoption.

    Args:
        version: which, and from which offset on.
        partition: whose events are applied with it.
        before: what the store kept so far.
    """
    adopted = {"sha256": version.sha256, "offset": version.offset}
    said = orjson.dumps(adopted | {"partition": partition, "replaces": orjson.loads(before) if before else None})
    return orjson.dumps(adopted), Outgoing("graph-versions", version.sha256.encode(), said, (("kind", b"adoption"),))
