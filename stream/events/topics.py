"""The topics of driftline: what they hold, how they are keyed and what becomes of old records.

    interactions          user_id   delete    events, as producers sent them
    interactions.by-item  none      delete    frames of applied events for the item rows (several partitions only)
    interactions.dlq      as it was delete    records that are not events, with reason headers
    items                 item_id   compact   the catalogue
    profile-requests      user_id   compact   users whose profile is due, with what the model is to see
    profiles              user_id   compact   the current profile of a user
    profiles.log          user_id   delete    every profile ever written, for replay as of a time
    graph-versions        sha256    delete    trained graph versions and where each was adopted

Every name gets `broker.prefix`. Records carry the broker's time, never the event's or a producer's: a broker deletes by
the record's time, and a log of 2010 would be gone within the minute; and by it a worker knows an event from the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from driftline.configs.errors import BrokerError
from driftline.configs.settings import Broker
from driftline.stream.kafka.broker import admin

MS_PER_DAY = 86_400_000
MAX_DEAD_LETTER_BYTES = 2 * 1024 * 1024
"""A dead letter is a record that a broker took, up to 1,048,588 bytes by default, and its headers."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic.

    Attributes:
        compact: keep the last record of each key; else keep by time.
        single: always one partition, whatever `broker.partitions` says.
        max_bytes: largest record, 0 = what the broker takes by default.
    """

    name: str
    compact: bool = False
    single: bool = False
    max_bytes: int = 0


TOPICS = (
    Topic("interactions"),
    Topic("interactions.by-item"),
    Topic("interactions.dlq", single=True, max_bytes=MAX_DEAD_LETTER_BYTES),
    Topic("items", compact=True),
    Topic("profile-requests", compact=True),
    Topic("profiles", compact=True),
    Topic("profiles.log", single=True),
    Topic("graph-versions", single=True),
)


def create_topics(settings: Broker, bootstrap: str) -> list[str]:
    """Creates the topics that are missing; returns their names.

    Raises:
        ConfigError, BrokerError: the broker can't be reached or refuses.
    """
    with admin(settings, bootstrap) as client:
        try:
            existing = set(client.list_topics())
            missing = [topic for topic in TOPICS if settings.prefix + topic.name not in existing]
            made = [topic for topic in missing if _create(client, settings, topic)]
        except KafkaError as error:
            raise BrokerError(f"the broker at {bootstrap} refused to create topics: {_words(error)}") from None
    return [settings.prefix + topic.name for topic in made]


def partitions_of(settings: Broker, bootstrap: str, name: str) -> int:
    """Number of partitions of an existing topic, 0 when there is none.

    Raises:
        BrokerError: the broker can't be reached.
    """
    with admin(settings, bootstrap) as client:
        if settings.prefix + name not in client.list_topics():
            return 0
        return len(client.describe_topics([settings.prefix + name])[0]["partitions"])


def stamped_by_producers(client: Any, settings: Broker) -> bool:
    """Whether records of `interactions` carry their producer's time: a topic that others made, as most do."""
    return _config(client, settings, "message.timestamp.type") != "LogAppendTime"


def is_compacted(client: Any, settings: Broker) -> bool:
    """Whether the broker keeps only the last records of each key of `interactions`."""
    return "compact" in _config(client, settings, "cleanup.policy")


def _config(client: Any, settings: Broker, name: str) -> str:
    """A setting of the topic `interactions`, "" where the broker leaves it out, as it may what is not set."""
    resource = ConfigResource(ConfigResourceType.TOPIC, settings.prefix + "interactions")
    found: dict[str, dict[str, Any]]
    (found,) = client.describe_configs([resource]).values()
    return str(found.get(resource.name, {}).get(name, {}).get("value", ""))


def _create(client: Any, settings: Broker, topic: Topic) -> bool:
    """False if it is there after all: a broker lists a new topic only after a while."""
    retention_ms = int(settings.retention_days * MS_PER_DAY) or -1
    configs = (
        {"cleanup.policy": "compact"}
        if topic.compact
        else {"cleanup.policy": "delete", "retention.ms": str(retention_ms)}
    )
    configs["message.timestamp.type"] = "LogAppendTime"
    if topic.max_bytes:
        configs["max.message.bytes"] = str(topic.max_bytes)
    partitions = 1 if topic.single else settings.partitions
    new = NewTopic(settings.prefix + topic.name, partitions, settings.replication, topic_configs=configs)
    try:
        client.create_topics([new])
    except TopicAlreadyExistsError:
        return False
    return True


def _words(error: KafkaError) -> str:
    """The broker's own words out of a long message."""
    text = str(error)
    _, found, after = text.partition("error_message=")
    return after.split("', topic_config")[0].strip("'\"") if found else text[:300]
