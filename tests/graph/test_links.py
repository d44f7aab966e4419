"""Links: what is counted is what happened, what is learnt is the gradient, and nothing depends on who else is asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from driftline.configs.settings import Graph
from driftline.graph.links import Links
from driftline.graph.links_kernel import COLUMNS, DOT, FACTS
from driftline.graph.links_net import LinkNet
from driftline.graph.rows import key64
from driftline.graph.view import Group, UserView

RING, PEOPLE, START_MS = 6, 9, 1_600_000_000_000


def settings(**changed):
    return Graph(link_ring=RING, link_hidden=8, link_sampled=4, **changed)


def group_of(user, item, t_ms):
    one, none = np.ones(1, np.float32), np.full(1, np.nan, np.float32)
    return Group(user, t_ms, np.array([item], np.int32), one, none, none, np.ones(1, np.bool_))


class Stream:
    """Messages of some people who are users and items alike, and all that was ever sent."""

    def __init__(self, events=300, seed=0, one_id_space=True, **changed):
        self.links, self.sent = Links(settings(seed=seed, **changed), one_id_space), []
        for n in range(PEOPLE):
            self.links.add_item(n, key64(f"p{n}"))
        rng, t_ms = np.random.default_rng(seed), START_MS
        for _ in range(events):
            t_ms += int(rng.exponential(3_600_000))
            user, item = rng.integers(PEOPLE + 2), int(rng.integers(PEOPLE - 1))  # two are never written to, one is new
            self.send(int(user), item, t_ms)
        self.now_ms = t_ms + 60_000

    def send(self, user, item, t_ms, learn=True):
        view = self.view(user)
        if learn:
            self.links.learn(view, t_ms, np.array([item], np.int32))
        self.links.observe(group_of(f"p{user}", item, t_ms), view)
        self.sent.append((user, item, t_ms))

    def view(self, user):
        mine = [(item, t_ms) for sender, item, t_ms in self.sent if sender == user]
        items, t_ms = (np.array([row[n] for row in mine], dtype) for n, dtype in ((0, np.int32), (1, np.int64)))
        ones = np.ones(len(mine), np.float32)
        empty = np.zeros(len(mine), np.uint64)
        return UserView(f"p{user}", items, t_ms, ones, ones, ones, empty, empty.astype(np.uint32), events=len(mine))

    def columns(self, user, items=None):
        items = np.arange(PEOPLE, dtype=np.int32) if items is None else items
        found, facts = self.links.columns(self.view(user), self.now_ms, items)
        return {name: found[:, n] for n, name in enumerate(COLUMNS)}, dict(zip(FACTS, facts, strict=True))


def rank(others, one, key):
    """1 / place of one among others, the latest first."""
    return 1 / (1 + sorted(others, key=key, reverse=True).index(one))


def plain(stream, user, item):
    """The columns of one link, read from all that was ever sent."""
    sent, out = stream.sent, {}
    mine = [row for row in sent if row[0] == user]
    to = [n for n, row in enumerate(sent) if row[:2] == (user, item)]
    held = [row for row in sent if row[1] == item][-RING:]
    if to:
        last = {row[1]: n for n, row in enumerate(sent) if row[0] == user}
        later = [row for row in held if row[2] > sent[to[-1]][2]]
        out |= {
            "own": 1,
            "own_count": math.log1p(len(to)) / 5,
            "own_rank": rank(last, item, lambda one: last[one]),
            "own_share": len(to) / len(mine),
            "own_passed": math.log1p(sum(row[2] > sent[to[-1]][2] for row in mine)) / 5,
            "others_none": 1 / (1 + len(later)),
            "holds": not later,
            "of_ring": sum(row[0] == user for row in held) / len(held),
            "own_7d": math.log1p(sum(2 ** (-(stream.now_ms - sent[n][2]) / (7 * 86_400_000)) for n in to)),
        }
    came = [row for row in sent if row[1] == user] if user < PEOPLE else []
    gone = {row[0]: row for row in came[:-RING]}  # the last of each who is not in the ring any more
    came = came[-RING:]
    came = sorted((row for one, row in gone.items() if one not in {row[0] for row in came}), key=lambda r: r[2]) + came
    from_it = [row for row in came if row[0] == item]
    if from_it:
        since = [row for row in from_it if not to or row[2] > sent[to[-1]][2]]
        last = {row[0]: row[2] for row in came if row[0] < PEOPLE}
        unmet = [one for one in last if not any(row[1] == one for row in mine)]
        out |= {
            "came": 1,
            "came_count": math.log1p(len(from_it)) / 3,
            "came_rank": rank(last, item, last.get),
            "came_passed": math.log1p(sum(row[2] >= from_it[-1][2] for row in mine)) / 5,
            "open": bool(since),
            "open_count": math.log1p(len(since)) / 2,
            "unmet": item in unmet,
            "unmet_rank": rank(unmet, item, last.get) if item in unmet else 0,
        }
    on = [row for row in sent if row[1] == item]
    by = [row for row in sent if row[0] == item]
    out |= {
        "count": math.log1p(len(on)) / 8,
        "new_share": len({row[0] for row in on}) / len(on) if on else 0,
        "acts_count": math.log1p(len(by)) / 8,
        "acts_new_share": len({row[1] for row in by}) / len(by) if by else 0,
        "itself": user == item,
    }
    return out


@pytest.mark.parametrize("user", range(PEOPLE + 2))
def test_columns_are_what_a_reader_of_the_whole_log_counts(user):
    stream = Stream()
    found, facts = stream.columns(user)

    for item in range(PEOPLE):
        expected = plain(stream, user, item)
        if "own" not in expected:
            assert not any(found[name][item] for name in COLUMNS if name.startswith("own"))
        if "came" not in expected:
            assert not any(found[name][item] for name in COLUMNS if name.startswith(("came", "open", "unmet")))
        for name, value in expected.items():
            assert found[name][item] == pytest.approx(float(value), rel=1e-4, abs=1e-5), (name, item)
    assert facts["new"] == (not any(row[0] == user for row in stream.sent))


def test_who_wrote_is_nobody_where_users_and_items_are_not_the_same():
    found, facts = Stream(one_id_space=False).columns(1)

    silent = ("came", "open", "unmet", "acts", "beyond", "itself")
    assert not any(found[name].any() for name in COLUMNS if name.startswith(silent))
    assert facts["came"] == 0
    assert all(found[name].any() for name in ("own", "together_any"))


def test_a_candidates_columns_do_not_depend_on_the_others():
    stream = Stream()
    together, _ = stream.columns(3)
    for item in (5, 0):
        alone, _ = stream.columns(3, np.array([item], np.int32))
        for name in COLUMNS:
            assert alone[name][0] == together[name][item]
    assert (stream.links._slot == -1).all()
    assert not stream.links._path.any()


def test_what_somebody_did_before_being_an_item_is_known_once_it_is_one():
    stream = Stream(events=0)
    for n, item in enumerate((1, 1, 2)):
        stream.send(PEOPLE, item, START_MS + n)
    stream.links.add_item(PEOPLE, key64(f"p{PEOPLE}"))
    stream.send(PEOPLE, 3, START_MS + 9)
    stream.now_ms = START_MS + 10
    found, _ = stream.columns(0, np.arange(PEOPLE + 1, dtype=np.int32))

    assert found["acts_count"][PEOPLE] == pytest.approx(math.log1p(4) / 8)
    assert found["acts_new_share"][PEOPLE] == pytest.approx(3 / 4)


def test_a_users_own_weights_are_learnt_from_its_own_events_and_the_oldest_users_go(monkeypatch):
    monkeypatch.setattr("driftline.graph.links.USERS", 2)
    stream = Stream(events=0)
    for n in range(4):
        stream.send(n, (n + 1) % PEOPLE, START_MS + n)
    habits = stream.links._habits
    assert list(habits) == [key64("p2"), key64("p3")]
    assert all(habit.any() for habit in habits.values())
    assert all(habit[DOT] == 0 for habit in habits.values())


def test_a_gradient_is_that_of_automatic_differentiation():
    rng = np.random.default_rng(0)
    net = LinkNet(len(COLUMNS), len(FACTS), 8, 1e-3, 3)
    columns, facts = (rng.standard_normal(s).astype(np.float32) for s in ((7, len(COLUMNS)), (len(FACTS),)))
    offset, right = rng.standard_normal(7).astype(np.float32), np.array([1, 4])
    net.step(net.gradient(columns, facts, offset, right)[1])  # so that no weight is zero
    loss, gradient = net.gradient(columns, facts, offset, right)

    parts = [torch.tensor(part.copy(), requires_grad=True) for part in net._parts(net.weights)]
    x = torch.from_numpy(columns)
    logits = torch.relu(x @ parts[0] + torch.from_numpy(facts) @ parts[1]) @ parts[2] + x @ parts[3]
    expected = -torch.log_softmax(logits + torch.from_numpy(offset), 0)[right].mean()
    expected.backward()  # type: ignore[no-untyped-call]

    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    flat = torch.cat([part.grad.ravel() for part in parts])
    np.testing.assert_allclose(gradient, flat.numpy(), rtol=1e-4, atol=1e-6)


def test_what_is_drawn_stands_for_what_is_not():
    links = Stream(events=0).links
    items, offset = links._drawn(np.array([2], np.int32))

    assert len(items) == len(set(items.tolist())) == 5
    assert (items[0], offset[0]) == (2, 0)
    assert np.exp(offset[1:]).sum() == pytest.approx(PEOPLE - 1)


def test_that_people_answer_is_learnt_from_answers():
    stream, rng = Stream(events=0), np.random.default_rng(1)
    ranks = []
    for n in range(600):
        a, b = (int(x) for x in rng.choice(PEOPLE, 2, replace=False))
        t_ms = START_MS + n * 3_600_000
        stream.send(a, b, t_ms)
        scores = stream.links.scores(stream.view(b), t_ms + 60_000, np.arange(PEOPLE, dtype=np.int32))
        ranks.append(1 + int((scores > scores[a]).sum()))
        stream.send(b, a, t_ms + 60_000)

    assert np.mean(ranks[-100:]) < 1.3 < np.mean(ranks[:50])


def test_what_memories_say_counts_as_soon_as_it_is_right_and_links_are_asked_without_it():
    stream, rng = Stream(events=0), np.random.default_rng(2)
    first, last = [], []
    for n in range(800):
        item, t_ms = int(rng.integers(PEOPLE)), START_MS + n * 1000
        view, dots = stream.view(n % 50 + PEOPLE), np.zeros(PEOPLE, np.float32)
        dots[item] = 3
        scores = stream.links.scores(view, t_ms, np.arange(PEOPLE, dtype=np.int32), dots)
        (first if n < 100 else last).append(1 / (1 + (scores > scores[item]).sum()))
        items, said = stream.links.learn(view, t_ms, np.array([item], np.int32), dots)
        assert items.shape == said.shape
        stream.links.observe(group_of(view.user_id, item, t_ms), view)
        stream.sent.append((n % 50 + PEOPLE, item, t_ms))

    assert np.mean(last[-100:]) > 0.95 > np.mean(first)
    column, _ = stream.links.columns(view, t_ms, items)
    assert not column[:, DOT].any()
