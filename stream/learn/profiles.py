"""Profiles as a stream brings them: kept by user and event time, read as of a request."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from driftline.configs.errors import InputError
from driftline.graph.profile import parse_profile
from driftline.graph.view import FACETS, ProfileVectors
from driftline.serving.partitions import LastWords

KEPT = 4
"""Newest versions of a user's profile that are kept."""


class StreamProfiles:
    """Records of the topic `profiles`, decoded; each is valid from the event time that it carries.

    Args:
        text_dim: width of the vectors that learning reads; 0 = it reads none.
    """

    made_on_request = False

    def __init__(self, text_dim: int) -> None:
        self._shape = (len(FACETS), text_dim)
        self._valid: dict[str, list[ProfileVectors]] = {}
        self.words, self.invalid = LastWords(), 0

    def at(self, user_id: str, now_ms: int) -> ProfileVectors | None:
        """The newest profile that is valid at `now_ms`."""
        profiles = self._valid.get(user_id, [])
        newest = bisect_right(profiles, now_ms, key=lambda profile: profile.valid_from_ms)
        return profiles[newest - 1] if newest else None

    def request(self, record: bytes) -> None:
        """The profiler process answers requests, not the trainer."""

    def forget(self, user_id: str) -> None:
        """Drops every version of a user's profile, as a tombstone asks."""
        self._valid.pop(user_id, None)

    def take(self, value: bytes) -> None:
        """One record; one that is no profile, or has no finite vectors of this width, is counted and left out.

        Where learning reads no vectors nothing is taken.
        """
        if not self._shape[1]:
            return
        try:
            written = parse_profile(value)
        except InputError:
            self.invalid += 1
            return
        if written.vectors is None or written.vectors.shape != self._shape or not np.isfinite(written.vectors).all():
            self.invalid += 1
            return
        vectors = np.ascontiguousarray(written.vectors, np.float32)
        profile = ProfileVectors(vectors, written.valid_from_ms, written.version, written.source)
        kept = [p for p in self._valid.get(written.user_id, []) if p.version != profile.version] + [profile]
        self._valid[written.user_id] = sorted(kept, key=lambda p: (p.valid_from_ms, p.version))[-KEPT:]
