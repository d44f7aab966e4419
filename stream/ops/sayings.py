"""What a worker says of events that did not reach the state, or reached it otherwise than their producer meant."""

from __future__ import annotations

import logging

from faust.types import TP

from driftline.configs.settings import UNKNOWN_ACTION
from driftline.stream.ops.metrics import WorkerMetrics

LOG = logging.getLogger(__name__)
MOST_SAID = 20
"""Unknown actions that are named in the log."""
OUTCOMES = {
    "too_late": "events so far came too late: more than state.late_ms, {late_min:g} min, older than the newest one, "
    "or before state.late_events others or more. "
    "They are counted and change no state. Produce history in order of time, before what is newer.",
    "forwarded": "events so far came in another partition than their user's and were sent on to it, a second record "
    "each. To save that, key events by user_id and partition them as Java and kafka-python do (librdkafka: partitioner "
    "murmur2_random).",
    "dead": "records so far are no events and are kept as dead letters: `driftline dlq list` says why.",
}
"""What a worker says of events that did not reach the state."""


class Sayings:
    """Each thing is said once, and again when there is ten times as much of it."""

    def __init__(self, metrics: WorkerMetrics, late_ms: int) -> None:
        self._metrics, self._late_ms = metrics, late_ms
        self._said = dict.fromkeys(OUTCOMES, 0)
        self._unknown_said: set[str] = set()
        self._below_zero_said: set[str] = set()

    def unknown(self, names: frozenset[str]) -> None:
        """Says once of each action, and of so many at most, that the configuration does not set it."""
        for name in sorted(names - self._unknown_said)[: MOST_SAID - len(self._unknown_said)]:
            self._unknown_said.add(name)
            LOG.warning(
                "action %.60r is not in the configuration: its events count as wanted, with weight %g; set it in "
                "`actions`, or mend the producer",
                name, UNKNOWN_ACTION.weight,
            )  # fmt: skip

    def below_zero(self, names: frozenset[str]) -> None:
        """Says once of each action, and of so many at most, that it came with a value below 0 and counts as wanted."""
        for name in sorted(names - self._below_zero_said)[: MOST_SAID - len(self._below_zero_said)]:
            self._below_zero_said.add(name)
            LOG.warning(
                "action %.60r came with a value below 0 and counts as wanted all the same: send what was taken back as "
                "an action of its own, such as 'return', with the value above 0", name,
            )  # fmt: skip

    def outcomes(self, tp: TP) -> None:
        """Says that events came too late or are none, again whenever there are ten times as many."""
        for outcome, said in self._said.items():
            total = self._metrics.totals[outcome]
            if total > 10 * said:
                self._say(outcome, f"partition {tp.partition} of {tp.topic}: ")

    def last(self) -> None:
        """Says how many of them there were in all, where that is not what was said last."""
        for outcome, said in self._said.items():
            if self._metrics.totals[outcome] > said:
                self._say(outcome, "in all: ")

    def _say(self, outcome: str, where: str) -> None:
        total = self._said[outcome] = self._metrics.totals[outcome]
        LOG.warning("%s%d %s", where, total, OUTCOMES[outcome].format(late_min=self._late_ms / 60_000))
