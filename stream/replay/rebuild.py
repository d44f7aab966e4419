"""The state of a log without the users that were forgotten: made beside the old one, proven, then put in its place.

1 replay the log without them into memory, with the graph versions where they were adopted; from its start, or from the
  last backup that nobody who is forgotten had reached
2 write that as databases beside those of the partitions, and the versions that late events need in it: without the
  user's events they may be put in places further back
3 hold the locks of old and new, so that no worker opens one, and swap
4 hash what lies there now, before a worker may open it, and compare with a second replay of the log without them in
  epochs of another length

With several partitions the item rows are made from `interactions.by-item` in the same way. A process that is killed
within 3 leaves some partitions rebuilt and perhaps one whose place is empty: no worker starts on such a state, and the
command given again puts the old one back before it begins.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import orjson

from driftline.configs.errors import InputError, StateError
from driftline.configs.settings import Settings
from driftline.graph.chunks import user_key
from driftline.stream.events.records import Outgoing, pack, unpack
from driftline.stream.kafka.identity import Identity
from driftline.stream.owned.versions import keep_version
from driftline.stream.process.by_item import BY_ITEM
from driftline.stream.process.intake import INTERACTIONS
from driftline.stream.replay.beginning import FORGOTTEN, Beginning, beginning_of
from driftline.stream.replay.without import LeftOut, Log, items_without, users_without
from driftline.stream.state.graphs import needed
from driftline.stream.state.layout import ITEM_PARTITIONS, LEAVING, moved_away, read_layout
from driftline.stream.state.lock import locked
from driftline.stream.state.origin import KEY as TOPICS
from driftline.stream.state.origin import origin_of
from driftline.stream.state.store import (
    MemoryStore,
    ReadableStore,
    RocksStore,
    state_directories,
    state_sha256,
    write_database,
)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What came of it.

    Attributes:
        state_sha256: of the state on disk now, as `driftline state hash` tells it.
        log_sha256: of the log without the forgotten users.
        items_sha256, log_items_sha256: the same of the item rows of several partitions; "" with one.
        records: of the log.
        left_out: of them, those of the forgotten users and the requests.
        begun_from: the backup that it began from; "" = the log's start.
        known: of the forgotten, those who had a row in the state before, or a record in the log.
    """

    state_sha256: str
    log_sha256: str
    items_sha256: str
    log_items_sha256: str
    records: int
    left_out: int
    begun_from: str
    known: frozenset[str]

    @property
    def proven(self) -> bool:
        """Whether the state on disk is that of the log without the forgotten users."""
        return (self.state_sha256, self.items_sha256) == (self.log_sha256, self.log_items_sha256)


