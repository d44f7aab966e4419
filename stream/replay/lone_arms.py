"""Arms of one model alone: a backbone, or the graph."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from driftline.configs.settings import Settings
from driftline.model.plugs import wanted_history
from driftline.model.sequence import SequenceLearner
from driftline.stream.learn.pace import EvenShare
from driftline.stream.replay.arms import Arrival, Cost, Ranking, Request, Setup, Slate
from driftline.stream.replay.engine_pass import EnginePass
from driftline.stream.replay.inputs import replay_texts


class SequenceArm:
    """A lone backbone, incremental: no ranker, no signals."""

    refresh_cpu_s = 0.0

    def __init__(self, name: str, setup: Setup, settings: Settings, shared: Callable[[], EnginePass | None]) -> None:
        self.name, self._setup, self._settings, self._shared = name, setup, settings, shared
        self._own: SequenceLearner | None = None
        self._train_s = self._score_s = 0.0
        self.trained_share, self._share = setup.learn_share, EvenShare(setup.learn_share)

    def _lent(self) -> SequenceLearner | None:
        """The learner of the shared pass where it trains the same backbone."""
        shared = self._shared()
        if shared is None or not shared.whole or shared.settings.model.backbone != self.name:
            return None
        return shared.learner.sequence

    @property
    def cost(self) -> Cost:
        """Of its learning, wherever it was done, and of its own answers."""
        shared, train = self._shared(), self._train_s
        if shared is not None and self._lent() is not None:
            train = shared.cost(("hstu",), ("learn",)).get("hstu", (0.0, 0.0))[0]
        return {self.name: (train, self._score_s)}

    @property
    def learner(self) -> SequenceLearner:
        """The lent one or its own."""
        lent = self._lent()
        if lent is None and self._own is None:
            self._own = SequenceLearner(self._settings.model, text_dim=self._settings.ranker.text_dim)
            self._own.prepare()
        return lent or self._own  # type: ignore[return-value]

    def start(self, split_ms: int) -> None:
        """Nothing changes at the split."""

    def score(self, request: Request) -> Slate:
        """Scores of all candidates; items that the backbone never saw rank last."""
        before = time.process_time()
        scores = np.full(request.pool, -np.inf, np.float32)
        known = self.learner.scores(wanted_history(request.view()), request.t_ms)[: request.pool]
        scores[: len(known)] = known
        self._score_s += time.process_time() - before
        return Slate(Ranking(scores))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Learns the group unless the shared pass does."""
        if self._lent() is None:
            before = time.process_time()
            texts, item_ids = replay_texts(self._setup), self._setup.log.item_ids
            for index in range(len(self.learner.items), arrival.pool):
                if (text := texts.get(item_ids[index])) is not None:
                    self.learner.set_text(index, text)
            if arrival.group.positive.any() and self._share.takes_next():
                self.learner.learn(arrival.group, wanted_history(request.view()))
            else:
                self.learner.observe(arrival.group)
            self._train_s += time.process_time() - before


class GraphArm:
    """The graph's own ranking; in a pass of its own neither engine nor backbone runs."""

    drives_state = True
    refresh_cpu_s = 0.0

    def __init__(self, name: str, shared: EnginePass) -> None:
        self.name, self.shared, self.trained_share = name, shared, shared.share.share
        self._score_s = 0.0

    def start(self, split_ms: int) -> None:
        """Nothing changes at the split."""

    @property
    def cost(self) -> Cost:
        """Of state, graph and profiles, from which its join with the graph is learnt, and of its own answers."""
        found = self.shared.cost(("state", "graph", "profiles"), ("learn",))
        train, _ = found.get("graph", (0.0, 0.0))
        return found | {"graph": (train, self._score_s)}

    def score(self, request: Request) -> Slate:
        """What memories and links say of every candidate."""
        before = time.process_time()
        view = self.shared.view(request)
        graph = self.shared.learner.graph
        scores = np.zeros(request.pool, np.float32)
        if graph is not None:
            known = graph.scores(view, request.t_ms)
            scores[: len(known)] = known[: request.pool]
        self._score_s += time.process_time() - before
        return Slate(Ranking(scores))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """See EngineArm."""
        self.shared.learn(request, arrival)
