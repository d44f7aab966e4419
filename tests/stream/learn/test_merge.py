"""Several partitions in one order: nobody's history loses a row because another partition was read first."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from driftline.configs.settings import Graph, Model, Ranker, Settings, Trainer
from driftline.graph.chunks import whole_users
from driftline.graph.rows import Event, decode_user
from driftline.serving.forget import encode_forget
from driftline.stream.bundled import EVENTS
from driftline.stream.events.produce import event_messages
from driftline.stream.events.schema import encode_event
from driftline.stream.kafka.reading import consumer, places
from driftline.stream.learn.loop import _polled, seek
from driftline.stream.learn.merge import SLOW_S, Merge
from driftline.stream.learn.trainer import Trainer as TrainerLoop
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import MemoryStore

DAY_MS, T0_MS = 86_400_000, 1_600_000_000_000
ROWS, PARTITIONS = 3000, 4


def merge(partitions: int) -> Merge:
    return Merge(range(partitions), Processor(Settings(), MemoryStore()).validated)


def records(*days: int, first: int = 0) -> list[Record]:
    return [Record(n, encode_event(Event("u", "i", T0_MS + day * DAY_MS)), b"u") for n, day in enumerate(days, first)]


def taken(merge: Merge, unread: set[int], now_s: float) -> list[tuple[int, int]]:
    return [(number, record.offset) for number, record in merge.ready(unread, now_s, 99)]


def test_the_earliest_comes_first_and_a_partition_that_is_ahead_waits_for_one_with_a_backlog() -> None:
    one = merge(2)
    one.put({0: records(1, 2, 9)}, 0.0)
    assert taken(one, {0, 1}, 10.0) == []
    one.put({1: records(2, 3)}, 20.0)
    assert taken(one, {1}, 30.0) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (len(one), one.waiting) == (1, {0})
    one.put({1: records(10, first=2)}, 40.0)
    assert taken(one, set(), 50.0) == [(0, 2), (1, 2)]


def test_a_partition_without_more_is_waited_for_only_while_it_may_be_slow() -> None:
    one = merge(3)
    one.put({0: records(1, 2)}, 0.0)
    assert taken(one, set(), SLOW_S / 2) == []
    one.put({1: records(1)}, SLOW_S / 2)
    assert taken(one, set(), SLOW_S) == [(0, 0), (1, 0)]  # the third is empty; the second brought something just now
    assert taken(one, set(), 2 * SLOW_S) == [(0, 1)]


def test_a_request_to_forget_waits_for_what_the_broker_took_before_it_in_other_partitions() -> None:
    def asks(offset: int, user_id: str, taken_ms: int) -> Record:
        key, value = encode_forget(user_id)
        return Record(offset, value, key, taken_ms)

    def sent(taken_ms: int, *days: int) -> list[Record]:
        return [replace(record, timestamp_ms=taken_ms + n) for n, record in enumerate(records(*days))]

    now_ms = T0_MS + 400 * DAY_MS  # history that is produced now
    one = merge(3)
    asked = [*sent(now_ms, 1), asks(1, "u", now_ms + 10)]
    one.put({0: asked, 1: sent(now_ms + 9, 5, 6, 7), 2: sent(now_ms + 90, 3)}, 0.0)
    order = [(0, 0), (2, 0), (1, 0), (1, 1), (0, 1), (1, 2)]  # the third partition's came later: by event time alone
    assert taken(one, set(), 10.0) == order
    one.put({n: [asks(9, f"u{n}", now_ms)] for n in (2, 1, 0)}, 20.0)  # at one time: none waits for ever
    assert taken(one, set(), 30.0) == [(0, 9), (1, 9), (2, 9)]
    one.put({0: [asks(10, "u", -1)], 1: sent(now_ms, 8)}, 40.0)  # nothing is known of when it came
    assert taken(one, set(), 50.0) == [(0, 10), (1, 0)]


def test_a_record_that_is_no_event_or_is_late_in_its_partition_holds_nobody_up() -> None:
    one = merge(2)
    one.put({0: [Record(0, b"\xff{", b"u"), *records(3, first=1)], 1: records(2, 1, 4)}, 0.0)
    assert taken(one, set(), SLOW_S) == [(0, 0), (1, 0), (1, 1), (0, 1), (1, 2)]


def test_one_partition_is_taken_in_order_of_offsets_at_once() -> None:
    one = merge(1)
    one.put({0: records(5, 1, 9)}, 0.0)
    assert taken(one, {0}, 0.0) == [(0, 0), (0, 1), (0, 2)]


@pytest.fixture
def settings(world: Any, tmp_path: Any) -> Settings:
    world.partitions = PARTITIONS
    return Settings(
        broker=world.settings.broker,
        model=Model(backbone="off"),
        graph=Graph(weights="off", memory_dim=8, message_dim=8, time_dim=4, embed_dim=8, neighbors=5),
        ranker=Ranker(members=1, hidden=8, sampled=20, recall=20, pool=60, text_dim=4),
        trainer=Trainer(root=tmp_path / "trainer", catch_up_events=1),
    )


def histories(store: MemoryStore) -> dict[str, list[tuple[Any, ...]]]:
    rows = [decode_user(value) for _, value in whole_users(store)]
    return {row.user_id: [tuple(e) for e in row.events_array()[["t", "item"]].tolist()] for row in rows}


def test_a_backlog_of_four_partitions_leaves_the_histories_that_the_workers_keep(
    world: Any, settings: Settings
) -> None:
    world.produce(list(islice(event_messages(EVENTS), ROWS)))
    trainer = TrainerLoop(settings, PARTITIONS, lambda outgoing: None, None)
    merge = Merge(range(PARTITIONS), trainer.learner.processor.validated)
    with consumer(settings.broker, world.bootstrap) as reader:
        of_topic = places(reader, settings.broker, ["interactions"])
        seek(reader, of_topic, trainer)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (
            trainer.lag or trainer.open_groups or sum(trainer.offsets.values()) < ROWS
        ):
            for partition, record in _polled(reader, of_topic, trainer, merge):
                trainer.take(partition, record)
    expected: dict[str, Any] = {}
    for number in range(PARTITIONS):
        worker = Processor(settings, MemoryStore(), partition=number, partitions=PARTITIONS)
        worker.commit(worker.apply(world.log(number)))
        assert worker.next_offset > ROWS // 10
        expected |= histories(worker.store)
    assert histories(trainer.learner.processor.store) == expected
