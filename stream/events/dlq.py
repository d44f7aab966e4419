"""Dead letters: records that are not events, as they came, with the reason beside them.

Headers of a dead letter: `reason` (a short code such as not_json), `detail` (what was received and expected),
`source` (partition:offset of the record) and `topic` (where it stood). Key and value are the record's own bytes.
Sending one again needs no memory of it: the copy that goes back to `interactions` is a new record, judged anew.

A record too large for `interactions.dlq` is shortened: the first bytes of key and value, with headers `truncated`
(bytes kept of the value), `length` (bytes it had) and `sha256` (of the whole value). The broker has the whole one at
its source until it deletes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from driftline.configs.errors import InputError
from driftline.configs.settings import Broker
from driftline.stream.events.records import Outgoing
from driftline.stream.events.topics import MAX_DEAD_LETTER_BYTES
from driftline.stream.kafka.reading import consumer, places, read_all

if TYPE_CHECKING:
    from driftline.stream.events.produce import Sender

TOPIC = "interactions.dlq"
HEADER_BYTES = 65_536
"""Room for the headers and the framing of a dead letter; also what is kept of a value that is shortened."""

KEPT_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead-letter topic.

    Attributes:
        offset: its place in `interactions.dlq`.
        reason, detail, source: its headers.
        key, value: the bytes of the record that was refused, or the first of them.
        timestamp_ms: when it was written.
        topic: where the record stood.
        length: bytes of the whole value; more than `value` has where it was shortened.
    """

    offset: int
    reason: str
    detail: str
    source: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    topic: str = "interactions"
    length: int = -1

    @property
    def is_whole_event(self) -> bool:
        """Whether `interactions` may get it again: it stood there, and all of it is here."""
        return self.topic == "interactions" and self.length in (-1, len(self.value or b""))


def read_dlq(settings: Broker, bootstrap: str, first: int = 0) -> Iterator[DeadLetter]:
    """All dead letters from an offset on.

    Raises:
        BrokerError: the topic can't be read.
    """
    for record in read_all(settings, bootstrap, TOPIC, first):
        headers = {name: value.decode(errors="replace") for name, value in record.headers if value is not None}
        yield DeadLetter(
            record.offset, headers.get("reason", ""), headers.get("detail", ""), headers.get("source", ""),
            record.key, record.value, record.timestamp,
            headers.get("topic", "interactions"), _number(headers.get("length", "")),
        )  # fmt: skip


def newest_letters(settings: Broker, bootstrap: str, most: int) -> list[DeadLetter]:
    """The newest records of dead letters that differ; none where the topic is not there yet.

    Raises:
        BrokerError: the topic can't be read.
    """
    with consumer(settings, bootstrap) as reader:
        if settings.prefix + TOPIC not in reader.topics():
            return []
        ends = reader.end_offsets(places(reader, settings, [TOPIC]))
    first = max(0, min(ends.values(), default=0) - most)
    return distinct(read_dlq(settings, bootstrap, first))


def distinct(letters: Iterable[DeadLetter]) -> list[DeadLetter]:
    """Each record once, as it was refused last: a state that is rebuilt refuses again what it refused before."""
    last = {(x.topic, x.source or x.offset, x.key, x.value): x for x in letters}
    return sorted(last.values(), key=lambda letter: letter.offset)


def find(letters: Iterable[DeadLetter], offset: int) -> DeadLetter:
    """The dead letter at an offset.

    Raises:
        InputError: there is none.
    """
    for letter in letters:
        if letter.offset == offset:
            return letter
    raise InputError(f"no dead letter at offset {offset}; `driftline dlq list` names those that there are")


def fitting(out: Outgoing) -> Outgoing:
    """A dead letter that the topic takes as it is; one that is larger, shortened."""
    size = len(out.key or b"") + len(out.value or b"")
    return out if size <= MAX_DEAD_LETTER_BYTES - HEADER_BYTES else shortened(out)


def shortened(out: Outgoing) -> Outgoing:
    """The beginning of a dead letter, with the length and the hash of the whole value."""
    whole = out.value or b""
    headers = {
        **dict(out.headers),
        "truncated": b"%d" % min(len(whole), HEADER_BYTES),
        "length": b"%d" % len(whole),
        "sha256": hashlib.sha256(whole).hexdigest().encode(),
    }
    key = None if out.key is None else out.key[:KEPT_KEY_BYTES]
    return Outgoing(out.topic, key, whole[:HEADER_BYTES], tuple(headers.items()))


def due_ms(letter: DeadLetter, future_ms: int) -> int:
    """From when on an event that was refused as of the future is accepted, in unix ms; 0 = that is not what it lacks.

    Args:
        letter: a dead letter.
        future_ms: `state.future_ms`.
    """
    if letter.reason != "from_the_future":
        return 0
    try:
        t_ms = orjson.loads(letter.value or b"")["timestamp_ms"]
        return max(0, int(t_ms) - future_ms)
    except (ValueError, KeyError, TypeError):
        return 0


def resend(sender: Sender, letters: Iterable[DeadLetter]) -> int:
    """Sends dead letters to `interactions` again, byte for byte; returns how many. Shortened and foreign ones stay."""
    whole = ((letter.key, letter.value) for letter in letters if letter.is_whole_event)
    return sender.send("interactions", whole).records


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1
