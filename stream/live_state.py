"""The state that workers keep on this host, read as it lies on disk: its hash, its size, its offsets.

Reads through a RocksDB secondary, so a worker may run meanwhile and nothing of its is changed. Each partition is read
as of one commit; with several partitions and a running worker these commits are not of one moment.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from configs.errors import StateError
from stream.layout import read_layout
from stream.store import ReadableStore, ReadOnlyStore, partition_path, state_directories, state_sha256


@dataclass(frozen=True, slots=True)
class LiveState:
    """What lies under `state.root`.

    Attributes:
        state_sha256: over the partitions that lie here.
        users, items: rows; items only with one partition.
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
            items=_count(stores, b"i:"),
            partitions=read_layout(root)["partitions"],
            next_offset={number: int(offset or 0) for number, (offset, _) in zip(numbers, meta, strict=True)},
            graph={
                number: orjson.loads(graph)["sha256"] if graph else ""
                for number, (_, graph) in zip(numbers, meta, strict=True)
            },
        )


def count_too_late(root: Path) -> int:
    """Events that came too late to change the state, over all partitions under a root; reads all that is there.

    Raises:
        StateError: a partition can't be read, or holds damaged data.
    """
    with _opened(state_directories(root)) as stores:
        for store in stores:
            deque(store.scan(b""), maxlen=0)
        return sum(int(store.get([b"m:too_late"])[0] or 0) for store in stores)


@contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[list[ReadOnlyStore]]:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="driftline-secondary-")))
        stores = []
        for path in paths:
            stores.append(ReadOnlyStore(path, scratch / path.name))
            stack.callback(stores[-1].close)
        yield stores


def _partitions(root: Path) -> list[int]:
    names = (path.name.rpartition("-") for path in state_directories(root))
    return sorted(int(number) for kind, _, number in names if kind == "partition")


def _count(stores: Sequence[ReadableStore], prefix: bytes) -> int:
    return sum(1 for store in stores for _ in store.scan(prefix))
