"""What is no item becomes a dead letter, once, with its own bytes; the items around it are taken."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
from kafka import KafkaProducer

import driftline.stream.learn.trainer as module
from driftline.configs.settings import Settings
from driftline.stream.events.dlq import read_dlq
from driftline.stream.events.produce import outlet
from driftline.stream.kafka.reading import consumer, places
from driftline.stream.learn.loop import _take_side
from driftline.stream.learn.trainer import Trainer
from driftline.stream.process.processor import Outgoing

BAD: list[tuple[str, bytes]] = [
    ("wrong_type", b'{"item_id": "i1", "available": "false"}'),
    ("wrong_type", b'{"item_id": "i1", "available": 0}'),
    ("wrong_type", b'{"item_id": "i1", "available": [false]}'),
    ("wrong_type", b'{"item_id": "i1", "title": 5}'),
    ("wrong_type", b'{"item_id": "i1", "text": {"en": null}}'),
    ("wrong_type", b'{"item_id": "i1", "brand": ["a"]}'),
    ("wrong_type", b'{"item_id": "i1", "domain": false}'),
    ("wrong_type", b'{"item_id": "i1", "categories": "a, b"}'),
    ("wrong_type", b'{"item_id": "i1", "categories": ["a", null]}'),
    ("wrong_type", b'{"item_id": "i1", "price": "9.99"}'),
    ("out_of_range", b'{"item_id": "i1", "price": 1e300}'),
    ("wrong_type", b'{"item_id": "i1", "valid_from_ms": "2020-01-01"}'),
    ("out_of_range", b'{"item_id": "i1", "valid_from_ms": -1}'),
    ("wrong_type", b'{"item_id": 1}'),
    ("out_of_range", b'{"item_id": ""}'),
    ("out_of_range", b'{"item_id": "' + b"x" * 257 + b'"}'),
    ("missing_field", b'{"title": "nameless"}'),
    ("not_an_object", b'[{"item_id": "i1"}]'),
    ("not_an_object", b"null"),
    ("not_json", b'{"item_id": "\xff\xfe"}'),
    ("not_json", b"[" * 5000),
    ("not_json", b"\x00" * 900_000),
]
GOOD = [
    b'{"item_id": "i1", "title": "Lamp", "unknown": {"x": null}}',
    b'{"item_id": "i2", "title": null, "available": null}',
]


def send(world: Any, records: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=world.bootstrap)
    for number, value in enumerate(records):
        producer.send(world.prefix + "items", key=b"k%d" % number, value=value, headers=[])
    producer.close()


def read(world: Any, settings: Settings) -> Trainer:
    """What a trainer does as it starts; it ends after its checkpoint."""
    broker = world.settings.broker
    with outlet(broker, world.bootstrap, "t") as out, consumer(broker, world.bootstrap) as side:
        trainer = Trainer(settings, 1, out, None)
        at = places(side, broker, ["items"])
        side.assign(at)
        side.seek_to_beginning(*at)
        first, ends = side.beginning_offsets(at), side.end_offsets(at)
        while any(side.position(place) < ends[place] for place in at):
            _take_side(trainer, side, 200)
        trainer.read_whole_catalogue({place.partition: (first[place], ends[place]) for place in at})
        trainer.encode_items()
        trainer.checkpoint()
    return trainer


@pytest.fixture
def on_world(world: Any, settings: Settings) -> Settings:
    world.create_topics()
    return settings.model_copy(update={"broker": world.settings.broker})


def test_a_record_that_is_no_item_becomes_a_dead_letter_once_over_restarts(world: Any, on_world: Settings) -> None:
    send(world, [GOOD[0], *(value for _, value in BAD), GOOD[1]])
    trainer = read(world, on_world)
    assert set(trainer.catalogue.items) == {"i1", "i2"}
    letters = list(read_dlq(world.settings.broker, world.bootstrap))
    assert [(letter.reason, letter.value) for letter in letters] == BAD
    assert [(letter.topic, letter.source, letter.key) for letter in letters] == [
        ("items", f"0:{n}", b"k%d" % n) for n in range(1, len(BAD) + 1)
    ]
    assert "available is 'false', expected true or false" in letters[0].detail
    assert not any(letter.is_whole_event for letter in letters)
    read(world, on_world)
    assert len(list(read_dlq(world.settings.broker, world.bootstrap))) == len(BAD)
    send(world, [b"{", orjson.dumps({"item_id": "i3"})])
    assert "i3" in read(world, on_world).catalogue.items
    assert len(list(read_dlq(world.settings.broker, world.bootstrap))) == len(BAD) + 1


def test_a_checkpoint_follows_dead_letters_soon_so_that_a_crash_later_sends_none_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SOON_S", 0.2)
    sent: list[Outgoing] = []
    path = settings.trainer.root / "checkpoint.pt"
    for _ in range(3):  # each ends without a checkpoint of its own accord
        trainer = Trainer(settings, 1, sent.extend, None)
        trainer.take_item(GOOD[0], b"k", (0, 0))
        for offset in range(1, 51):  # one after the other: many letters, one checkpoint
            trainer.take_item(b"{", b"k", (0, offset))
            trainer.encode_items()
            trainer.checkpoint_if_due()
        assert len(sent) == (50 if path.exists() else 0)
        time.sleep(0.2)
        trainer.checkpoint_if_due()
    assert len(sent) == 50
    written = path.stat().st_mtime_ns
    trainer.encode_items()
    trainer.checkpoint_if_due()
    assert path.stat().st_mtime_ns == written
