"""Messages of the API, built from rows, profiles and rankings. No decisions here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from driftline.graph.rows import EVENT_DTYPE, UserRow
from driftline.serving.models import ModelSlot, Served
from driftline.serving.profiles import StoredProfile
from driftline.serving.scorer import ScoredCandidates
from driftline.serving.snapshot import list_snapshots
from driftline.serving.state_reader import StoredUser
from driftline.v1 import recommendation_pb2 as pb


def provenance(
    served: Served | None,
    stored: StoredUser,
    profile: StoredProfile | None,
    request_time_ms: int,
    served_from: pb.ServedFrom,
    reasons: Sequence[str] = (),
    pending: int = -1,
    model_pending: int = -1,
) -> pb.Provenance:
    """Where an answer comes from, and how many records state and model are behind."""
    return pb.Provenance(
        model_version=served.snapshot.version if served else "",
        model_sequence=served.snapshot.sequence if served else 0,
        user_state_version=stored.version,
        watermark_ms=stored.watermark_ms,
        served_from=served_from,
        reasons=reasons,
        request_time_ms=request_time_ms,
        profile_version=profile.vectors.version if profile else 0,
        model_watermark_ms=served.snapshot.meta.watermark_ms if served else -1,
        pending_events=pending,
        model_pending_events=model_pending,
    )


def slate(
    served: Served, ranking: ScoredCandidates, scores: Sequence[float], places: Sequence[int], reasons: bool
) -> pb.Slate:
    """The chosen places of a ranking as columns."""
    items = ranking.items[places].tolist()
    ids, titles = served.scorer.table.ids, served.titles
    rows = ranking.reasons(places) if reasons else ()
    return pb.Slate(
        item_ids=[ids[item] for item in items],
        scores=scores,
        titles=[titles[item] if item < len(titles) else "" for item in items],
        item_reasons=[pb.ItemReasons(reasons=row) for row in rows],
    )


class StateMessages:
    """Builds UserState messages.

    Args:
        actions: names of the actions by their stored code.
        item_id: the id behind a 64-bit key that the serving model does not know; "" = unknown here, too.
        title: what an item is called that the serving model does not know.
    """

    def __init__(
        self, actions: Mapping[int, str], item_id: Callable[[int], str], title: Callable[[str], str] = lambda _: ""
    ) -> None:
        self._actions, self._item_id, self._title = actions, item_id, title

    def user_state(
        self,
        user_id: str,
        stored: StoredUser,
        served: Served | None,
        profile: StoredProfile | None,
        now_ms: int,
        limit: int,
    ) -> pb.UserState:
        """The whole state of one user with its newest `limit` events."""
        row = stored.row
        last_ms = row.last_update_ms if row else -1
        state = pb.UserState(
            user_id=user_id,
            known=row is not None and row.events > 0,
            freshness=pb.Freshness(
                last_event_ms=last_ms,
                event_age_ms=max(0, now_ms - last_ms) if last_ms >= 0 else -1,
                partition=stored.partition,
                store_offset=stored.store_offset,
                watermark_ms=stored.watermark_ms,
                state_age_ms=stored.state_age_ms,
            ),
            counters=self._counters(row),
        )
        if row is not None:
            state.history.CopyFrom(self._history(row, served, limit))
            state.memory.extend(row.memory.tolist())
            state.domain = row.domain
        if profile is not None:
            state.profile.CopyFrom(_profile(profile))
        return state

    def _history(self, row: UserRow, served: Served | None, limit: int) -> pb.History:
        size = EVENT_DTYPE.itemsize
        events = np.frombuffer(bytes(row.history[-limit * size :]), EVENT_DTYPE)[::-1]
        items = served.scorer.table.lookup(events["item"]).tolist() if served else [-1] * len(events)
        ids = served.scorer.table.ids if served else []
        keys = events["item"].tolist()
        names = [
            ids[item] if item >= 0 else self._item_id(key) or f"#{key:016x}"
            for item, key in zip(items, keys, strict=True)
        ]
        return pb.History(
            item_ids=names,
            titles=[
                served.title(item) if served and item >= 0 else self._title(name)
                for item, name in zip(items, names, strict=True)
            ],
            event_times_ms=events["t"].tolist(),
            actions=[self._actions.get(code, "") for code in events["action"].tolist()],
            values=events["value"].tolist(),
            prices=events["price"].tolist(),
            action_weights=events["weight"].tolist(),
            group_keys=events["group"].tolist(),
        )

    def _counters(self, row: UserRow | None) -> pb.Counters:
        if row is None:
            return pb.Counters(first_event_ms=-1)
        counts = sorted(row.actions.items(), key=lambda pair: (-pair[1], pair[0]))
        return pb.Counters(
            events=row.events,
            too_late_events=row.too_late,
            history_events=len(row.history) // EVENT_DTYPE.itemsize,
            first_event_ms=row.first_ms,
            actions=[
                pb.ActionCount(action=self._actions.get(code, ""), action_code=code, events=n) for code, n in counts
            ],
        )


def model_info(models: ModelSlot, served: Served | None, origin: pb.Provenance) -> pb.GetModelInfoResponse:
    """What serves and what lies on disk."""
    info = pb.GetModelInfoResponse(provenance=origin, refused_reason=models.refused, held=models.held)
    for entry in list_snapshots(models.root):
        info.available_versions.add(
            model_version=entry.version, model_sequence=entry.sequence, created_ms=entry.created_ms
        )
    if served is None:
        return info
    meta = served.snapshot.meta
    info.created_ms, info.adopted_ms = served.snapshot.created_ms, served.adopted_ms
    info.items = len(served.scorer.table)
    info.git_revision, info.config_sha256 = meta.git_revision, meta.config_sha256
    for name, value in sorted(meta.metrics.items()):
        info.metrics.add(name=name, value=value)
    for source, offset in sorted(meta.offsets.items()):
        topic, _, partition = source.rpartition(":")
        info.source_offsets.add(topic=topic, partition=int(partition), offset=offset)
    return info


def _profile(stored: StoredProfile) -> pb.Profile:
    return pb.Profile(
        text=stored.text,
        facets=[pb.ProfileFacet(name=name, text=text) for name, text in stored.facets],
        source=stored.vectors.source,
        version=stored.vectors.version,
        valid_from_ms=stored.vectors.valid_from_ms,
    )
