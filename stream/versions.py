"""Trained graph versions on their way from the trainer to the workers, and the record of where each was adopted.

The topic `graph-versions` holds two kinds of records, told apart by the header `kind`: `weights`, one graph version in
parts of at most `PART_BYTES`, and `adoption`, which says at which offset of which partition a worker changed to it and
which version it replaced. A worker keeps the weights that it adopted under `state.root`/graph, written before the
adoption is committed, so that a restart goes on with the same version whatever the topic still holds.
"""

from __future__ import annotations

import os
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
from configs.settings import Settings
from graph.memory import Float32, GraphMemory
from stream.processor import Outgoing, Processor

TOPIC = "graph-versions"
PART_BYTES = 512 * 1024


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
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise StateError(
            f"a graph version does not fit: {str(error)[:300]}. Trainer and workers need the same graph.* settings."
        ) from None
    vectors: dict[str, Float32] = {}
    if "items.ids" in tensors:
        ids = orjson.loads(tensors["items.ids"].numpy().tobytes())
        vectors = dict(zip(ids, tensors["items.memory"].numpy(), strict=True))
    return GraphVersion(model.version(), blob, model, vectors)


class GraphVersions:
    """The newest trained version, and those that the state of this host was made with."""

    def __init__(
        self, settings: Settings, bootstrap: str, send: Callable[[Sequence[Outgoing]], Awaitable[None]]
    ) -> None:
        self.settings, self._bootstrap, self._send = settings, bootstrap, send
        self.newest: GraphVersion | None = None

    def load(self, sha256: str) -> GraphMemory:
        """The weights of a version that was adopted here.

        Raises:
            StateError: its file is gone or damaged.
        """
        path = version_path(self.settings, sha256)
        if not path.is_file():
            raise StateError(
                f"the state was made with graph version {sha256[:12]}, but {path} is gone; "
                "restore the file, or move state.root away to rebuild the state"
            )
        return decode_version(self.settings, path.read_bytes()).model

    def due(self, processor: Processor) -> bool:
        """Whether a newer version waits to be adopted."""
        return self.newest is not None and adopted(processor)[0] != self.newest.sha256

    async def adopt(self, processor: Processor) -> None:
        """Changes a partition to the newest version from its next offset on, and says so in the log."""
        if self.newest is None:
            return
        self._keep(self.newest)
        vectors = self.newest.item_vectors if not processor.local_items else None
        changes = processor.adopt(self.newest.model, dict(vectors) if vectors else None)
        processor.commit(changes)
        await self._send(changes.outgoing)

    async def follow(self) -> None:
        """Reads the topic for ever and keeps the newest complete version."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap.split(","), enable_auto_commit=False)
        await consumer.start()
        try:
            place = TopicPartition(self.settings.broker.prefix + TOPIC, 0)
            consumer.assign([place])
            await consumer.seek_to_beginning(place)
            parts: list[bytes] = []
            async for record in consumer:
                headers = dict(record.headers)
                if headers.get("kind") == b"weights":
                    parts = self._collect(parts, record, headers)
        finally:
            await consumer.stop()

    def _collect(self, parts: list[bytes], record: Any, headers: dict[str, bytes]) -> list[bytes]:
        part, total = (int(number) for number in headers["part"].split(b"/"))
        parts = [*(parts if part else []), record.value]
        if part == total - 1 and len(parts) == total:
            self.newest = decode_version(self.settings, b"".join(parts))
        return parts

    def _keep(self, version: GraphVersion) -> None:
        path = version_path(self.settings, version.sha256)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(f"{path}.{os.getpid()}")
        with temporary.open("wb") as file:
            file.write(version.blob)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)


def version_path(settings: Settings, sha256: str) -> Path:
    """Where a worker keeps the weights of a version that it adopted."""
    return settings.state.root / "graph" / f"{sha256}.safetensors"


def adopted(processor: Processor) -> tuple[str, int]:
    """(sha256, offset) of the version that a partition adopted last; ("", 0) for the seeded version."""
    (value,) = processor.store.get([b"m:graph"])
    if not value:
        return "", 0
    data = orjson.loads(value)
    return data["sha256"], data["offset"]
