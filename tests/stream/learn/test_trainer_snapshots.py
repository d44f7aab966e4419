"""What the trainer publishes and starts from: snapshots behind their gate, checkpoints, offsets, one lock."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from kafka import TopicPartition
from tests.stream.conftest import T0_MS, baskets, feed, flush, log_of, rows, start
from xxhash import xxh3_128_digest

from driftline.configs.errors import LockedError, SnapshotError, StateError
from driftline.configs.load import load_settings
from driftline.configs.settings import Settings
from driftline.serving.snapshot import open_snapshot
from driftline.stream.events.schema import encode_event
from driftline.stream.learn.checkpoint import MAGIC, locked, read_checkpoint, write_checkpoint
from driftline.stream.learn.kept import KeptRows
from driftline.stream.learn.learner import learning_sha256
from driftline.stream.learn.loop import seek
from driftline.stream.learn.trainer import Trainer as TrainerLoop
from driftline.stream.learn.tree import write_tree
from driftline.stream.process.processor import Processor
from driftline.stream.state.store import MemoryStore


def tree(value: Any) -> bytes:
    file = io.BytesIO()
    write_tree(file, value)
    return file.getvalue()


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


def test_the_first_snapshot_of_a_long_history_waits_until_it_is_of_use(settings) -> None:
    sent: list[Any] = []
    trainer = TrainerLoop(settings, 1, sent.extend, None)
    flush(feed(trainer, log_of(baskets(12))))
    trainer.lag = settings.trainer.catch_up_events + 1
    assert trainer.publish_news() is None
    trainer.lag = 0
    assert trainer.publish_news() is not None


def test_a_trainer_that_learnt_nothing_since_the_last_snapshot_publishes_none(settings) -> None:
    assert start(settings).publish_news() is None
    assert not settings.serving.snapshots.exists()
    trainer = flush(feed(start(settings), log_of(baskets(3))))
    trainer.checkpoint()
    assert trainer.publish_news() is not None
    assert trainer.publish_news() is None
    trainer = start(settings)
    assert trainer.publish_news() is not None  # of a checkpoint from before the snapshot
    trainer.checkpoint()
    assert start(settings).publish_news() is None


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
    broken = publish(float("nan"))
    assert broken not in refused
    assert open_snapshot(settings.serving.snapshots).version == good
    shutil.rmtree(settings.serving.snapshots / broken)
    lasting = publish(0.05)  # written only at the second try: what was not written does not count
    assert f"{broken} is missing" in caplog.text
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


def test_a_trainer_of_other_settings_is_held_to_no_snapshot_that_cannot_serve_any_more(settings) -> None:
    snapshots = settings.serving.snapshots
    first = flush(feed(start(settings), log_of(baskets(20))))
    first.prequential = lambda: {"ndcg@10": 0.3, "groups": 500.0}
    served = first.publish()
    assert served == open_snapshot(snapshots).version
    model = settings.model.model_copy(update={"temperature": 0.06})
    second = flush(feed(start(settings.model_copy(update={"model": model})), log_of([*baskets(20)])))
    assert second.publish_news() == open_snapshot(snapshots).version != served


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
        command = [sys.executable, "-m", "driftline.stream.cli", "trainer", "--config", str(path), *flags]
        return subprocess.Popen(
            command, cwd=Path(__file__).parents[3], stderr=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD
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
    state = read_checkpoint(settings.trainer.root / "checkpoint.pt", learning_sha256(load_settings(path)))
    assert state is not None
    processor = Processor(settings, MemoryStore())
    processor.commit(processor.apply(world.log()))
    users = dict(processor.store.scan(b"u:"))
    kept = KeptRows(settings.trainer.root, state["rows"])
    assert dict(kept.store.scan(b"u:")) == users
    kept.close()
    assert os.listdir(settings.trainer.root / "rows") == [str(state["rows"])]
    tree["broker"] = world._tree()["broker"] | {"prefix": world.prefix + "anew."}
    path.write_bytes(orjson.dumps(tree))
    code, err = ends(trainer())
    assert code == 73
    assert "was made from another topic" in err


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
    [
        b"",
        b"nonsense",
        MAGIC,
        MAGIC + b"nonsense",
        MAGIC[:-1],
        MAGIC + tree([1])[:-1],
        MAGIC + tree([1]),
        MAGIC + tree(7),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence_that_names_it(settings, content) -> None:
    settings.trainer.root.mkdir()
    (settings.trainer.root / "checkpoint.pt").write_bytes(content + xxh3_128_digest(content))
    with pytest.raises(StateError, match=r"checkpoint\.pt .*move it away to learn from the start") as caught:
        start(settings)
    assert "\n" not in str(caught.value)


class Flag:
    """Raises a flag when a pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("begins", [b"", MAGIC])
def test_a_checkpoint_that_is_a_pickle_is_refused_and_runs_nothing(settings, tmp_path, protocol, begins) -> None:
    settings.trainer.root.mkdir()
    content = begins + pickle.dumps(Flag(tmp_path / "flag"), protocol)
    pickle.loads(content[len(begins) :])
    (tmp_path / "flag").unlink()  # it works
    (settings.trainer.root / "checkpoint.pt").write_bytes(content + xxh3_128_digest(content))
    with pytest.raises(
        StateError, match=r"checkpoint\.pt can't be read.*; move it away to learn from the start"
    ) as caught:
        start(settings)
    assert not (tmp_path / "flag").exists()
    if not begins and protocol >= 2:
        assert "an earlier version of driftline wrote it as a pickle" in str(caught.value)


@pytest.mark.parametrize("state", [{}, {"learner": {}}, {"learner": 7}])
def test_a_checkpoint_with_other_content_is_one_sentence(settings, state) -> None:
    settings.trainer.root.mkdir()
    whole = state | {"settings": learning_sha256(settings)}
    write_checkpoint(settings.trainer.root / "checkpoint.pt", whole)
    with pytest.raises(StateError, match="does not hold what this release expects"):
        start(settings)


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
