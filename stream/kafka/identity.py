"""Which log a name stands for: topics that were deleted and made anew have the old name and other offsets.

Kafka gives every topic an id (since 2.8). Where a broker gives none, as the embedded one, a record of each partition
is the mark: its offset, its time and the hash of its bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import xxhash
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError, UnknownTopicOrPartitionError, for_code

from driftline.configs.errors import BrokerError
from driftline.configs.security import bootstrap_ms, client_options, consumer_options
from driftline.configs.settings import Broker
from driftline.serving.unclosed import close_what_is_dropped
from driftline.stream.kafka.reading import polled

READ_MS = 2000
"""How long one record may take to come."""
NOTHING = "00000000-0000-0000-0000-000000000000"

Place = tuple[str, int]
"""Topic without prefix, and partition."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One partition of a topic, as a broker shows it.

    Attributes:
        topic_id: "" where the broker gives none.
        offset: of the record that is the mark; -1 = there is none yet.
        mark: time in ms and hash of that record.
    """

    topic_id: str = ""
    offset: int = -1
    mark: str = ""

    def differs(self, now: Identity) -> bool:
        """Whether the broker shows another log than this one; False where it can't be told."""
        if self.topic_id and now.topic_id:
            return self.topic_id != now.topic_id
        return bool(self.mark and now.mark and self.offset == now.offset and self.mark != now.mark)

    def __str__(self) -> str:
        return f"topic id {self.topic_id}" if self.topic_id else f"record {self.mark or 'unknown'} at {self.offset}"


class Identities:
    """Asks a broker which topics it has now. Not for several threads at once; opens its clients when asked."""

    def __init__(self, settings: Broker, bootstrap: str) -> None:
        self._settings, self._bootstrap = settings, bootstrap
        self._admin: Any = None
        self._reader: Any = None
        self.partitions: dict[str, int] = {}
        """Partitions of the topics that were asked for last, by name without prefix."""

    def of(self, places: Sequence[Place], marks: Iterable[Identity | None]) -> dict[Place, Identity]:
        """What stands behind some places now; a topic that does not exist is left out.

        Args:
            marks: parallel to `places`: the identity that is known, whose record is looked at again.

        Raises:
            BrokerError: the broker does not answer.
        """
        try:
            ids = self._ids(sorted({name for name, _ in places}))
            return {
                place: self._identity(ids[place[0]], place, known)
                for place, known in zip(places, marks, strict=True)
                if place[0] in ids
            }
        except (KafkaError, OSError) as error:
            self.close()
            raise BrokerError(
                f"{self._bootstrap} does not say which topics it has: {error!r:.200}; check the broker"
            ) from None

    def close(self) -> None:
        """Ends the clients; the next question opens them again."""
        for client in (self._admin, self._reader):
            if client is not None:
                with suppress(KafkaError, OSError):
                    client.close()
        self._admin = self._reader = None

    def _ids(self, names: list[str]) -> dict[str, str]:
        """Topic ids of those topics that exist, "" where the broker gives none."""
        if self._admin is None:
            close_what_is_dropped()
            timeout_ms = bootstrap_ms(self._settings)
            options = client_options(self._settings, self._bootstrap)
            self._admin = KafkaAdminClient(bootstrap_timeout_ms=timeout_ms, request_timeout_ms=timeout_ms, **options)
        found = self._admin.describe_topics([self._settings.prefix + name for name in names])
        for topic in found:
            if topic["error_code"] not in (0, UnknownTopicOrPartitionError.errno):
                why = for_code(topic["error_code"]).__name__
                raise BrokerError(f"the broker does not describe topic {topic['name']}: {why}; see to the right to it")
        counts = {topic["name"]: len(topic["partitions"]) for topic in found if not topic["error_code"]}
        self.partitions = {name: counts.get(self._settings.prefix + name, 0) for name in names}
        ids = {topic["name"]: str(topic.get("topic_id") or "") for topic in found if not topic["error_code"]}
        known = {name: ids.get(self._settings.prefix + name) for name in names}
        return {name: topic_id.replace(NOTHING, "") for name, topic_id in known.items() if topic_id is not None}

    def _identity(self, topic_id: str, place: Place, known: Identity | None) -> Identity:
        by_mark = not topic_id or (known is not None and known.mark and not known.topic_id)
        return replace(self._marked(place, known), topic_id=topic_id) if by_mark else Identity(topic_id)

    def _marked(self, place: Place, known: Identity | None) -> Identity:
        """The record that is known, or the oldest one if none is or it is gone."""
        if self._reader is None:
            options = consumer_options(self._settings, self._bootstrap)
            self._reader = KafkaConsumer(**options, bootstrap_timeout_ms=bootstrap_ms(self._settings))
        at = TopicPartition(self._settings.prefix + place[0], place[1])
        self._reader.assign([at])
        first, end = self._reader.beginning_offsets([at])[at], self._reader.end_offsets([at])[at]
        offset = known.offset if known is not None and known.mark and known.offset >= first else first
        if known is not None and known.mark and offset >= end:
            return Identity("", offset, "none")
        if first >= end:
            return Identity()
        self._reader.seek(at, offset)
        record = next(iter(polled(self._reader, READ_MS, 1).get(at, [])), None)
        if record is None:
            return Identity()
        digest = xxhash.xxh3_64_hexdigest((record.key or b"") + b"\0" + (record.value or b""))
        return Identity("", record.offset, f"{record.timestamp}:{digest}")
