"""The trainer between two polls: no event is lost or learnt twice, nothing is scored that can't be predicted."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from kafka import TopicPartition

from configs.errors import LockedError, SnapshotError, StateError
from configs.settings import Graph, Model, Ranker, Settings, Trainer
from graph.rows import Event, decode_user
from llm.profile import Profile
from llm.prompts import FACETS
from serving.snapshot import open_snapshot
from stream.checkpoint import locked
from stream.events import encode_event
from stream.learner import learning_sha256
from stream.open_groups import MOST_OPEN, SPAN_MS, OpenGroups
from stream.processor import Processor, Record
from stream.store import MemoryStore
from stream.trainer import Trainer as TrainerLoop
from stream.trainer_process import seek

T0_MS = 1_600_000_000_000
HOUR_MS = 3_600_000
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
ACTIONS = {"purchase": {"positive": True}, "return": {"positive": False, "weight": -1.0}}


@pytest.fixture
def settings(tmp_path) -> Settings:
    made = Settings(
        model=Model(backbone="off"),
        graph=Graph(weights="off", memory_dim=8, message_dim=8, time_dim=4, embed_dim=8, neighbors=5),
        ranker=Ranker(members=1, hidden=8, sampled=20, recall=20, pool=60, text_dim=4),
        trainer=Trainer(root=tmp_path / "trainer", publish_s=1000, publish_events=10**9, gate_patience=3),
        actions=ACTIONS,
    )
    return made.model_copy(update={"serving": made.serving.model_copy(update={"snapshots": tmp_path / "snapshots"})})


def start(settings: Settings, encoder: Any = None, partitions: int = 1) -> TrainerLoop:
    return TrainerLoop(settings, partitions, lambda outgoing: None, encoder)


def rows(user: str, number: int, t_ms: int, items: range = range(3), action: str = "purchase") -> list[Event]:
    return [Event(user, f"i{i}", t_ms, action, f"e{number}-{i}", group_id=f"g{number}") for i in items]


def log_of(events: list[Event | bytes]) -> list[Record]:
    return [
        Record(n, event, b"x") if isinstance(event, bytes) else Record(n, encode_event(event), event.user_id.encode())
        for n, event in enumerate(events)
    ]


def feed(trainer: TrainerLoop, records: list[Record], partition: int = 0) -> TrainerLoop:
    for record in records:
        trainer.take(partition, record)
    return trainer


def flush(trainer: TrainerLoop) -> TrainerLoop:
    """As if the topic had been silent for long."""
    for number, events in trainer._open.idle(range(trainer.partitions), float("inf")):
        trainer._learn(number, events)
    return trainer


def uses(trainer: TrainerLoop) -> dict[str, int]:
    samples = [s for m in trainer.metrics.groups.collect() for s in m.samples if s.name.endswith("_total")]
    return {sample.labels["use"]: int(sample.value) for sample in samples}


def histories(trainer: TrainerLoop) -> dict[str, list[int]]:
    stored = [decode_user(value) for _, value in trainer.learner.processor.store.scan(b"u:")]
    return {row.user_id: row.events_array()["t"].tolist() for row in stored}


def baskets(n: int) -> list[Event]:
    return [event for g in range(n) for event in rows(f"u{g % 4}", g, T0_MS + g * HOUR_MS, range(g % 7, g % 7 + 3))]


@pytest.mark.parametrize("behind", ["invalid", "duplicate", "nothing"])
def test_a_checkpoint_behind_an_open_group_keeps_the_group_and_a_restart_learns_it_once_and_whole(
    settings, tmp_path, behind
) -> None:
    events: list[Any] = baskets(12)
    extra = {"invalid": [b"\xff{"], "duplicate": [events[0]], "nothing": []}[behind]
    log = log_of([*events[:20], *extra, *events[20:]])  # the seventh basket is open after two of its rows
    cut = 20 + len(extra)
    whole = flush(feed(start(settings), log))
    first = feed(start(settings), log[:cut])
    assert first.open_groups == 1
    first.publish()
    assert open_snapshot(settings.serving.snapshots).meta.offsets == {"interactions:0": 18}
    first.checkpoint()
    second = start(settings)
    assert (second.offsets, second.open_groups) == ({0: cut}, 1)
    flush(feed(second, log))
    assert histories(second) == histories(whole)
    assert uses(first).get("learnt", 0) + uses(second)["learnt"] == 12
    theirs, ours = whole.parts(), second.parts()
    for part, arrays in theirs.items():
        for name, array in arrays.items():
            assert ours[part][name].tobytes() == array.tobytes(), (part, name)


def test_rows_of_one_event_id_within_an_open_group_are_learnt_once(settings) -> None:
    basket = rows("u", 0, T0_MS)
    trainer = flush(feed(start(settings), log_of([*basket, basket[0], basket[2]])))
    assert histories(trainer) == {"u": [T0_MS] * 3}
    once = flush(feed(start(settings), log_of(basket))).learner.engine.signals.arrays()
    for name, array in trainer.learner.engine.signals.arrays().items():
        assert np.array_equal(array, once[name], equal_nan=array.dtype.kind == "f"), name


def test_a_group_from_before_the_users_newest_event_is_learnt_but_not_scored(settings) -> None:
    late = rows("u", 1, T0_MS - HOUR_MS, range(5, 8))
    trainer = flush(feed(start(settings), log_of([*rows("u", 0, T0_MS), *late, *rows("v", 2, T0_MS - HOUR_MS)])))
    assert uses(trainer) == {"learnt": 2, "late": 1}
    assert trainer.prequential()["groups"] == 2
    assert histories(trainer)["u"] == [T0_MS - HOUR_MS] * 3 + [T0_MS] * 3


def test_a_group_without_a_wanted_row_is_counted_but_not_scored_as_in_replay(settings) -> None:
    seen = []
    trainer = start(settings)
    learn = trainer.learner.engine.learn
    trainer.learner.engine.learn = lambda group, view, slate: (seen.append(slate), learn(group, view, slate))
    flush(feed(trainer, log_of([*rows("u", 0, T0_MS), *rows("u", 1, T0_MS + HOUR_MS, action="return")])))
    assert [slate is None for slate in seen] == [False, True]
    assert uses(trainer) == {"learnt": 1, "no_target": 1}
    assert trainer.trained_share == 1.0


def test_groups_of_interleaved_producers_are_learnt_whole(settings) -> None:
    one, two = rows("u", 0, T0_MS), rows("v", 1, T0_MS + 3)
    mixed = [event for pair in zip(one, two, strict=True) for event in pair]
    trainer = flush(feed(start(settings), log_of([*mixed, *rows("u", 2, T0_MS + 5)])))
    assert uses(trainer) == {"learnt": 3}
    assert histories(trainer) == {"u": [T0_MS] * 3 + [T0_MS + 5] * 3, "v": [T0_MS + 3] * 3}


def test_the_first_snapshot_of_a_long_history_waits_until_it_is_of_use(settings) -> None:
    sent: list[Any] = []
    trainer = TrainerLoop(settings, 1, sent.extend, None)
    flush(feed(trainer, log_of(baskets(12))))
    trainer.lag = settings.trainer.catch_up_events + 1
    assert trainer.publish_news() is None
    trainer.lag = 0
    assert trainer.publish_news() is not None


def offset(events: list[Event]) -> list[Event]:
    return [replace(event, offset=n) for n, event in enumerate(events)]


def test_open_groups_close_on_the_users_next_on_event_time_on_number_and_on_silence() -> None:
    def closed(groups: OpenGroups, events: list[Event], now_s: float = 0.0) -> list[list[str]]:
        out = [rows for event in events for rows in groups.add(0, event, now_s)]
        return [[event.event_id or "" for event in rows] for _, rows in out]

    groups = OpenGroups()
    assert closed(groups, [*rows("u", 0, T0_MS, range(2)), *rows("v", 1, T0_MS + SPAN_MS, range(2))]) == []
    assert closed(groups, rows("u", 2, T0_MS + SPAN_MS, range(1))) == [["e0-0", "e0-1"]]
    assert closed(groups, rows("w", 3, T0_MS + 2 * SPAN_MS + 1, range(1))) == [["e1-0", "e1-1"], ["e2-0"]]
    alone = Event("w", "i", T0_MS + 2 * SPAN_MS + 1, event_id="alone")
    assert closed(groups, [alone]) == []
    assert closed(groups, rows("w", 4, T0_MS + 2 * SPAN_MS + 2, range(1))) == [["e3-0", "alone"]]
    many = [rows(f"u{n}", n, T0_MS, range(1))[0] for n in range(MOST_OPEN + 1)]
    assert closed(groups, many, 5.0) == [["e4-0"], ["e0-0"]]
    assert (groups.holds(many[0]), groups.holds(many[1])) == (False, True)
    assert (groups.idle([1], 100.0), groups.idle([0], 5.1), len(groups)) == ([], [], MOST_OPEN)
    assert len(groups.idle([0], 5.3)) == MOST_OPEN
    assert (len(groups), groups.holds(many[1]), groups.first_offset(0, 7)) == (0, False, 7)


@pytest.mark.slow
def test_a_trainer_process_that_is_stopped_and_started_goes_on_and_refuses_a_topic_that_was_remade(
    world: Any, wait: Any, settings: Settings
) -> None:
    sections = ("model", "graph", "ranker", "actions", "trainer", "serving")
    tree = settings.model_dump(mode="json", include=set(sections))
    tree["trainer"] |= {"publish_s": 0.05}
    path = world.config
    path.write_bytes(orjson.dumps(tree | {"broker": world._tree()["broker"]}))
    snapshots = settings.serving.snapshots

    def trainer(*flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "stream.cli", "trainer", "--config", str(path), *flags]
        return subprocess.Popen(
            command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
        )

    def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
        _, err = process.communicate(timeout=120)
        return process.returncode, err

    messages = [(event.user_id.encode(), encode_event(event)) for event in baskets(12)]
    world.produce(messages[:20])
    process = trainer()
    wait(lambda: (snapshots / "CURRENT").exists(), 120, "a snapshot is published")
    process.send_signal(signal.SIGTERM)
    code, err = ends(process)
    assert code == 0, err
    world.produce(messages[20:])
    code, err = ends(trainer("--until-caught-up"))
    assert code == 0, err
    meta = open_snapshot(snapshots).meta
    assert meta.offsets == {"interactions:0": 36}
    with (settings.trainer.root / "checkpoint.pt").open("rb") as file:
        state = pickle.load(file)
    processor = Processor(settings, MemoryStore())
    processor.commit(processor.apply(world.log()))
    users = dict(processor.store.scan(b"u:"))
    assert {key: value for key, value in state["learner"]["rows"].items() if key.startswith(b"u:")} == users
    tree["broker"] = world._tree()["broker"] | {"prefix": world.prefix + "anew."}
    path.write_bytes(orjson.dumps(tree))
    code, err = ends(trainer())
    assert code == 73
    assert "is at offset 36, but the topic ends at 0" in err


class Topic:
    """What a consumer says of a partition and where it was told to go on."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end, self.at = first, end, -1

    def assign(self, places: list[TopicPartition]) -> None:
        assert places

    def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self.first)

    def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self.end)

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.at = offset


