"""Records that the broker deletes before the trainer took them end it, as they end a worker."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kafka import TopicPartition
from tests.stream.conftest import baskets, feed, start

from driftline.configs.errors import StateError
from driftline.configs.settings import Settings
from driftline.stream.events.schema import encode_event
from driftline.stream.kafka.broker import admin
from driftline.stream.kafka.reading import consumer, places
from driftline.stream.learn import loop
from driftline.stream.learn.loop import _polled, seek
from driftline.stream.learn.merge import Merge


@pytest.mark.parametrize("taken", [0, 5, 12])  # one that is new begins at what is left
def test_a_trainer_does_not_step_over_records_that_were_deleted_while_it_runs(
    world: Any, settings: Settings, taken: int
) -> None:
    world.produce([(event.user_id.encode(), encode_event(event)) for event in baskets(12)])
    made = settings.model_copy(update={"broker": world.settings.broker})
    trainer = feed(start(made), world.log()[:taken])
    merge = Merge([0], trainer.learner.processor.validated)
    with consumer(made.broker, world.bootstrap, skips=False) as reader:
        main = places(reader, made.broker, ["interactions"])
        seek(reader, main, trainer)
        with admin(made.broker, world.bootstrap) as client:
            client.delete_records({TopicPartition(world.prefix + "interactions", 0): 12})
        deadline = time.monotonic() + 10

        def read() -> None:
            while trainer.offsets[0] < 36 and time.monotonic() < deadline:
                for partition, record in _polled(reader, main, trainer, merge):
                    trainer.take(partition, record)

        if taken == 5:
            with pytest.raises(StateError, match="at offset 5, but the topic begins at 12: 7 records were deleted"):
                read()
        else:
            read()
            assert trainer.offsets == {0: 36}


def test_what_is_sent_while_a_batch_is_learnt_counts_as_lag_before_the_batch_is_over(
    world: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "ENDS_S", 0.0)
    records = [(event.user_id.encode(), encode_event(event)) for event in baskets(12)]
    world.produce(records)
    made = settings.model_copy(update={"broker": world.settings.broker})
    trainer = start(made)
    merge, seen = Merge([0], trainer.learner.processor.validated), []
    with consumer(made.broker, world.bootstrap, skips=False) as reader:
        main = places(reader, made.broker, ["interactions"])
        seek(reader, main, trainer)
        while trainer.offsets[0] < 36:
            for partition, record in _polled(reader, main, trainer, merge):
                if not seen:
                    world.produce(records)
                trainer.take(partition, record)
                seen.append(trainer.lag)
    assert max(seen[:3]) > 36
