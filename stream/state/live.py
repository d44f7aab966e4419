"""The state that workers keep on this host, read as it lies on disk: its hash, its size, its offsets.

Reads through a RocksDB secondary, so a worker may run meanwhile and nothing of its is changed. Each partition is read
as of one commit; with several partitions and a running worker these commits are not of one moment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from driftline.configs.errors import StateError
from driftline.serving.scratch import Scratch
from driftline.serving.state_reader import COMPLETE
from driftline.stream.state.layout import check_whole, read_layout
from driftline.stream.state.origin import Origin, origin_of
from driftline.stream.state.store import (
    ReadableStore,
    ReadOnlyStore,
    partition_path,
    state_directories,
    state_sha256,
)


@dataclass(frozen=True, slots=True)
class LiveState:
    """What lies under `state.root`.

    Attributes:
        state_sha256: over the partitions that lie here.
        users, items: rows; with several partitions items are those of the stores items-P that lie here.
        partitions: that `interactions` has; more than `next_offset` names if others lie on other hosts.
        next_offset: by partition, the first record that is not in the state.
        graph: by partition, the sha256 of the adopted graph version, "" = the seeded one.
    """

    state_sha256: str
    users: int
    items: int
    partitions: int
    next_offset: dict[int, int]
    graph: dict[int, str]


def read_live_state(root: Path) -> LiveState:
    """Hashes and counts the state under a root.

    Raises:
        StateError: there is none, or it can't be read.
    """
    numbers = _partitions(root)
    if not numbers:
        raise StateError(f"no state in {root}; expected the partition-P folders of a worker: check state.root")
    with _opened([partition_path(root, number) for number in numbers]) as stores:
        meta = [
            store.get([f"m:offset:interactions:{number}".encode(), b"m:graph"])
            for number, store in zip(numbers, stores, strict=True)
        ]
        return LiveState(
            state_sha256=state_sha256(stores),
            users=_count(stores, b"u:"),
            items=_count(stores, b"i:") + _items_apart(root),
            partitions=read_layout(root)["partitions"],
            next_offset={number: int(offset or 0) for number, (offset, _) in zip(numbers, meta, strict=True)},
            graph={
                number: orjson.loads(graph)["sha256"] if graph else ""
                for number, (_, graph) in zip(numbers, meta, strict=True)
            },
        )


@dataclass(frozen=True, slots=True)
class StoreStanding:
    """One store under `state.root`.

    Attributes:
        name, partition: of the topic that it is made from, without prefix.
        next_offset: first record that is not in it.
        complete_ms: wall time at which it held all that its topic had; -1 = not known.
        origin: which topics it was made from.
    """

    name: str
    partition: int
    next_offset: int
    complete_ms: int
    origin: Origin


def read_standings(root: Path) -> list[StoreStanding]:
    """Where the stores under a root stand; reads a few keys of each.

    Raises:
        StateError: a store can't be read.
    """
    paths = state_directories(root)
    with _opened(paths) as stores:
        return [_standing(path, store) for path, store in zip(paths, stores, strict=True)]


def _standing(path: Path, store: ReadableStore) -> StoreStanding:
    kind, _, number = path.name.rpartition("-")
    name = "interactions" if kind == "partition" else "interactions.by-item"
    offset, complete = store.get([f"m:offset:{name}:{number}".encode(), COMPLETE])
    return StoreStanding(name, int(number), int(offset or 0), int(complete or -1), origin_of(store))


@dataclass(frozen=True, slots=True)
class Strays:
    """Events that did not go the straight way, over all partitions of a state.

    Attributes:
        too_late: that came too late to change the state.
        forwarded: that came in another partition than their user's.
    """

    too_late: int
    forwarded: int


def count_strays(root: Path) -> Strays:
    """Counts the events under a root that did not go the straight way; reads all that is there.

    Raises:
        StateError: a partition can't be read, or holds damaged data.
    """
    with _opened(state_directories(root)) as stores:
        for store in stores:
            deque(store.scan(b""), maxlen=0)
        counts = [[b"0", b"0"], *(store.get([b"m:too_late", b"m:forwarded"]) for store in stores)]
        return Strays(*(sum(int(count or 0) for count in column) for column in zip(*counts, strict=True)))


def has_user(root: Path, user_id: str) -> bool | None:
    """Whether a partition under a root has a row of a user; None where there is no state.

    Raises:
        StateError: a partition can't be read.
    """
    paths = [partition_path(root, number) for number in _partitions(root)]
    if not paths:
        return None
    with _opened(paths) as stores:
        return any(store.get([b"u:" + user_id.encode()])[0] is not None for store in stores)


def _items_apart(root: Path) -> int:
    """Rows of the stores of items, which a state of several partitions has beside those of users."""
    with _opened([path for path in state_directories(root) if path.name.startswith("items-")]) as stores:
        return _count(stores, b"i:")


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[list[ReadOnlyStore]]:
    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch("secondary"))
        stores = []
        for path in paths:
            stores.append(ReadOnlyStore(path, scratch / path.name))
            stack.callback(stores[-1].close)
        yield stores


def _partitions(root: Path) -> list[int]:
    check_whole(root)
    names = (path.name.rpartition("-") for path in state_directories(root))
    return sorted(int(number) for kind, _, number in names if kind == "partition")


def _count(stores: Sequence[ReadableStore], prefix: bytes) -> int:
    return sum(1 for store in stores for _ in store.scan(prefix))
