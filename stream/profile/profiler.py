"""The profiler process: profile requests in, profiles out, within a budget. The stream never waits for it.

    [profile-requests] -> queue (one a user, bounded) -> LLM -> check against the history -> [profiles]
    [items] -> titles for the prompts                                                     '-> [profiles.log]

A profile is valid from the event time that the stream has reached when it is appended: no reader can use it for a
request of an earlier time. Requests that a crash leaves unanswered are read again, since the topic keeps the newest of
each user and what was answered is in `profiles`; so a signal ends the process in the middle of a batch, which may take
minutes where others need the processor. The process gives way to all others (SCHED_IDLE).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import orjson

from driftline.configs.errors import InputError
from driftline.configs.logs import log_to_stderr
from driftline.configs.settings import Settings
from driftline.configs.signals import CutShort, Stopping, stop_on_signals
from driftline.graph.profile import Profile, parse_profile
from driftline.llm.clients import make_client
from driftline.llm.encoder import TextEncoder
from driftline.llm.generator import ProfileGenerator
from driftline.llm.refresh import RequestQueue
from driftline.llm.request import CatalogueItem, ProfileRequest, read_request
from driftline.serving.lull import Lull
from driftline.serving.partitions import LastWords, take_in_added
from driftline.stream.events.produce import outlet
from driftline.stream.events.records import EVERYWHERE, Outgoing
from driftline.stream.events.schema import InvalidEvent, item_of
from driftline.stream.kafka.reading import consumer, of_a_follower, places, polled
from driftline.stream.ops.metrics import ProfilerMetrics

LOG = logging.getLogger(__name__)
NICE = 19
"""Profiles are written in the processor time that the stream and the trainer leave over."""
TOPICS_S = 3.0
"""Between two looks at whether the topics have got more partitions."""


class Profiler:
    """Everything between two polls.

    Args:
        settings: the whole configuration.
        generator: writes the profiles.
        send: sends records and returns when they are acknowledged.
        cutting: what a batch is written in, from which a signal may take it.
    """

    def __init__(
        self,
        settings: Settings,
        generator: ProfileGenerator,
        send: Callable[[list[Outgoing]], None],
        cutting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.settings, self.generator, self._send, self._cutting = settings, generator, send, cutting
        self.queue: RequestQueue[ProfileRequest] = RequestQueue(settings.profiles)
        self.catalogue: dict[str, CatalogueItem] = {}
        self.watermark_ms = -1
        self.invalid = self.written = self.without_text = 0
        self.metrics = ProfilerMetrics()
        self._answered: dict[str, int] = {}
        self._sent: set[str] = set()
        """Users whose profile this process wrote since they were forgotten."""
        self._stale: set[str] = set()
        """Users of whom there is a profile from before the start, but no request that is newer than a tombstone."""

    def take_item(self, value: bytes) -> None:
        """One record of `items`; one that is not an item is passed over."""
        try:
            item = item_of(orjson.loads(value))
        except (InvalidEvent, orjson.JSONDecodeError):
            return
        self.catalogue[item.item_id] = CatalogueItem(item.title or item.text, item.categories, item.brand)

    def take_profile(self, value: bytes) -> None:
        """One record of `profiles`: what was answered already is not asked again."""
        try:
            profile = parse_profile(value)
        except InputError:
            return
        self._answered[profile.user_id] = max(profile.version, self._answered.get(profile.user_id, 0))

    def take_request(self, value: bytes) -> None:
        """One record of `profile-requests`; one that is none is counted and passed over."""
        try:
            request = read_request(value, self.catalogue, self.settings.profiles)
        except InputError:
            self.invalid += 1
            return
        self.watermark_ms = max(self.watermark_ms, request.as_of_ms)
        answered = self._answered.get(request.user_id, 0)
        self._stale.discard(request.user_id)
        if answered and not request.has_text:
            self._note_without_text()
        elif request.version > answered:
            self.queue.offer(request)

    def _note_without_text(self) -> None:
        """A further profile of somebody whose items have no words would say what the first one says."""
        if not self.without_text:
            LOG.warning(
                "no item of a user has a title, text, category or brand: who has such a history gets one profile from "
                "the template and no further one; driftline_profile_requests_without_text counts what is left out"
            )
        self.without_text += 1
        self.metrics.without_text.inc()

    def forget_profile(self, user_id: str) -> None:
        """A tombstone of `profiles`: versions start anew."""
        self._answered.pop(user_id, None)

    def forget(self, user_id: str) -> None:
        """A tombstone of `profile-requests`: no request of the user waits, and versions start anew.

        A profile that went out before this was read lies behind the tombstone of `profiles`, and is taken back.
        """
        answered = self._answered.pop(user_id, 0)
        self.queue.drop(user_id)
        if user_id in self._sent:
            self._sent.discard(user_id)
            self._take_back([user_id])
        elif answered:
            self._stale.add(user_id)

    def _take_back(self, user_ids: Iterable[str]) -> None:
        self._send([Outgoing("profiles", user_id.encode(), None, partition=EVERYWHERE) for user_id in user_ids])

    def write(self) -> Sequence[Profile]:
        """Writes one batch as far as the budget goes; everything that was there at the start has been read.

        Raises:
            CutShort: asked to end; nothing of the batch went out.
        """
        if self._stale:
            self._take_back(self._stale)
            self._stale.clear()
        requests = self.queue.take(time.monotonic())
        self.metrics.waiting.set(len(self.queue))
        if not requests:
            return ()
        started = time.monotonic()
        with self._cutting():
            written = self.generator.generate(requests)
        stamped = [
            dataclasses.replace(profile, valid_from_ms=max(profile.as_of_ms, self.watermark_ms)) for profile in written
        ]
        records = [(profile.user_id.encode(), profile.to_json()) for profile in stamped]
        self._send([Outgoing(topic, key, value) for topic in ("profiles", "profiles.log") for key, value in records])
        for profile in stamped:
            self._answered[profile.user_id] = profile.version
            self.metrics.profiles.labels(profile.source).inc()
        self.metrics.seconds.observe((time.monotonic() - started) / len(stamped))
        self._sent.update(profile.user_id for profile in stamped)
        self.written += len(stamped)
        return stamped


def run_profiler(settings: Settings, bootstrap: str, until_caught_up: bool = False) -> None:
    """Runs until SIGTERM or Ctrl-C; with `until_caught_up` until no request waits.

    Raises:
        BrokerError: the broker does not answer, or does not take a profile.
    """
    log_to_stderr()
    stopping = stop_on_signals()
    os.nice(NICE)
    try:
        with stopping.cutting():
            encoder = TextEncoder(settings.encoder) if settings.ranker.text_dim else None
            generator = ProfileGenerator(make_client(settings.llm), settings.profiles, encoder)
        with outlet(settings.broker, bootstrap, "driftline-profiler") as send:
            _run(Profiler(settings, generator, send, stopping.cutting), bootstrap, until_caught_up, stopping)
    except CutShort:
        LOG.info("stopping; who waits for a profile is asked for again at the next start")


def give_way() -> None:
    """Leaves the processor to every other process, where the system has a policy for that (Linux): of the calling
    thread, and of those that it starts. Models are loaded by then, and who reads the metrics does not wait for long.

    A process that is nice alone keeps a core while others wait at another one; an idle one's core counts as free.
    """
    with suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _run(profiler: Profiler, bootstrap: str, until_caught_up: bool, stopping: Stopping) -> None:
    settings = profiler.settings
    profiler.metrics.serve(settings.metrics)
    give_way()
    take = {
        "items": profiler.take_item,
        "profiles": profiler.take_profile,
        "profile-requests": profiler.take_request,
    }
    words = {name: LastWords() for name in take}
    with consumer(settings.broker, bootstrap) as reader:
        for names in (["items", "profiles"], ["items", "profile-requests"]):
            everything = places(reader, settings.broker, names)
            kept = {place: reader.position(place) for place in everything if place in reader.assignment()}
            reader.assign(everything)
            reader.seek_to_beginning(*[place for place in everything if place not in kept])
            for place, position in kept.items():
                reader.seek(place, position)
            ends = reader.end_offsets(everything)
            while any(reader.position(place) < ends[place] for place in everything) and not stopping():
                _poll(reader, profiler, take, words, 200)
        looked_s, lull = time.monotonic(), of_a_follower()
        while not stopping():
            if time.monotonic() - looked_s > TOPICS_S:
                looked_s = time.monotonic()
                take_in_added(reader, reader.assignment())
            moved = _poll(reader, profiler, take, words, 200, lull)
            if not profiler.write() and not moved and until_caught_up and not len(profiler.queue):
                break


def _poll(
    reader: Any,
    profiler: Profiler,
    take: Mapping[str, Callable[[bytes], None]],
    words: Mapping[str, LastWords],
    timeout_ms: int,
    lull: Lull | None = None,
) -> bool:
    batch = polled(reader, timeout_ms, lull=lull)
    for place, records in batch.items():
        for record in records:
            topic = place.topic.removeprefix(profiler.settings.broker.prefix)
            if record.key and not words[topic].is_last(record.key, place.partition, record.timestamp):
                continue  # the key has a newer one in another partition
            if record.value:
                take[topic](record.value)
            elif record.key and topic != "items":
                forget = profiler.forget_profile if topic == "profiles" else profiler.forget
                forget(record.key.decode(errors="replace"))
    return bool(batch)
