"""Ordered sessions, contexts of requests, one space of ids: the trainer learns them as a replay does, over restarts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.stream.conftest import T0_MS, feed, flush, log_of, start

from driftline.configs.settings import Settings, Signals, State
from driftline.graph.rows import Event
from driftline.stream.learn.trainer import Trainer
from driftline.stream.replay.protocol import questions
from driftline.stream.replay.registry import build_arm
from driftline.stream.replay.source import Options, read
from driftline.stream.state.store import state_sha256

MINUTE = 60_000


@pytest.fixture
def other(settings: Settings) -> Settings:
    """Sessions in which rows follow each other at one time, with a device, among people."""
    signals = Signals(context=("device",), one_id_space=True, age_unit_days=1 / 1440)
    ranker = settings.ranker.model_copy(update={"text_dim": 0})
    return settings.model_copy(update={"signals": signals, "state": State(groups="sessions"), "ranker": ranker})


def messages(n: int = 90) -> list[Event]:
    """Sessions of three rows, two of them with one time stamp; a device is a number in some of them."""
    random, events = np.random.default_rng(0), []
    for number in range(n):
        sender, session = number // 3 % 5, number // 3
        receiver = int(random.integers(8))
        t_ms = T0_MS + session * MINUTE + 1000 * (number % 3 == 2)
        device = ("phone", 4)[session % 2]
        events.append(
            Event(f"p{sender}", f"p{receiver}", t_ms, "purchase", f"e{number}", group_id=f"s{session}",
                  extra={"device": device})
        )  # fmt: skip
    return events


def same(one: Trainer, other: Trainer) -> None:
    theirs, ours = one.learner.arrays(), other.learner.arrays()
    for part, arrays in theirs.items():
        for name, array in arrays.items():
            assert ours[part][name].tobytes() == array.tobytes(), (part, name)


def test_a_restart_goes_on_with_sessions_contexts_and_reverse_partners_to_the_bit(other) -> None:
    log = log_of(messages())
    whole = flush(feed(start(other), log))
    first = feed(start(other), log[:50])
    assert first.open_groups == 0  # each row is learnt as it comes
    first.checkpoint()
    second = start(other)
    flush(feed(second, log))
    same(whole, second)
    assert whole.learner.engine.signals.contexts.of(("4",))[0] is not None


def test_the_trainer_and_a_replay_of_the_same_log_count_and_learn_alike(other, tmp_path) -> None:
    events = messages()
    trainer = flush(feed(start(other), log_of(events)))
    columns = ("user_id", "item_id", "timestamp_ms", "action", "event_id", "group_id")
    table = {name: [getattr(event, name) for event in events] for name in columns}
    devices = pa.array([str(event.extra["device"]) for event in events])
    pq.write_table(pa.table(table | {"device": devices}), tmp_path / "events.parquet")
    data = read(Options(tmp_path / "events.parquet", tmp_path), other)
    arm = build_arm("incremental", data.setup(data.log, other, 0, None))[0]
    for request, arrival, _ in questions(data.log):
        arm.learn(request, arrival)
    live, replayed = trainer.learner, arm.shared.learner
    assert live.table.ids == replayed.table.ids
    for name, array in live.engine.signals.arrays().items():
        np.testing.assert_array_equal(replayed.engine.signals.arrays()[name], array, err_msg=name)
    assert state_sha256([live.processor.store]) == state_sha256([replayed.processor.store])
    ours, theirs = (one.engine.arms["incremental"].ranker.arrays("r", True) for one in (replayed, live))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
