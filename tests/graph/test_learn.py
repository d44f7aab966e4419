"""The trained graph: what a step may see, where its gradient goes, what is learnt from."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch

import graph.learn
from configs.settings import Graph, Model, Ranker, Settings
from graph.embed import GraphReader
from graph.memory import EDGE_DIM
from graph.rows import Event
from stream.learner import StreamLearner, group_of

SMALL = {"memory_dim": 8, "message_dim": 8, "time_dim": 4, "embed_dim": 8, "neighbors": 5, "batch_groups": 3}
ITEMS = [f"i{n}" for n in range(20)]


def learner(**changed):
    made = StreamLearner(
        Settings(
            model=Model(dim=8, blocks=1, max_len=8),
            graph=Graph(**SMALL | changed),
            ranker=Ranker(members=1, hidden=4, sampled=8, recall=8, pool=20, text_dim=4),
        )
    )
    made.add_items(ITEMS)
    return made


def baskets(n=40, seed=0):
    rng, offsets = np.random.default_rng(seed), count()
    for g in range(n):
        user, items = f"u{rng.integers(5)}", rng.choice(len(ITEMS), rng.integers(1, 5), replace=False)
        t_ms = 1_600_000_000_000 + g * 3_600_000
        yield [Event(user, f"i{i}", t_ms, "purchase", None, 1.0, 2.0, offset=next(offsets)) for i in items]


def feed(made, events):
    group = group_of(events, made.table, made.settings)
    view = made.view(group.user_id, group.t_ms)
    made.learn(group, events, view, made.slate(view, group.t_ms))
    return group


def test_a_step_sees_items_as_they_were_before_the_first_new_group_of_its_batch(monkeypatch):
    made = learner(replayed=0)
    trained, checked = made.graph, []
    memories = [trained._columns["memory"][: len(ITEMS)].copy()]  # before each group
    step = trained._step

    def watched():
        new = len(trained._batch)
        begin = len(memories) - 1
        while new:  # groups without a past are no samples
            new -= sampled[begin]
            begin -= bool(new)
        np.testing.assert_array_equal(trained._columns["then"][: len(ITEMS)], memories[begin])
        checked.append(begin)
        step()

    monkeypatch.setattr(trained, "_step", watched)
    sampled = []
    for events in baskets():
        had = len(made.view(events[0].user_id, 0).items) > 0
        sampled.append(had)
        feed(made, events)
        memories.append(trained._columns["memory"][: len(ITEMS)].copy())
    assert len(checked) > 5


def test_the_loss_reaches_every_part_of_memory_and_reader():
    made = learner(learning_rate=1e-2)
    parts = made.graph.memory, made.graph.reader
    before = {name: p.detach().clone() for part in parts for name, p in part.named_parameters()}
    for events in baskets():
        feed(made, events)
    assert made.graph.steps > 5
    still = {name for part in parts for name, p in part.named_parameters() if torch.equal(before[name], p)}
    assert still == {"item_text.weight", "facet_key.weight", "facet_key.bias", "facet_value.weight", "facet_value.bias"}


@pytest.mark.parametrize("weights", ["random", "trained"])
def test_only_a_trained_graph_takes_steps_and_none_once_it_is_frozen(weights):
    made = learner(weights=weights)
    log = list(baskets())
    for events in log[:20]:
        feed(made, events)
    steps = made.graph.steps
    assert (steps > 0) == (weights == "trained")
    made.freeze()
    for events in log[20:]:
        feed(made, events)
    assert made.graph.steps == steps


def test_memories_of_users_past_a_bound_are_read_as_they_are_stored(monkeypatch):
    monkeypatch.setattr(graph.learn, "USERS", 2)
    made = learner()
    latest = []
    for events in baskets():
        feed(made, events)
        latest = [*(user for user in latest if user != events[0].user_id), events[0].user_id][-2:]
        assert list(made.graph._raw_of_user) == latest
    assert made.graph.steps > 5


def test_slots_without_a_neighbour_do_not_reach_the_query():
    reader = GraphReader(Graph(**SMALL), text_dim=4)
    rng = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, generator=rng)

    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    memory, idle = noise(2, 8), noise(2).abs()
    items, age, edges = noise(2, 5, 8), noise(2, 5).abs(), noise(2, 5, EDGE_DIM)
    first = reader.users(memory, idle, items, age, edges, mask)
    other = [torch.where(mask.reshape(2, 5, *[1] * (x.dim() - 2)), x, x + 9) for x in (items, age, edges)]
    torch.testing.assert_close(reader.users(memory, idle, *other, mask), first, rtol=0, atol=0)
    changed = reader.users(memory, idle, items + 1, age, edges, mask)
    assert not torch.equal(changed[0], first[0])
    assert torch.equal(changed[1], first[1])


def test_facets_that_are_not_there_do_not_reach_the_join():
    reader = GraphReader(Graph(**SMALL), text_dim=4)
    query, facets = torch.randn(2, 8), torch.zeros(2, 4, 4)
    torch.testing.assert_close(reader.fuse(query, facets), query, rtol=0, atol=0)
    facets[0, 1] = 1
    fused = reader.fuse(query, facets)
    assert not torch.equal(fused[0], query[0])
    assert torch.equal(fused[1], query[1])
