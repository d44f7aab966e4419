"""Arms whose weights stand still: at the split, from week to week, or trained offline for each week."""

from __future__ import annotations

import time

import numpy as np

from driftline.model.engine import MAIN
from driftline.stream.replay.arms import Arrival, Request, Slate
from driftline.stream.replay.engine_pass import EngineArm, EnginePass, answer
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.offline import before_slice, fit

WEEK_MS = 7 * 86_400_000


def weeks_from(t_ms: int, log: EventLog) -> int:
    """In how many weeks from a time on a log has groups."""
    return len(np.unique((log.group_t_ms[log.group_t_ms >= t_ms] - t_ms) // WEEK_MS))


class FrozenArm(EngineArm):
    """The engine as it stood at the split; a copy of the shared pass goes on without learning."""

    drives_state = False

    def __init__(self, name: str, shared: EnginePass) -> None:
        super().__init__(name, shared, MAIN)
        self._warm = 0
        self._seen = 0

    def start(self, split_ms: int) -> None:
        """Copies the pass and freezes the copy."""
        self._warm = self._seen
        self.shared = self.shared.copied()
        self.shared.learner.freeze()

    def learn(self, request: Request, arrival: Arrival) -> None:
        """See EngineArm."""
        super().learn(request, arrival)
        self._seen += 1
        self.trained_share = self.shared.share.share * (self._warm / self._seen if self._warm else 1.0)


class WeeklyFrozenArm:
    """The engine as one pass over everything before a week leaves it, fixed within the week.

    A pass is a function of what came, in order: each week's goes on where that of the week before stood.

    Args:
        untrained: a pass that has seen nothing.
    """

    name = "weekly_frozen"

    def __init__(self, untrained: EnginePass) -> None:
        self._pass, self.trained_share = untrained, untrained.share.share
        self._past: list[tuple[Request, Arrival]] = []
        self._taken = self._trainings = 0
        self._current: EnginePass | None = None
        self._from_ms = self._until_ms = 0
        self.refresh_cpu_s = 0.0

    def start(self, split_ms: int) -> None:
        """The first week begins at the split."""
        self._from_ms = self._until_ms = split_ms

    def score(self, request: Request) -> Slate:
        """Trains anew when a new week has begun."""
        if self._current is None or request.t_ms >= self._until_ms:
            before = time.process_time()
            self._current = None  # or two old ones would be there while the next one is trained
            self._tell()
            self._current = self._trained()
            self._current.learner.freeze()
            self._trainings += 1
            while self._until_ms <= request.t_ms:
                self._until_ms += WEEK_MS
            self.refresh_cpu_s += time.process_time() - before
            self._tell()
        return answer(self._current, request, MAIN)

    def _tell(self) -> None:
        """How many weeks are done: a training takes longer than anybody waits for a word."""
        setup = self._pass.setup
        setup.say(f"{self.name}: weeks", self._trainings, weeks_from(self._from_ms, setup.log))

    def _trained(self) -> EnginePass:
        return self._after(len(self._past))

    def _after(self, groups: int) -> EnginePass:
        """The pass as it is after the first groups of the past, never fewer than before."""
        for past, arrival in self._past[self._taken : groups]:
            self._pass.learn(past, arrival)
        self._taken = min(groups, len(self._past))
        return self._pass.copied()

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Keeps the group for the next training; histories and signals take it in at once."""
        self._past.append((request, arrival))
        if self._current is not None:
            self._current.learn(request, arrival)


class RetrainArm(WeeklyFrozenArm):
    """The engine trained offline on everything before each week, by epochs, fixed within the week."""

    name = "retrain"

    def __init__(self, untrained: EnginePass) -> None:
        super().__init__(untrained)
        self._epochs: list[dict[str, int]] = []

    def _trained(self) -> EnginePass:
        taken = before_slice(len(self._past))
        shared = self._after(taken)
        self._epochs.append(fit(shared.learner, shared.learn, self._past, taken))
        return shared

    @property
    def note(self) -> str:
        """How long it trained; in reports of before the name was that of `weekly_frozen`."""
        of = ", ".join(f"{one.get('hstu', 0)} and {one['ranker']}" for one in self._epochs)
        return f"HSTU and ranker trained {len(self._epochs)} times from scratch; their epochs: {of}" if of else ""
