"""Feature store: the profiles that an LLM wrote, as the topic `profiles` brings them. Never imports the LLM.

Two tiers, both in memory: every record as the bytes that came, and what was asked for lately as decoded profiles. A
hit costs microseconds; a miss is None at once, and whoever asked goes on without a profile. The newest two versions of
a user are kept, so that one that is not valid yet does not hide the one before.

What a record holds is said in graph/profile.py; an empty value forgets the user.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from driftline.configs.errors import InputError
from driftline.configs.settings import Broker
from driftline.graph.profile import parse_profile
from driftline.graph.view import FACETS, ProfileVectors
from driftline.serving.follower import Follower
from driftline.serving.partitions import LastWords

LOG = logging.getLogger(__name__)
_DECODED = 4096


@dataclass(frozen=True, slots=True)
class StoredProfile:
    """One version of one user's profile, as texts and as vectors."""

    user_id: str
    text: str
    facets: tuple[tuple[str, str], ...]
    vectors: ProfileVectors


class ProfileStore:
    """Profiles by user. Filled by `ProfileFollower`, or directly.

    Args:
        capacity: users kept; past it the one written longest ago is dropped.
        text_dim: width of the vectors that the models read; None = any, 0 = they read none.
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
        self.on_forget: list[Callable[[str], None]] = []
        """Called with each user whose tombstone comes: a worker that forgets a user always sends one."""

    def __len__(self) -> int:
        return len(self._raw)

    def put(self, key: bytes | None, value: bytes | None) -> bool:
        """Takes one record of the topic; whether it could be read. One that can't is counted and left out."""
        try:
            profile = decode_profile(value) if value else None
            width = profile.vectors.facets.shape[1] if profile is not None else None
            if width and self._text_dim not in (None, 0, width):
                raise ValueError(f"vectors of width {width}, expected ranker.text_dim {self._text_dim}")
            user_id = profile.user_id if profile is not None else (key or b"").decode()
        except (InputError, ValueError) as error:
            self.invalid += 1
            LOG.warning("profile record of key %r left out: %r", key, error)
            return False
        with self._lock:
            self.version += 1
            versions = self._raw.pop(user_id, {})
            for replaced in versions.values():
                self._decoded.pop(replaced, None)  # nobody asks for it again, and its text may be to be forgotten
            if profile is not None and value:
                versions = {**versions, profile.vectors.version: value}
                self._raw[user_id] = dict(sorted(versions.items(), reverse=True)[:2])
            if len(self._raw) > self._capacity:
                _, versions = self._raw.popitem(last=False)
                for replaced in versions.values():
                    self._decoded.pop(replaced, None)
        if profile is None:
            for forget in self.on_forget:
                forget(user_id)
        return True

    def get(self, user_id: str, at_ms: int) -> StoredProfile | None:
        """The newest profile that is valid at an event time; None at once if there is none."""
        for raw in self._raw.get(user_id, {}).values():
            stored = self._decode(user_id, raw)
            if stored.vectors.valid_from_ms <= at_ms:
                return stored
        return None

    def _decode(self, user_id: str, raw: bytes) -> StoredProfile:
        stored = self._decoded.get(raw)
        if stored is None:
            stored = decode_profile(raw)
            if self._text_dim == 0:
                none = np.zeros((len(FACETS), 0), np.float32)
                stored = replace(stored, vectors=replace(stored.vectors, facets=none))
            with self._lock:
                if raw in self._raw.get(user_id, {}).values():  # else it was taken back meanwhile
                    self._decoded[raw] = stored
                if len(self._decoded) > _DECODED:
                    self._decoded.popitem(last=False)
        return stored


def decode_profile(value: bytes) -> StoredProfile:
    """A profile from a record's value.

    Raises:
        InputError: it is not one.
    """
    written = parse_profile(value)
    facets = np.zeros((len(FACETS), 0), np.float32) if written.vectors is None else written.vectors
    vectors = ProfileVectors(facets, written.valid_from_ms, written.version, written.source)
    said = tuple((facet, text) for facet, text in written.facets.items() if text)
    return StoredProfile(written.user_id, written.text, said, vectors)


class _IntoStore:
    """Records of the topic `profiles` as a store takes them."""

    def __init__(self, store: ProfileStore) -> None:
        self._store, self._words = store, LastWords()

    def begin(self, bounds: dict[int, tuple[int, int]]) -> None:
        """See Reader; a store keeps what it has."""

    def take(self, key: bytes | None, value: bytes | None, partition: int, t_ms: int) -> None:
        """See Reader; a record that is older than one of the user in another partition is left out."""
        if not key or self._words.is_last(key, partition, t_ms):
            self._store.put(key, value)

    def taken(self, at_end: bool) -> None:
        """See Reader; a store has nothing to do."""


class ProfileFollower(Follower):
    """Reads the topic `profiles` from its beginning into a store, in a thread, for as long as it is open.

    Args:
        store: what to fill.
        broker: how the client makes itself known, and the prefix of the topic.
        bootstrap: Kafka servers; while they can't be reached the store stays as it is and the thread tries again.
    """

    def __init__(self, store: ProfileStore, broker: Broker, bootstrap: str) -> None:
        super().__init__(_IntoStore(store), broker, bootstrap, "profiles")
