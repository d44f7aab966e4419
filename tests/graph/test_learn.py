"""The trained graph: what a step may see, where its gradient goes, what is learnt from."""

from __future__ import annotations

import copy
import weakref
from itertools import count

import numpy as np
import pytest
import torch

import driftline.graph.learn as module
from driftline.configs.settings import Graph, Model, Ranker, Settings
from driftline.graph.embed import GraphReader
from driftline.graph.memory import EDGE_DIM
from driftline.graph.query import QueryReader
from driftline.graph.rows import Event
from driftline.stream.learn.learner import StreamLearner, group_of

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
    made = learner(rehearsed=0)
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
    monkeypatch.setattr(module, "USERS", 2)
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


@pytest.mark.parametrize("weights", [0.1, 1.0])
@pytest.mark.parametrize("neighbors", [0, 1, 3, 5])
def test_a_query_by_numpy_is_that_of_the_reader_also_after_its_weights_changed_and_in_a_copy(neighbors, weights):
    reader = GraphReader(Graph(**SMALL), text_dim=6)
    query = QueryReader(reader)
    rng = torch.Generator().manual_seed(neighbors)
    with torch.no_grad():
        for parameter in reader.parameters():
            parameter.normal_(0, weights, generator=rng)
    memory, idle, items = torch.randn(8, generator=rng), 412.3, torch.randn(5, 8, generator=rng)
    age, edges = torch.rand(5, generator=rng) * 90, torch.randn(5, EDGE_DIM, generator=rng)
    mask = torch.arange(5) < neighbors
    facets = torch.randn(4, 6, generator=rng) * torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None]
    with torch.no_grad():
        asked = reader.users(memory[None], torch.tensor([idle]), items[None], age[None], edges[None], mask[None])
        fused = reader.fuse(asked, facets[None])
    for one in (query, copy.deepcopy(query)):
        got = one.query(memory.numpy(), idle, *(x[:neighbors].numpy() for x in (items, age, edges)))
        for ours, theirs in ((got, asked[0].numpy()), (one.fuse(got, facets.numpy()), fused[0].numpy())):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))
        np.testing.assert_array_equal(one.fuse(got, np.zeros((4, 6), np.float32)), got)


def test_a_query_is_asked_anew_once_anything_was_learnt():
    made = learner()
    for events in baskets(30):
        view = made.view(events[0].user_id, events[0].timestamp_ms)
        before = made.graph.user_vector(view, events[0].timestamp_ms)
        assert made.graph.user_vector(view, events[0].timestamp_ms) is before
        feed(made, events)
        after = made.graph.user_vector(view, events[0].timestamp_ms)
        made.graph._asked = None
        np.testing.assert_array_equal(made.graph.user_vector(view, events[0].timestamp_ms), after)
    assert not np.array_equal(after, before)


def test_nothing_of_who_asked_is_kept_past_the_request():
    made = learner()
    for events in baskets(5):
        feed(made, events)
    for user_id in ("u1", "u2"):
        view = made.view(user_id, 1_700_000_000_000)
        vector = made.graph.user_vector(view, 1_700_000_000_000)
        assert made.graph.user_vector(view, 1_700_000_000_000) is vector
        kept = weakref.ref(view)
        del view
        assert kept() is None
        assert made.graph._asked is None


def test_vectors_of_a_large_catalogue_follow_in_turns_and_do_not_depend_on_who_asked_or_stopped(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 8)
    monkeypatch.setattr(module, "TURN", 30)
    asked, silent, composed = learner(full_softmax=4, negatives=2), learner(full_softmax=4, negatives=2), []
    compose, size = module.GraphLearner._compose, len(ITEMS) + 200
    for one in (asked, silent):
        one.add_items([f"nobody's {n}" for n in range(200)])
    monkeypatch.setattr(
        module.GraphLearner, "_compose", lambda self, rows: (composed.append(rows), compose(self, rows))
    )
    for number, events in enumerate(baskets(60)):
        group = group_of(events, asked.table, asked.settings)
        views = [one.view(group.user_id, group.t_ms) for one in (asked, silent)]
        slate = asked.slate(views[0], group.t_ms)  # the other one is never asked for its vectors
        steps = asked.graph.steps
        composed.clear()
        asked.learn(group, events, views[0], slate)
        if asked.graph.steps > steps:
            turn = (asked.graph.steps * 30 + np.arange(30)) % size
            assert set(turn.tolist()) <= set(composed[-1].tolist())
            assert steps == 0 or len(composed[-1]) < size / 2  # before the first one all are new
            vectors = asked.graph._columns["vector"].copy()
            compose(asked.graph, composed[-1])
            np.testing.assert_allclose(asked.graph._columns["vector"], vectors, atol=1e-6)
        silent.learn(group, events, views[1], slate)
        if number in (7, 31):
            silent.graph.load_state_dict(copy.deepcopy(silent.graph.state_dict()))
    assert asked.graph.steps > 5
    np.testing.assert_array_equal(asked.graph.item_matrix(), silent.graph.item_matrix())
