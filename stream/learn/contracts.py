"""What holds for every part of the engine (model/part.py), checked on a small made-up shop; a part's tests call it.

    check_part("hours", tmp_path)

    causal      a question's columns depend on earlier groups alone, and asking changes nothing
    restored    a state that was written to a checkpoint goes on to the bit
    served      a snapshot answers as the learner does
    marked      rows that changed are marked, or a later snapshot would miss them
    placebo     random vectors in its stead have an opinion on the same users, of the same length
    alone       what is said of items by others does not depend on whether the part is on
    gated       off, it says nothing, is restored and served as off, and comes back
    forgotten   nothing in its state names a user who was forgotten

Each check raises AssertionError with the name of what does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from driftline.configs.errors import ConfigError
from driftline.configs.load import switched
from driftline.configs.settings import Gate, Graph, Model, Ranker, Settings
from driftline.graph.arrays import Arrays, Float32
from driftline.graph.labels import Labelled
from driftline.graph.rows import Event, key64
from driftline.graph.view import FACETS, ProfileVectors
from driftline.model.artefact import Artefact
from driftline.model.engine import EngineSlate
from driftline.model.plugs import noise
from driftline.model.recall import BASE_BITS
from driftline.serving.arrays import item_part
from driftline.serving.engine_scorer import EngineScorer, engine_builder
from driftline.serving.publish import publish
from driftline.serving.snapshot import PARTS, SETTINGS, Meta, open_snapshot
from driftline.stream.learn.checkpoint import read_checkpoint, write_checkpoint
from driftline.stream.learn.learner import StreamLearner, group_of

GROUPS, USERS, ITEMS, TEXT_DIM = 72, 9, 40, 4
CUT = 40
"""Where the futures of two streams part, a state is saved, a snapshot is taken."""
SETTINGS_OF_A_SHOP = Settings(
    model=Model(dim=8, blocks=1, max_len=12, step_groups=3, batch=6),
    graph=Graph(
        memory_dim=8,
        message_dim=8,
        time_dim=4,
        embed_dim=8,
        neighbors=5,
        batch_groups=3,
        rehearsed=3,
        publish_groups=25,
    ),
    ranker=Ranker(members=1, hidden=8, sampled=20, recall=20, pool=60, text_dim=TEXT_DIM),
)
K = TypeVar("K")
V = TypeVar("V")


class _Texts:
    """A text of every item but each fifth."""

    def at(self, item_id: str, now_ms: int) -> Float32 | None:
        number = key64(item_id)
        vector: Float32 = noise(0, number, (1, TEXT_DIM))[0]
        return vector if number % 5 else None


class _Labels:
    """Brands of two items in three, two categories of all."""

    def at(self, item_id: str, now_ms: int) -> Labelled:
        number = key64(item_id)
        return f"brand-{number % 5}" if number % 3 else "", (f"category-{number % 4}", f"category-{number % 7}")


class _Profiles:
    """Profiles of every user but each third, from the first event on."""

    made_on_request = False

    def at(self, user_id: str, now_ms: int) -> ProfileVectors | None:
        number = key64(user_id)
        return ProfileVectors(noise(1, number, (len(FACETS), TEXT_DIM)), 0) if number % 3 else None

    def request(self, record: bytes) -> None:
        """Nothing: they are there."""


def shop(seed: int = 0, groups: int = GROUPS, first: int = 0) -> list[list[Event]]:
    """Baskets with returns, in order of time; those from `first` on are of another seed."""
    out: list[list[Event]] = []
    now_ms, offset = 1_600_000_000_000, 0
    for number in range(groups):
        random = np.random.default_rng([seed if number >= first else 0, number])
        now_ms += 60_000 + 3_600_000 * (number % 7)
        user = f"user-{number * 5 % USERS}"
        known = min(ITEMS, 12 + number)
        items = random.choice(known, int(random.integers(1, 6)), replace=False).tolist()
        actions = ["return" if random.random() < 0.1 else "purchase" for _ in items]
        basket = [
            Event(user, f"item-{item}", now_ms, action, None, 1.0, 2.0, f"basket-{number}")
            for item, action in zip(items, actions, strict=True)
        ]
        for event in basket:
            event.offset, offset = offset, offset + 1
        out.append(basket)
    return out


def learner_of(settings: Settings) -> StreamLearner:
    """A fresh learner of the shop, with texts, profiles and labels."""
    return StreamLearner(settings, _Texts(), _Profiles(), labels=_Labels())


def drive(learner: StreamLearner, baskets: Iterable[Sequence[Event]]) -> list[EngineSlate]:
    """The slate of every basket, each learnt after it was asked for."""
    slates = []
    for events in baskets:
        slates.append(ask(learner, events))
        learner.add_items([event.item_id for event in events])
        group = group_of(events, learner.table, learner.settings)
        learner.learn(group, events, slates[-1].view, slates[-1])
    return slates


def ask(learner: StreamLearner, events: Sequence[Event]) -> EngineSlate:
    """The slate that a basket answers."""
    t_ms = events[0].timestamp_ms
    return learner.slate(learner.view(events[0].user_id, t_ms), t_ms)


class Checks:
    """The checks of one part.

    Args:
        name: of the part.
        folder: an empty one.
        settings: of the shop; None = small models that learn often.
    """

    def __init__(self, name: str, folder: Path, settings: Settings | None = None) -> None:
        self.name, self.folder = name, folder
        self.settings = switched(settings or SETTINGS_OF_A_SHOP, {name: "on"})
        self.whole = learner_of(self.settings)
        self.slates = drive(self.whole, shop())
        self.blocks = self._blocks(self.whole)

    def causal(self) -> None:
        """A question's columns depend on earlier groups alone, and asking changes nothing."""
        other = learner_of(self.settings)
        slates = drive(other, shop(seed=1, first=CUT))
        _equal("causal", "a group's own answer, or a later group, changed", self.slates[: CUT + 1], slates[: CUT + 1])
        quiet, asked = learner_of(self.settings), learner_of(self.settings)
        drive(quiet, shop(groups=CUT))
        for events in shop(groups=CUT):
            drive(asked, [events])
            for user in ("user-0", "user-1", "nobody"):
                asked.slate(asked.view(user, events[0].timestamp_ms), events[0].timestamp_ms + 86_400_000)
        for basket in shop()[CUT:]:
            _equal("causal", "questions changed", drive(quiet, [basket]), drive(asked, [basket]))

    def restored(self) -> None:
        """A state that was written to a checkpoint goes on to the bit."""
        first = learner_of(self.settings)
        drive(first, shop(groups=CUT))
        second = self._restored(first)
        _equal("restored", "a restored state changed", self.slates[CUT:], drive(second, shop()[CUT:]))

    def served(self) -> None:
        """A snapshot answers as the learner does."""
        learner = self.whole
        scorer = self._served(learner, "snapshots")
        now_ms = shop()[-1][0].timestamp_ms + 3_600_000
        for user in ("user-0", "user-3", "nobody"):
            view = learner.view(user, now_ms)
            mine, theirs = learner.slate(view, now_ms), scorer.engine.slate(view, now_ms)
            assert (mine.candidates == theirs.candidates).all(), f"served: {self.name} brings other candidates"
            for block in self.blocks:
                columns = learner.engine.layout.blocks[block]
                np.testing.assert_allclose(  # mapped rows begin elsewhere in memory, and a sum rounds by where
                    theirs.raw[columns], mine.raw[columns], 1e-5, 1e-6, err_msg=f"served: columns of {block!r}"
                )

    def marked(self) -> None:
        """Rows that changed are marked."""
        learner = learner_of(self.settings)
        drive(learner, shop(groups=CUT))
        learner.refresh()
        copy = {key: array.copy() for key, array in self._arrays(learner).items()}
        for key, marks in learner.parts[self.name].touched().items():
            marks.take(len(copy[key]))
        drive(learner, shop()[CUT:])
        learner.refresh()
        now = self._arrays(learner)
        for key, marks in learner.parts[self.name].touched().items():
            assert key in now, f"marked: {self.name} marks rows of {key!r}, which `arrays` does not have"
            rows, kept = marks.take(len(now[key])), np.zeros_like(now[key])
            kept[: len(copy[key])] = copy[key]
            kept[rows] = now[key][rows]
            np.testing.assert_array_equal(kept, now[key], f"marked: rows of {key!r} changed without a mark")

    def placebo(self) -> None:
        """Random vectors in its stead have an opinion on the same users, of the same length; or it has no placebo."""
        try:
            other = learner_of(switched(self.settings, {self.name: "placebo"}))
        except ConfigError:
            return
        assert other.engine.layout.names == self.whole.engine.layout.names, "placebo: other columns"
        differ = False
        for mine, theirs in zip(self.slates, drive(other, shop()), strict=True):
            for block in self.blocks:
                own, stand_in = (slate.pool.scored.get(block) for slate in (mine, theirs))
                assert (own is None) == (stand_in is None), f"placebo: {block!r} is not there for the same questions"
                if own is not None and stand_in is not None:
                    assert len(own.best) == len(stand_in.best), f"placebo: the list of {block!r} is of another length"
                    differ |= own.best.tolist() != stand_in.best.tolist()
        assert differ, f"placebo: it says what {self.name} says"

    def alone(self) -> None:
        """What others say does not depend on whether the part is on."""
        off = learner_of(switched(self.settings, {self.name: "off"}))
        layout, theirs = self.whole.engine.layout, off.engine.layout
        assert not set(self.blocks) & set(theirs.blocks), f"alone: {self.name} is off and has columns"
        shared = np.array([name in set(theirs.names) for name in layout.names])
        for mine, other in zip(self.slates, drive(off, shop()), strict=True):
            rows, place = ((slate.recalled & BASE_BITS) != 0 for slate in (mine, other))
            np.testing.assert_array_equal(
                mine.raw[shared][:, rows], other.raw[:, place], f"alone: {self.name} changes columns of others"
            )

    def gated(self) -> None:
        """Off, it says nothing and is restored and served as off; compared groups ask it, and it comes back."""
        gate = Gate(mode="act", share=0.5, min_groups=GROUPS)
        settings = self.settings.model_copy(update={"model": self.settings.model.model_copy(update={"gate": gate})})
        first = learner_of(settings)
        _equal("gated", "comparing changed", self.slates[:CUT], drive(first, shop(groups=CUT)))
        first.engine.switch(self.name, shop()[CUT][0].timestamp_ms)
        second = self._restored(first)
        mine = drive(first, shop()[CUT:])
        _equal("gated", "a restored state changed", mine, drive(second, shop()[CUT:]))
        columns = np.concatenate(
            [np.arange(len(first.engine.layout.names))[first.engine.layout.blocks[b]] for b in self.blocks]
        )
        asked = [slate.whole for slate in mine if slate.whole is not None]
        assert 0 < len(asked) < len(mine), "gated: it is to be asked of a share of the groups"
        for slate in mine:
            assert not slate.features[:, columns].any(), f"gated: {self.name} is off and has columns"
            assert not set(self.blocks) & slate.pool.scored.keys(), f"gated: {self.name} is off and has an opinion"
        assert any(set(self.blocks) & slate.pool.scored.keys() for slate in asked), "gated: it says nothing any more"
        scorer = self._served(first, "gated")
        assert scorer.engine.gate.off == {self.name}, f"gated: a snapshot does not say that {self.name} is off"
        first.engine.switch(self.name, shop()[-1][0].timestamp_ms)
        back = ask(first, shop()[-1])
        assert set(self.blocks) & back.pool.scored.keys(), f"gated: {self.name} does not come back"

    def forgotten(self) -> None:
        """Nothing in its state names a user who was forgotten."""
        learner = learner_of(self.settings)
        drive(learner, shop(groups=CUT))
        learner.forget(["user-0"])
        found = list(_named(learner.parts[self.name].state_dict(), "user-0"))
        assert not found, f"forgotten: the state of {self.name} still names the user at {', '.join(found)}"

    def _restored(self, learner: StreamLearner) -> StreamLearner:
        """Another learner that goes on from the checkpoint of one."""
        path, other = self.folder / "checkpoint", learner_of(learner.settings)
        write_checkpoint(path, {"learner": learner.state_dict(), "settings": ""})
        read = read_checkpoint(path, "")
        assert read is not None
        other.load_state_dict(read["learner"])
        return other

    def _served(self, learner: StreamLearner, folder: str) -> EngineScorer:
        """What a service makes of a learner's snapshot."""
        parts = learner.arrays() | {"items": item_part(learner.table.ids)}
        publish(self.folder / folder, parts, Meta(extra={PARTS: list(learner.parts), SETTINGS: None}))
        scorer = engine_builder(self.settings)(open_snapshot(self.folder / folder))
        assert isinstance(scorer, EngineScorer)
        return scorer

    def _arrays(self, learner: StreamLearner) -> Arrays:
        return learner.parts[self.name].arrays()

    def _blocks(self, learner: StreamLearner) -> list[str]:
        assert self.name in learner.parts, f"{self.name!r} is no part of a learner that switches it on"
        blocks = list(learner.parts[self.name].plugs())
        said = {block for slate in self.slates for block in blocks if slate.pool.scored.get(block) is not None}
        assert said == set(blocks), f"{self.name} never has an opinion: {', '.join(sorted(set(blocks) - said))}"
        return blocks


