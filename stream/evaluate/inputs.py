"""Texts and profiles as a replay's engine arms read them: the same encoder, policy and validity as live.

Profiles come from a file (the lines of `profiles.log`) where it has one for a request, else from the template; each is
valid from its request's time plus `profiles.delay_ms`, so that no profile knows more than its user had done.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from graph.view import Profile
from llm.client import TemplateClient
from llm.encoder import TextEncoder
from llm.generator import ProfileGenerator
from llm.offline import LogEvent, requests_of_log
from llm.profile import Profile as Written
from llm.profile import read_profiles
from llm.refresh import due_version
from llm.request import CatalogueItem, read_request

if TYPE_CHECKING:
    from configs.settings import Settings
    from graph.rows import Float32
    from graph.view import Int64
    from stream.evaluate.arms import Setup
    from stream.evaluate.log import EventLog
    from stream.events import Item


def text_vectors(items: Mapping[str, Item], encoder: TextEncoder) -> dict[str, Float32]:
    """Unit text vectors of the items that say something."""
    texts = {item_id: item.description() for item_id, item in items.items()}
    texts = {item_id: text for item_id, text in texts.items() if text}
    vectors = encoder.encode(list(texts.values()))
    return dict(zip(texts, vectors, strict=True))


def catalogue_of(items: Mapping[str, Item]) -> dict[str, CatalogueItem]:
    """The items as prompts name them."""
    return {i: CatalogueItem(item.title or item.text, item.categories, item.brand) for i, item in items.items()}


class ReplayProfiles:
    """Profiles by user and time: those of a file, the template's where the file has none."""

    def __init__(
        self, settings: Settings, items: Mapping[str, Item], encoder: TextEncoder, written: Sequence[Written]
    ) -> None:
        self._settings = settings.profiles
        self._catalogue = catalogue_of(items)
        self._template = ProfileGenerator(TemplateClient(), settings.profiles, encoder)
        self._from_file = {(profile.user_id, profile.version): profile for profile in written}
        self._valid: dict[str, tuple[list[int], list[Profile]]] = {}

    def at(self, user_id: str, now_ms: int) -> Profile | None:
        """The newest profile that is valid at `now_ms`."""
        times, profiles = self._valid.get(user_id, ([], []))
        newest = bisect_right(times, now_ms)
        return profiles[newest - 1] if newest else None

    def request(self, record: bytes) -> None:
        """Answers a profile request at once; its profile is valid later."""
        request = read_request(record, self._catalogue, self._settings)
        written = self._from_file.get((request.user_id, request.version))
        if written is None or written.as_of_ms > request.as_of_ms:
            written = self._template.generate([request])[0]
        if written.vectors is None:
            return
        valid_from_ms = request.as_of_ms + self._settings.delay_ms
        times, profiles = self._valid.setdefault(request.user_id, ([], []))
        profile = Profile(np.ascontiguousarray(written.vectors), valid_from_ms, written.version, written.source)
        at = bisect_right(times, valid_from_ms)
        times.insert(at, valid_from_ms)
        profiles.insert(at, profile)


def replay_texts(setup: Setup) -> dict[str, Float32]:
    """Text vectors of the items file; made once for all passes of a replay."""
    if "texts" not in setup.shared:
        setup.shared["texts"] = text_vectors(setup.items, _encoder(setup)) if setup.items else {}
    texts: dict[str, Float32] = setup.shared["texts"]
    return texts


def replay_profiles(setup: Setup) -> ReplayProfiles | None:
    """Profiles of a replay; None without an items file, since a profile speaks of titles.

    Those that were written from events at the end of the log, or past it, do not exist.
    """
    if not setup.items:
        return None
    written = read_profiles(setup.profiles, _encoder(setup)) if setup.profiles else []
    written = [profile for profile in written if profile.as_of_ms < setup.log.t_ms[-1]]
    if "facets" not in setup.shared:
        setup.shared["facets"] = _encode_ahead(setup)
    return ReplayProfiles(setup.settings, setup.items, _encoder(setup), written)


def profile_sources(setup: Setup, groups: Int64) -> list[str]:
    """Whose profile each of these groups reads in a replay: "file", "template" or "none"; groups are ascending."""
    if not setup.items:
        return ["none"] * len(groups)
    log, settings = setup.log, setup.settings.profiles
    written = {(p.user_id, p.version): p.as_of_ms for p in read_profiles(setup.profiles)} if setup.profiles else {}
    asked, found = set(groups.tolist()), []
    events = [0] * len(log.user_ids)
    valid: list[list[tuple[int, str]]] = [[] for _ in log.user_ids]
    for number, (user, t_ms) in enumerate(zip(log.group_user.tolist(), log.group_t_ms.tolist(), strict=True)):
        if number in asked:
            found.append(next((source for from_ms, source in reversed(valid[user]) if from_ms <= t_ms), "none"))
        before, events[user] = events[user], events[user] + len(log.rows_of(number))
        version = due_version(before, events[user], settings)
        if version:
            as_of_ms = written.get((log.user_ids[user], version))
            source = "template" if as_of_ms is None or as_of_ms > t_ms else "file"
            valid[user].append((t_ms + settings.delay_ms, source))
    return found


def log_events(log: EventLog) -> Iterator[LogEvent]:
    """The rows of a log in order of their groups, as profile requests are made of them."""
    for row in log.group_rows.tolist():
        e = log.event(row)
        yield LogEvent(e.user_id, e.item_id, e.timestamp_ms, e.action, e.value, e.price, e.domain)


def _encode_ahead(setup: Setup) -> int:
    """Encodes what the template will say of the log, many texts a pass; returns how many.

    A profile is a function of its request alone, so this changes what a replay costs and nothing else.
    """
    settings, catalogue = setup.settings, catalogue_of(setup.items)
    template = ProfileGenerator(TemplateClient(), settings.profiles)
    profiles = template.generate(list(requests_of_log(log_events(setup.log), catalogue, settings)))
    texts = sorted({text for profile in profiles for text in profile.facets.values() if text})
    _encoder(setup).encode(texts)
    return len(texts)


def _encoder(setup: Setup) -> TextEncoder:
    if "encoder" not in setup.shared:
        setup.shared["encoder"] = TextEncoder(setup.settings.encoder)
    encoder: TextEncoder = setup.shared["encoder"]
    return encoder
