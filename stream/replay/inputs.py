"""Texts and profiles as a replay's engine arms read them: the same encoder, policy and validity as live.

Profiles come from a file (the lines of `profiles.log`) where it has one for a request, else from the template; each is
valid from its request's time plus `profiles.delay_ms`, so that no profile knows more than its user had done. Only what
the log touches is encoded: the items in it, and the profiles that a group of their user reads.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from driftline.graph.profile import Profile
from driftline.graph.view import ProfileVectors
from driftline.llm.client import TemplateClient
from driftline.llm.encoder import TextEncoder
from driftline.llm.generator import ProfileGenerator
from driftline.llm.offline import LogEvent, requests_of_log
from driftline.llm.profile import read_profiles, with_vectors
from driftline.llm.refresh import due_version
from driftline.llm.request import CatalogueItem, ProfileRequest, read_request

if TYPE_CHECKING:
    from driftline.configs.settings import Settings
    from driftline.graph.arrays import Float32, Int64
    from driftline.stream.events.schema import Item
    from driftline.stream.replay.arms import Setup
    from driftline.stream.replay.log import EventLog

ENCODED_AT_ONCE = 1024
"""Texts between two words on how far the encoder is."""
Say = Callable[[str, int, int], None]
"""Gets (what, done, total)."""


def quiet(what: str, done: int, total: int) -> None:
    """Says nothing."""


def text_vectors(items: Iterable[Item], encoder: TextEncoder, say: Say = quiet) -> dict[str, Float32]:
    """Unit text vectors of the items that say something."""
    texts = {item.item_id: item.description() for item in items}
    texts = {item_id: text for item_id, text in texts.items() if text}
    return dict(zip(texts, encoded(list(texts.values()), encoder, "item texts", say), strict=True))


def encoded(texts: Sequence[str], encoder: TextEncoder, what: str, say: Say = quiet) -> list[Float32]:
    """Unit vectors of texts, with a word on how far it is."""
    vectors: list[Float32] = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        vectors.extend(encoder.encode(texts[start : start + ENCODED_AT_ONCE]))
        say(what, len(vectors), len(texts))
    return vectors


def catalogue_of(items: Mapping[str, Item]) -> dict[str, CatalogueItem]:
    """The items as prompts name them."""
    return {i: CatalogueItem(item.title or item.text, item.categories, item.brand) for i, item in items.items()}


class ReplayProfiles:
    """Profiles by user and time: those of a file, the template's where the file has none.

    A profile is written and encoded when it is read for the first time: most users get one that nobody reads.
    """

    def __init__(
        self, settings: Settings, items: Mapping[str, Item], encoder: TextEncoder, written: Iterable[Profile]
    ) -> None:
        self._settings, self._encoder = settings.profiles, encoder
        self._catalogue = catalogue_of(items)
        self._template = ProfileGenerator(TemplateClient(), settings.profiles)
        self._from_file = {(profile.user_id, profile.version): profile for profile in written}
        self._valid: dict[str, tuple[list[int], list[ProfileRequest | ProfileVectors]]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> ReplayProfiles:
        """A copy with requests of its own; what answers them is a function of the request, and is shared."""
        other = copy.copy(self)
        other._valid = {user: (list(times), list(found)) for user, (times, found) in self._valid.items()}
        return other

    def at(self, user_id: str, now_ms: int) -> ProfileVectors | None:
        """The newest profile that is valid at `now_ms`."""
        times, found = self._valid.get(user_id, ([], []))
        newest = bisect_right(times, now_ms) - 1
        if newest < 0:
            return None
        one = found[newest]
        if isinstance(one, ProfileRequest):
            one = found[newest] = self._read(one, times[newest])
        return one

    def request(self, record: bytes) -> None:
        """Answers a profile request at once; its profile is valid later."""
        request = read_request(record, self._catalogue, self._settings)
        valid_from_ms = request.as_of_ms + self._settings.delay_ms
        times, found = self._valid.setdefault(request.user_id, ([], []))
        at = bisect_right(times, valid_from_ms)
        times.insert(at, valid_from_ms)
        found.insert(at, request)

    def _read(self, request: ProfileRequest, valid_from_ms: int) -> ProfileVectors:
        written = self.written(request.user_id, request.version, request.as_of_ms)
        if written is None:
            written = self._template.generate([request])[0]
        facets = with_vectors([written], self._encoder)[0].view().facets
        return ProfileVectors(np.ascontiguousarray(facets), valid_from_ms, written.version, written.source)

    def written(self, user_id: str, version: int, as_of_ms: int) -> Profile | None:
        """The profile that the file has for a request, None where it has none or one that knows more."""
        found = self._from_file.get((user_id, version))
        return None if found is None or found.as_of_ms > as_of_ms else found

    def encode_ahead(self, log: EventLog, settings: Settings, say: Say = quiet) -> None:
        """Encodes what the groups of a log will read, many texts a pass: it changes the cost, nothing else."""
        texts: dict[str, None] = {}
        unwritten: set[tuple[str, int]] = set()
        for user, version, as_of_ms in _read_requests(log, settings):
            found = self.written(log.user_ids[user], version, as_of_ms)
            if found is None:
                unwritten.add((log.user_ids[user], version))
            else:
                texts.update(dict.fromkeys(found.facets.values()))
        if unwritten:
            asked = requests_of_log(log_events(log), self._catalogue, settings)
            wanted = [request for request in asked if (request.user_id, request.version) in unwritten]
            for profile in self._template.generate(wanted):
                texts.update(dict.fromkeys(profile.facets.values()))
        texts.pop("", None)
        encoded(sorted(texts), self._encoder, "profiles", say)


def replay_texts(setup: Setup) -> dict[str, Float32]:
    """Text vectors of the items that a log touches; each made once for all passes of a replay."""
    texts: dict[str, Float32] = setup.shared.setdefault("texts", {})
    touched = (item_id for item_id in setup.log.item_ids if item_id not in texts)
    missing = [setup.items[item_id] for item_id in touched if item_id in setup.items]
    if missing:
        texts.update(text_vectors(missing, _encoder(setup), setup.say))
    return texts


def replay_profiles(setup: Setup) -> ReplayProfiles | None:
    """Profiles of a replay; None without an items file, since a profile speaks of titles.

    Those that were written from events past the end of the log do not exist.
    """
    if not setup.items:
        return None
    written = (profile for profile in _written(setup) if profile.as_of_ms <= setup.log.t_ms[-1])
    profiles = ReplayProfiles(setup.settings, setup.items, _encoder(setup), written)
    if "facets" not in setup.shared:
        profiles.encode_ahead(setup.log, setup.settings, setup.say)
        setup.shared["facets"] = True
    return profiles


def _written(setup: Setup) -> list[Profile]:
    """The profiles of the file, not encoded; read once for all passes."""
    if "written" not in setup.shared:
        setup.shared["written"] = read_profiles(setup.profiles) if setup.profiles else []
    written: list[Profile] = setup.shared["written"]
    return written


def _requests(log: EventLog, settings: Settings) -> Iterator[tuple[int, int, int]]:
    """(group, user, version) of each request of a log in order; its time is that of the group."""
    events = [0] * len(log.user_ids)
    sizes = np.diff(log.group_start).tolist()
    for number, (user, size) in enumerate(zip(log.group_user.tolist(), sizes, strict=True)):
        before, events[user] = events[user], events[user] + size
        if version := due_version(before, events[user], settings.profiles):
            yield number, user, version


def _read_requests(log: EventLog, settings: Settings) -> list[tuple[int, int, int]]:
    """(user, version, as_of_ms) of the requests whose profile some group of its user reads, in order."""
    asked: dict[int, list[tuple[int, int]]] = {}
    for number, user, version in _requests(log, settings):
        asked.setdefault(user, []).append((int(log.group_t_ms[number]), version))
    times = np.split(log.group_t_ms[np.argsort(log.group_user, kind="stable")], np.cumsum(np.bincount(log.group_user)))
    found = []
    for user, requests in asked.items():
        valid_ms = np.array([t_ms for t_ms, _ in requests]) + settings.profiles.delay_ms
        newest = np.searchsorted(valid_ms, times[user], side="right") - 1
        for place in np.unique(newest[newest >= 0]).tolist():
            found.append((user, requests[place][1], requests[place][0]))
    return found


def profile_sources(setup: Setup, groups: Int64) -> list[str]:
    """Whose profile each of these groups reads in a replay: "file", "template" or "none"; groups are ascending."""
    if not setup.items:
        return ["none"] * len(groups)
    log, delay_ms = setup.log, setup.settings.profiles.delay_ms
    written = {(profile.user_id, profile.version): profile.as_of_ms for profile in _written(setup)}
    valid: dict[int, list[tuple[int, str]]] = {}
    found, requests = [], deque(_requests(log, setup.settings))
    for number in groups.tolist():
        while requests and requests[0][0] < number:
            group, user, version = requests.popleft()
            t_ms = int(log.group_t_ms[group])
            as_of_ms = written.get((log.user_ids[user], version))
            source = "template" if as_of_ms is None or as_of_ms > t_ms else "file"
            valid.setdefault(user, []).append((t_ms + delay_ms, source))
        mine = reversed(valid.get(int(log.group_user[number]), []))
        found.append(next((source for from_ms, source in mine if from_ms <= log.group_t_ms[number]), "none"))
    return found


def log_events(log: EventLog) -> Iterator[LogEvent]:
    """The rows of a log in order of their groups, as profile requests are made of them."""
    for row in log.group_rows.tolist():
        e = log.event(row)
        yield LogEvent(e.user_id, e.item_id, e.timestamp_ms, e.action, e.value, e.price, e.domain)


def _encoder(setup: Setup) -> TextEncoder:
    if "encoder" not in setup.shared:
        setup.shared["encoder"] = TextEncoder(setup.settings.encoder)
    encoder: TextEncoder = setup.shared["encoder"]
    return encoder