CHECKS: tuple[Callable[[Checks], None], ...] = (
    Checks.causal, Checks.restored, Checks.served, Checks.marked, Checks.placebo, Checks.alone, Checks.gated,
    Checks.forgotten,
)  # fmt: skip


def check_part(name: str, folder: Path, settings: Settings | None = None) -> None:
    """All checks of a part; see Checks.

    Raises:
        AssertionError: one does not hold.
        ConfigError: there is no part of this name.
    """
    checks = Checks(name, folder, settings)
    for check in CHECKS:
        check(checks)


def check_artefact(own: Artefact[K, V], placebo: Artefact[K, V], keys: Iterable[K], now_ms: int) -> None:
    """A placebo of an artefact has something to say of the same keys, of the same shape, and something else.

    Raises:
        AssertionError: it does not hold.
    """
    pairs = [(own.at(key, now_ms), placebo.at(key, now_ms)) for key in keys]
    assert all((a is None) == (b is None) for a, b in pairs), "placebo: it is not there for the same keys"
    shown = [(np.asarray(a), np.asarray(b)) for a, b in pairs if a is not None]
    assert all(a.shape == b.shape for a, b in shown), "placebo: of another shape"
    assert any((a != b).any() for a, b in shown), "placebo: it says what the own one says"


def _equal(check: str, what: str, mine: Sequence[EngineSlate], theirs: Sequence[EngineSlate]) -> None:
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        same = (getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ("candidates", "raw", "scores"))
        assert all(same), f"{check}: {what} the slate of question {number}"


def _named(state: Any, user_id: str, path: str = "state") -> Iterable[str]:
    """Where a tree of plain values holds a text."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _named(key, user_id, f"{path}: a key")
            yield from _named(value, user_id, f"{path}.{key}")
    elif isinstance(state, list | tuple | set):
        for number, value in enumerate(state):
            yield from _named(value, user_id, f"{path}[{number}]")
    elif state == user_id if isinstance(state, str) else isinstance(state, bytes) and user_id.encode() in state:
        yield path
