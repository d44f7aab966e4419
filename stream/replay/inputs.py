"""Texts and profiles as a replay's engine arms read them: the same encoder, policy and validity as live.

Profiles come from a file (the lines of `profiles.log`) where it has one for a request, else from the template; each is
valid when the live budget would have written it (schedule.py), so that no profile knows more than its user had done.
Only what the log touches is encoded: the items in it, and the profiles that a group of their user reads.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

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
from driftline.model.artefact import Artefact, Placebo, Template, shuffled
from driftline.stream.replay.schedule import Asked, Schedule

if TYPE_CHECKING:
    from driftline.configs.settings import Settings
    from driftline.graph.arrays import Float32, Int64
    from driftline.graph.labels import Labelled
    from driftline.stream.events.schema import Item
    from driftline.stream.replay.arms import Setup
    from driftline.stream.replay.log import EventLog

ENCODED_AT_ONCE = 1024
"""Texts between two words on how far the encoder is."""
V = TypeVar("V")
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


class Written:
    """Profiles by request: those of a file, the template's where the file has none or one that knows more.

    Args:
        written: of the file.
        template: from a request to its profile.
    """

    def __init__(self, written: Iterable[Profile], template: Template[ProfileRequest, Profile]) -> None:
        self._from_file = {(profile.user_id, profile.version): profile for profile in written}
        self._template = template

    def find(self, user_id: str, version: int, as_of_ms: int) -> Profile | None:
        """What the file has for a request."""
        found = self._from_file.get((user_id, version))
        return None if found is None or found.as_of_ms > as_of_ms else found

    def at(self, request: ProfileRequest, now_ms: int) -> Profile:
        """See Artefact."""
        found = self.find(request.user_id, request.version, request.as_of_ms)
        return self._template.at(request, now_ms) if found is None else found


class ReplayProfiles:
    """Profiles by user and time, each valid when the live profiler would have written it.

    A profile is written and encoded when it is read for the first time: most users get one that nobody reads.

    Args:
        settings, items, encoder: of the replay.
        written: profiles of a file.
        arm: "on", "placebo" (what was written before it for another user) or "template" (nothing of the file).
    """

    made_on_request = True

    def __init__(
        self,
        settings: Settings,
        items: Mapping[str, Item],
        encoder: TextEncoder,
        written: Iterable[Profile],
        arm: str = "on",
    ) -> None:
        self._settings, self._encoder, self._arm = settings.profiles, encoder, arm
        self._catalogue = catalogue_of(items)
        self._generator = ProfileGenerator(TemplateClient(), settings.profiles)
        template = Template[ProfileRequest, Profile](lambda request: self._generator.generate([request])[0])
        self._own = Written(() if arm == "template" else written, template)
        self._schedule: Schedule[ProfileRequest] = Schedule(self._settings)
        self._made: dict[tuple[str, int, int], ProfileVectors | None] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> ReplayProfiles:
        """A copy with requests of its own; what answers them is a function of the request, and is shared."""
        other = copy.copy(self)
        other._schedule = copy.deepcopy(self._schedule, memo)
        return other

    def at(self, user_id: str, now_ms: int) -> ProfileVectors | None:
        """The newest profile that is valid at `now_ms`."""
        newest = self._schedule.newest(user_id, now_ms)
        if newest is None:
            return None
        valid_from_ms, request = newest
        key = request.user_id, request.version, valid_from_ms
        if key not in self._made:
            self._made[key] = self._read(request, valid_from_ms)
        return self._made[key]

    def request(self, record: bytes) -> None:
        """Takes a profile request; its profile is valid later."""
        self._schedule.offer(read_request(record, self._catalogue, self._settings))

    def _read(self, request: ProfileRequest, valid_from_ms: int) -> ProfileVectors | None:
        says: Artefact[ProfileRequest, Profile] = self._own
        if self._arm == "placebo":
            says = Placebo(self._own, self._schedule.before)
        written = says.at(request, valid_from_ms)
        if written is None:
            return None
        facets = with_vectors([written], self._encoder)[0].view().facets
        return ProfileVectors(np.ascontiguousarray(facets), valid_from_ms, written.version, written.source)

    def encode_ahead(self, log: EventLog, settings: Settings, say: Say = quiet) -> None:
        """Encodes what the groups of a log will read, many texts a pass: it changes the cost, nothing else."""
        texts: dict[str, None] = {}
        unwritten: set[tuple[str, int]] = set()
        for read in dict.fromkeys(one for one in read_by_groups(log, settings) if one is not None):
            found = self._own.find(*read)
            if found is None:
                unwritten.add((read.user_id, read.version))
            else:
                texts.update(dict.fromkeys(found.facets.values()))
        if unwritten:
            asked = requests_of_log(log_events(log), self._catalogue, settings)
            wanted = [request for request in asked if (request.user_id, request.version) in unwritten]
            for profile in self._generator.generate(wanted):
                texts.update(dict.fromkeys(profile.facets.values()))
        texts.pop("", None)
        encoded(sorted(texts), self._encoder, "profiles", say)


class ItemTexts:
    """Text vectors of the items of a replay, by id."""

    def __init__(self, vectors: Mapping[str, Float32]) -> None:
        self._vectors = vectors

    def __deepcopy__(self, memo: dict[int, object]) -> ItemTexts:
        """Itself: what items say is one table of the whole replay."""
        return self

    def at(self, item_id: str, now_ms: int) -> Float32 | None:
        """See Artefact: an items file says of each item what holds from its first event on."""
        return self._vectors.get(item_id)


def texts_of(setup: Setup, settings: Settings) -> Artefact[str, Float32]:
    """Texts as the settings want them: "placebo" = each with another item that has one."""
    return _own_or_placebo(ItemTexts(replay_texts(setup)), setup, settings)


class ItemLabels:
    """Brands and categories of the items of a replay, by id."""

    def __init__(self, items: Mapping[str, Item]) -> None:
        self._items = items

    def __deepcopy__(self, memo: dict[int, object]) -> ItemLabels:
        """See ItemTexts."""
        return self

    def at(self, item_id: str, now_ms: int) -> Labelled | None:
        """See ItemTexts; None = the items file has no such item, or none that says anything."""
        item = self._items.get(item_id)
        return None if item is None or not item.description() else (item.brand, item.categories)


def labels_of(setup: Setup, settings: Settings) -> Artefact[str, Labelled]:
    """Labels as the settings want them: with a placebo of texts those of the same other item."""
    return _own_or_placebo(ItemLabels(setup.items), setup, settings)


def _own_or_placebo(own: Artefact[str, V], setup: Setup, settings: Settings) -> Artefact[str, V]:
    """What items say, or with a placebo what another item says: the same other one, whatever is asked of it."""
    if settings.systems.get("text") == "placebo":
        return Placebo(own, shuffled(list(replay_texts(setup)), settings.ranker.seed).get)
    return own


def replay_texts(setup: Setup) -> dict[str, Float32]:
    """Text vectors of the items that a log touches; each made once for all passes of a replay."""
    texts: dict[str, Float32] = setup.shared.setdefault("texts", {})
    if not setup.settings.ranker.text_dim:
        return {}
    touched = (item_id for item_id in setup.log.item_ids if item_id not in texts)
    missing = [setup.items[item_id] for item_id in touched if item_id in setup.items]
    if missing:
        with _charged(setup, "text"):
            texts.update(text_vectors(missing, _encoder(setup), setup.say))
    return texts


def replay_profiles(setup: Setup, arm: str = "on") -> ReplayProfiles | None:
    """Profiles of a replay; None without text of items, since a profile speaks of titles, and where they are off.

    Those that were written from events past the end of the log do not exist.
    """
    if not setup.items or not setup.settings.ranker.text_dim or arm == "off":
        return None
    written = (profile for profile in _written(setup) if profile.as_of_ms <= setup.log.t_ms.max())
    profiles = ReplayProfiles(setup.settings, setup.items, _encoder(setup), written, arm)
    if "facets" not in setup.shared:
        with _charged(setup, "profiles"):
            profiles.encode_ahead(setup.log, setup.settings, setup.say)
        setup.shared["facets"] = True
    return profiles


@contextmanager
def _charged(setup: Setup, part: str) -> Iterator[None]:
    """Notes the CPU seconds of encoding for a part: done once for all passes, each of them is charged all of it."""
    before = time.process_time()
    yield
    spent: dict[str, float] = setup.shared.setdefault("encoding", {})
    spent[part] = spent.get(part, 0.0) + time.process_time() - before


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


def read_by_groups(log: EventLog, settings: Settings) -> Iterator[Asked | None]:
    """The request whose profile each group of a log reads, in order; None where its user has no profile yet."""
    schedule: Schedule[Asked] = Schedule(settings.profiles)
    requests = _requests(log, settings)
    due = next(requests, None)
    for number, (user, t_ms) in enumerate(zip(log.group_user.tolist(), log.group_t_ms.tolist(), strict=True)):
        newest = schedule.newest(log.user_ids[user], t_ms)
        yield None if newest is None else newest[1]
        if due is not None and due[0] == number:
            schedule.offer(Asked(log.user_ids[user], due[2], t_ms))
            due = next(requests, None)


def profile_sources(setup: Setup, groups: Int64) -> list[str]:
    """Whose profile each of these groups reads in a replay: "file", "template" or "none"; groups are ascending."""
    if not setup.items or not setup.settings.ranker.text_dim:
        return ["none"] * len(groups)
    written = {(profile.user_id, profile.version): profile.as_of_ms for profile in _written(setup)}
    read = list(read_by_groups(setup.log, setup.settings))

    def source(asked: Asked | None) -> str:
        if asked is None:
            return "none"
        as_of_ms = written.get((asked.user_id, asked.version))
        return "template" if as_of_ms is None or as_of_ms > asked.as_of_ms else "file"

    return [source(read[number]) for number in groups.tolist()]


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
