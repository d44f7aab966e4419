"""A stream as it really comes: duplicates, disorder, slow and fast clocks, records that are none; and its truth.

Every record is made from events of a file. Each event gets an id and a time of its own, a second after the one before,
so that the stream ends about now, as a live one does, and its order is one whatever the order of arrival.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from driftline.graph.rows import Event
from driftline.stream.events.schema import MAX_EVENT_BYTES, encode_event

STEP_MS = 1000
FAST_CLOCK_MS = 6 * 3_600_000
SLOW_CLOCK_MS = 50 * 60_000
Message = tuple[bytes | None, bytes]
"""Key and value of a record."""


@dataclass(frozen=True, slots=True)
class Troubles:
    """How much of each there is.

    Attributes:
        duplicates: share of events that are sent again, within `window` records.
        reordered: share that come up to `window` records later than they should.
        poison: share of records that are no events, of nine kinds.
        slow: share that come `SLOW_CLOCK_MS` of event time after their place.
        keyless: share of the events that come in time whose record has no key, so that it comes in any partition.
        fast: events of one clock that is `FAST_CLOCK_MS` ahead of the broker's.
        window: records.
    """

    duplicates: float = 0.10
    reordered: float = 0.05
    poison: float = 0.01
    slow: float = 0.10
    keyless: float = 0.05
    fast: int = 5
    window: int = 200


USUAL = Troubles()
NONE = Troubles(0.0, 0.0, 0.0, 0.0, 0.0, 0)


@dataclass(slots=True)
class TroubledStream:
    """What is sent, and what has to come of it.

    Attributes:
        messages: in order of arrival.
        events: the distinct events, in order of time.
        letters: (key, value) of the records that must become dead letters, once each.
    """

    messages: list[Message] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    letters: list[Message] = field(default_factory=list)


def spaced(events: Sequence[Event], end_ms: int) -> list[Event]:
    """Events with ids and times of their own, the last one at `end_ms`."""
    first = end_ms - STEP_MS * (len(events) - 1)
    return [
        event.changed(event_id=f"e{n}", timestamp_ms=first + n * STEP_MS, group_id=None, offset=-1)
        for n, event in enumerate(events)
    ]


def trouble(events: Sequence[Event], troubles: Troubles, seed: int) -> TroubledStream:
    """The stream of some events under some troubles.

    Args:
        events: as `spaced` gives them.
        troubles: how much of each.
        seed: of every draw.
    """
    rng = np.random.default_rng(seed)
    n, made = len(events), TroubledStream(events=list(events))
    place = np.arange(n, dtype=np.float64)
    late = rng.random(n) < troubles.slow
    place[late] += SLOW_CLOCK_MS / STEP_MS
    moved = rng.random(n) < troubles.reordered
    place[moved] += rng.integers(1, troubles.window, int(moved.sum()))
    bare = (rng.random(n) < troubles.keyless) & ~late & ~moved  # what is sent on comes later still
    arrivals = [
        (float(at), (None if keyless else event.user_id.encode(), encode_event(event)))
        for at, event, keyless in zip(place, events, bare.tolist(), strict=True)
    ]
    again = np.flatnonzero(rng.random(n) < troubles.duplicates)
    arrivals += [(place[i] + rng.integers(1, troubles.window), _message(events[i])) for i in again.tolist()]
    for number in range(round(troubles.poison * n)):
        letter = _poison(number, events[int(rng.integers(n))])
        made.letters.append(letter)
        arrivals.append((float(rng.integers(n)), letter))
    for number in range(troubles.fast):
        event = events[-1].changed(timestamp_ms=events[-1].timestamp_ms + FAST_CLOCK_MS, event_id=f"fast{number}")
        made.letters.append(_message(event))
        arrivals.append((float(rng.integers(n)), made.letters[-1]))
    order = np.argsort([at for at, _ in arrivals], kind="stable")
    made.messages = [arrivals[i][1] for i in order.tolist()]
    return made


def _message(event: Event) -> Message:
    return event.user_id.encode(), encode_event(event)


def _poison(number: int, event: Event) -> Message:
    """A record that is no event: its kind by its number, its bytes unlike all others'."""
    key, whole = event.user_id.encode(), encode_event(event.changed(event_id=f"poison{number}"))
    kinds: tuple[Message, ...] = (
        (key, b"{broken %d" % number),
        (key, whole[:-7]),
        (key, b"[%d]" % number),
        (key, whole.replace(b'"item_id"', b'"itme_id"')),
        (key, whole.replace(str(event.timestamp_ms).encode(), b'"yesterday"')),
        (key, whole.replace(str(event.timestamp_ms).encode(), str(event.timestamp_ms // 1000).encode())),
        (key, b"\xff\xfe%d" % number),
        (key, whole[:-1] + b',"note":"' + b"x" * MAX_EVENT_BYTES + b'"}'),
        (key, whole.replace(str(event.timestamp_ms).encode(), b"%d000" % event.timestamp_ms)),
    )
    return kinds[number % len(kinds)]
