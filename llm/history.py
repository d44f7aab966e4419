"""The profiles of a log for replay: from a profile file where it has one, from the template where it has none.

Every request of the log gets a profile, so that whether a user has one says nothing but that its request fell due.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.settings import Settings
from graph.view import Profile as ProfileView
from llm.client import TemplateClient
from llm.encoder import TextEncoder
from llm.generator import ProfileGenerator
from llm.offline import LogEvent, requests_of_log
from llm.profile import Profile, read_header, read_profiles, with_vectors
from llm.request import CatalogueItem


@dataclass(slots=True)
class ProfileHistory:
    """Every version of every user's profile.

    Attributes:
        about: what a report says of them: file, source, prompt_sha256, and profiles by source.
    """

    about: dict[str, Any]
    by_user: dict[str, list[Profile]] = field(default_factory=dict)

    def at(self, user_id: str, t_ms: int) -> Profile | None:
        """The newest profile that is valid at an event time."""
        versions = self.by_user.get(user_id, [])
        n = bisect_right(versions, t_ms, key=lambda profile: profile.valid_from_ms)
        return versions[n - 1] if n else None

    def view_at(self, user_id: str, t_ms: int) -> ProfileView | None:
        """The same as scorers read it."""
        profile = self.at(user_id, t_ms)
        return profile.view() if profile else None


def profiles_of_log(
    events: Iterable[LogEvent],
    catalogue: Mapping[str, CatalogueItem],
    settings: Settings,
    encoder: TextEncoder,
    path: Path | None = None,
) -> ProfileHistory:
    """The profiles of a log, with vectors.

    Args:
        events: in order of time.
        path: a profile file; None = the template for every request.

    Raises:
        InputError: the file can't be read, or it holds no profile of this log.
    """
    requests = list(requests_of_log(events, catalogue, settings))
    about: dict[str, Any] = {"file": str(path) if path else "", "source": TemplateClient.source}
    written: dict[tuple[str, int, int], Profile] = {}
    if path:
        header = read_header(path)
        about |= {key: header.get(key) for key in ("source", "prompts", "prompt_sha256")}
        written = {(p.user_id, p.version, p.as_of_ms): p for p in read_profiles(path)}
    found = [written.get((r.user_id, r.version, r.as_of_ms)) for r in requests]
    if written and requests and not any(found):
        raise InputError(
            f"{path} holds {len(written)} profiles, but none of the {len(requests)} requests of this log; it was "
            "made from other events, or with another profiles.first_events or profiles.refresh_events"
        )
    template = ProfileGenerator(TemplateClient(), settings.profiles)
    missing = iter(template.generate([r for r, p in zip(requests, found, strict=True) if p is None]))
    profiles = with_vectors([profile or next(missing) for profile in found], encoder)
    history = ProfileHistory(about | {"profiles": dict(Counter(profile.source for profile in profiles))})
    for profile in profiles:
        history.by_user.setdefault(profile.user_id, []).append(profile)
    return history
