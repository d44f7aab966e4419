"""The contract of every part that driftline brings, and parts that break it."""

from typing import ClassVar

import numpy as np
import pytest

from driftline.configs.switches import arms_of
from driftline.graph.touched import Touched
from driftline.model import parts
from driftline.model.artefact import Placebo, shuffled
from driftline.model.part import VectorPart
from driftline.stream.learn.contracts import CHECKS, Checks, _Texts, check_artefact


@pytest.fixture(scope="module", params=list(parts.OURS))
def checks(request, tmp_path_factory):
    return Checks(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_part_keeps_its_contract(checks, check):
    check(checks)


class Counts(VectorPart):
    """How often each item was taken, as one number; what a subclass breaks is found."""

    name = "noise"  # in the place of one that there is

    def __init__(self):
        self.taken = np.zeros((0, 1), np.float32)

    @classmethod
    def made(cls, settings, table, text):
        return cls()

    @classmethod
    def opened(cls, settings, table, arrays, before):
        part = cls()
        part.taken = arrays["taken"]
        return part

    def user_vector(self, view, now_ms):
        return np.ones(1, np.float32)

    def item_matrix(self):
        return self.taken

    def add_item(self, index, item_id):
        self.taken = np.concatenate((self.taken, np.zeros((index + 1 - len(self.taken), 1), np.float32)))

    def learn(self, group, view, learnt):
        self.taken[group.items[group.positive]] += 1

    def arrays(self, whole=True):
        return {"taken": self.taken}

    def state_dict(self):
        return {"taken": self.taken.copy()}

    def load_state_dict(self, state):
        self.taken = state["taken"]


class ChangesAsItAnswers(Counts):
    def user_vector(self, view, now_ms):
        self.taken = self.taken + np.float32(0.1) * (np.arange(len(self.taken)) % 3 == 0)[:, None].astype(np.float32)
        return super().user_vector(view, now_ms)


class Forgetful(Counts):
    def state_dict(self):
        return {"taken": np.zeros_like(self.taken)}


class Unlike(Counts):
    def arrays(self, whole=True):
        return {"taken": -self.taken}


class Gossip(Counts):
    def __init__(self):
        super().__init__()
        self.users = []

    def learn(self, group, view, learnt):
        super().learn(group, view, learnt)
        self.users.append(group.user_id)

    def state_dict(self):
        return super().state_dict() | {"users": list(self.users)}


class Unmarked(Counts):
    def __init__(self):
        super().__init__()
        self.marks = Touched()

    def touched(self):
        return {"taken": self.marks}


class Shared(Counts):
    """One table for all learners: the future of one is in the other."""

    table: ClassVar[dict[int, int]] = {}

    def learn(self, group, view, learnt):
        for item in group.items:
            self.table[item] = self.table.get(item, 0) + 1
            self.taken[item] = self.table[item]


@pytest.fixture
def in_place(monkeypatch):
    return lambda part: monkeypatch.setitem(parts.OURS, "noise", part)


def test_a_part_of_counts_keeps_the_contract(in_place, tmp_path):
    in_place(Counts)
    assert "placebo" not in arms_of("noise")
    checks = Checks("noise", tmp_path)
    for check in CHECKS:
        check(checks)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (ChangesAsItAnswers, "causal: questions changed"),
        (Shared, "causal: a group's own answer, or a later group, changed"),
        (Forgetful, "restored: a restored state changed"),
        (Unlike, "served: "),
        (Unmarked, "marked: rows of 'taken' changed without a mark"),
        (Gossip, "forgotten: the state of noise still names the user at state.users"),
    ],
)
def test_a_part_that_breaks_the_contract_is_found(in_place, tmp_path, part, said):
    in_place(part)
    checks = Checks("noise", tmp_path)
    with pytest.raises(AssertionError, match=said):
        getattr(checks, said.split(":")[0])()


def test_a_placebo_of_texts_keeps_the_contract_and_a_copy_does_not():
    own, ids = _Texts(), [f"item-{n}" for n in range(30)]
    placebo = Placebo(own, shuffled([i for i in ids if own.at(i, 0) is not None], 0).get)
    check_artefact(own, placebo, ids, 0)
    with pytest.raises(AssertionError, match="says what the own one says"):
        check_artefact(own, own, ids, 0)
    with pytest.raises(AssertionError, match="not there for the same keys"):
        check_artefact(own, Placebo(own, shuffled(ids, 0).get), ids, 0)
