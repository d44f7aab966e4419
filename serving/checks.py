"""What a request must look like, field by field. Violations are collected, so that all are counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from driftline.graph.rows import MAX_NUMBER
from driftline.serving.errors import InvalidRequest
from driftline.serving.filters import EVERYTHING, Filter
from driftline.serving.scorer import NOVEL, OVERALL, REPEAT
from driftline.serving.sizes import share_bytes
from driftline.v1 import recommendation_pb2 as pb

MAX_K = 1000
MAX_ID_BYTES = 256
MAX_EXCLUDED = 10_000
MAX_USERS = 256
MAX_BATCH_ITEMS = 25_600
"""Users times k of one batch: so many items fit into an answer, at 160 bytes each with title and reason."""
MAX_SCORED = 1000
MAX_NAMES, MAX_NAME_BYTES = 100, 1024
"""Names of one list of a filter, and bytes of one."""
MAX_CONTEXT = 16
"""Fields of a request's context."""
MAX_HISTORY = 65_536
LATEST_MS = 32_503_680_000_000
"""The year 3000: a larger time is a unit error (micro- or nanoseconds)."""

Context = tuple[tuple[str, str], ...]
"""Fields of a request's context and their values, in order of the names."""

_LISTS: dict[int, str] = {
    pb.SLATE_LIST_UNSPECIFIED: OVERALL,
    pb.SLATE_LIST_OVERALL: OVERALL,
    pb.SLATE_LIST_NOVEL: NOVEL,
    pb.SLATE_LIST_REPEAT: REPEAT,
}


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of a list after the checks, with defaults filled in: a slate, or the items that go with one."""

    k: int
    excluded: tuple[str, ...]
    domain: str
    min_model_sequence: int
    asked: Filter
    diversity: float
    most_bytes: int
    request_time_ms: int = 0
    which: str = OVERALL
    min_user_state_version: int = 0
    item_reasons: bool = True
    context: Context = ()

    @property
    def steered(self) -> bool:
        """Whether items are left out that an answer would have without these options."""
        return bool(self.asked or self.excluded or self.domain)


class Checks:
    """Collects the violations of one request; `done` raises if there are any."""

    def __init__(self) -> None:
        self._violations: list[tuple[str, str]] = []

    def done(self) -> None:
        """Ends the checks.

        Raises:
            InvalidRequest: any field was wrong.
        """
        if self._violations:
            raise InvalidRequest(self._violations)

    def identifier(self, field: str, value: str) -> str:
        """An id of 1 to 256 bytes."""
        return self._text(field, value, 1)

    def domain(self, field: str, value: str) -> str:
        """A domain of at most 256 bytes, "" = any."""
        return self._text(field, value, 0)

    def identifiers(self, field: str, values: Sequence[str], low: int, high: int) -> tuple[str, ...]:
        """Between `low` and `high` ids."""
        if not low <= len(values) <= high:
            self._add(field, f"got {len(values)} ids, expected {low} to {high}")
        for place, value in enumerate(values[:high]):
            self.identifier(f"{field}[{place}]", value)
        return tuple(values)

    def within(self, field: str, value: int, low: int, high: int) -> int:
        """A number between bounds."""
        if not low <= value <= high:
            self._add(field, f"got {value}, expected {low} to {high}")
        return value

    def time_ms(self, field: str, value: int) -> int:
        """A unix time in milliseconds, 0 = now."""
        if not 0 <= value <= LATEST_MS:
            self._add(field, f"got {value}, expected unix milliseconds before the year 3000, or 0 for now")
        return value

    def version(self, field: str, value: int) -> int:
        """An offset, 0 = any."""
        return self.within(field, value, 0, 2**62)

    def which(self, field: str, value: int) -> str:
        """The name of a list."""
        if value not in _LISTS:
            self._add(field, f"got {value}, expected a value of SlateList: {', '.join(pb.SlateList.keys())}")
        return _LISTS.get(value, OVERALL)

    def batch(self, users: int, k: int) -> None:
        """That the items of a batch fit into one answer."""
        if 0 < users <= MAX_USERS and users * k > MAX_BATCH_ITEMS:
            self._add(
                "options.k",
                f"got {k} for each of {users} users, expected {MAX_BATCH_ITEMS} items in all at most: set k to "
                f"{MAX_BATCH_ITEMS // users}, or ask for {max(1, MAX_BATCH_ITEMS // k)} users at a time",
            )

    def options(self, message: pb.SlateOptions, diversity: float = 0.0) -> Options:
        """All fields of SlateOptions; `diversity` where it has none."""
        return replace(
            self.steering("options.", message, diversity),
            request_time_ms=self.time_ms("options.request_time_ms", message.request_time_ms),
            which=self.which("options.list", message.list),
            min_user_state_version=self.version("options.min_user_state_version", message.min_user_state_version),
            item_reasons=not message.omit_item_reasons,
            context=self.context("options.context", message.context),
        )

    def steering(self, field: str, message: pb.SlateOptions | pb.SimilarItemsRequest, diversity: float) -> Options:
        """The fields that every list has.

        Args:
            field: what stands before their names.
            message: that has them.
            diversity: where the message has none.
        """
        if message.HasField("diversity"):
            diversity = message.diversity
            if not 0 <= diversity <= 1:
                self._add(f"{field}diversity", f"got {diversity:g}, expected 0 to 1; leave it out for the default")
        return Options(
            k=self.within(f"{field}k", message.k, 0, MAX_K) or 10,
            excluded=self.identifiers(f"{field}excluded_item_ids", message.excluded_item_ids, 0, MAX_EXCLUDED),
            domain=self.domain(f"{field}domain", message.domain),
            min_model_sequence=self.within(f"{field}min_model_sequence", message.min_model_sequence, 0, 2**62),
            asked=self.filter(f"{field}filter", message.filter) if message.HasField("filter") else EVERYTHING,
            diversity=diversity,
            most_bytes=share_bytes(),
        )

    def context(self, field: str, given: Mapping[str, str]) -> Context:
        """Names and values in order of names."""
        if len(given) > MAX_CONTEXT:
            self._add(
                field, f"got {len(given)} fields, expected {MAX_CONTEXT} at most: those that signals.context names"
            )
        pairs = sorted(given.items())[:MAX_CONTEXT]
        for name, value in pairs:
            self._text(f"{field} name", name, 1)
            self._text(f"{field}[{name:.100}]", value, 1)
        return tuple(pairs)

    def filter(self, field: str, message: pb.ItemFilter) -> Filter:
        """All fields of ItemFilter, and that they can hold together."""
        for one in ("categories", "brands"):
            both = sorted(set(getattr(message, one)) & set(getattr(message, f"excluded_{one}")))
            if both:
                self._add(
                    f"{field}.excluded_{one}",
                    f"got {both[0]!r:.100}, which {one} has, too; expected it in one of them: take it out of the other",
                )
        low = self._price(f"{field}.min_price", message.min_price) if message.HasField("min_price") else -math.inf
        high = self._price(f"{field}.max_price", message.max_price) if message.HasField("max_price") else math.inf
        if low > high:
            self._add(
                f"{field}.min_price",
                f"got {low:g}, and max_price {high:g}; expected min_price <= max_price: swap them, or leave one out",
            )
        return Filter(
            categories=self._names(f"{field}.categories", message.categories),
            excluded_categories=self._names(f"{field}.excluded_categories", message.excluded_categories),
            brands=self._names(f"{field}.brands", message.brands),
            excluded_brands=self._names(f"{field}.excluded_brands", message.excluded_brands),
            domains=self._names(f"{field}.domains", message.domains),
            min_price=low,
            max_price=high,
        )

    def _names(self, field: str, values: Sequence[str]) -> tuple[str, ...]:
        if len(values) > MAX_NAMES:
            self._add(field, f"got {len(values)} names, expected {MAX_NAMES} at most: ask with fewer, or several times")
        for place, value in enumerate(values[:MAX_NAMES]):
            self._text(f"{field}[{place}]", value, 1, MAX_NAME_BYTES)
        return tuple(sorted(set(values)))

    def _price(self, field: str, value: float) -> float:
        if not 0 <= value <= MAX_NUMBER:
            self._add(field, f"got {value:g}, expected 0 to {MAX_NUMBER:g}; leave it out for no bound")
        return value

    def _text(self, field: str, value: str, low: int, high: int = MAX_ID_BYTES) -> str:
        size = len(value.encode())
        if not low <= size <= high:
            self._add(field, f"got {size} bytes, expected {low} to {high} bytes of UTF-8")
        return value

    def _add(self, field: str, text: str) -> None:
        self._violations.append((field, text))
