"""What the service answers, without the transport: read the user, rank, choose, say where it came from.

    row (state reader) + profile (feature store) -> view -> scorer -> ranking -> slate
                            no model, it fails or knows nothing new -> popularity of the store, FALLBACK

Time never runs before the state: a request for a time before the user's newest event is answered as of that event.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from configs.settings import Serving
from graph.view import UserView, view_of
from serving import answers
from serving.cache import RecentRankings
from serving.checks import Options
from serving.errors import NotReady, UnknownItem
from serving.models import ModelSlot, Served
from serving.profiles import ProfileStore, StoredProfile
from serving.proto.driftline.v1 import recommendation_pb2 as pb
from serving.scorer import NOVEL, OVERALL, PopularityScorer, Ranking, choose
from serving.snapshot import Meta, Snapshot
from serving.state_reader import StateReader, StoredUser

LOG = logging.getLogger(__name__)
RETRY_MS = 1000
_FALLBACK_S = 10.0
_NO_SNAPSHOT = Snapshot("", 0, -1, Meta(), {})


@dataclass(frozen=True, slots=True)
class Reading:
    """One user as an answer sees them.

    Attributes:
        stored: the row and where it lies.
        profile: valid at `now_ms`, or None.
        now_ms: the time for which the answer holds.
        asked_ms: the time of the request.
    """

    user_id: str
    stored: StoredUser
    profile: StoredProfile | None
    now_ms: int
    asked_ms: int

    @property
    def reasons(self) -> list[str]:
        """Codes of what is special about it."""
        row = self.stored.row
        codes = [] if row is not None and row.events else ["cold_start"]
        return codes if self.now_ms == self.asked_ms else [*codes, "as_of_newest_event"]

    @property
    def mark(self) -> tuple[object, ...]:
        """Differs whenever the row or the profile does."""
        row, profile = self.stored.row, self.profile
        counted = (row.version, row.events, row.too_late) if row else (0, 0, 0)
        return (*counted, profile.vectors.version if profile else -1)

    def view(self, served: Served, domain: str = "") -> UserView:
        """The user in the dense indices of a model."""
        profile = self.profile.vectors if self.profile else None
        view = view_of(self.stored.row, served.scorer.table, self.user_id, profile)
        return replace(view, domain=domain) if domain else view


class Recommender:
    """Answers from a state reader, a feature store and a model slot; owns none of them."""

    def __init__(
        self,
        settings: Serving,
        state: StateReader,
        profiles: ProfileStore,
        models: ModelSlot,
        messages: answers.StateMessages,
    ) -> None:
        self._state, self._profiles, self._models, self._messages = state, profiles, models, messages
        self._poll_ms = settings.state_poll_ms
        self._rankings = RecentRankings(settings.cache_users, settings.cache_ms)
        self._fallback: tuple[float, Served] = (float("-inf"), _popularity(()))
        self._fallback_lock = threading.Lock()

    def model(self, min_sequence: int) -> Served | None:
        """The serving model.

        Raises:
            NotReady: it is older than asked for.
        """
        served = self._models.served
        sequence = served.snapshot.sequence if served else 0
        if sequence < min_sequence:
            raise NotReady(f"model sequence {sequence} serves, asked for {min_sequence}", RETRY_MS)
        return served

    def required_model(self, min_sequence: int) -> Served:
        """The serving model.

        Raises:
            NotReady: there is none, or it is older than asked for.
        """
        served = self.model(min_sequence)
        if served is None:
            raise NotReady(self._models.refused or "no snapshot serves yet", RETRY_MS)
        return served

    def read(self, user_id: str, time_ms: int) -> Reading:
        """One user at a time, 0 = now; later if their newest event is."""
        stored = self._state.user(user_id)
        newest_ms = stored.row.last_update_ms if stored.row else -1
        asked_ms = time_ms or time.time_ns() // 1_000_000
        now_ms = max(asked_ms, newest_ms)
        return Reading(user_id, stored, self._profiles.get(user_id, now_ms), now_ms, asked_ms)

    def user_state(self, reading: Reading, limit: int) -> tuple[pb.Provenance, pb.UserState]:
        """The state of a user with its newest `limit` events."""
        served, stored = self._models.served, reading.stored
        reasons = [*([] if self._state.ready else ["no_state"]), *reading.reasons]
        origin = pb.SERVED_FROM_MODEL if self._state.ready else pb.SERVED_FROM_FALLBACK
        message = self._messages.user_state(reading.user_id, stored, served, reading.profile, reading.now_ms, limit)
        return answers.provenance(served, stored, reading.profile, reading.now_ms, origin, reasons), message

    def recommend(self, user_id: str, options: Options, served: Served | None) -> tuple[pb.Provenance, pb.Slate]:
        """The best items of a user by one model; by popularity if it is None, fails, or knows nothing new.

        Raises:
            NotReady: the user's state is older than asked for, or there is no popularity either.
        """
        reading = self.read(user_id, options.request_time_ms)
        version = reading.stored.version
        if version < options.min_user_state_version:
            text = f"state of user {user_id!r} is at version {version}, asked for {options.min_user_state_version}"
            raise NotReady(text, self._poll_ms)
        reasons = reading.reasons
        model, slate, origin = served, None, pb.SERVED_FROM_FALLBACK
        if served is None:
            reasons.append("no_snapshot")
        else:
            try:
                ranking, origin = self._rank(reading, served, options.domain)
                slate = self._slate(served, ranking, options, reading.view(served))
            except Exception:
                LOG.exception("model %s failed on user %r", served.snapshot.version, user_id)
                reasons.append("model_error")
            else:
                known = reading.stored.row is not None
                unknown = self._unknown_slate(served, reading, options) if known and not slate.item_ids else None
                if unknown is not None and unknown.item_ids:
                    model, slate, origin = None, unknown, pb.SERVED_FROM_FALLBACK
                    reasons.append("nothing_new")
        if slate is None:
            model, slate, origin = None, self._popular_slate(reading, options, served), pb.SERVED_FROM_FALLBACK
        return answers.provenance(model, reading.stored, reading.profile, reading.now_ms, origin, reasons), slate

    def score(
        self, user_id: str, item_ids: Sequence[str], time_ms: int, which: str, served: Served
    ) -> tuple[pb.Provenance, list[float]]:
        """Scores of given items, parallel to their ids.

        Raises:
            UnknownItem: the model does not know one of them.
        """
        items = np.array([_known(served, item_id) for item_id in item_ids], np.int32)
        reading = self.read(user_id, time_ms)
        scores = served.scorer.score(reading.view(served), reading.now_ms, items)[which]
        origin = pb.SERVED_FROM_MODEL
        return (
            answers.provenance(served, reading.stored, reading.profile, reading.now_ms, origin, reading.reasons),
            scores.tolist(),
        )

    def similar(
        self, item_id: str, k: int, left_out: Sequence[str], domain: str, served: Served
    ) -> tuple[pb.Provenance, pb.Slate]:
        """The items that go with one item.

        Raises:
            UnknownItem: the model does not know it.
        """
        table, item = served.scorer.table, _known(served, item_id)
        excluded = {table.find(other) for other in left_out} | {item}
        ranking = served.scorer.similar(item, len(table))
        places = choose(ranking, OVERALL, k, ranking.items[:0], excluded, served.allowed(domain))
        scores = ranking.scores[OVERALL][places].tolist()
        slate = answers.slate(served, ranking, scores, places.tolist(), reasons=True)
        return self._about(served), slate

    def info(self) -> pb.GetModelInfoResponse:
        """Which model serves and what lies on disk."""
        served = self._models.served
        return answers.model_info(self._models, served, self._about(served))

    def _about(self, served: Served | None) -> pb.Provenance:
        now_ms = time.time_ns() // 1_000_000
        if served is None:
            return answers.provenance(None, StoredUser(None), None, now_ms, pb.SERVED_FROM_FALLBACK, ["no_snapshot"])
        return answers.provenance(served, StoredUser(None), None, now_ms, pb.SERVED_FROM_MODEL)

    def _rank(self, reading: Reading, served: Served, domain: str) -> tuple[Ranking, pb.ServedFrom]:
        version, key = served.snapshot.version, (reading.mark, domain)
        kept = self._rankings.get(reading.user_id, version, key, reading.now_ms)
        if kept is not None:
            return kept, pb.SERVED_FROM_CACHE
        ranking = served.scorer.rank(reading.view(served, domain), reading.now_ms)
        self._rankings.put(reading.user_id, version, key, reading.now_ms, ranking)
        return ranking, pb.SERVED_FROM_MODEL

    def _slate(self, served: Served, ranking: Ranking, options: Options, view: UserView) -> pb.Slate:
        table = served.scorer.table
        excluded = {table.find(item_id) for item_id in options.excluded}
        if options.which == NOVEL:
            excluded |= set(view.items[view.weight < 0].tolist())  # only returned or disliked: nothing to show as new
        own = view.items[view.weight > 0]
        places = choose(ranking, options.which, options.k, own, excluded, served.allowed(options.domain))
        scores = ranking.scores[options.which][places].tolist()
        return answers.slate(served, ranking, scores, places.tolist(), options.item_reasons)

    def _popular_slate(self, reading: Reading, options: Options, served: Served | None) -> pb.Slate:
        """By popularity; of the items that a model knows only those that it may recommend."""
        by = self._popular()
        if served is not None:
            allowed, places = served.allowed(options.domain), map(served.scorer.table.find, by.scorer.table.ids)
            by = replace(by, offered=np.array([place < 0 or allowed[place] for place in places], np.bool_))
        view = reading.view(by)
        return self._slate(by, by.scorer.rank(view, reading.now_ms), options, view)

    def _unknown_slate(self, served: Served, reading: Reading, options: Options) -> pb.Slate | None:
        """By popularity what a young model does not know yet, where it has nothing left for a novel list."""
        if options.which != NOVEL or options.domain or options.excluded:
            return None
        with suppress(NotReady):
            return self._popular_slate(reading, replace(options, excluded=tuple(served.scorer.table.ids)), None)
        return None

    def _popular(self) -> Served:
        """Popularity from the state store, read at most every few seconds.

        Raises:
            NotReady: there is none.
        """
        with self._fallback_lock:
            read_s, served = self._fallback
            if time.monotonic() - read_s > _FALLBACK_S or not len(served.scorer.table):
                served = _popularity(self._state.popular())
                self._fallback = time.monotonic(), served
        if not len(served.scorer.table):
            raise NotReady(
                self._models.refused
                or "neither a snapshot nor any item popularity exists yet: worker and trainer make them from events",
                RETRY_MS,
            )
        return served


def _popularity(scores: Sequence[tuple[str, float]]) -> Served:
    n = len(scores)
    return Served(_NO_SNAPSHOT, PopularityScorer(scores), [], np.ones(n, np.bool_), np.zeros(n, np.int32), {})


def _known(served: Served, item_id: str) -> int:
    index = served.scorer.table.find(item_id)
    if index < 0:
        raise UnknownItem(item_id, served.snapshot.version)
    return index
