"""What a model is to see of one user, fixed at one event: a profile is a pure function of this request.

The worker writes records to the topic `profile-requests`; replay makes the same ones from a file:

    {user_id, as_of_ms, events, items: [{item_id, count, last_ms}, ...], version?, domain?, actions?: {name: n},
     mean_value?, price_ratio?}

The profiler joins them with what the catalogue says of the items. Counts and items are as of the event that fired
the request, so that no later event can reach a profile by way of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from driftline.configs.errors import InputError
from driftline.configs.settings import Profiles

RECORD_ITEMS = 50
"""Items of one record, the latest first."""
LONGEST_TEXT = 160
"""Characters of a title, a name or a domain that a prompt may hold."""
Counts = tuple[tuple[str, int], ...]
"""(text, number of events) pairs, the most frequent first, then the most recent."""


@dataclass(frozen=True, slots=True)
class CatalogueItem:
    """What the catalogue says of one item."""

    title: str
    categories: Sequence[str] = ()
    brand: str = ""


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """A user's history in the words that a prompt is made of.

    Attributes:
        as_of_ms: time of the event that fired the request; nothing later is in it.
        version: counts a user's requests, from 1.
        events: events of the user in total.
        titles: titles of wanted items and how often each was wanted.
        categories, brands: the same for what the catalogue says of those items; empty if it says nothing.
        domain: last market, scene or shop; "" = none.
        actions: counts by action name.
        mean_value: mean of the events' value (quantity, watch seconds, rating); None = not given.
        price_ratio: geometric mean price over the usual one; None = not given.
    """

    user_id: str
    as_of_ms: int
    version: int = 1
    events: int = 0
    titles: Counts = ()
    categories: Counts = ()
    brands: Counts = ()
    domain: str = ""
    actions: Counts = ()
    mean_value: float | None = None
    price_ratio: float | None = None

    @property
    def has_text(self) -> bool:
        """Whether the catalogue says anything of what the user wanted: without, a model has nothing to read."""
        return bool(self.titles or self.categories or self.brands)


def read_request(
    record: bytes | Mapping[str, Any], catalogue: Mapping[str, CatalogueItem], settings: Profiles
) -> ProfileRequest:
    """Joins one record of `profile-requests` with the catalogue; items that it does not know are left out.

    Raises:
        InputError: the record is not JSON, lacks a field or has one of another kind.
    """
    try:
        data: Mapping[str, Any] = orjson.loads(record) if isinstance(record, bytes) else record
        items = [(str(i["item_id"]), int(i["count"]), int(i["last_ms"])) for i in data["items"]]
        known = [(catalogue[item], n, last) for item, n, last in items if item in catalogue]
        return ProfileRequest(
            user_id=str(data["user_id"]),
            as_of_ms=int(data["as_of_ms"]),
            version=int(data.get("version", 1)),
            events=int(data["events"]),
            titles=_counts(((c.title, n, last) for c, n, last in known), settings.titles),
            categories=_counts(((_name(x), n, last) for c, n, last in known for x in c.categories), settings.titles),
            brands=_counts(((_name(c.brand), n, last) for c, n, last in known), settings.titles),
            domain=_plain(str(data.get("domain") or "")),
            actions=tuple(sorted((str(a), int(n)) for a, n in dict(data.get("actions") or {}).items())),
            mean_value=_number(data.get("mean_value")),
            price_ratio=_number(data.get("price_ratio")),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"not a profile request: {record!r:.80} ({type(error).__name__}: {error}); expected user_id, as_of_ms, "
            "events and items with item_id, count and last_ms"
        ) from None


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]


def _name(text: str) -> str:
    """A name that can stand in an answer, where commas part the phrases."""
    return _plain(text.replace(",", " "))


def _plain(text: str) -> str:
    """One line of bounded length, whatever a producer sent."""
    return " ".join(text[:LONGEST_TEXT].split())


def _counts(triples: Iterable[tuple[str, int, int]], most: int) -> Counts:
    """The texts with the highest sum of counts, ties by the latest time, then by text."""
    counts: Counter[str] = Counter()
    last: dict[str, int] = {}
    for raw, n, last_ms in triples:
        text = raw[:LONGEST_TEXT]
        if text:
            counts[text] += n
            last[text] = max(last.get(text, last_ms), last_ms)
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], -last[pair[0]], pair[0]))
    return tuple(ranked[:most])
