"""What a request must look like, field by field. Violations are collected, so that all are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from driftline.serving.errors import InvalidRequest
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
MAX_HISTORY = 65_536
LATEST_MS = 32_503_680_000_000
"""The year 3000: a larger time is a unit error (micro- or nanoseconds)."""

_LISTS: dict[int, str] = {
    pb.SLATE_LIST_UNSPECIFIED: OVERALL,
    pb.SLATE_LIST_OVERALL: OVERALL,
    pb.SLATE_LIST_NOVEL: NOVEL,
    pb.SLATE_LIST_REPEAT: REPEAT,
}


@dataclass(frozen=True, slots=True)
class Options:
    """SlateOptions after the checks, with defaults filled in."""

    request_time_ms: int
    k: int
    which: str
    excluded: tuple[str, ...]
    domain: str
    min_model_sequence: int
    min_user_state_version: int
    item_reasons: bool
    most_bytes: int


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

    def options(self, message: pb.SlateOptions) -> Options:
        """All fields of SlateOptions."""
        return Options(
            request_time_ms=self.time_ms("options.request_time_ms", message.request_time_ms),
            k=self.within("options.k", message.k, 0, MAX_K) or 10,
            which=self.which("options.list", message.list),
            excluded=self.identifiers("options.excluded_item_ids", message.excluded_item_ids, 0, MAX_EXCLUDED),
            domain=self.domain("options.domain", message.domain),
            min_model_sequence=self.within("options.min_model_sequence", message.min_model_sequence, 0, 2**62),
            min_user_state_version=self.version("options.min_user_state_version", message.min_user_state_version),
            item_reasons=not message.omit_item_reasons,
            most_bytes=share_bytes(),
        )

    def _text(self, field: str, value: str, low: int) -> str:
        size = len(value.encode())
        if not low <= size <= MAX_ID_BYTES:
            self._add(field, f"got {size} bytes, expected {low} to {MAX_ID_BYTES} bytes of UTF-8")
        return value

    def _add(self, field: str, text: str) -> None:
        self._violations.append((field, text))
