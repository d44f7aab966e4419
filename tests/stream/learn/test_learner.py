"""The stream learner and the trainer around it: predict before learn, restore to the bit, one state for all drivers."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from driftline.configs.errors import SnapshotError, StateError
from driftline.configs.settings import Graph, Model, Profiles, Ranker, Settings, Trainer
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event
from driftline.stream.events.schema import encode_event
from driftline.stream.learn.checkpoint import read_checkpoint, write_checkpoint
from driftline.stream.learn.learner import LEAVE_GROUPS, StreamLearner, group_of, learning_sha256
from driftline.stream.learn.profiles import StreamProfiles
from driftline.stream.learn.trainer import Trainer as TrainerLoop
from driftline.stream.process.processor import Changes, Outgoing, Processor, Record
from driftline.stream.state.store import MemoryStore, state_sha256


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(
        model=Model(dim=16, blocks=1, max_len=20, step_groups=4, batch=8),
        graph=Graph(memory_dim=8, message_dim=8, time_dim=4, embed_dim=8, neighbors=5, publish_groups=40),
        ranker=Ranker(members=1, hidden=8, sampled=20, recall=20, pool=60, text_dim=4),
        trainer=Trainer(root=tmp_path / "trainer", publish_s=1000, publish_events=10**9),
    ).model_copy(update={"serving": Settings().serving.model_copy(update={"snapshots": tmp_path / "snapshots"})})


def baskets(n: int = 120, seed: int = 0) -> list[list[Event]]:
    rng = np.random.default_rng(seed)
    out, now, offset = [], 1_600_000_000_000, 0
    for g in range(n):
        now += int(rng.integers(60_000, 3_600_000))
        user = f"u{rng.integers(12)}"
        items = rng.choice(40, int(rng.integers(1, 6)), replace=False)
        basket = [Event(user, f"i{i}", now, "purchase", None, 1.0, 2.0, f"g{g}") for i in items]
        for event in basket:
            event.offset = offset
            offset += 1
        out.append(basket)
    return out


def drive(learner: StreamLearner, groups: list[list[Event]], settings: Settings) -> list[np.ndarray]:
    scores = []
    for events in groups:
        view = learner.view(events[0].user_id, events[0].timestamp_ms)
        slate = learner.slate(view, events[0].timestamp_ms)
        scores.append(slate.scores)
        learner.add_items([event.item_id for event in events])
        learner.learn(group_of(events, learner.table, settings), events, view, slate)
    return scores


def test_a_restored_learner_scores_and_learns_on_to_the_bit(settings, tmp_path) -> None:
    groups = baskets()
    whole = StreamLearner(settings)
    expected = drive(whole, groups, settings)
    first = StreamLearner(settings)
    drive(first, groups[:70], settings)
    write_checkpoint(tmp_path / "c.pt", {"learner": first.state_dict(), "settings": learning_sha256(settings)})
    state = read_checkpoint(tmp_path / "c.pt", learning_sha256(settings))
    assert state is not None
    second = StreamLearner(settings)
    second.load_state_dict(state["learner"])
    got = drive(second, groups[70:], settings)
    for ours, theirs in zip(got, expected[70:], strict=True):
        assert ours.tobytes() == theirs.tobytes()
    assert state_sha256([second.processor.store]) == state_sha256([whole.processor.store])


def test_scores_of_a_group_do_not_depend_on_the_group_or_on_anything_later(settings) -> None:
    groups = baskets()
    expected = drive(StreamLearner(settings), groups, settings)
    changed = [*groups[:60], *baskets(60, seed=9)]
    for n, events in enumerate(changed[60:], 60):
        for event in events:
            event.timestamp_ms += groups[60][0].timestamp_ms - changed[60][0].timestamp_ms if n == 60 else 0
    same_question = [*groups[:60], [Event(groups[60][0].user_id, "another", groups[60][0].timestamp_ms, offset=10**6)]]
    got = drive(StreamLearner(settings), same_question, settings)
    assert got[60].tobytes() == expected[60].tobytes()


def test_a_learner_ends_in_the_state_of_a_plain_processor_that_adopts_the_same_versions(
    settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = baskets()
    learner, adoptions = StreamLearner(settings), {}
    adopt = learner.adopt

    def noted(model: GraphMemory) -> None:
        adopt(model)
        adoptions[learner.processor.next_offset] = model

    monkeypatch.setattr(learner, "adopt", noted)
    drive(learner, groups, settings)
    assert learner.adoptions == len(adoptions) == 3
    plain = Processor(settings, MemoryStore())
    for record in [Record(event.offset, event) for events in groups for event in events]:
        if record.offset in adoptions:
            plain.commit(plain.adopt(adoptions[record.offset]))
        plain.commit(plain.apply([record]))
    assert state_sha256([plain.store]) == state_sha256([learner.processor.store])


def test_a_learner_keeps_no_version_that_no_late_event_may_need(settings) -> None:
    learner, kept = StreamLearner(settings), []
    for n in range(30):
        first = GraphMemory(settings.graph).arrays
        version = GraphMemory(settings.graph, {name: weight + n for name, weight in first.items()})
        kept.append(weakref.ref(version))
        learner.adopt(version)
        del version
    gc.collect()
    assert sum(model() is not None for model in kept) <= 2
    assert learner.adoptions == 30


def records_of(groups: list[list[Event]]) -> list[Record]:
    events = [event for group in groups for event in group]
    return [Record(n, encode_event(event), event.user_id.encode(), -1) for n, event in enumerate(events)]


def feed(trainer: TrainerLoop, records: list[Record]) -> None:
    for record in records:
        trainer.take(0, record)
    flush(trainer)


def flush(trainer: TrainerLoop) -> None:
    """As if the topic had been silent for long."""
    for number, events in trainer._open.idle(range(trainer.partitions), float("inf")):
        trainer._learn(number, events)


def test_a_trainer_that_starts_again_from_its_checkpoint_publishes_the_same_snapshot(settings, tmp_path) -> None:
    log = records_of(baskets())
    sent: list[Outgoing] = []
    whole = TrainerLoop(settings, 1, sent.extend, None)
    feed(whole, log)
    assert any(out.topic == "graph-versions" for out in sent)
    root = settings.trainer.model_copy(update={"root": tmp_path / "second"})
    other = settings.model_copy(update={"trainer": root})
    first = TrainerLoop(other, 1, sent.extend, None)
    middle = sum(len(group) for group in baskets()[:70])
    feed(first, log[:middle])
    first.checkpoint()
    first.close()
    second = TrainerLoop(other, 1, sent.extend, None)
    assert second.offsets == {0: middle}
    feed(second, log)  # the broker may send again what was learnt
    theirs, ours = whole.learner.arrays(), second.learner.arrays()
    for part, arrays in theirs.items():
        for name, array in arrays.items():
            assert ours[part][name].tobytes() == array.tobytes(), (part, name)


def test_how_fast_and_where_a_process_works_voids_no_checkpoint(settings, tmp_path) -> None:
    state = {"root": tmp_path, "sync": False, "epoch_ms": 7, "epoch_events": 9, "lock_wait_s": 1.0}
    profiles = {"max_per_minute": 7, "queue": 9, "batch": 3}
    changed = settings.model_copy(
        update={
            "state": settings.state.model_copy(update=state),
            "profiles": settings.profiles.model_copy(update=profiles),
        }
    )
    assert learning_sha256(changed) == learning_sha256(settings)
    late = settings.state.model_copy(update={"late_ms": 5})
    assert learning_sha256(settings.model_copy(update={"state": late})) != learning_sha256(settings)


def test_a_poison_record_does_not_stop_the_trainer(settings) -> None:
    log = records_of(baskets(10))
    poison = Record(len(log), b"\xff{", b"x")
    trainer = TrainerLoop(settings, 1, lambda outgoing: None, None)
    feed(trainer, [*log, poison])
    assert trainer.offsets[0] == len(log) + 1


def test_a_snapshot_says_where_it_comes_from(settings) -> None:
    from driftline.serving.snapshot import open_snapshot

    log = records_of(baskets(30))
    trainer = TrainerLoop(settings, 1, lambda outgoing: None, None)
    feed(trainer, log)
    version = trainer.publish()
    snapshot = open_snapshot(settings.serving.snapshots)
    assert snapshot.version == version
    assert snapshot.meta.offsets == {"interactions:0": len(log)}
    assert snapshot.meta.metrics["groups"] == 30
    assert snapshot.meta.extra["parts"] == ["hstu", "graph"]


def test_a_server_with_other_settings_refuses_a_snapshot_and_says_so(settings) -> None:
    from driftline.serving.engine_scorer import engine_builder
    from driftline.serving.snapshot import open_snapshot

    trainer = TrainerLoop(settings, 1, lambda outgoing: None, None)
    feed(trainer, records_of(baskets(30)))
    trainer.publish()
    snapshot = open_snapshot(settings.serving.snapshots)
    engine_builder(settings.model_copy(update={"name": "elsewhere", "profiles": Profiles(queue=3)}))(snapshot)
    other = settings.model_copy(update={"signals": settings.signals.model_copy(update={"half_lives_days": (3.0, 9.0)})})
    with pytest.raises(SnapshotError) as refusal:
        engine_builder(other)(snapshot)
    was = orjson.dumps(settings.signals.half_lives_days).decode()
    words = f"than this process has: signals.half_lives_days was {was} and is [3.0,9.0]. Start trainer and serve with"
    assert words in str(refusal.value)


def counted(settings: Settings, groups: list[list[Event]], waits: bool) -> tuple[StreamLearner, int]:
    """A learner that scores and learns every seventh group and counts the others; how often it applied some."""
    learner, applied = StreamLearner(settings), 0
    learner.counted_wait, apply = waits, learner._apply

    def noted(events: Sequence[Event]) -> Changes:
        nonlocal applied
        applied += 1
        return apply(events)

    learner._apply = noted  # type: ignore[method-assign]
    for n, events in enumerate(groups):
        view = learner.view(events[0].user_id, events[0].timestamp_ms)
        slate = learner.slate(view, events[0].timestamp_ms) if n % 7 == 3 else None
        learner.add_group(events)
        learner.learn(group_of(events, learner.table, settings), events, view, slate)
    learner.apply_waiting()
    return learner, applied


def bits(value: Any) -> Any:
    """Plain values and bytes, that compare as they are."""
    if isinstance(value, Mapping):
        return {key: bits(one) for key, one in value.items()}
    if isinstance(value, list | tuple | deque):
        return [bits(one) for one in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def test_groups_that_are_counted_at_once_leave_what_each_alone_leaves_to_the_bit(settings) -> None:
    groups, offset = baskets(240, seed=4), 0
    for n, events in enumerate(groups):  # an item twice in a group, and groups whose rows bear no id
        events += [events[0].changed(value=3.0)] if n % 3 == 0 else []
        for event in events:
            event.group_id = None if n % 5 == 0 else event.group_id
            event.offset, offset = offset, offset + 1
    (each, often), (some, seldom) = (counted(settings, groups, waits) for waits in (False, True))
    assert often == len(groups) > 1.5 * seldom
    assert each.adoptions == some.adoptions == 6
    assert state_sha256([each.processor.store]) == state_sha256([some.processor.store])
    ours, theirs = some.state_dict(rows=False), each.state_dict(rows=False)
    for state in (ours, theirs):
        pending = state["parts"]["graph"]["pending"]  # of one group each, or of several: rows in the same order
        state["parts"]["graph"]["pending"] = [np.concatenate(columns) for columns in zip(*pending, strict=True)]
    assert bits(ours) == bits(theirs)
    assert bits(some.arrays()) == bits(each.arrays())
    assert each.sequence is not None
    assert each.sequence.steps > 3
    assert each.graph is not None
    assert each.graph.steps > 0


def test_requests_between_groups_of_others_are_one_way_back_and_who_comes_back_starts_anew(settings) -> None:
    """The rows go together: before a group of one of them, and soon in any case."""
    graph = settings.graph.model_copy(update={"publish_groups": 1000})  # an adoption waits for none
    learner, ways_back = StreamLearner(settings.model_copy(update={"graph": graph})), list[list[str]]()
    forget = learner.processor.forget

    def noted(user_ids: Sequence[str]) -> Changes:
        ways_back.append(list(user_ids))
        return forget(user_ids)

    def learn(groups: Sequence[list[Event]]) -> list[int]:
        """Numbers of events that the users are seen with."""
        seen = []
        for events in groups:
            for n, event in enumerate(events, learner.processor.next_offset):
                event.offset = n
            view = learner.view(events[0].user_id, events[0].timestamp_ms)
            slate = learner.slate(view, events[0].timestamp_ms)
            learner.add_group(events)
            learner.learn(group_of(events, learner.table, settings), events, view, slate)
            seen.append(view.events)
        return seen

    learner.processor.forget = noted  # type: ignore[method-assign]
    groups = baskets(LEAVE_GROUPS + 40, seed=4)
    going = ["visitor-0", "visitor-1", "visitor-2"]
    for n, user_id in enumerate(going):
        groups[n] = [event.changed(user_id=user_id) for event in groups[n]]
    learn(groups[:20])
    for n, user_id in enumerate(going):
        learner.forget([user_id])
        assert learner.sequence is not None
        assert user_id.encode() not in pickle.dumps(learner.sequence.state_dict())
        learn(groups[20 + n : 21 + n])
    assert ways_back == []
    back = [event.changed(user_id="visitor-1") for event in groups[23]]
    assert learn([back]) == [0]
    assert ways_back == [going]
    learner.forget(["visitor-1"])
    learn(groups[24 : 23 + LEAVE_GROUPS])
    assert ways_back == [going]
    learn(groups[23 + LEAVE_GROUPS : 24 + LEAVE_GROUPS])
    assert ways_back == [going, ["visitor-1"]]
    assert not list(learner.processor.store.scan(b"u:visitor-"))
    graph, processor = learner.graph, learner.processor
    assert graph is not None
    for item_id in learner.table.ids:  # what items took from them is gone from what is trained on, too
        node, held = processor.items.find(item_id), graph._columns["memory"][learner.table.find(item_id)]
        assert np.array_equal(held, processor.graph.items["memory"][node] if node >= 0 else np.zeros_like(held))
    learn(groups[24 + LEAVE_GROUPS :])
    assert len(ways_back) == 2


def test_a_trainer_lets_groups_wait_though_a_profile_falls_due_that_another_process_writes(settings) -> None:
    learner = StreamLearner(
        settings.model_copy(update={"profiles": Profiles(first_events=1, refresh_events=1)}),
        profiles=StreamProfiles(settings.ranker.text_dim),
    )
    learner.counted_wait = True
    for n in range(3):
        event = Event(f"u{n}", "i", 1_600_000_000_000 + n, offset=n)
        learner.add_group([event])
        view = learner.view(event.user_id, event.timestamp_ms)
        learner.learn(group_of([event], learner.table, settings), [event], view, None)
    assert learner.processor.next_offset == 0
    learner.apply_waiting()
    assert learner.processor.next_offset == 3


def test_an_event_of_a_group_that_waits_to_be_counted_is_known(settings) -> None:
    learner, event = StreamLearner(settings), Event("u", "i", 1_600_000_000_000, event_id="once")
    learner.late_waits = learner.counted_wait = True
    learner.add_group([event])
    learner.learn(group_of([event], learner.table, settings), [event], learner.view("u", event.timestamp_ms), None)
    assert learner.processor.next_offset == 0  # it waits
    assert learner.is_known(event.changed(offset=7))
    assert learner.view("u", event.timestamp_ms).events == 1
    assert learner.processor.next_offset == 1


def test_a_checkpoint_of_other_settings_is_refused_with_what_differs(settings) -> None:
    trainer = TrainerLoop(settings, 1, lambda outgoing: None, None)
    feed(trainer, records_of(baskets(5)))
    trainer.checkpoint()
    trainer.close()
    signals = settings.signals.model_copy(update={"context": ("device",)})
    changed = settings.model_copy(update={"signals": signals, "systems": {"hstu": "off"}})
    differing = r'signals.context was \[\] and is \["device"\]; systems.hstu was not set and is "off"; set back'
    with pytest.raises(StateError, match=differing):
        TrainerLoop(changed, 1, lambda outgoing: None, None)
