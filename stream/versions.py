"""Trained graph versions on their way from the trainer to the workers, and the record of where each was adopted.

The topic `graph-versions` holds two kinds of records, told apart by the header `kind`: `weights`, one graph version in
parts of at most `PART_BYTES`, and `adoption`, which says at which offset of which partition a worker changed to it and
which version it replaced. A worker keeps the weights that it adopted under `state.root`/graph, written before the
adoption is committed, so that a restart goes on with the same version whatever the topic still holds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from aiokafka import AIOKafkaConsumer, TopicPartition
from safetensors import SafetensorError
from safetensors.torch import load, save

from configs.errors import StateError
from configs.security import client_options
from configs.settings import Settings
from graph.memory import Float32, GraphMemory
from stream.consumer import calm
from stream.durable import write_durably
from stream.items import ItemProcessor
from stream.processor import Processor
from stream.records import Outgoing
from stream.store import StateStore

TOPIC = "graph-versions"
PART_BYTES = 512 * 1024
POLL_MS = 1000
LOG = logging.getLogger(__name__)
_PLACE = re.compile(rb"(\d{1,6})/(\d{1,6})")


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
    tensors = {f"model.{name}": value.detach().clone() for name, value in model.state_dict().items()}
    if item_vectors:
        tensors["items.memory"] = torch.from_numpy(np.stack(list(item_vectors.values())))
        tensors["items.ids"] = torch.frombuffer(bytearray(orjson.dumps(list(item_vectors))), dtype=torch.uint8)
    blob, sha256 = save(tensors), model.version()
    parts = [blob[start : start + PART_BYTES] for start in range(0, len(blob), PART_BYTES)]
    return [
        Outgoing(TOPIC, sha256.encode(), part, (("kind", b"weights"), ("part", b"%d/%d" % (n, len(parts)))))
        for n, part in enumerate(parts)
    ]


def decode_version(settings: Settings, blob: bytes) -> GraphVersion:
    """The version that `encode_version` wrote.

    Raises:
        StateError: the bytes are damaged or belong to a graph of another shape.
    """
    model = GraphMemory(settings.graph)
    try:
        tensors = load(blob)
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        model.load_state_dict(weights)
        vectors = _vectors(tensors, settings.graph.memory_dim)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise StateError(
            f"a graph version does not fit: {str(error)[:300]}. Trainer and workers need the same graph.* settings."
        ) from None
    return GraphVersion(model.version(), blob, model, vectors)


def _vectors(tensors: dict[str, torch.Tensor], memory_dim: int) -> dict[str, Float32]:
    """The item epoch of a version, empty if it has none. Raises ValueError or KeyError if it does not fit."""
    if "items.ids" not in tensors:
        return {}
    ids, memory = orjson.loads(tensors["items.ids"].numpy().tobytes()), tensors["items.memory"].numpy()
    if memory.shape != (len(ids), memory_dim):
        raise ValueError(f"item vectors have the shape {memory.shape}, expected {(len(ids), memory_dim)}")
    return dict(zip(ids, memory, strict=True))


class GraphVersions:
    """The newest trained version, and those that the state of this host was made with."""

    def __init__(
        self, settings: Settings, bootstrap: str, send: Callable[[Sequence[Outgoing]], Awaitable[None]]
    ) -> None:
        self.settings, self._bootstrap, self._send = settings, bootstrap, send
        self.newest: GraphVersion | None = None
        self._parts: list[bytes] = []
        self._complete: bytes | None = None

    def load(self, sha256: str) -> GraphVersion:
        """A version that was adopted here, with its item epoch.

        Raises:
            StateError: its file is gone or damaged.
        """
        path = version_path(self.settings, sha256)
        if not path.is_file():
            raise StateError(
                f"the state was made with graph version {sha256[:12]}, but {path} is gone; "
                "restore the file, or move state.root away to rebuild the state"
            )
        return decode_version(self.settings, path.read_bytes())

    def due(self, owner: Processor | ItemProcessor) -> bool:
        """Whether a newer version waits to be adopted."""
        return self.newest is not None and adopted(owner.store)[0] != self.newest.sha256

    async def adopt(self, owner: Processor | ItemProcessor) -> None:
        """Changes a partition to the newest version from its next offset on; one of users says so in the log."""
        if self.newest is None:
            return
        version = self._kept(self.newest)
        if isinstance(owner, ItemProcessor):
            changes = owner.adopt(version.model)
        else:
            changes = owner.adopt(version.model, None if owner.local_items else version.item_vectors)
        owner.store.commit(changes.puts)
        await self._send(changes.outgoing)
        if isinstance(owner, Processor):
            owner.acknowledged = True

    async def follow(self) -> None:
        """Reads the topic for ever and keeps the newest complete version."""
        options = client_options(self.settings.broker, self._bootstrap)
        consumer = calm(AIOKafkaConsumer(enable_auto_commit=False, **options))
        await consumer.start()
        try:
            place = TopicPartition(self.settings.broker.prefix + TOPIC, 0)
            consumer.assign([place])
            end = (await consumer.end_offsets([place]))[place]
            await consumer.seek_to_beginning(place)
            while True:
                records = (await consumer.getmany(place, timeout_ms=POLL_MS)).get(place, [])
                self.take(records, caught_up=await consumer.position(place) >= end)
        finally:
            await consumer.stop()

    def take(self, records: Sequence[Any], caught_up: bool) -> None:
        """Takes records of the topic in; the last complete version becomes `newest`.

        Args:
            records: in order, each with `key`, `value`, `headers` and `offset`.
            caught_up: False while older records follow: what is complete so far may be out of date, so it waits.
        """
        for record in records:
            headers = dict(record.headers)
            if headers.get("kind") == b"weights":
                self._collect(record, headers.get("part") or b"")
        if caught_up and self._complete is not None:
            blob, self._complete = self._complete, None
            try:
                self.newest = decode_version(self.settings, blob)
            except StateError as error:
                LOG.warning("a version on %s is passed over: %s", TOPIC, error)

    def _collect(self, record: Any, place: bytes) -> None:
        found = _PLACE.fullmatch(place)
        if found is None:
            LOG.warning("record %d of %s is passed over: header part is %r", record.offset, TOPIC, place[:80])
            return
        part, total = int(found[1]), int(found[2])
        self._parts = [*(self._parts if part else []), record.value or b""]
        if part == total - 1 and len(self._parts) == total:
            self._complete, self._parts = b"".join(self._parts), []

    def _kept(self, version: GraphVersion) -> GraphVersion:
        """The version as this host keeps it: the first of its weights that came, with its item epoch."""
        path = version_path(self.settings, version.sha256)
        if not path.exists():
            write_durably(path, version.blob)
            return version
        return version if path.read_bytes() == version.blob else self.load(version.sha256)


def version_path(settings: Settings, sha256: str) -> Path:
    """Where a worker keeps the weights of a version that it adopted."""
    return settings.state.root / "graph" / f"{sha256}.safetensors"


def adopted(store: StateStore) -> tuple[str, int]:
    """(sha256, offset) of the version that a partition adopted last; ("", 0) for the seeded version."""
    (value,) = store.get([b"m:graph"])
    if not value:
        return "", 0
    data = orjson.loads(value)
    return data["sha256"], data["offset"]
