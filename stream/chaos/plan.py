"""What is done to a run, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from driftline.stream.chaos.oracle import Verdict


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to a run.

    Attributes:
        kills: SIGKILLs of workers: every second one at a random moment, the others at the named points in turn.
        workers: that run at once at the start.
        partitions: of the topics.
        scaling: numbers of workers to go through, spread over the stream; empty = `workers` all the way.
        pauses: SIGSTOPs for twice the session timeout.
        broker_restarts: SIGKILLs of the broker; needs a broker of our own.
        full_disks: lives of a worker in which it can't write.
        damaged: bytes that are flipped in the state.
        trainer: run a trainer beside, whose graph versions the workers adopt.
        queries: run the service beside, and ask it all the time.
        seed: of every draw.
    """

    kills: int = 10
    workers: int = 1
    partitions: int = 1
    scaling: tuple[int, ...] = ()
    pauses: int = 0
    broker_restarts: int = 0
    full_disks: int = 0
    damaged: int = 0
    trainer: bool = False
    queries: bool = False
    seed: int = 0


@dataclass(slots=True)
class Outcome:
    """What was done, and what came of it."""

    plan: Plan
    verdict: Verdict | None = None
    kills: int = 0
    points: dict[str, int] = field(default_factory=dict)
    pauses: int = 0
    broker_restarts: int = 0
    full_disks: int = 0
    damaged: int = 0
    other_ends: int = 0
    unexplained: list[str] = field(default_factory=list)
    """Ends of processes that nothing of the plan explains."""
    recovery_s: list[float] = field(default_factory=list)
    queries: int = 0
    failed_queries: dict[str, int] = field(default_factory=dict)
    """How many ended in an error, by what it said."""
    seconds: float = 0.0

    def sentence(self) -> str:
        """Whether it held, for a person."""
        verdict = self.verdict
        assert verdict is not None
        if self.holds:
            return (
                f"passed: of {verdict.events:,} events none was lost or applied twice, after {self.kills:,} kills, and "
                "the state is that of one thread over the same log"
            )
        if self.unexplained or self.failed_queries:
            ends = f": {self.unexplained[0]}" if self.unexplained else ""
            why = f" ({max(self.failed_queries, key=self.failed_queries.__getitem__)})" if self.failed_queries else ""
            return (
                f"FAILED: {len(self.unexplained):,} ends of processes are of no kill{ends}; "
                f"{sum(self.failed_queries.values()):,} of {self.queries:,} queries failed{why}. Run it again with "
                f"--seed {self.plan.seed} --keep and look at the messages"
            )
        equal = "" if verdict.state_equal else "not "
        return (
            f"FAILED: of {verdict.events:,} events {verdict.lost:,} were lost and {verdict.doubled:,} applied twice; "
            f"the state is {equal}that of one thread over the same log; {verdict.dlq_found:,} dead letters, "
            f"{verdict.dlq_expected:,} expected, {verdict.dlq_wrong:,} wrong. Run it again with --seed "
            f"{self.plan.seed} --keep and look at the messages"
        )

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        verdict, times = self.verdict, self.recovery_s
        assert verdict is not None
        return {
            "kills": self.kills,
            "kills_by_point": self.points,
            "pauses": self.pauses,
            "broker_restarts": self.broker_restarts,
            "full_disks": self.full_disks,
            "damaged": self.damaged,
            "other_ends": self.other_ends,
            "unexplained_ends": self.unexplained,
            "events": verdict.events,
            "lost": verdict.lost,
            "too_late": verdict.too_late,
            "doubled": verdict.doubled,
            "state_equal": verdict.state_equal,
            "items_equal": verdict.items_equal,
            "clean_equal": verdict.clean_equal,
            "adoptions": verdict.adoptions,
            "dlq_expected": verdict.dlq_expected,
            "dlq_found": verdict.dlq_found,
            "dlq_wrong": verdict.dlq_wrong,
            "different_users": list(verdict.different),
            "state_sha256": verdict.state_sha256,
            "recovery_s": {
                "n": len(times),
                "p50": round(median(times), 2) if times else None,
                "max": round(max(times), 2) if times else None,
            },
            "queries": self.queries,
            "failed_queries": sum(self.failed_queries.values()),
            "failed_queries_said": self.failed_queries,
            "seconds": round(self.seconds, 1),
        }

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, doubled, changed or misjudged, nobody waited in vain and none ended of itself."""
        verdict = self.verdict
        return verdict is not None and (
            verdict.state_equal
            and verdict.items_equal
            and verdict.clean_equal is not False
            and verdict.lost == verdict.doubled == verdict.dlq_wrong == 0
            and verdict.dlq_found == verdict.dlq_expected
            and not self.unexplained
            and not self.failed_queries
        )
