"""Dead letters: records of `interactions` that are not events, as they came, with the reason beside them.

Headers of a dead letter: `reason` (a short code such as not_json), `detail` (what was received and expected) and
`source` (partition:offset of the record). Key and value are the record's own bytes. Sending one again needs no
memory of it: the copy that goes back to `interactions` is a new record, judged anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from configs.errors import InputError
from configs.settings import Broker
from stream.events import EVENT_TYPE
from stream.produce import Sender
from stream.reading import read_all

TOPIC = "interactions.dlq"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead-letter topic.

    Attributes:
        offset: its place in `interactions.dlq`.
        reason, detail, source: its headers.
        key, value: the bytes of the record that was refused.
        timestamp_ms: when it was written.
    """

    offset: int
    reason: str
    detail: str
    source: str
    key: bytes | None
    value: bytes
    timestamp_ms: int


def read_dlq(settings: Broker, bootstrap: str, first: int = 0) -> Iterator[DeadLetter]:
    """All dead letters from an offset on.

    Raises:
        BrokerError: the topic can't be read.
    """
    for record in read_all(settings, bootstrap, TOPIC, first):
        headers = {name: value.decode(errors="replace") for name, value in record.headers if value is not None}
        yield DeadLetter(
            record.offset, headers.get("reason", ""), headers.get("detail", ""), headers.get("source", ""),
            record.key, record.value or b"", record.timestamp,
        )  # fmt: skip


def find(letters: Iterable[DeadLetter], offset: int) -> DeadLetter:
    """The dead letter at an offset.

    Raises:
        InputError: there is none.
    """
    for letter in letters:
        if letter.offset == offset:
            return letter
    raise InputError(f"no dead letter at offset {offset}; `driftline dlq list` names those that there are")


def resend(sender: Sender, letters: Iterable[DeadLetter]) -> int:
    """Sends dead letters to `interactions` again, byte for byte; returns how many."""
    return sender.send("interactions", EVENT_TYPE, ((letter.key, letter.value) for letter in letters)).records
