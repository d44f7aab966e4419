"""Feature store: the profiles that an LLM wrote, as the topic `profiles` brings them. Never imports the LLM.

Two tiers, both in memory: every record as the bytes that came, and what was asked for lately as decoded profiles. A
hit costs microseconds; a miss is None at once, and whoever asked goes on without a profile. The newest two versions of
a user are kept, so that one that is not valid yet does not hide the one before.

A record is JSON: user_id, text, facets {name: text}, source, version, valid_from_ms, and embedding: one unit vector for
each facet, [4][text_dim] numbers or base64 of little-endian float16. An empty value forgets the user.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from configs.security import client_options
from configs.settings import Broker
from graph.rows import Float32
from graph.view import Profile

LOG = logging.getLogger(__name__)
FACETS = ("crowd", "interests", "categories", "brands")
_DECODED = 4096
_RETRY_S = 1.0
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """One version of one user's profile, as texts and as vectors."""

    user_id: str
    text: str
    facets: tuple[tuple[str, str], ...]
    vectors: Profile


class ProfileStore:
    """Profiles by user. Filled by `ProfileFollower`, or directly.

    Args:
        capacity: users kept; past it the one written longest ago is dropped.
        text_dim: width of the vectors that the models read; None = any.
    """

    def __init__(self, capacity: int = 1_000_000, text_dim: int | None = None) -> None:
        self._capacity, self._text_dim = capacity, text_dim
        self._raw: OrderedDict[str, dict[int, bytes]] = OrderedDict()
        self._decoded: OrderedDict[bytes, StoredProfile] = OrderedDict()
        self._lock = threading.Lock()
        self.invalid = 0
        """Records that could not be read."""
        self.version = 0
        """Counts up with each accepted record."""

    def __len__(self) -> int:
        return len(self._raw)

    def put(self, key: bytes | None, value: bytes | None) -> bool:
        """Takes one record of the topic; whether it could be read. One that can't is counted and left out."""
        try:
            profile = decode_profile(value) if value else None
            width = profile.vectors.facets.shape[1] if profile is not None else None
            if width is not None and self._text_dim not in (None, width):
                raise ValueError(f"vectors of width {width}, expected ranker.text_dim {self._text_dim}")
            user_id = profile.user_id if profile is not None else (key or b"").decode()
        except (ValueError, KeyError, TypeError) as error:
            self.invalid += 1
            LOG.warning("profile record of key %r left out: %r", key, error)
            return False
        with self._lock:
            self.version += 1
            versions = self._raw.pop(user_id, {})
            if profile is not None and value:
                versions = {**versions, profile.vectors.version: value}
                self._raw[user_id] = dict(sorted(versions.items(), reverse=True)[:2])
            if len(self._raw) > self._capacity:
                self._raw.popitem(last=False)
        return True

    def get(self, user_id: str, at_ms: int) -> StoredProfile | None:
        """The newest profile that is valid at an event time; None at once if there is none."""
        for raw in self._raw.get(user_id, {}).values():
            stored = self._decode(raw)
            if stored.vectors.valid_from_ms <= at_ms:
                return stored
        return None

    def _decode(self, raw: bytes) -> StoredProfile:
        stored = self._decoded.get(raw)
        if stored is None:
            stored = decode_profile(raw)
            with self._lock:
                self._decoded[raw] = stored
                if len(self._decoded) > _DECODED:
                    self._decoded.popitem(last=False)
        return stored


def decode_profile(value: bytes) -> StoredProfile:
    """A profile from a record's value.

    Raises:
        ValueError, KeyError, TypeError: it is not one.
    """
    data: dict[str, Any] = orjson.loads(value)
    texts = {str(name): str(text) for name, text in dict(data["facets"]).items()}
    vectors = Profile(
        facets=_vectors(data.get("embedding")),
        valid_from_ms=_whole(data["valid_from_ms"], 64),
        version=_whole(data.get("version", 0), 32),
        source=str(data.get("source", "")),
    )
    return StoredProfile(str(data["user_id"]), str(data.get("text", "")), tuple(texts.items()), vectors)


def _whole(value: Any, bits: int) -> int:
    """A number that fits into the answers' messages."""
    number, end = int(value), 2 ** (bits - 1)
    if not -end <= number < end:
        raise ValueError(f"got {number}, expected a signed number of {bits} bits")
    return number


def _vectors(embedding: Any) -> Float32:
    if not embedding:
        return np.zeros((len(FACETS), 0), np.float32)
    if isinstance(embedding, str):
        flat = np.frombuffer(base64.b64decode(embedding), "<f2").astype(np.float32)
    else:
        flat = np.asarray(embedding, np.float32).ravel()
    if flat.size % len(FACETS) or not np.isfinite(flat).all():
        raise ValueError(f"embedding has {flat.size} finite or other values, expected {len(FACETS)} equal unit vectors")
    return flat.reshape(len(FACETS), -1)


class ProfileFollower:
    """Reads the topic `profiles` from its beginning into a store, in a thread, for as long as it is open.

    Args:
        store: what to fill.
        broker: how the client makes itself known, and the prefix of the topic.
        bootstrap: Kafka servers; while they can't be reached the store stays as it is and the thread tries again.
    """

    def __init__(self, store: ProfileStore, broker: Broker, bootstrap: str) -> None:
        self._store, self._topic = store, broker.prefix + "profiles"
        self._options = client_options(broker, bootstrap)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="profile-follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops reading."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _follow(self) -> None:
        from kafka.errors import KafkaError  # half a second that a server without profiles need not wait

        while not self._stop.is_set():
            try:
                self._read_until_error()
            except (KafkaError, OSError, ValueError) as error:
                LOG.info("topic %s can't be read yet, trying again: %r", self._topic, error)
            self._stop.wait(_RETRY_S)

    def _read_until_error(self) -> None:
        from kafka import KafkaConsumer, TopicPartition

        consumer = KafkaConsumer(**self._options, group_id=None, enable_auto_commit=False, auto_offset_reset="earliest")
        try:
            partitions = consumer.partitions_for_topic(self._topic)
            if not partitions:
                return
            assigned = [TopicPartition(self._topic, number) for number in sorted(partitions)]
            consumer.assign(assigned)
            consumer.seek_to_beginning(*assigned)
            batch: dict[Any, list[Any]] = {}
            while not self._stop.wait(0 if batch else _PAUSE_S):
                batch = consumer.poll(timeout_ms=0, max_records=2000)  # a time limit would keep a core busy asking
                for records in batch.values():
                    for record in records:
                        self._store.put(record.key, record.value)
        finally:
            consumer.close()
