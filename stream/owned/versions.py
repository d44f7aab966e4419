"""Trained graph versions on their way from the trainer to the workers, and the record of where each was adopted.

The topic `graph-versions` holds two kinds of records, told apart by the header `kind`: `weights`, one graph version in
parts (stream/owned/parts.py), and `adoption`, which says at which offset of which partition a worker changed to it and
which version it replaced. A worker keeps the weights that it adopted under `state.root`/graph, written before the
adoption is committed, so that a restart goes on with the same version whatever the topic still holds;
stream/state/graphs.py says until when.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from numpy.typing import NDArray
from safetensors.numpy import load, save

from driftline.configs.errors import StateError
from driftline.configs.faults import point
from driftline.configs.security import consumer_options
from driftline.configs.settings import Settings
from driftline.graph.arrays import Float32
from driftline.graph.memory import GraphMemory
from driftline.stream.durable import write_durably
from driftline.stream.events.records import Outgoing
from driftline.stream.events.schema import MAX_ID_BYTES
from driftline.stream.kafka.consumer import calm
from driftline.stream.owned.parts import SHA256, TOPIC, Assembler, cut
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor
from driftline.stream.state.graphs import remove_unneeded
from driftline.stream.state.store import ReadableStore

POLL_MS = 1000
TRIED = 4
"""Of the versions that are read at once so many are tried, the newest first, until one makes sense."""
LOOK_EVERY_S = 600.0
"""Between two looks for files of versions that nobody needs."""
LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GraphVersion:
    """One trained graph.

    Attributes:
        sha256: of the weights.
        blob: weights and item vectors as safetensors bytes.
        item_vectors: [M] float32 by item id, the item epoch that goes with the weights.
    """

    sha256: str
    blob: bytes
    model: GraphMemory
    item_vectors: dict[str, Float32]


def encode_version(model: GraphMemory, item_vectors: dict[str, Float32]) -> list[Outgoing]:
    """The records that carry a version."""
    arrays: dict[str, NDArray[Any]] = {f"model.{name}": value for name, value in model.arrays.items()}
    if item_vectors:
        arrays["items.memory"] = np.stack(list(item_vectors.values()))
        arrays["items.ids"] = np.frombuffer(orjson.dumps(list(item_vectors)), np.uint8)
    return cut(model.version(), save(arrays))


def decode_version(settings: Settings, blob: bytes) -> GraphVersion:
    """The version that `encode_version` wrote.

    Raises:
        StateError: the bytes are damaged or belong to a graph of another shape.
    """
    try:
        arrays = _arrays(blob)
        weights = {name.removeprefix("model."): a for name, a in arrays.items() if name.startswith("model.")}
        model = GraphMemory(settings.graph, weights)
        if not all(np.isfinite(weight).all() for weight in model.arrays.values()):
            raise ValueError("its weights are not all finite numbers")
        vectors = _vectors(arrays, settings.graph.memory_dim)
    except Exception as error:  # noqa: BLE001 - bytes that anybody may have sent
        raise StateError(
            f"a graph version does not fit: {str(error)[:300]}. Trainer and workers need the same graph.* settings."
        ) from None
    return GraphVersion(model.version(), blob, model, vectors)


def _arrays(blob: bytes) -> dict[str, NDArray[Any]]:
    try:
        arrays: dict[str, NDArray[Any]] = load(blob)
    except KeyError as kind:
        raise ValueError(f"it holds numbers of the type {kind}, expected float32") from None
    return arrays


def _vectors(arrays: dict[str, NDArray[Any]], memory_dim: int) -> dict[str, Float32]:
    """The item epoch of a version, empty if it has none. Raises one error or another if it does not fit."""
    if "items.ids" not in arrays:
        return {}
    ids, memory = orjson.loads(arrays["items.ids"].tobytes()), np.array(arrays["items.memory"])
    if not isinstance(ids, list) or len(set(ids)) != len(ids):
        raise ValueError(f"item ids are {ids!r:.80}, expected a list of different ones")
    for item_id in ids:
        if not isinstance(item_id, str) or not 0 < len(item_id.encode()) <= MAX_ID_BYTES:
            raise ValueError(f"an item id is {item_id!r:.80}, expected text of 1 to {MAX_ID_BYTES} bytes")
    if memory.shape != (len(ids), memory_dim) or memory.dtype != np.float32 or not np.isfinite(memory).all():
        raise ValueError(
            f"item vectors are {memory.dtype} of the shape {memory.shape}, expected finite float32 of "
            f"{(len(ids), memory_dim)}"
        )
    return dict(zip(ids, memory, strict=True))


class GraphVersions:
    """The newest trained version, and those that the state of this host was made with."""

    def __init__(
        self, settings: Settings, bootstrap: str, send: Callable[[Sequence[Outgoing]], Awaitable[None]]
    ) -> None:
        self.settings, self._bootstrap, self._send = settings, bootstrap, send
        self.newest: GraphVersion | None = None
        self.read = asyncio.Event()
        """The topic was read to the end that it had."""
        self._assembler = Assembler()
        self._complete = deque[tuple[str, bytes]](maxlen=TRIED)
        self._look_s = 0.0
        self._looking: asyncio.Future[int] | None = None

    def load(self, sha256: str) -> GraphVersion:
        """A version that was adopted here, with its item epoch.

        Raises:
            StateError: its file is gone or damaged.
        """
        return load_version(self.settings, sha256)

    def due(self, owner: Processor | ItemProcessor) -> bool:
        """Whether a newer version waits to be adopted."""
        return self.newest is not None and adopted(owner.store)[0] != self.newest.sha256

    async def adopt(self, owner: Processor | ItemProcessor) -> None:
        """Changes a partition to the newest version from its next offset on; one of users says so in the log."""
        if self.newest is None:
            return
        version = keep_version(self.settings, self.newest)
        if isinstance(owner, ItemProcessor):
            changes = owner.adopt(version.model)
        else:
            changes = owner.adopt(version.model, None if owner.local_items else version.item_vectors)
        owner.commit(changes)
        point("adoption")
        await self._send(changes.outgoing)
        if isinstance(owner, Processor):
            owner.acknowledged = True
        self._remove_unneeded()

    def _remove_unneeded(self) -> None:
        """Removes files that nobody needs, beside the event loop and now and then."""
        if time.monotonic() >= self._look_s:
            self._look_s = time.monotonic() + LOOK_EVERY_S
            self._looking = asyncio.ensure_future(asyncio.to_thread(remove_unneeded, self.settings.state.root))

    async def follow(self) -> None:
        """Reads the topic for ever and keeps the newest complete version."""
        consumer = calm(AIOKafkaConsumer(**consumer_options(self.settings.broker, self._bootstrap)))
        await consumer.start()
        try:
            place = TopicPartition(self.settings.broker.prefix + TOPIC, 0)
            consumer.assign([place])
            end = (await consumer.end_offsets([place]))[place]
            await consumer.seek_to_beginning(place)
            caught_up = False
            while True:
                records = (await consumer.getmany(place, timeout_ms=POLL_MS)).get(place, [])
                caught_up |= await consumer.position(place) >= end  # a topic that is made anew ends before it again
                self.take(records, caught_up)
                if caught_up:
                    self.read.set()
        finally:
            await consumer.stop()

    def take(self, records: Sequence[Any], caught_up: bool) -> None:
        """Takes records of the topic in; the last complete version that makes sense becomes `newest`.

        Args:
            records: in order, each with `key`, `value`, `headers` and `offset`.
            caught_up: False while older records follow: what is complete so far may be out of date, so it waits.
        """
        for record in records:
            headers = dict(record.headers)
            if headers.get("kind") == b"weights" and (whole := self._assembler.take(record)) is not None:
                self._complete.append(whole)
        while caught_up and self._complete:
            sha256, blob = self._complete.pop()
            try:
                version = decode_version(self.settings, blob)
                if version.sha256 != sha256:
                    raise StateError(f"its weights are those of {version.sha256[:12]}, its key says {sha256[:12]}")
                self.newest = version
                self._complete.clear()
            except StateError as error:
                LOG.warning("a version on %s is passed over: %s", TOPIC, error)


def keep_version(settings: Settings, version: GraphVersion) -> GraphVersion:
    """The version as this host keeps it: the first of its weights that came, with its item epoch."""
    path = version_path(settings, version.sha256)
    try:
        os.utime(path)  # it is needed again, see stream/state/graphs.py
        kept = path.read_bytes()
    except FileNotFoundError:
        write_durably(path, version.blob)
        return version
    return version if kept == version.blob else load_version(settings, version.sha256)


def load_version(settings: Settings, sha256: str) -> GraphVersion:
    """A version that was adopted under `state.root`, with its item epoch.

    Raises:
        StateError: its file is gone or damaged.
    """
    path = version_path(settings, sha256)
    if not path.is_file():
        raise StateError(
            f"the state was made with graph version {sha256[:12]}, but {path} is gone; "
            "restore the file, or move state.root away to rebuild the state"
        )
    version = decode_version(settings, path.read_bytes())
    if version.sha256 != sha256:
        raise StateError(
            f"{path} holds graph version {version.sha256[:12]}; expected the one that it is named after: restore "
            "the file, or move state.root away to rebuild the state"
        )
    return version


def version_path(settings: Settings, sha256: str) -> Path:
    """Where a worker keeps the weights of a version that it adopted.

    Raises:
        StateError: that is no hash, but perhaps a path to somewhere else.
    """
    if not SHA256.fullmatch(sha256):
        raise StateError(f"a graph version is named {sha256!r:.80}; expected 64 hex digits")
    return settings.state.root / "graph" / f"{sha256}.safetensors"


def adopted(store: ReadableStore) -> tuple[str, int]:
    """(sha256, offset) of the version that a partition adopted last; ("", 0) for the seeded version."""
    (value,) = store.get([b"m:graph"])
    if not value:
        return "", 0
    data = orjson.loads(value)
    return data["sha256"], data["offset"]