def test_a_trainer_goes_on_at_its_offset_and_not_on_another_topic_or_over_a_hole(settings) -> None:
    place = TopicPartition("interactions", 0)
    trainer = start(settings)
    for next_offset, topic, expected in ((0, Topic(4, 9), 4), (7, Topic(4, 9), 7), (9, Topic(4, 9), 9)):
        trainer.offsets[0] = next_offset
        seek(topic, [place], trainer)
        assert topic.at == expected
    with pytest.raises(StateError, match=r"trainer is at offset 9, but the topic ends at 3: .*made anew"):
        seek(Topic(0, 3), [place], trainer)
    with pytest.raises(StateError, match=r"trainer is at offset 9, but the topic begins at 12: 3 records were deleted"):
        seek(Topic(12, 20), [place], trainer)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x05", b"I'\n.", b"\x80\x05]h\x07.", b"c\n\n.", b"nonsense", pickle.dumps([1]), pickle.dumps(7)],
)
def test_a_damaged_checkpoint_is_one_sentence_that_names_it(settings, content) -> None:
    settings.trainer.root.mkdir()
    (settings.trainer.root / "checkpoint.pt").write_bytes(content)
    with pytest.raises(StateError, match=r"checkpoint\.pt .*move it away to learn from the start") as caught:
        start(settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("state", [{}, {"learner": {}}, {"learner": 7}])
def test_a_checkpoint_with_other_content_is_one_sentence(settings, state) -> None:
    settings.trainer.root.mkdir()
    whole = state | {"settings": learning_sha256(settings)}
    (settings.trainer.root / "checkpoint.pt").write_bytes(pickle.dumps(whole))
    with pytest.raises(StateError, match="does not hold what this release expects"):
        start(settings)


def test_a_lasting_drop_is_refused_for_a_while_and_then_is_the_new_level(settings, caplog) -> None:
    trainer = feed(start(settings), log_of(baskets(3)))

    def publish(ndcg: float) -> str:
        trainer.prequential = lambda: {"ndcg@10": ndcg, "groups": 500.0}
        return trainer.publish()

    for ndcg in (0.2, 0.05, 0.06):
        publish(ndcg)
    good = publish(0.19)
    assert open_snapshot(settings.serving.snapshots).version == good
    refused = [publish(ndcg) for ndcg in (0.05, 0.01, 0.06)]
    assert open_snapshot(settings.serving.snapshots).version == good
    assert publish(float("nan")) not in refused
    assert open_snapshot(settings.serving.snapshots).version == good
    lasting = publish(0.05)
    served = open_snapshot(settings.serving.snapshots)
    assert (served.version, served.meta.extra["level"]) == (lasting, 1)
    assert "that is the new level" in caplog.text
    assert publish(0.04) == open_snapshot(settings.serving.snapshots).version
    assert open_snapshot(settings.serving.snapshots).meta.extra["level"] == 1
    counts = trainer.metrics.registry
    assert counts.get_sample_value("driftline_trainer_levels_total") == 1
    assert counts.get_sample_value("driftline_trainer_gated_total") == 6


def test_a_trainer_from_scratch_does_not_replace_a_model_before_enough_groups_are_scored(settings) -> None:
    snapshots = settings.serving.snapshots
    first = flush(feed(start(settings), log_of(baskets(20))))
    assert first.publish_news() == open_snapshot(snapshots).version  # nothing serves yet
    first.prequential = lambda: {"ndcg@10": 0.3, "groups": 500.0}
    served = first.publish()
    second = flush(feed(start(settings), log_of([*baskets(20)])))
    refused = second.publish_news()
    assert refused is not None
    assert open_snapshot(snapshots).version == served
    with pytest.raises(SnapshotError, match="not enough scored groups yet: 20"):
        open_snapshot(snapshots, refused)
    third = flush(feed(start(settings), log_of(rows("u", 0, T0_MS, action="return"))))
    third.publish_news()
    assert open_snapshot(snapshots).version == served
    second.prequential = lambda: {"ndcg@10": 0.29, "groups": 500.0}
    assert second.publish() == open_snapshot(snapshots).version


def test_a_trainer_that_learnt_nothing_since_the_last_snapshot_publishes_none(settings) -> None:
    assert start(settings).publish_news() is None
    assert not settings.serving.snapshots.exists()
    trainer = flush(feed(start(settings), log_of(baskets(3))))
    trainer.checkpoint()
    assert trainer.publish_news() is not None
    assert trainer.publish_news() is None
    assert start(settings).publish_news() is not None  # of a checkpoint from before the snapshot
    trainer.checkpoint()
    assert start(settings).publish_news() is None


def test_a_profile_of_another_width_or_with_a_number_that_is_none_is_counted_and_left_out(settings) -> None:
    def profile(vectors: np.ndarray | None) -> bytes:
        facets = dict.fromkeys(FACETS, "lamps")
        return Profile("u0", facets, "Lamps.", "template", {}, 1, T0_MS, T0_MS, vectors=vectors).to_json()

    trainer = start(settings.model_copy(update={"graph": settings.graph.model_copy(update={"weights": "trained"})}))
    for vectors in (np.eye(4, 8), np.full((4, 4), np.nan), np.ones((1, 4)), None):
        trainer.take_profile(profile(vectors))
    trainer.take_profile(profile(np.eye(4)).replace(b"[", b"") + b"x")
    assert (trainer.profiles.invalid, trainer.profiles.at("u0", 2 * T0_MS)) == (5, None)
    trainer.take_profile(profile(np.eye(4)))
    assert trainer.profiles.at("u0", 2 * T0_MS) is not None
    flush(feed(trainer, log_of(baskets(12))))
    slate = trainer.learner.slate(trainer.learner.view("u0", 2 * T0_MS), 2 * T0_MS)
    assert np.isfinite(slate.scores).all()


def test_a_second_trainer_on_one_root_is_refused_with_one_message_and_its_exit_code(
    world: Any, driftline: Any, settings: Settings
) -> None:
    world.state["lock_wait_s"] = 0.3
    root = world.root / "trainer"
    root.mkdir()
    left = root / "checkpoint.7.tmp"
    left.write_bytes(b"half")
    with locked(root, 0.0):
        assert not left.exists()
        result = driftline("trainer", "--config", str(world.config), DRIFTLINE__TRAINER__ROOT=str(root))
    assert result.returncode == LockedError.exit_code == 75, result.stderr
    assert f"{root} is locked by another trainer; waited 0.3 s" in result.stderr
    with locked(root, 0.0), pytest.raises(LockedError), locked(root, 0.0):
        pass
    with locked(root, 0.0):
        pass


class Letters:
    """Encodes a text as the counts of four letters."""

    def encode(self, texts: list[str]) -> np.ndarray:
        self.asked = texts
        counts = np.array([[text.count(letter) for letter in "abcd"] for text in texts], np.float32).reshape(-1, 4)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_a_corrected_title_reaches_the_features_and_an_unchanged_one_is_not_encoded_again(settings) -> None:
    encoder = Letters()
    trainer = start(settings, encoder)

    def tell(item_id: str, title: str, price: float = 1.0) -> list[str]:
        trainer.take_item(orjson.dumps({"item_id": item_id, "title": title, "price": price}))
        encoder.asked = []
        trainer.encode_items()
        return encoder.asked

    assert tell("i1", "aa") == ["aa"]
    flush(feed(trainer, log_of(rows("u", 0, T0_MS))))
    index = trainer.learner.table.find("i1")
    assert trainer.learner.engine.known_text()[index].tolist() == [1, 0, 0, 0]
    assert tell("i1", "aa", price=2.0) == []
    assert tell("i1", "bb") == ["bb"]
    assert trainer.learner.engine.known_text()[index].tolist() == [0, 1, 0, 0]
    assert tell("i1", "") == []
    assert trainer.learner.engine.known_text()[index].tolist() == [0, 0, 0, 0]
