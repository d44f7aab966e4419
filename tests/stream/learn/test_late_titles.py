"""Topics have no common order: an item's first event may arrive before the catalogue tells of the item."""

import numpy as np
import orjson
import pytest
from kafka import KafkaProducer
from tests.stream.conftest import HOUR_MS, T0_MS, feed, flush, log_of, rows

from driftline.configs.settings import Graph, Model, Ranker, Settings, Trainer
from driftline.graph.rows import Event
from driftline.graph.view import view_of
from driftline.serving.arrays import unpack_strings
from driftline.serving.engine_scorer import EngineScorer
from driftline.serving.snapshot import open_snapshot
from driftline.stream.kafka.reading import consumer, places
from driftline.stream.learn import trainer as trainer_module
from driftline.stream.learn.learner import StreamLearner, group_of
from driftline.stream.learn.loop import _publish_if_due
from driftline.stream.replay.inputs import ItemTexts

SETTINGS = Settings(
    model=Model(dim=16, blocks=1, max_len=20, step_groups=4, batch=8),
    graph=Graph(memory_dim=8, message_dim=8, time_dim=4, embed_dim=8, neighbors=5),
    ranker=Ranker(members=1, hidden=8, sampled=20, recall=20, pool=60, text_dim=4),
)


def learner_after(texts, groups=30):
    learner, offset = StreamLearner(SETTINGS, ItemTexts(texts)), 0
    for number in range(groups):
        t_ms = 1_600_000_000_000 + number * 60_000
        events = [Event(f"u{number % 5}", f"i{(number + k) % 9}", t_ms, group_id=f"g{number}") for k in range(3)]
        for event in events:
            event.offset, offset = offset, offset + 1
        view = learner.view(events[0].user_id, t_ms)
        slate = learner.slate(view, t_ms)
        learner.add_items([event.item_id for event in events])
        learner.learn(group_of(events, learner.table, SETTINGS), events, view, slate)
    return learner


def test_a_title_that_comes_after_the_first_event_is_used_from_then_on():
    texts = {}
    learner = learner_after(texts)
    vector = np.array([1, 0, 0, 0], np.float32)
    learner.set_text("i3", vector)
    index = learner.table.find("i3")
    assert np.array_equal(learner.engine.text[index], vector)


def test_a_title_of_an_item_without_events_changes_nothing():
    learner = learner_after({})
    before = len(learner.table)
    learner.set_text("never seen", np.ones(4, np.float32))
    assert len(learner.table) == before


@pytest.mark.parametrize("texts", [{}, {"i0": np.array([1, 0, 0, 0], np.float32)}], ids=["none", "one"])
def test_items_without_a_title_are_ranked_scored_and_compared(texts):
    learner = learner_after(texts)
    scorer = EngineScorer(learner.engine)
    now_ms = 1_600_010_000_000
    view = view_of(learner.processor.user("u1"), learner.table, "u1")
    every = np.arange(len(learner.table), dtype=np.int32)
    assert len(scorer.rank(view, now_ms).items)
    assert all(np.isfinite(scores).all() for scores in scorer.score(view, now_ms, every).values())
    assert len(scorer.similar(0, 3).items)


def test_a_snapshot_has_the_titles_that_were_sent_before_it_was_due(world, tmp_path):
    world.create_topics()
    serving = SETTINGS.serving.model_copy(update={"snapshots": tmp_path / "snapshots"})
    learning = Trainer(root=tmp_path / "trainer", publish_s=1000, publish_events=9)
    settings = SETTINGS.model_copy(update={"broker": world.settings.broker, "serving": serving, "trainer": learning})
    trainer = trainer_module.Trainer(settings, 1, lambda outgoing: None, None)
    with consumer(settings.broker, world.bootstrap) as side:
        side.assign(places(side, settings.broker, ["items", "profiles"]))
        side.seek_to_beginning()
        side.poll(timeout_ms=0)  # nothing is there yet
        sender = KafkaProducer(bootstrap_servers=world.bootstrap)
        for number in range(9):
            item = orjson.dumps({"item_id": f"i{number}", "title": f"Title {number}"})
            sender.send(settings.broker.prefix + "items", key=b"i%d" % number, value=item)
        sender.close()
        groups = (rows("u1", n, T0_MS + n * HOUR_MS, range(n, n + 3)) for n in range(6))
        feed(trainer, log_of([event for group in groups for event in group]))
        _publish_if_due(trainer, side, lambda: False)
    part = open_snapshot(serving.snapshots, trainer.publish_news()).parts["items"]
    ids, titles = unpack_strings(part, "id"), unpack_strings(part, "title")
    assert ids
    assert titles == [item_id.replace("i", "Title ") for item_id in ids]


def test_what_the_catalogue_says_after_the_last_event_is_in_the_next_snapshot_and_after_a_start(tmp_path):
    serving = SETTINGS.serving.model_copy(update={"snapshots": tmp_path / "snapshots"})
    learning = Trainer(root=tmp_path / "trainer", publish_s=0.01, publish_events=9)
    settings = SETTINGS.model_copy(update={"serving": serving, "trainer": learning})

    def started():
        return trainer_module.Trainer(settings, 1, lambda outgoing: None, None)

    def titles(version):
        part = open_snapshot(serving.snapshots, version).parts["items"]
        return dict(zip(unpack_strings(part, "id"), unpack_strings(part, "title"), strict=True))

    def tell(trainer, title, offset):
        value = orjson.dumps({"item_id": "i1", "title": title})
        trainer.take_item(value, b"i1", (0, offset), 1000 + offset)

    trainer = started()
    trainer.read_whole_catalogue({0: (0, 0)})
    flush(feed(trainer, log_of(rows("u1", 0, T0_MS, range(3)))))
    first = trainer.publish()
    assert titles(first)["i1"] == ""
    assert trainer.publish_news() is None
    tell(trainer, "late", 0)
    second = trainer.publish_news()
    assert titles(second)["i1"] == "late"
    tell(trainer, "late", 1)  # the same again, as a shop that sends its whole catalogue each night
    assert trainer.publish_news() is None
    trainer.checkpoint()
    trainer.close()
    trainer = started()
    for offset, title in enumerate(("late", "late", "latest")):  # the last one came while none ran
        tell(trainer, title, offset)
    trainer.read_whole_catalogue({0: (0, 3)})
    assert titles(trainer.publish_news())["i1"] == "latest"
    tell(trainer, "last of all", 3)
    trainer.checkpoint()  # and then it is killed, before it published
    trainer.close()
    trainer = started()
    tell(trainer, "last of all", 3)
    trainer.read_whole_catalogue({0: (0, 4)})
    assert titles(trainer.publish_news())["i1"] == "last of all"
    trainer.close()
