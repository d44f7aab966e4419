"""Answers of the service as rich renderables, for the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from driftline.serving.near import MEANT
from driftline.v1 import recommendation_pb2 as pb

_WORDS = {
    "no_snapshot": "no model serves yet (`driftline status` says how far it is)",
    "few_match": "the filter leaves fewer items than were asked for",
    "unknown_domain": "no item has that domain",
    "unknown_brand": "no item has that brand",
    "unknown_category": "no item has that category",
    "unknown_context": "the model reads no such field of a context",
}
_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s"), (1, "ms"))


def user_state(answer: pb.GetUserStateResponse | pb.WatchUserStateResponse, events: int = 10) -> RenderableType:
    """Who a user is to the engine: counters, freshness, profile, memory and the newest events."""
    state = answer.user_state
    if not state.known:
        origin = answer.provenance
        note = "no event applied yet" if origin.pending_events > 0 else "no event yet"
        note = "no state directory can be read yet" if "no_state" in origin.reasons else note
        said = Text(f"user {state.user_id}: {note}; recommendations are for a new user", style="yellow")
        return Group(said, *_behind(origin))
    parts: list[RenderableType] = [_summary(answer), *_behind(answer.provenance)]
    if state.HasField("profile"):
        parts.append(_profile(state.profile))
    parts.append(_history(state.history, events, [one for one in state.counters.actions if not one.action]))
    return Group(*parts)


def slate(
    answer: pb.RecommendResponse | pb.SimilarItemsResponse | pb.UserSlate, title: str = "recommendations"
) -> RenderableType:
    """Ranked items with their reasons, and where they come from."""
    if not answer.slate.item_ids:
        nothing = Text(f"{title}: nothing to show", style="yellow")
        return Group(nothing, _origin(answer.provenance), *_behind(answer.provenance))
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("item")
    table.add_column("title", overflow="fold")
    table.add_column("score", justify="right")
    reasons = [", ".join(row.reasons) for row in answer.slate.item_reasons]
    if any(reasons):
        table.add_column("why", overflow="fold")
    rows = zip(answer.slate.item_ids, answer.slate.titles, answer.slate.scores, strict=True)
    for place, (item, name, score) in enumerate(rows):
        cells = [str(place + 1), item, _titled(name, answer.slate.titles), f"{score:.3f}"]
        table.add_row(*cells, *([reasons[place]] if any(reasons) else []))
    untitled = "none of them has a title: no items with these ids were read (`driftline produce --items FILE`)"
    said = [] if any(answer.slate.titles) else [Text(untitled, "dim")]
    return Group(table, *said, _origin(answer.provenance), *_behind(answer.provenance))


def scores(answer: pb.ScoreItemsResponse, item_ids: Sequence[str], title: str) -> RenderableType:
    """Scores of some items, the best first, and which of them the model does not know."""
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("item")
    table.add_column("score", justify="right")
    known = [pair for pair in zip(answer.scores, item_ids, strict=True) if not math.isnan(pair[0])]
    for value, item in sorted(known, key=lambda pair: -pair[0]):
        table.add_row(item, f"{value:.3f}")
    unknown = [Text(f"not known to the model: {', '.join(answer.unknown_item_ids)}", style="yellow")]
    rest = [*unknown[: len(answer.unknown_item_ids)], _origin(answer.provenance), *_behind(answer.provenance)]
    return Group(*([table] if known else []), *rest)


def model_info(info: pb.GetModelInfoResponse) -> RenderableType:
    """Which model serves, what it knows and how good it was."""
    table = Table.grid(padding=(0, 2))
    version = info.provenance.model_version or "none yet; `driftline trainer` publishes one"
    table.add_row("model", version + (" (held by a rollback)" if info.held else ""))
    if info.refused_reason:
        table.add_row("refused", Text(info.refused_reason, style="red"))
    if info.provenance.model_version:
        table.add_row("published", _time(info.created_ms))
        table.add_row("in service since", _time(info.adopted_ms))
        table.add_row("events learnt up to", _time(info.provenance.model_watermark_ms))
        table.add_row("items", f"{info.items:,}")
        table.add_row("offsets", ", ".join(f"{s.topic}[{s.partition}] {s.offset:,}" for s in info.source_offsets))
        if info.provenance.model_pending_events >= 0:
            table.add_row("events not read yet", f"{info.provenance.model_pending_events:,}")
        table.add_row("prequential", ", ".join(f"{one.name} {_metric(one.value)}" for one in info.metrics) or "-")
        table.add_row("code, settings", f"{info.git_revision or '-'}, {info.config_sha256[:12] or '-'}")
    table.add_row("on disk", ", ".join(one.model_version for one in info.available_versions) or "nothing")
    return table


def _summary(answer: pb.GetUserStateResponse | pb.WatchUserStateResponse) -> RenderableType:
    state, table = answer.user_state, Table.grid(padding=(0, 2))
    counts = ", ".join(f"{one.events:,} {one.action or _nameless([one])}" for one in state.counters.actions)
    table.add_row("user", Text(state.user_id, style="bold") + (f"  ({state.domain})" if state.domain else ""))
    table.add_row("events", f"{state.counters.events:,}: {counts}")
    table.add_row("since", _time(state.counters.first_event_ms))
    fresh = state.freshness
    after = "as_of_newest_event" in answer.provenance.reasons
    when = "after the request" if after else f"{span(fresh.event_age_ms)} before the request"
    table.add_row("last event", f"{_time(fresh.last_event_ms)}, {when}")
    table.add_row(
        "state", f"version {answer.provenance.user_state_version:,}, partition {fresh.partition} "
        f"at offset {fresh.store_offset:,}, {_complete(fresh.state_age_ms)}",
    )  # fmt: skip
    if state.memory:
        norm = math.sqrt(sum(value * value for value in state.memory))
        table.add_row("memory", f"{len(state.memory)} numbers, norm {norm:.3f}  {_bars(list(state.memory))}")
    return table


def _profile(profile: pb.Profile) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_row("profile", profile.text)
    for facet in profile.facets:
        if facet.text:
            table.add_row("", f"{facet.name}: {facet.text}")
    table.add_row("", Text(f"{profile.source}, version {profile.version}, from {_time(profile.valid_from_ms)}", "dim"))
    return table


def _nameless(of: Sequence[pb.ActionCount]) -> str:
    """An action of which its code alone is known, which is told where it can be but one."""
    return f"not in the configuration{f' ({of[0].action_code:08x})' if len(of) == 1 else ''}"


def _history(history: pb.History, events: int, nameless: Sequence[pb.ActionCount]) -> RenderableType:
    table = Table(title=f"newest events ({len(history.item_ids)} returned)", title_justify="left", header_style="bold")
    for name in ("time (UTC)", "action", "item", "title"):
        table.add_column(name, overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("price", justify="right")
    columns = (
        history.event_times_ms,
        history.actions,
        history.item_ids,
        history.titles,
        history.values,
        history.prices,
    )
    for t_ms, action, item, title, value, price in list(zip(*columns, strict=True))[:events]:
        said = action or _nameless(nameless)
        table.add_row(_clock(t_ms), said, item, _titled(title, history.titles), _number(value), _number(price))
    return table


def _titled(title: str, of_all: Sequence[str]) -> str | Text:
    """A title, or that there is none beside others that have one; where none has, that is said once."""
    return title if title or not any(of_all) else Text("without a title", "dim italic")


def _origin(origin: pb.Provenance) -> Text:
    kind = pb.ServedFrom.Name(origin.served_from).removeprefix("SERVED_FROM_").lower()
    parts = [f"from {kind}", f"model {origin.model_version or 'none'}"]
    if origin.user_state_version:
        parts.append(f"user state {origin.user_state_version:,}")
    parts += [_WORDS.get(reason, reason.replace("_", " ")) for reason in origin.reasons if not reason.startswith(MEANT)]
    if near := [repr(reason.removeprefix(MEANT)) for reason in origin.reasons if reason.startswith(MEANT)]:
        parts.append(f"did you mean {' or '.join(near)}?")
    return Text(", ".join(parts), style="dim" if origin.served_from != pb.SERVED_FROM_FALLBACK else "yellow")


def _behind(origin: pb.Provenance) -> list[Text]:
    """How far an answer is behind the stream, where it is."""
    said = []
    if origin.pending_events > 0:
        as_of = f"as of {_time(origin.watermark_ms)}" if origin.watermark_ms >= 0 else "without any event"
        said.append(Text(f"{origin.pending_events:,} events are not applied yet; the answer is {as_of}", "yellow"))
    if origin.model_pending_events > 0:
        until = f", its last one is of {_time(origin.model_watermark_ms)}" if origin.model_watermark_ms >= 0 else ""
        said.append(Text(f"the model has not read {origin.model_pending_events:,} events yet{until}", "dim"))
    return said


def _bars(values: list[float]) -> str:
    top = max(map(abs, values)) or 1.0
    return "".join(" ▁▂▃▄▅▆▇█"[round((value / top + 1) * 4)] for value in values)


def _metric(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:.4f}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:g}"


def _time(t_ms: int) -> str:
    return "-" if t_ms < 0 else f"{_clock(t_ms)} UTC"


def _clock(t_ms: int) -> str:
    return datetime.fromtimestamp(t_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _complete(age_ms: int) -> str:
    return "not complete yet" if age_ms < 0 else f"complete {span(age_ms)} ago"


def span(ms: int) -> str:
    """A length of time in its largest unit, with three digits or all of its whole ones."""
    if ms < 0:
        return "never"
    size, unit = next(((size, unit) for size, unit in _UNITS if ms >= size), (1, "ms"))
    number = ms / size
    return f"{number:,.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
