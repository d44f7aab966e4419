"""Where the replay of a log without some users begins: at its start, or at a backup from before their first record.

A backup can be begun from if nothing that it holds came of a record that is left out, all that came since is in the
topics, and its graph versions are some of those that the state was made with. What is in it is compared with what was
written; that it was made from this log, its topics and adoptions say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from driftline.configs.errors import InputError, StateError
from driftline.serving.scratch import Scratch
from driftline.stream.owned.versions import adopted
from driftline.stream.process.by_item import BY_ITEM, sources
from driftline.stream.process.intake import INTERACTIONS
from driftline.stream.replay.without import LeftOut, Log, after, item_places, user_places
from driftline.stream.state.backup import read_manifest
from driftline.stream.state.layout import alike, read_layout
from driftline.stream.state.origin import origin_of
from driftline.stream.state.store import MemoryStore, ReadableStore, ReadOnlyStore, state_sha256

FORGOTTEN = b"m:forgotten"
"""Key of the offsets up to which a rebuilt store has nobody of whom a request forgets, JSON by partition."""
BACKUP = "a backup of that offset or later from before the first event of whoever is forgotten"
Stores = Mapping[Path, ReadableStore]


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a replay begins with.

    Attributes:
        name: folder of the backup, "" = the log's start.
        rows: of the backup, by name of the directory.
    """

    name: str = ""
    rows: Mapping[str, Mapping[bytes, bytes]] = field(default_factory=dict)

    def store(self, directory: str) -> MemoryStore:
        """A store of its own for the replay of one directory."""
        store = MemoryStore()
        store.data.update(self.rows.get(directory, {}))
        return store


def beginning_of(log: Log, left_out: LeftOut, now: Stores, backups: Sequence[Path]) -> Beginning:
    """The latest of some backups that can be begun from, else the start of the log.

    Args:
        log: what the topics hold.
        left_out: of it.
        now: the directories of the state.
        backups: folders of `driftline state backup`, or folders of such folders.

    Raises:
        InputError: a backup is damaged or none.
        StateError: the log does not reach back far enough.
    """
    found: list[tuple[int, Path]] = []
    why = []
    for folder in [one for given in backups for one in _folders(given)]:
        reason, offsets = _unusable(folder, log, left_out, now)
        why.append(f"{folder}: {reason}")
        if not reason:
            found.append((offsets, folder))
    if found:
        return _read(max(found)[1])
    for path in now:
        topic, partition = _topic_of(path)
        if (first := log.first.get((topic, partition), 0)) > 0:
            raise StateError(
                f"partition {partition} of {topic} begins at offset {first}: what the state took before "
                f"can't be replayed. Expected the whole log, or {BACKUP}" + ("; ".join(["", *why]) or ": give --from")
            )
    return Beginning()


def _folders(given: Path) -> list[Path]:
    folders = (
        [given] if (given / "backup.json").exists() else sorted(path.parent for path in given.glob("*/backup.json"))
    )
    if not folders:
        raise InputError(f"{given} holds no backup; expected a folder of `driftline state backup`, or several in it")
    return folders


def _unusable(folder: Path, log: Log, left_out: LeftOut, now: Stores) -> tuple[str, int]:
    """Why a backup can't be begun from, "" if it can; and the sum of its offsets."""
    read_manifest(folder)
    if not alike(read_layout(folder), read_layout(next(iter(now)).parent)):
        return "it was made with other settings", 0
    total = 0
    for path, current in now.items():
        topic, partition = _topic_of(path)
        if not (folder / path.name / "CURRENT").exists():
            return f"it has no {path.name}", 0
        with _opened(folder / path.name) as held:
            (value,) = held.get([f"m:offset:{topic}:{partition}".encode()])
            offset = int(value or 0)
            places = item_places(current) if topic == BY_ITEM else user_places(log, partition, current)
            if after(places, adopted(held)) is None:
                return f"{path.name} was made with other graph versions than the state", 0
            places_left = left_out.without_what_was(forgotten_up_to(held))
            ours, theirs = origin_of(current), origin_of(held)
            if any(theirs[name].differs(ours[name]) for name in theirs.keys() & ours.keys()):
                return f"{path.name} was made from another topic", 0
        first = _first(log, topic, partition, places_left)
        if first is not None and first < offset:
            return f"{path.name} is of offset {offset}, a record of who is forgotten lies at {first}", 0
        if offset < log.first.get((topic, partition), 0):
            return f"{path.name} is of offset {offset}, the topic begins later", 0
        total += offset
    return "", total


def _first(log: Log, topic: str, partition: int, places: set[tuple[int, int]]) -> int | None:
    """The first offset of a partition at which something lies that came of one of some records."""
    if topic != BY_ITEM:
        return min((offset for at, offset in places if at == partition), default=None)
    came = (record.offset for record in log.items.get(partition, ()) if not places.isdisjoint(sources(record)))
    return min(came, default=None)


def forgotten_up_to(store: ReadableStore) -> dict[int, int]:
    """Up to which offsets of `interactions` a store was made without whom requests name; empty = it was not."""
    (value,) = store.get([FORGOTTEN])
    return {int(partition): int(offset) for partition, offset in orjson.loads(value or b"{}").items()}


def _read(folder: Path) -> Beginning:
    """All rows of a backup. Raises InputError if they are not those that were written."""
    rows: dict[str, dict[bytes, bytes]] = {}
    for path in sorted(folder.glob("*-*/CURRENT")):
        with _opened(path.parent) as held:
            rows[path.parent.name] = dict(held.scan(b""))
    beginning = Beginning(str(folder), rows)
    users = [beginning.store(name) for name in rows if name.startswith("partition-")]
    written = read_manifest(folder)["state"]["state_sha256"]
    if (found := state_sha256(users)) != written:
        raise InputError(
            f"the backup {folder} holds a state of hash {found[:12]}, not {str(written)[:12]} of its backup.json: it "
            "was damaged or mixed with another; take another one, or none"
        )
    return beginning


def _topic_of(path: Path) -> tuple[str, int]:
    kind, _, number = path.name.rpartition("-")
    return BY_ITEM if kind == "items" else INTERACTIONS, int(number)


@contextmanager
def _opened(path: Path) -> Iterator[ReadableStore]:
    with Scratch("secondary") as scratch:
        store = ReadOnlyStore(path, scratch)
        try:
            yield store
        finally:
            store.close()
