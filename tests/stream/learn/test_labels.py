"""Brands and categories reach the trainer's engine as the catalogue tells of them, and a snapshot of it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from tests.stream.conftest import HOUR_MS, T0_MS, feed, flush, log_of, rows

from driftline.configs.load import switched
from driftline.configs.settings import Graph, Model, Ranker, Settings, Trainer
from driftline.graph.labels import Labels
from driftline.graph.labels_kernel import COLUMNS
from driftline.model.labels import ASKED, LabelsPart, LabelsPlug
from driftline.stream.learn import trainer as trainer_module
from driftline.stream.learn.contracts import ask, drive, shop
from driftline.stream.learn.learner import StreamLearner

SETTINGS = Settings(
    model=Model(dim=16, blocks=1, max_len=20, step_groups=4, batch=8),
    graph=Graph(memory_dim=8, message_dim=8, time_dim=4, embed_dim=8, neighbors=5),
    ranker=Ranker(members=1, hidden=8, sampled=20, recall=20, pool=60, text_dim=4),
)


def trainer_at(folder: Path) -> trainer_module.Trainer:
    serving = SETTINGS.serving.model_copy(update={"snapshots": folder / "snapshots"})
    settings = SETTINGS.model_copy(update={"serving": serving, "trainer": Trainer(root=folder / "trainer")})
    return trainer_module.Trainer(switched(settings, {"labels": "on"}), 1, lambda outgoing: None, None)


def tell(trainer: trainer_module.Trainer, item_id: str, **fields: object) -> None:
    trainer.catalogue.take(orjson.dumps({"item_id": item_id, **fields}))


def part_of(trainer: trainer_module.Trainer) -> Labels:
    part = trainer.learner.parts["labels"]
    assert isinstance(part, LabelsPart)
    return part.labels


def labels_of(trainer: trainer_module.Trainer, item_id: str) -> int:
    return int((part_of(trainer).of[trainer.learner.table.find(item_id)] >= 0).sum())


def test_labels_are_those_of_the_catalogue_before_and_after_the_first_event(tmp_path):
    trainer = trainer_at(tmp_path)
    tell(trainer, "i0", title="a", brand="Acme", categories=["lamps", "gifts"])
    trainer.encode_items()
    feed(trainer, log_of(rows("u1", 0, T0_MS, range(3)) + rows("u1", 1, T0_MS + HOUR_MS, range(3))))
    flush(trainer)
    assert [labels_of(trainer, f"i{n}") for n in range(3)] == [3, 0, 0]
    tell(trainer, "i1", categories=["Acme"])
    trainer.encode_items()
    tell(trainer, "i1", brand="Acme")  # the same words in another field
    tell(trainer, "i0", title="a")
    trainer.encode_items()
    assert [labels_of(trainer, f"i{n}") for n in range(3)] == [0, 1, 0]
    assert part_of(trainer).of[trainer.learner.table.find("i1"), 0] >= 0
    trainer.catalogue.take(b"", b"i1")
    trainer.encode_items()
    assert labels_of(trainer, "i1") == 0


def test_a_trainer_that_starts_again_has_its_labels_and_takes_what_the_catalogue_says_meanwhile(tmp_path):
    first = trainer_at(tmp_path)
    for n in range(3):
        tell(first, f"i{n}", brand="Acme", categories=[f"of {n}"])
    first.encode_items()
    feed(first, log_of(rows("u1", 0, T0_MS, range(3)) + rows("u1", 1, T0_MS + HOUR_MS, range(3))))
    flush(first)
    held = {name: array.copy() for name, array in part_of(first).state().items()}
    first.checkpoint()
    first.close()
    second = trainer_at(tmp_path)
    for n in range(3):  # the topic is read from its beginning
        tell(second, f"i{n}", brand="Acme", categories=[f"of {n}"])
    second.encode_items()
    assert all(np.array_equal(array, held[name]) for name, array in part_of(second).state().items())
    third = trainer_at(tmp_path)
    tell(third, "i0", brand="Acme")
    third.catalogue.take(b"", b"i1")
    third.encode_items()
    assert [labels_of(third, f"i{n}") for n in range(3)] == [1, 0, 2]


def test_a_trainer_that_is_told_to_stop_labels_no_more_items(tmp_path):
    trainer = trainer_at(tmp_path)
    feed(trainer, log_of(rows("u1", 0, T0_MS, range(3)) + rows("u1", 1, T0_MS + HOUR_MS, range(3))))
    flush(trainer)
    for n in range(3):
        tell(trainer, f"i{n}", brand="Acme")
    asked = iter([False, True])
    trainer.encode_items(lambda: next(asked))
    assert [labels_of(trainer, f"i{n}") for n in range(3)] == [1, 0, 0]


class Alike:
    """All even items are of one brand."""

    def at(self, item_id: str, now_ms: int) -> tuple[str, tuple[str, ...]]:
        return ("Acme" if int(item_id.split("-")[1]) % 2 == 0 else "", ())


@pytest.mark.parametrize("text", ["on", "off"])
def test_who_keeps_to_a_brand_is_told_so_unless_the_texts_are_off(text):
    settings = switched(SETTINGS, {"labels": "on", "text": text})
    learner = StreamLearner(settings, labels=Alike())
    drive(learner, shop(groups=40))
    slate = ask(learner, shop(groups=41)[40])
    column = learner.engine.layout.blocks["labels"].start + COLUMNS.index("brand_items")
    even = np.array([int(learner.table.ids[item].split("-")[1]) % 2 == 0 for item in slate.candidates])
    assert even.any()
    assert np.array_equal(slate.raw[column] > 0, even if text == "on" else np.zeros_like(even))
    assert bool(len(slate.pool.scored["labels"].best)) == (text == "on")


def test_labels_that_one_item_alone_has_do_not_take_the_places_of_those_that_lead_somewhere():
    labels = Labels((1.0, 2.0))
    for item in range(4):
        labels.set(item, "", [f"of {item}: {n}" for n in range(20)] + ["shared"] * (item > 1))
    labels.ensure(9)
    assert ASKED < 3 * 20
    past = SimpleNamespace(items=np.array([0, 1, 2], np.int32))
    asked = SimpleNamespace(past=past, n=9, k=5)
    assert LabelsPlug(labels).opinion(asked).best.tolist() == [3]
