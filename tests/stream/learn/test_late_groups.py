"""Late events reach the trainer's rows some at a time: cheaper, and in the same places."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from tests.stream.conftest import T0_MS, feed, flush, log_of, start

from driftline.configs.settings import Settings
from driftline.graph.chunks import whole_users
from driftline.graph.rows import Event, decode_user, fields_of
from driftline.stream.learn.learner import StreamLearner, group_of
from driftline.stream.learn.trainer import Trainer
from driftline.stream.learn.waiting import AGAIN_PER_NEW
from driftline.stream.process.processor import Changes

MINUTE_MS = 60_000


def events(n: int, every_ms: int) -> list[Event]:
    """One a user and time, in order."""
    return [
        Event(f"u{n % 37}", f"i{n * 7 % 53}", T0_MS + n * every_ms, "purchase", f"e{n}", group_id=f"g{n}")
        for n in range(n)
    ]


def arrivals(log: list[Event], late_ms: int, share: float = 0.1) -> list[Event]:
    """The same, some of them so much late."""
    rng = random.Random(5)
    return sorted(log, key=lambda event: event.timestamp_ms + (late_ms if rng.random() < share else 0))


def learnt(settings: Settings, log: list[Event]) -> tuple[StreamLearner, int]:
    """Who lets late events wait, after a log; how many events were applied again."""
    learner, again = StreamLearner(settings), 0
    learner.late_waits = learner.counted_wait = True
    apply = learner._apply

    def counting(events: Sequence[Event]) -> Changes:
        nonlocal again
        changes = apply(events)
        again += changes.again
        return changes

    learner._apply = counting  # type: ignore[method-assign]
    for event in log:
        group = [msgspec.structs.replace(event, offset=learner.processor.next_offset)]
        learner.add_items([event.item_id])
        view = learner.view(event.user_id, event.timestamp_ms)
        learner.learn(group_of(group, learner.table, settings), group, view, None)
    learner.apply_waiting()
    return learner, again


def state_of(learner: StreamLearner) -> dict[str, Any]:
    """Rows but for their versions, which count arrivals; memories of the items."""
    rows = [decode_user(value) for _, value in whole_users(learner.processor.store)]
    users = {row.user_id: [repr(v) for k, v in fields_of(row).items() if k != "version"] for row in rows}
    items, memory = learner.processor.items, learner.processor.graph.items["memory"]
    return users | {row.item_id: memory[n].tobytes() for n, row in enumerate(items.rows) if row.item_id}


@pytest.mark.parametrize(
    ("every_ms", "late_ms", "late_events"),
    [(8000, 50 * MINUTE_MS, 16384), (6 * MINUTE_MS, 50 * MINUTE_MS, 16384), (20_000, 59 * MINUTE_MS, 16384),
     (1000, 35_000, 40)],
    ids=["dense", "sparse", "nearly too late", "few may be rolled back"],
)  # fmt: skip
def test_late_events_of_a_trainer_end_in_the_rows_of_the_sorted_log_and_none_is_too_late(
    settings: Settings, every_ms: int, late_ms: int, late_events: int
) -> None:
    state = settings.state.model_copy(update={"late_events": late_events})
    settings, log = settings.model_copy(update={"state": state}), events(400, every_ms)
    late, _ = learnt(settings, arrivals(log, late_ms))
    in_order, _ = learnt(settings, log)
    assert late.processor.too_late == 0
    assert state_of(late) == state_of(in_order)


def test_a_producer_50_minutes_behind_makes_a_trainer_apply_few_events_again(settings: Settings) -> None:
    log = events(1000, 6000)  # 500 in 50 minutes
    late, again = learnt(settings, arrivals(log, 50 * MINUTE_MS))
    assert 500 < again < (AGAIN_PER_NEW + 1) * len(log)
    assert late.processor.too_late == 0


def test_after_an_event_ahead_of_all_others_a_view_is_an_event_behind_and_no_more(settings: Settings) -> None:
    learner, log = StreamLearner(settings), events(60, 900)
    learner.late_waits = learner.counted_wait = True
    for number, event in enumerate([msgspec.structs.replace(log[0], timestamp_ms=T0_MS + 299_000), *log[1:]]):
        group = [msgspec.structs.replace(event, offset=learner.processor.next_offset)]
        learner.add_items([event.item_id])
        view = learner.view(event.user_id, event.timestamp_ms)
        learner.learn(group_of(group, learner.table, settings), group, view, None)
        assert len(learner._waiting.events) <= 1, number
    assert sum(learner.view(f"u{user}", T0_MS + 400_000).events for user in range(37)) >= len(log) - 1


def rows_of(trainer: Trainer) -> dict[bytes, bytes]:
    trainer.learner.apply_waiting()
    return dict(whole_users(trainer.learner.processor.store))


def test_a_second_event_of_one_id_is_not_learnt_while_the_first_one_waits(settings: Settings) -> None:
    log = events(40, 2000)
    waiting, log = log[3], log[:3] + log[4:]
    trainer = start(settings)
    flush(feed(trainer, log_of([*log, waiting])))
    assert trainer.learner._waiting.events
    learnt = trainer.learner.groups
    trainer.offsets[0] = 0
    flush(feed(trainer, log_of([waiting])))
    assert trainer.learner.groups == learnt


def test_what_waits_is_in_a_checkpoint_in_a_snapshot_and_gone_with_a_user_who_is_forgotten(settings: Settings) -> None:
    log = events(40, 2000)
    waiting, log = log[3], log[:3] + log[4:]

    def waits() -> Trainer:
        (settings.trainer.root / "checkpoint.pt").unlink(missing_ok=True)
        trainer = flush(feed(start(settings), log_of([*log, waiting])))
        assert trainer.learner._waiting.events
        return trainer

    trainer = waits()
    trainer.checkpoint()
    assert rows_of(start(settings)) == rows_of(trainer)
    assert b"u:" + waiting.user_id.encode() in rows_of(trainer)
    trainer = waits()
    trainer.publish()
    assert not trainer.learner._waiting.events
    trainer = waits()
    trainer.forget(waiting.user_id)
    trainer.checkpoint()
    assert b"u:" + waiting.user_id.encode() not in rows_of(trainer)
