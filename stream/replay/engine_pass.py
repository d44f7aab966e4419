"""One pass of the engine over a log, what several arms ask of it, and the arm that is a ranker of such a pass."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from driftline.configs.settings import Settings
from driftline.model.clocks import Clocks
from driftline.model.engine import GATE, MAIN, EngineSlate, ranker_part
from driftline.model.ranker import HEADS
from driftline.model.standing import is_known, sentence
from driftline.stream.learn.learner import StreamLearner
from driftline.stream.learn.pace import EvenShare
from driftline.stream.replay.arms import Arrival, Cost, Ranking, Request, Setup, Slate
from driftline.stream.replay.inputs import labels_of, replay_profiles, texts_of
from driftline.stream.state.store import state_sha256

if TYPE_CHECKING:
    from driftline.graph.arrays import Float32
    from driftline.graph.view import Group, UserView
    from driftline.model.engine import Engine, RankerArm

BASE_PARTS = ("state", "signals", "text")
"""Parts that every arm of the engine needs."""
GROUP_ONLY: Any = object()
"""Stands for a slate where nobody reads one: the graph learns from groups that are scored, not from their scores."""


class NoEngine:
    """What stands in the engine's place where no arm asks for a slate: it learns and ranks nothing."""

    def __init__(self) -> None:
        self.arms: dict[str, RankerArm] = {}

    def grow(self, n: int) -> None:
        """Nothing."""

    def set_text(self, index: int, vector: Float32) -> None:
        """Nothing."""

    def learn(self, group: Group, view: UserView, slate: EngineSlate | None = None) -> None:
        """Nothing."""

    def learns(self, part: str) -> bool:
        """Yes: nothing is compared."""
        return True


class EnginePass:
    """One StreamLearner and what several arms of one pass ask of it, each thing computed once.

    Args:
        setup: of the pass.
        settings: with the seeds and switches of the pass.
        whole: with engine and backbone; else the graph alone, until an arm asks for more.
        share: of the groups that are learnt, evenly spread; None = as the set-up has it.
        ranks: the graph has a ranking of its own, which changes what its memories learn.
    """

    def __init__(
        self, setup: Setup, settings: Settings, whole: bool = True, share: float | None = None, ranks: bool = False
    ) -> None:
        self.share = EvenShare(setup.learn_share if share is None else share)
        self.setup, self.settings, self.whole, self.ranks = setup, settings, whole, ranks
        self.clocks = Clocks()
        self.learner = self._learner()
        self._slate: tuple[int, EngineSlate] | None = None
        self._learnt = -1

    def _learner(self) -> StreamLearner:
        settings = self.settings
        if not self.whole:
            off = settings.model.model_copy(update={"backbone": "off"})
            settings = settings.model_copy(update={"model": off})
        profiles = replay_profiles(self.setup, settings.systems.get("profiles", "on"))
        texts, labels = texts_of(self.setup, settings), labels_of(self.setup, settings)
        learner = StreamLearner(settings, texts, profiles, labels=labels)
        if self.ranks and learner.graph is not None:
            learner.graph.rank_alone(settings.signals.one_id_space)
        if not self.whole:
            learner.engine = cast("Engine", NoEngine())
        learner.charge(self.clocks)
        learner.counted_wait = self.whole  # each slate is of all that came before; the graph alone asks for none
        return learner

    def widen(self) -> None:
        """Adds engine and backbone, before the first group."""
        if not self.whole:
            self.whole = True
            self.learner = self._learner()

    def add(self, name: str, blocks: tuple[str, ...]) -> None:
        """A ranker that sees only some blocks."""
        if name != MAIN and name not in self.learner.engine.arms:
            self.learner.engine.add_arm(name, blocks, self.settings.ranker.seed)

    def view(self, request: Request) -> UserView:
        """What is known of the user of a request, its candidates being known."""
        if self._slate is not None and self._slate[0] == request.number:
            return self._slate[1].view
        self.learner.add_items(self.setup.log.item_ids[len(self.learner.table) : request.pool])
        return self.learner.view(request.user_id, request.t_ms, request.context)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """What runs within answers a request that is scored."""
        self.clocks.asked = True
        try:
            yield
        finally:
            self.clocks.asked = False

    def copied(self) -> EnginePass:
        """The same from here on, with nothing in common but the set-up and what items say."""
        return copy.deepcopy(self, {id(self.setup): self.setup})

    def state_sha256(self) -> str:
        """Hash of the rows after all groups so far."""
        self.learner.apply_waiting()
        return state_sha256([self.learner.processor.store])

    def cost(self, parts: Collection[str], deeds: Collection[str] = ("predict", "learn")) -> Cost:
        """What some parts have cost, rankers as one, and the encoding of texts with the part that reads them."""
        self.learner.apply_waiting()
        found: dict[str, list[float]] = {}
        for (part, deed), (train, score) in self.clocks.seconds.items():
            if part in parts and deed in deeds:
                one = found.setdefault(part.split()[0], [0.0, 0.0])
                one[0], one[1] = one[0] + train, one[1] + score
        for part, seconds in self.setup.shared.get("encoding", {}).items():
            if part in parts:
                found.setdefault(part, [0.0, 0.0])[0] += seconds
        return {part: (train, score) for part, (train, score) in found.items()}

    def slate(self, request: Request) -> EngineSlate:
        """The engine's slate of a request."""
        if self._slate is None or self._slate[0] != request.number:
            view = self.view(request)
            self._slate = (request.number, self.learner.slate(view, request.t_ms))
        return self._slate[1]

    def learn(self, request: Request, arrival: Arrival) -> bool:
        """Takes in a group, once; True if this call did it."""
        if self._learnt == request.number:
            return False
        learner, wanted = self.learner, bool(arrival.group.positive.any())
        slate = None
        if wanted and learner.learning and self.share.takes_next():
            slate = self.slate(request) if self.whole else GROUP_ONLY
        view = slate.view if self.whole and slate is not None else self.view(request)
        learner.add_items(self.setup.log.item_ids[len(learner.table) : arrival.pool])
        learner.learn(arrival.group, arrival.events(), view, slate)
        self._learnt = request.number
        return True


