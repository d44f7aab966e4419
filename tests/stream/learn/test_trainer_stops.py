"""A trainer that is told to stop while it starts, or reads many items, ends soon and leaves nothing half."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from kafka import KafkaProducer
from tests.stream.conftest import baskets, feed, flush, log_of, start

from driftline.configs.settings import Metrics, Settings
from driftline.serving.snapshot import open_snapshot
from driftline.stream.events.schema import encode_event
from driftline.stream.kafka.reading import consumer, places
from driftline.stream.learn import loop
from driftline.stream.learn.loop import AHEAD, _publish_if_due

ITEMS = 9


class Lengths:
    """Encodes a text as the length that it has; remembers all that it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return np.eye(4, dtype=np.float32)[[len(text) % 4 for text in texts]]


@pytest.fixture
def live(world: Any, settings: Settings) -> Settings:
    """Settings of a trainer that has ended: it knew nine items, and a crash left what no snapshot has."""
    world.produce([(event.user_id.encode(), encode_event(event)) for event in baskets(12)])
    sender = KafkaProducer(bootstrap_servers=world.bootstrap)
    for n in range(ITEMS):
        sender.send(world.prefix + "items", key=b"i%d" % n, value=orjson.dumps({"item_id": f"i{n}", "title": f"T{n}"}))
    sender.close()
    metrics = Metrics(worker_port=0, trainer_port=0, profiler_port=0, serving_port=0)
    made = settings.model_copy(update={"broker": world.settings.broker, "metrics": metrics})
    trainer = start(made)
    for n in range(ITEMS):
        trainer.take_item(orjson.dumps({"item_id": f"i{n}", "title": f"T{n}"}), b"i%d" % n, (0, n))
    trainer.read_whole_catalogue({0: (0, ITEMS)})
    feed(trainer, world.log()[:20])
    trainer.publish()
    feed(trainer, world.log()[20:])
    trainer.checkpoint()
    return made


def test_a_trainer_that_is_stopped_while_it_reads_the_items_leaves_checkpoint_and_snapshot_as_they_were(
    world: Any, live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, served = live.trainer.root / "checkpoint.pt", open_snapshot(live.serving.snapshots).version
    before = checkpoint.read_bytes()
    monkeypatch.setattr(loop, "stop_on_signals", lambda: lambda: True)
    loop.run_trainer(live, world.bootstrap)
    assert checkpoint.read_bytes() == before  # else what compaction takes until the next start would go unseen
    assert open_snapshot(live.serving.snapshots).version == served  # else it would have no titles


def test_many_items_that_no_event_has_named_hold_up_neither_a_snapshot_nor_learning(
    world: Any, settings: Settings
) -> None:
    world.create_topics()
    many, encoder = 5 * AHEAD, Lengths()
    paces = settings.trainer.model_copy(update={"publish_events": 9})
    made = settings.model_copy(update={"broker": world.settings.broker, "trainer": paces})
    trainer: Any = flush(feed(start(made, encoder), log_of(baskets(12))))
    named = set(trainer.learner.table.ids)
    with consumer(made.broker, world.bootstrap) as side:
        side.assign(places(side, made.broker, ["items", "profiles"]))
        side.seek_to_beginning()
        sender = KafkaProducer(bootstrap_servers=world.bootstrap)
        for n in reversed(range(many)):
            item = {"item_id": f"i{n}", "title": f"T{n}"}
            sender.send(world.prefix + "items", key=b"i%d" % n, value=orjson.dumps(item))
        sender.close()
        _publish_if_due(trainer, side, lambda: False)
    assert len(trainer.catalogue.items) == many  # all titles are known to the snapshot
    assert len(encoder.asked) == AHEAD + len(named)
    assert {f"T{item_id[1:]}" for item_id in named} <= set(encoder.asked)
    for _ in range(5):
        trainer.encode_items(ahead=AHEAD)
    assert sorted(encoder.asked) == sorted(f"T{n}" for n in range(many))


def test_a_trainer_that_is_stopped_while_it_encodes_texts_ends_after_the_batch(settings: Settings) -> None:
    encoder = Lengths()
    trainer = start(settings, encoder)
    for n in range(5 * AHEAD):
        trainer.take_item(orjson.dumps({"item_id": f"i{n}", "title": f"T{n}"}))
    trainer.encode_items(lambda: len(encoder.asked) > 0)
    assert len(encoder.asked) == AHEAD