def rebuild(settings: Settings, log: Log, backups: Sequence[Path] = ()) -> Rebuilt:
    """Rebuilds the partitions that lie under `state.root`.

    Args:
        settings: as the workers have them.
        log: what the topics hold.
        backups: folders of `driftline state backup`; the last one that holds nothing of the forgotten is begun from.

    Raises:
        LockedError: a worker runs.
        InputError: a backup is damaged, or of another state.
        StateError: the directories can't be written, or the log does not reach back far enough.
    """
    root = settings.state.root
    _put_back(root)
    made_with, paths = read_layout(root), state_directories(root)
    has = {INTERACTIONS: len(log.users), BY_ITEM: len(log.items)}
    for name, had in {INTERACTIONS: made_with["partitions"], BY_ITEM: made_with.get(ITEM_PARTITIONS)}.items():
        if had not in (None, has[name]):
            raise InputError(f"{name} has {has[name]} partitions; expected the {had} of the state in {root}")
    _clear(paths)
    with ExitStack() as stack:
        # an open database writes to its path, whatever lies there by then: nobody may have one open at the swap, this
        # process neither
        old = {path: _held(stack, RocksStore(path, settings.state.sync, settings.state.lock_wait_s)) for path in paths}
        made_from = {origin_of(store).get(INTERACTIONS, Identity()).topic_id for store in old.values()}
        left_out = LeftOut(log, max(made_from), settings.state.dedupe_ids > 0)
        known = left_out.known.union(
            user_id for user_id in left_out.users for store in old.values() if store.get([user_key(user_id)])[0]
        )
        beginning = beginning_of(log, left_out, old, backups)
        letters, versions = list[Outgoing](), set[str]()
        for path in paths:  # those of items first, whose dead letters go with a partition of users
            made = _replayed(settings, log, left_out, path, old[path], beginning, letters)  # 1
            versions |= needed(made)
            _write(paths, path, made, settings.state.sync)  # 2
        other = settings.state.model_copy(update={"epoch_events": max(1, settings.state.epoch_events // 2 + 1)})
        again = settings.model_copy(update={"state": other})
        proof = _hashes({path: _replayed(again, log, left_out, path, old[path], beginning, []) for path in paths})
        if _hashes_of(_beside(path)[0] for path in paths) != proof:
            raise StateError(
                f"two replays of the log without the forgotten ended in different states, {root} stays as it was; "
                "expected them equal: please report it"
            )
        try:
            for sha256 in sorted(versions):
                keep_version(settings, log.version_of(sha256))
        except OSError as error:
            raise StateError(f"graph versions can't be kept in {root}: {error}; make room and try again") from None
    state_sha256, items_sha256 = _swap(paths)  # 3, 4
    return Rebuilt(
        state_sha256=state_sha256,
        log_sha256=proof[0],
        items_sha256=items_sha256,
        log_items_sha256=proof[1],
        records=sum(map(len, log.users.values())),
        left_out=len(left_out.places),
        begun_from=beginning.name,
        known=frozenset(known),
    )


def _replayed(
    settings: Settings,
    log: Log,
    left_out: LeftOut,
    path: Path,
    old: ReadableStore,
    beginning: Beginning,
    letters: list[Outgoing],
) -> MemoryStore:
    """The new state of one directory; dead letters of item partitions go through `letters` to one of users."""
    kind, _, number = path.name.rpartition("-")
    store = beginning.store(path.name)
    (topics,) = old.get([TOPICS])
    if topics is not None:  # which topics the state is of; no replay knows
        store.commit({TOPICS: topics})
    store.commit({FORGOTTEN: orjson.dumps({str(number): end for number, end in left_out.ends.items()})})
    if kind == "items":
        letters += items_without(settings, log, left_out, int(number), store, old)
        return store
    users_without(settings, log, left_out, int(number), store, old)
    if letters:
        key = max((key for key, _ in store.scan(b"o:")), default=b"o:" + bytes(8))
        (waiting,) = store.get([key])
        store.commit({key: pack([*(unpack(waiting) if waiting else []), *letters])})
        letters.clear()
    return store


def _write(paths: Sequence[Path], path: Path, store: MemoryStore, sync: bool) -> None:
    try:
        write_database(_beside(path)[0], store.data.items(), sync)
    except OSError as error:
        _clear(paths)
        raise StateError(
            f"the rebuilt state can't be written: {error}; expected room for a second one beside {path}, which stays "
            "as it was: make room and try again"
        ) from None


def _clear(paths: Sequence[Path]) -> None:
    """Removes what lies beside directories: what a rebuild made and did not put in their places, or left of them."""
    for left in (left for path in paths for left in _beside(path)):
        shutil.rmtree(left, ignore_errors=True)


def _swap(paths: Sequence[Path]) -> tuple[str, str]:
    """Puts the new databases in place of the old; returns their hashes.

    A worker that waits for a directory takes its lock as soon as it is free, and writes by path: one that had the old
    database open would write into the new one. So all locks are held before the first directory is moved.

    Raises:
        LockedError: a worker holds one of them; nothing was moved.
        StateError: a directory can't be moved.
    """
    with ExitStack() as stack:
        for path in paths:
            for directory in (path, _beside(path)[0]):
                stack.enter_context(locked(directory))
        for path in paths:
            _exchange(path)
        for path in paths:
            shutil.rmtree(_beside(path)[1], ignore_errors=True)
        return _hashes_of(paths)  # this process may open what it has locked; that ends with the closing, and so do we


def _exchange(path: Path) -> None:
    fresh, leaving = _beside(path)
    try:
        path.rename(leaving)
        try:
            fresh.rename(path)
        except OSError:
            leaving.rename(path)
            raise
    except OSError as error:
        raise StateError(
            f"the rebuilt state {fresh} can't take the place of {path}: {error}; expected that no worker is "
            "started meanwhile: stop it and try again"
        ) from None


def _put_back(root: Path) -> None:
    """Ends what a rebuild began that was stopped between moving a partition away and putting the new one there.

    Raises:
        LockedError: that rebuild still runs.
        StateError: a directory can't be moved.
    """
    for path in moved_away(root):
        with locked(path):
            try:
                path.rename(path.with_suffix(""))
            except OSError as error:
                raise StateError(f"{path} can't be moved back: {error}; expected a folder to write to") from None


def _hashes_of(paths: Iterable[Path]) -> tuple[str, str]:
    with ExitStack() as stack:
        return _hashes({path: _held(stack, RocksStore(path)) for path in paths})


def _hashes(stores: Mapping[Path, ReadableStore]) -> tuple[str, str]:
    """state_sha256 as `driftline state hash` tells it; a hash of the item rows of several partitions, "" with one."""
    users = [store for path, store in stores.items() if path.name.startswith("partition-")]
    items = [store for path, store in sorted(stores.items()) if path.name.startswith("items-")]
    whole = "".join(state_sha256([store]) for store in items)
    return state_sha256(users), hashlib.sha256(whole.encode()).hexdigest() if items else ""


def _held(stack: ExitStack, store: RocksStore) -> RocksStore:
    stack.callback(store.close)
    return store


def _beside(path: Path) -> tuple[Path, Path]:
    """Where the new database of a directory is made, and where the old one goes."""
    return path.with_name(f"{path.name}.rebuilt"), path.with_name(path.name + LEAVING)
