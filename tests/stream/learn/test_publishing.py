"""What the trainer publishes by delta is what it has learnt, to the bit, whatever happens between two snapshots."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import orjson
import pytest
from tests.stream.conftest import HOUR_MS, T0_MS, rows

from driftline.configs.errors import SnapshotError
from driftline.configs.settings import Graph, Model, Ranker, Settings, Signals, Trainer
from driftline.graph import codes as codes_module
from driftline.graph import learn as graph_module
from driftline.graph.rows import Event
from driftline.model import item_cache as cache_module
from driftline.serving.arrays import item_part
from driftline.serving.engine_scorer import engine_builder
from driftline.serving.forget import encode_forget
from driftline.serving.snapshot import list_snapshots, open_snapshot
from driftline.stream.events.records import Record
from driftline.stream.learn import capture as capture_module
from driftline.stream.learn import publishing as publishing_module
from driftline.stream.learn.checkpoint import read_checkpoint
from driftline.stream.learn.learner import learning_sha256
from driftline.stream.learn.trainer import Trainer as TrainerLoop

YEAR_MS = 365 * 24 * HOUR_MS


class Encoder:
    """Two words of a text as numbers."""

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.array([[len(text), *map(ord, text[-3:].rjust(3))] for text in texts], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def settings(tmp_path) -> Settings:
    made = Settings(
        model=Model(dim=16, blocks=1, max_len=20, step_groups=4, batch=8),
        graph=Graph(
            memory_dim=8, message_dim=8, time_dim=4, embed_dim=8, neighbors=5, publish_groups=30, batch_groups=6
        ),
        ranker=Ranker(members=1, hidden=8, sampled=20, recall=20, pool=60, text_dim=4),
        signals=Signals(neighbors=8, users=10),
        trainer=Trainer(root=tmp_path / "trainer", publish_s=1000, publish_events=10**9),
    )
    serving = made.serving.model_copy(update={"snapshots": tmp_path / "snapshots", "keep": 100, "delta_share": 30.0})
    return made.model_copy(update={"serving": serving})


class Stream:
    """Baskets one after the other, into a trainer."""

    def __init__(self, settings: Settings) -> None:
        self.trainer = TrainerLoop(settings, 1, lambda outgoing: None, Encoder())  # type: ignore[arg-type]
        self.random, self.number, self.now_ms, self.items = np.random.default_rng(0), 0, T0_MS, 30

    def take(self, events: list[Event]) -> None:
        for event in events:
            self.trainer.take(0, Record(self.trainer.offsets[0], event, event.user_id.encode()))

    def learn(self, groups: int) -> None:
        for _ in range(groups):
            self.now_ms += HOUR_MS
            self.number += 1
            start = int(self.random.integers(self.items))
            user = f"u{self.random.integers(8)}"
            self.take(rows(user, self.number, self.now_ms, range(start, start + 3)))

    def title(self, number: int, title: str, **more: Any) -> None:
        record = orjson.dumps({"item_id": f"i{number}", "title": title, **more})
        self.trainer.take_item(record, f"i{number}".encode(), (0, self.number))
        self.trainer.encode_items()

    def restarted(self) -> Stream:
        """Another one from the checkpoint. This one ends first, as a process does that gives the lock of its rows up:
        RocksDB would go on merging files in the background while they are removed.
        """
        self.trainer.close()
        return Stream(self.trainer.settings)

    def check(self, version: str) -> None:
        """The snapshot holds what the trainer has."""
        trainer, table = self.trainer, self.trainer.learner.table
        opened, catalogue = open_snapshot(trainer.settings.serving.snapshots, version), trainer.catalogue
        for part, arrays in trainer.learner.arrays().items():
            assert opened.parts[part].keys() == arrays.keys()
            for name, array in arrays.items():
                held = opened.parts[part][name]
                assert (held.dtype, held.shape) == (array.dtype, array.shape), (part, name)
                assert held.tobytes() == array.tobytes(), (part, name)
        items = [catalogue.items.get(item_id) for item_id in table.ids]
        expected = item_part(
            table.ids,
            [item.title if item else "" for item in items],
            [item.domain if item else "" for item in items],
            [catalogue.may_recommend(item_id) for item_id in table.ids],
        )
        for name, array in expected.items():
            assert opened.parts["items"][name].tobytes() == array.tobytes(), name
        offsets = [catalogue._listing.get(item_id, (-1, -1))[1] for item_id in table.ids]
        assert opened.parts["items"]["listed_offset"].tolist() == offsets


def test_each_delta_holds_what_the_trainer_has_whatever_happened_since_the_one_before(settings) -> None:
    stream = Stream(settings)
    trainer = stream.trainer

    def new_items() -> None:
        stream.items += 70
        stream.learn(30)

    def late() -> None:
        stream.take(rows("u1", 10_000, stream.now_ms - 200_000, range(2, 5)))
        stream.learn(2)

    def returned() -> None:
        event = rows("u1", 10_001, stream.now_ms + 5, range(1), action="return")[0]
        stream.take([event])
        stream.learn(2)

    def years_later() -> None:  # what decays starts from another origin
        stream.now_ms += 60 * YEAR_MS
        stream.learn(3)

    def domain() -> None:
        stream.number += 1
        stream.take([replace_domain(event) for event in rows("u2", stream.number, stream.now_ms + 9, range(4))])
        stream.learn(1)

    def forgotten() -> None:
        key, value = encode_forget(b"u3".decode())
        trainer.take(0, Record(trainer.offsets[0], value, key))

    def titled() -> None:
        for number in (3, 0, 7):
            stream.title(number, f"A thing {number}", domain="home")
        stream.title(3, "another and longer title")
        stream.title(5000, "never seen")

    def withdrawn() -> None:
        trainer.take_item(None, b"i7", (0, 9))
        stream.title(0, "A thing", available=False)

    def observed() -> None:  # while it lags it only counts
        trainer.lag = 10**9
        stream.learn(20)
        trainer.lag = 0

    stream.learn(5)
    stream.check(trainer.publish())
    steps = [
        lambda: stream.learn(1), lambda: stream.learn(40), titled, lambda: None, new_items, late, returned, withdrawn,
        domain, observed, years_later, forgotten, lambda: stream.learn(10), lambda: trainer.checkpoint(),
    ]  # fmt: skip
    for number, step in enumerate(steps):
        step()
        stream.check(trainer.publish())
        if step is not years_later:  # where all that decays changes at once, a whole one may be smaller
            assert (list_snapshots(settings.serving.snapshots)[0].deltas == 0) == (step is forgotten), number
    again = stream.restarted()
    again.trainer.read_whole_catalogue({})
    assert list_snapshots(settings.serving.snapshots)[0].deltas > 0
    again.check(again.trainer.publish())
    assert list_snapshots(settings.serving.snapshots)[0].deltas == 0


def test_deltas_hold_what_the_trainer_has_while_its_catalogue_becomes_a_large_one(settings, monkeypatch) -> None:
    monkeypatch.setattr(codes_module, "SMALL", 240)  # texts of 60 items, vectors of 30 and of 15
    monkeypatch.setattr(graph_module, "AT_ONCE", 32)
    monkeypatch.setattr(graph_module, "TURN", 10)
    monkeypatch.setattr(cache_module, "ROWS_A_STEP", 32)
    signals = settings.signals.model_copy(update={"partner_items": 64})
    stream, names, deltas = Stream(settings.model_copy(update={"signals": signals})), set(), []

    def publish() -> None:
        stream.check(stream.trainer.publish())
        deltas.append(list_snapshots(settings.serving.snapshots)[0].deltas)
        parts = stream.trainer.learner.arrays()
        names.update(f"{part}.{name}" for part, arrays in parts.items() for name in arrays)

    large = {"engine.text.codes", "hstu.matrix", "hstu.matrix.codes", "graph.item_vectors.codes"}
    large |= {f"engine.signals.{name}.row_item" for name in ("basket", "basket_fresh", "following", "onward")}
    for items in (6, 20, 50, 90, 150):
        stream.items = items
        stream.learn(40)
        publish()
        for number in range(0, items, 3):
            stream.title(number, f"A thing {number}")
        publish()
        stream.title(0, f"One of {items}")
        publish()
        stream.learn(1)
        publish()
    assert large <= names
    assert deltas == list(range(20))
    learner, scorer = stream.trainer.learner, served(stream.trainer)
    view, asked_ms = learner.view("u1", stream.now_ms + 1), stream.now_ms + 1
    trained, slate = learner.slate(view, asked_ms), scorer.engine.slate(view, asked_ms)
    np.testing.assert_array_equal(slate.candidates, trained.candidates)
    np.testing.assert_allclose(slate.scores, trained.scores, rtol=1e-4, atol=1e-5)
    texts = learner.text[np.arange(len(learner.table))]
    alike = scorer.similar(0, 5).items.tolist()
    assert set(alike) & set(np.argsort(-(texts @ texts[0]), kind="stable")[1:6].tolist())
    stream.trainer.checkpoint()
    again = stream.restarted()
    again.trainer.read_whole_catalogue({})
    again.check(again.trainer.publish())
    again.number, again.now_ms, again.items = stream.number, stream.now_ms, stream.items
    again.learn(20)
    again.check(again.trainer.publish())


def served(trainer: TrainerLoop) -> Any:
    """What serving makes of the current snapshot."""
    return engine_builder(trainer.settings)(open_snapshot(trainer.settings.serving.snapshots))


def replace_domain(event: Event) -> Event:
    return event.changed(domain="elsewhere")


def test_a_copy_in_many_steps_between_which_learning_goes_on_is_of_its_last_moment(settings, monkeypatch) -> None:
    monkeypatch.setattr(capture_module, "STEP_BYTES", 400)
    monkeypatch.setattr(capture_module, "REST_BYTES", 20_000)
    monkeypatch.setattr(capture_module, "STEP_ITEMS", 3)
    monkeypatch.setattr(publishing_module.Publishing.copy, "__defaults__", (0.0,))
    pace = settings.trainer.model_copy(update={"publish_events": 60})
    stream = Stream(settings.model_copy(update={"trainer": pace}))
    trainer, steps, published = stream.trainer, 0, []
    finished: list[tuple[int, Any]] = []
    write = trainer._publishing.write

    def spy(*arguments: Any) -> None:
        write(*arguments)
        parts = {p: {k: a.copy() for k, a in of.items()} for p, of in trainer.learner.arrays().items()}
        finished.append((steps, parts))

    trainer._publishing.write = spy  # type: ignore[method-assign]
    trainer.catalogue.take(orjson.dumps({"item_id": "i1", "title": "one"}))
    while len(published) < 4:
        stream.learn(1)
        steps += trainer._publishing.copying
        if (version := trainer.publish_if_due()) is not None:
            published.append(version)
            trainer._publishing._beside.submit(lambda: None).result()
    assert finished[0][0] > 8
    for version, (_, parts) in zip(published, finished, strict=False):
        opened = open_snapshot(settings.serving.snapshots, version)
        for part, arrays in parts.items():
            for name, array in arrays.items():
                assert opened.parts[part][name].tobytes() == array.tobytes(), (part, name)
    entries = list_snapshots(settings.serving.snapshots)
    assert [entry.deltas for entry in entries[-4:]] == [3, 2, 1, 0]


def test_learning_goes_on_while_a_snapshot_is_written_and_a_checkpoint_knows_that_it_is_not_on_disk(
    settings, monkeypatch
) -> None:
    import threading

    pace = settings.trainer.model_copy(update={"publish_events": 30})
    stream = Stream(settings.model_copy(update={"trainer": pace}))
    trainer, may_write, writes = stream.trainer, threading.Event(), publishing_module.Publisher.publish

    def held_up(*arguments: Any, **options: Any) -> str:
        may_write.wait(60)
        return writes(*arguments, **options)

    monkeypatch.setattr(publishing_module.Publisher, "publish", held_up)
    stream.learn(12)
    assert trainer.publish_if_due() is None
    assert trainer._publishing.writing
    stream.learn(12)
    assert trainer.publish_if_due() is None
    trainer.checkpoint()
    kept = read_checkpoint(settings.trainer.root / "checkpoint.pt", learning_sha256(settings))
    assert kept is not None
    assert kept["unpublished"] > trainer._since_publish  # a start from here publishes what was on its way
    may_write.set()
    version = trainer.publish_news()
    stream.check(version or "")
    assert [entry.deltas for entry in list_snapshots(settings.serving.snapshots)] == [1, 0]
    registry = trainer.metrics.registry
    assert registry.get_sample_value("driftline_trainer_snapshots_total") == 2
    for name in ("publish_pause_seconds", "publish_seconds", "publish_bytes"):
        assert (registry.get_sample_value(f"driftline_trainer_{name}") or 0) > 0
    trainer.checkpoint()
    assert stream.restarted().trainer._since_publish == 0


def test_a_trainer_whose_chain_is_gone_says_so_and_publishes_anew(settings, caplog) -> None:
    stream = Stream(settings)
    stream.learn(5)
    first = stream.trainer.publish()
    shutil.rmtree(settings.serving.snapshots / first)
    stream.learn(5)
    version = stream.trainer.publish()
    assert f"{first} is missing" in caplog.text
    stream.check(version)
    stream.learn(5)
    assert stream.trainer.publish_news() is not None
    with pytest.raises(SnapshotError):
        open_snapshot(settings.serving.snapshots, first)
