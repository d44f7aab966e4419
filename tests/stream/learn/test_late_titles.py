"""Topics have no common order: an item's first event may arrive before the catalogue tells of the item."""

import numpy as np
import pytest

from driftline.configs.settings import Graph, Model, Ranker, Settings
from driftline.graph.rows import Event
from driftline.graph.view import view_of
from driftline.serving.engine_scorer import EngineScorer
from driftline.stream.learn.learner import StreamLearner, group_of

SETTINGS = Settings(
    model=Model(dim=16, blocks=1, max_len=20, step_groups=4, batch=8),
    graph=Graph(memory_dim=8, message_dim=8, time_dim=4, embed_dim=8, neighbors=5),
    ranker=Ranker(members=1, hidden=8, sampled=20, recall=20, pool=60, text_dim=4),
)


def learner_after(texts, groups=30):
    learner, offset = StreamLearner(SETTINGS, texts), 0
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
