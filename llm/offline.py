"""The profile requests of a log: what the worker would ask for, as of each event, from a file.

Replay reads profiles from a file that is made ahead. Which requests get one must not depend on what comes later, or
the mere presence of a profile would tell the future: so a request is chosen by its own time and by what was known then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple
from zlib import crc32

from driftline.configs.settings import Settings
from driftline.llm.refresh import due_version
from driftline.llm.request import RECORD_ITEMS, CatalogueItem, ProfileRequest, read_request


class LogEvent(NamedTuple):
    """The fields of an event that a request is made of."""

    user_id: str
    item_id: str
    timestamp_ms: int
    action: str
    value: float | None
    price: float | None
    domain: str | None


@dataclass(slots=True)
class _History:
    """Running counts of one user."""

    events: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    last_ms: dict[str, int] = field(default_factory=dict)
    actions: Counter[str] = field(default_factory=Counter)
    domain: str = ""
    values: float = 0.0
    valued: int = 0
    log_prices: float = 0.0
    priced: int = 0


def requests_of_log(
    events: Iterable[LogEvent], catalogue: Mapping[str, CatalogueItem], settings: Settings
) -> Iterator[ProfileRequest]:
    """Requests in order of time. Events of one time stamp count together, so a basket is never cut.

    Args:
        events: in order of time.
    """
    users: dict[str, _History] = {}
    log_prices, priced = 0.0, 0
    for t_ms, rows in groupby(events, key=lambda event: event.timestamp_ms):
        before: dict[str, int] = {}
        usual: dict[str, float | None] = {}
        for event in rows:
            history = users.setdefault(event.user_id, _History())
            before.setdefault(event.user_id, history.events)
            _add(history, event, settings.action(event.action).weight > 0)
            if event.price is not None and event.price > 0:
                log_prices, priced = log_prices + math.log(event.price), priced + 1
            usual[event.user_id] = log_prices / priced if priced else None
        for user_id, events_before in before.items():
            history = users[user_id]
            version = due_version(events_before, history.events, settings.profiles)
            if version:
                yield _request(user_id, history, t_ms, version, usual[user_id], catalogue, settings)


def _add(history: _History, event: LogEvent, wanted: bool) -> None:
    history.events += 1
    history.actions[event.action] += 1
    history.last_ms[event.item_id] = event.timestamp_ms
    history.domain = event.domain or history.domain
    if not wanted:
        return
    history.counts[event.item_id] += 1
    if event.value is not None and math.isfinite(event.value):
        history.values, history.valued = history.values + event.value, history.valued + 1
    if event.price is not None and event.price > 0:
        history.log_prices, history.priced = history.log_prices + math.log(event.price), history.priced + 1


def _request(
    user_id: str,
    history: _History,
    t_ms: int,
    version: int,
    usual_log_price: float | None,
    catalogue: Mapping[str, CatalogueItem],
    settings: Settings,
) -> ProfileRequest:
    latest = sorted(history.counts, key=lambda item: (-history.last_ms[item], item))[:RECORD_ITEMS]
    ratio = None
    if history.priced and usual_log_price is not None:
        ratio = round(math.exp(history.log_prices / history.priced - usual_log_price), 3)
    record = {
        "user_id": user_id,
        "as_of_ms": t_ms,
        "version": version,
        "events": history.events,
        "domain": history.domain,
        "items": [{"item_id": i, "count": history.counts[i], "last_ms": history.last_ms[i]} for i in latest],
        "actions": {name: n for name, n in history.actions.items() if name in settings.actions},
        "mean_value": round(history.values / history.valued, 3) if history.valued else None,
        "price_ratio": ratio,
    }
    return read_request(record, catalogue, settings.profiles)


def plan(requests: Iterable[ProfileRequest], from_ms: int, active_ms: int) -> list[ProfileRequest]:
    """The order in which a budget is spent: what is valid from `from_ms` on first, then older ones.

    First come the last request before `from_ms` of every user whose request is at most `active_ms` old then, and every
    request from then on: one eighth of the users, by a hash of their id, after the other, each in order of time. Then
    the rest, the latest first. So a budget that ends anywhere leaves a choice by hash and by time alone.
    """
    before: list[ProfileRequest] = []
    after: list[ProfileRequest] = []
    for request in requests:
        (before if request.as_of_ms < from_ms else after).append(request)
    last = {request.user_id: request for request in before if from_ms - request.as_of_ms <= active_ms}
    chosen = {id(request) for request in last.values()}
    first = sorted([*last.values(), *after], key=lambda r: (crc32(r.user_id.encode()) % 8, r.as_of_ms, r.user_id))
    rest = [request for request in before if id(request) not in chosen]
    return first + sorted(rest, key=lambda r: (-r.as_of_ms, r.user_id))
