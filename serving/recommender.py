"""What the service answers, without the transport: read the user, rank, choose, say where it came from.

    row (state reader) + profile (feature store) -> view -> scorer -> ranking -> slate
                            no model, it fails or knows nothing new -> popularity of the store, FALLBACK

Time never runs before the state: a request for a time before the user's newest event is answered as of that event.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from driftline.configs.settings import Serving
from driftline.graph.contexts import context_of
from driftline.graph.view import UserView, view_of
from driftline.serving import answers
from driftline.serving.availability import Availability
from driftline.serving.cache import RecentRankings
from driftline.serving.checks import Context, Options
from driftline.serving.ends import Ends
from driftline.serving.errors import NotReady, UnknownItem
from driftline.serving.fill import chosen, unfiltered
from driftline.serving.models import ModelSlot, Served
from driftline.serving.near import meant, near
from driftline.serving.popular import Popular
from driftline.serving.profiles import ProfileStore, StoredProfile
from driftline.serving.scorer import NOVEL, OVERALL, ScoredCandidates
from driftline.serving.sizes import SHORTENED, fit_slate, fit_state
from driftline.serving.spread import looked_at
from driftline.serving.state_reader import StateReader, StoredUser
from driftline.v1 import recommendation_pb2 as pb

LOG = logging.getLogger(__name__)
RETRY_MS = 1000
TOGETHER = 16
"""Users of a batch that are ranked in one pass."""
WITHDRAWN = "withdrawn"
"""Reason of an answer about an item that may not be recommended."""
FEW_MATCH = "few_match"
"""Reason of a list that its filter left shorter than it was to be."""
UNKNOWN_ITEMS = "unknown_items"
"""Reason of scores of which some are missing."""

UNKNOWN_EXCLUDED = "unknown_excluded_items"
"""Reason of a list from which an item was to be left out that the model does not know."""
BY_HAND = 20
"""Excluded items that somebody may have typed: only among so few one that is not known is worth a word."""
UNKNOWN_CONTEXT = "unknown_context"
"""Reason of an answer that nothing was made of a part of the context for."""


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

    def view(self, served: Served, domain: str = "", context: Context = ()) -> UserView:
        """The user, and what is known of the request, in the dense indices of a model."""
        profile = self.profile.vectors if self.profile and self.profile.vectors.facets.size else None
        given = dict(context)
        fields = context_of(given, served.scorer.context) if given else ()
        view = view_of(self.stored.row, served.scorer.table, self.user_id, profile, fields)
        return replace(view, domain=domain) if domain else view


class Recommender:
    """Answers from a state reader, a feature store and a model slot; owns none of them.

    A row whose last event is more than `ttl_ms` before the time of a request is none; 0 = rows do not end. `ends` says
    how far state and model are behind; with `one_id_space` ids of users are ids of items.
    """

    def __init__(
        self,
        settings: Serving,
        state: StateReader,
        profiles: ProfileStore,
        models: ModelSlot,
        messages: answers.StateMessages,
        availability: Availability | None = None,
        ttl_ms: int = 0,
        ends: Ends | None = None,
        one_id_space: bool = False,
    ) -> None:
        self._state, self._profiles, self._models, self._messages = state, profiles, models, messages
        self._availability = availability or Availability()
        self._poll_ms, self._ttl_ms = settings.state_poll_ms, ttl_ms
        self._rankings = RecentRankings(settings.cache_users, settings.cache_ms)
        profiles.on_forget.append(self._rankings.forget)
        self._popularity = Popular(lambda: state.popular(), one_id_space)
        self._ends = ends or Ends()

    def model(self, min_sequence: int) -> Served | None:
        """The serving model, with the items that may be recommended now.

        Raises:
            NotReady: it is older than asked for.
        """
        served = self._models.served
        sequence = served.snapshot.sequence if served else 0
        if sequence < min_sequence:
            raise NotReady(f"model sequence {sequence} serves, asked for {min_sequence}", RETRY_MS)
        return self._availability.over(served) if served else None

    def required_model(self, min_sequence: int) -> Served:
        """The serving model.

        Raises:
            NotReady: there is none, or it is older than asked for.
        """
        served = self.model(min_sequence)
        if served is None:
            raise NotReady(self._models.refused or "no snapshot serves yet", RETRY_MS)
        return served

    def read(self, user_id: str, time_ms: int, min_version: int = 0) -> Reading:
        """One user at a time, 0 = now; later if their newest event is.

        Args:
            min_version: offset up to which the user's partition is to be applied. The partition's, not the row's: a
                duplicate, a dead letter and an event that came too late leave no trace in a row.

        Raises:
            NotReady: it is not.
        """
        stored = self._state.user(user_id)
        if stored.store_offset < min_version:
            text = (
                f"the state of user {user_id!r} in partition {stored.partition} is applied up to offset "
                f"{stored.store_offset}, asked for {min_version}{self._behind(stored)}"
            )
            raise NotReady(text, self._poll_ms)
        newest_ms = stored.row.last_update_ms if stored.row else -1
        asked_ms = time_ms or time.time_ns() // 1_000_000
        now_ms = max(asked_ms, newest_ms)
        if self._ttl_ms and newest_ms < now_ms - self._ttl_ms:
            stored = replace(stored, row=None)  # an event now would start it anew, and so the models learnt it
        return Reading(user_id, stored, self._profiles.get(user_id, now_ms), now_ms, asked_ms)

    def user_state(self, reading: Reading, limit: int) -> tuple[pb.Provenance, pb.UserState]:
        """The state of a user with its newest `limit` events."""
        served, stored = self._models.served, reading.stored
        reasons = [*([] if self._state.ready else ["no_state"]), *reading.reasons]
        origin = pb.SERVED_FROM_MODEL if self._state.ready else pb.SERVED_FROM_FALLBACK
        message = self._messages.user_state(reading.user_id, stored, served, reading.profile, reading.now_ms, limit)
        if fit_state(message):
            reasons.append(SHORTENED)
        return self._provenance(served, reading, origin, reasons), message

    def recommend(self, user_id: str, options: Options, served: Served | None) -> tuple[pb.Provenance, pb.Slate]:
        """The best items of a user by one model; by popularity if it is None, fails, or knows nothing new.

        Raises:
            NotReady: the user's state is older than asked for, or there is no popularity either.
        """
        return self._answer(self._read(user_id, options), options, served, None)

    def recommend_all(
        self, user_ids: Sequence[str], options: Options, served: Served | None
    ) -> Iterator[tuple[pb.Provenance, pb.Slate]]:
        """`recommend` of several users, who are ranked some at a time.

        Raises:
            NotReady: as `recommend`.
        """
        for first in range(0, len(user_ids), TOGETHER):
            readings = [self._read(user_id, options) for user_id in user_ids[first : first + TOGETHER]]
            for reading, ranking in zip(readings, self._ranked_together(readings, options, served), strict=True):
                yield self._answer(reading, options, served, ranking)

    def _read(self, user_id: str, options: Options) -> Reading:
        return self.read(user_id, options.request_time_ms, options.min_user_state_version)

    def _answer(
        self, reading: Reading, options: Options, served: Served | None, ranking: ScoredCandidates | None
    ) -> tuple[pb.Provenance, pb.Slate]:
        """The answer to a reading; it is ranked here unless it was before."""
        reasons = reading.reasons
        model, slate, origin = served, None, pb.SERVED_FROM_FALLBACK
        if served is None:
            reasons.append("no_snapshot")
        else:
            try:
                view = reading.view(served, options.domain, options.context)
                origin = pb.SERVED_FROM_MODEL
                if ranking is None:
                    ranking, origin = self._rank(reading, served, view, options)
                slate = self._slate(served, ranking, options, view, reading.now_ms)
            except Exception:
                LOG.exception("model %s failed on user %r", served.snapshot.version, reading.user_id)
                reasons.append("model_error")
            else:
                known = reading.stored.row is not None
                unknown = self._unknown_slate(served, reading, options) if known and not slate.item_ids else None
                if unknown is not None and unknown.item_ids:
                    model, slate, origin = None, unknown, pb.SERVED_FROM_FALLBACK
                    reasons.append("nothing_new")
        if slate is None:
            model, slate, origin = None, self._popular_slate(reading, options, served), pb.SERVED_FROM_FALLBACK
        reasons += _of_filter(served, slate, options) + _of_context(served, options.context)
        reasons += self._of_exclusions(served, options)
        if fit_slate(slate, options.most_bytes):
            reasons.append(SHORTENED)
        return self._provenance(model, reading, origin, reasons), slate

    def score(
        self,
        user_id: str,
        item_ids: Sequence[str],
        time_ms: int,
        which: str,
        served: Served,
        min_version: int = 0,
        context: Context = (),
    ) -> tuple[pb.Provenance, list[float], list[str]]:
        """Scores of given items, parallel to their ids, NaN for those that the model does not know; and these.

        Raises:
            NotReady: the user's state is older than asked for.
        """
        items = np.array([served.scorer.table.find(item_id) for item_id in item_ids], np.int32)
        known = items >= 0
        reading = self.read(user_id, time_ms, min_version)
        scores = np.full(len(items), np.nan, np.float32)
        if known.any():
            scores[known] = served.scorer.score(reading.view(served, context=context), reading.now_ms, items[known])[
                which
            ]
        unknown = list(dict.fromkeys(item_id for item_id, there in zip(item_ids, known, strict=True) if not there))
        reasons = reading.reasons if served.offered[items[known]].all() else [*reading.reasons, WITHDRAWN]
        reasons += [UNKNOWN_ITEMS, *self._meant(unknown, served)] if unknown else []
        reasons += _of_context(served, context)
        return self._provenance(served, reading, pb.SERVED_FROM_MODEL, reasons), scores.tolist(), unknown

    def similar(self, item_id: str, options: Options, served: Served) -> tuple[pb.Provenance, pb.Slate]:
        """The items that go with one item.

        Raises:
            UnknownItem: the model does not know it.
        """
        table, item = served.scorer.table, self._known(served, item_id)
        excluded = {table.find(other) for other in options.excluded} | {item}
        wanted = 2 * (looked_at(options.k) if options.diversity else options.k) + 2 * len(excluded)
        ranking = served.scorer.similar(item, wanted)
        shown = set(ranking.items[served.allowed(ranking.items, options.domain, options.asked)].tolist()) - excluded
        if len(shown) < options.k and len(ranking.items) == wanted:  # most of them may not be shown: all items, then
            ranking = served.scorer.similar(item, len(table))
        nobody, of_filling = ranking.items[:0], lambda more: {OVERALL: np.zeros(len(more), np.float32)}
        ranking, places = chosen(served, ranking, options, nobody, excluded, of_filling)
        scores = ranking.scores[OVERALL][places].tolist()
        slate = answers.slate(served, ranking, scores, places.tolist(), reasons=True)
        reasons = ([] if served.offered[item] else [WITHDRAWN]) + _of_filter(served, slate, options)
        reasons += self._of_exclusions(served, options)
        if fit_slate(slate, options.most_bytes):
            reasons.append(SHORTENED)
        return self._about(served, reasons), slate

    def info(self) -> pb.GetModelInfoResponse:
        """Which model serves and what lies on disk."""
        served = self._models.served
        return answers.model_info(self._models, served, self._about(served))

    def _about(self, served: Served | None, reasons: Sequence[str] = ()) -> pb.Provenance:
        now_ms = time.time_ns() // 1_000_000
        if served is None:
            return answers.provenance(None, StoredUser(None), None, now_ms, pb.SERVED_FROM_FALLBACK, ["no_snapshot"])
        behind = self._model_pending(served)
        return answers.provenance(
            served, StoredUser(None), None, now_ms, pb.SERVED_FROM_MODEL, reasons, model_pending=behind
        )

    def _provenance(
        self, served: Served | None, reading: Reading, origin: pb.ServedFrom, reasons: Sequence[str]
    ) -> pb.Provenance:
        pending, behind = self._ends.pending(reading.stored), self._model_pending(served)
        return answers.provenance(
            served, reading.stored, reading.profile, reading.now_ms, origin, reasons, pending, behind
        )

    def _model_pending(self, served: Served | None) -> int:
        """Records that a model has not read, -1 = not known."""
        if served is None:
            return -1
        return self._ends.after({int(of.rpartition(":")[2]): at for of, at in served.snapshot.meta.offsets.items()})

    def _behind(self, stored: StoredUser) -> str:
        """How far the state is behind, as the end of a sentence; "" if it is not, or that is not known."""
        pending = self._ends.pending(stored)
        return f"; {pending:,} events are not applied yet" if pending > 0 else ""

    def _ranked_together(
        self, readings: Sequence[Reading], options: Options, served: Served | None
    ) -> list[ScoredCandidates | None]:
        """Rankings of several users in one pass; None for those that are kept or have to be ranked one by one."""
        out: list[ScoredCandidates | None] = [None] * len(readings)
        if served is None:
            return out
        version, keys = served.snapshot.version, [_key(one, options) for one in readings]
        asked = [
            place
            for place, (one, key) in enumerate(zip(readings, keys, strict=True))
            if self._rankings.get(one.user_id, version, key, one.now_ms) is None
        ]
        with suppress(Exception):  # of one user, for whom it comes again when they are ranked alone
            views = [readings[place].view(served, options.domain, options.context) for place in asked]
            rankings = served.scorer.rank_all(views, [readings[place].now_ms for place in asked])
            for place, ranking in zip(asked, rankings, strict=True):
                one = readings[place]
                self._rankings.put(one.user_id, version, keys[place], one.now_ms, ranking)
                out[place] = ranking
        return out

    def _rank(
        self, reading: Reading, served: Served, view: UserView, options: Options
    ) -> tuple[ScoredCandidates, pb.ServedFrom]:
        version, key = served.snapshot.version, _key(reading, options)
        kept = self._rankings.get(reading.user_id, version, key, reading.now_ms)
        if kept is not None:
            return kept, pb.SERVED_FROM_CACHE
        ranking = served.scorer.rank(view, reading.now_ms)
        self._rankings.put(reading.user_id, version, key, reading.now_ms, ranking)
        return ranking, pb.SERVED_FROM_MODEL

    def _known(self, served: Served, item_id: str) -> int:
        index = served.scorer.table.find(item_id)
        if index >= 0:
            return index
        if self._availability.lists(item_id):
            raise UnknownItem(item_id, served.snapshot.version, listed=True)
        raise UnknownItem(item_id, served.snapshot.version, near(item_id, served.scorer.table.ids))

    def _meant(self, unknown: Sequence[str], served: Served) -> list[str]:
        """Reasons with items that are near to the first of some that neither a model nor the catalogue has."""
        return meant([one for one in unknown if not self._availability.lists(one)], served.scorer.table.ids)

    def _of_exclusions(self, served: Served | None, options: Options) -> list[str]:
        """Codes where one of a few excluded items is none that the model or the catalogue knows."""
        if served is None or len(options.excluded) > BY_HAND:
            return []
        find, lists = served.scorer.table.find, self._availability.lists
        unknown = [item_id for item_id in options.excluded if find(item_id) < 0 and not lists(item_id)]
        return [UNKNOWN_EXCLUDED, *self._meant(unknown, served)] if unknown else []

    def _slate(
        self, served: Served, ranking: ScoredCandidates, options: Options, view: UserView, now_ms: int
    ) -> pb.Slate:
        table = served.scorer.table
        excluded = {table.find(item_id) for item_id in options.excluded}
        excluded |= {served.scorer.oneself(view.user_id)} - {-1}
        if options.which == NOVEL:
            excluded |= set(view.items[view.weight < 0].tolist())  # only returned or disliked: nothing to show as new
        own = view.items[view.weight > 0]
        ranking, places = chosen(
            served, ranking, options, own, excluded, lambda more: served.scorer.score(view, now_ms, more)
        )
        scores = ranking.scores[options.which][places].tolist()
        return answers.slate(served, ranking, scores, places.tolist(), options.item_reasons)

    def _popular_slate(
        self, reading: Reading, options: Options, served: Served | None, known: Served | None = None
    ) -> pb.Slate:
        """By popularity; of the items that a model knows only those that it may recommend, or none of `known`.

        Raises:
            NotReady: there is no popularity, or a filter and no model to know what passes it.
        """
        if options.asked and served is None:
            why = self._models.refused or "no snapshot serves yet"
            raise NotReady(f"{why}, and without one nothing is known of the items that a filter goes by", RETRY_MS)
        by = self._popular(reading)
        if served is not None:
            places = np.array([served.scorer.table.find(item_id) for item_id in by.scorer.table.ids], np.int32)
            allowed = served.allowed(places, options.domain, options.asked)
            by = replace(by, offered=by.offered & np.where(places < 0, not options.asked, allowed))
        if known is not None:
            find = known.scorer.table.find
            by = replace(by, offered=by.offered & [find(item_id) < 0 for item_id in by.scorer.table.ids])
        view = reading.view(by)
        return self._slate(by, by.scorer.rank(view, reading.now_ms), unfiltered(options), view, reading.now_ms)

    def _unknown_slate(self, served: Served, reading: Reading, options: Options) -> pb.Slate | None:
        """By popularity what a young model does not know yet, where it has nothing left for a novel list."""
        if options.which != NOVEL or options.steered:
            return None
        with suppress(NotReady):
            return self._popular_slate(reading, options, None, known=served)
        return None

    def _popular(self, reading: Reading) -> Served:
        """Popularity from the state store.

        Raises:
            NotReady: there is none.
        """
        served = self._popularity.served()
        if not len(served.scorer.table):
            raise NotReady(
                (
                    self._models.refused
                    or "neither a snapshot nor any item popularity exists yet: worker and trainer make them from events"
                )
                + self._behind(reading.stored),
                RETRY_MS,
            )
        return self._availability.over(served)


def _key(reading: Reading, options: Options) -> tuple[object, ...]:
    """What a ranking depends on beside user, time and model."""
    return reading.mark, options.domain, options.context


def _of_context(served: Served | None, context: Context) -> list[str]:
    """A code where a request's context has a field that the model does not read; without one nothing is read."""
    read = () if served is None else served.scorer.context
    return [UNKNOWN_CONTEXT] if {name for name, _ in context} - {*read} else []


def _of_filter(served: Served | None, slate: pb.Slate, options: Options) -> list[str]:
    """Codes of what a filter did to a list."""
    if not options.asked or served is None:
        return []
    return [*served.reasons(options.asked), *([FEW_MATCH] if len(slate.item_ids) < options.k else [])]