class EngineArm:
    """A ranker of a shared pass."""

    drives_state = True
    refresh_cpu_s = 0.0

    def __init__(self, name: str, shared: EnginePass, arm: str) -> None:
        self.name, self.shared, self.arm = name, shared, arm
        self.trained_share = shared.share.share

    @property
    def cost(self) -> Cost:
        """Of what every arm needs, of the blocks that it sees, and of its own ranker."""
        learner = self.shared.learner
        blocks = learner.engine.arms[self.arm].blocks
        parts = (name for name, part in learner.parts.items() if not part.plugs().keys().isdisjoint(blocks))
        gate = [GATE] if self.arm == MAIN else []
        return self.shared.cost({*BASE_PARTS, *blocks, *parts, ranker_part(self.arm), *gate})

    @property
    def gate(self) -> dict[str, dict[str, Any]]:
        """How the parts stand (model/gate.py), of the whole engine."""
        if self.arm != MAIN:
            return {}
        return {name: one.told() for name, one in self.shared.learner.engine.gate.standing().items()}

    @property
    def note(self) -> str:
        """The same in words, of parts of which something is known."""
        return "; ".join(sentence(name, told) for name, told in self.gate.items() if is_known(told))

    def start(self, split_ms: int) -> None:
        """Nothing changes at the split."""

    def score(self, request: Request) -> Slate:
        """Scores of the arm's own pool, one head a list."""
        with self.shared.asked():
            return answer(self.shared, request, self.arm)

    def learn(self, request: Request, arrival: Arrival) -> None:
        """The first arm of a pass learns for all."""
        self.shared.learn(request, arrival)


def answer(shared: EnginePass, request: Request, arm: str) -> Slate:
    """A ranker's slate, one head for each list."""
    slate = shared.slate(request)
    if arm == MAIN:
        candidates, scores = slate.candidates, slate.scores
    else:
        candidates, scores = shared.learner.engine.score(slate, arm)
    rankings = {head: Ranking(scores[n], candidates) for n, head in enumerate(HEADS)}
    return Slate(rankings["overall"], rankings["novel"], rankings["repeat"])
