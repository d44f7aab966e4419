"""What a replay is about to do, and how long that may take, before the first group tells."""

from __future__ import annotations

from collections.abc import Mapping

from driftline.stream.headway import duration
from driftline.stream.replay.frozen_arms import RetrainArm, weeks_from
from driftline.stream.replay.named import PEERS
from driftline.stream.replay.protocol import scored_groups, wanted_groups
from driftline.stream.replay.source import Input, Options

ENGINE_S = (0.01, 0.05)
"""A group by arms with a part of the engine, on two cores of a server: single ratings to baskets by default arms."""
SIMPLE_S = (0.00003, 0.0005)
"""The same by one arm that only counts: from `popularity` to those that solve or compare."""
OFFLINE_S = (0.008, 0.025)
"""A group of the past in each training of the arm that trains offline before every week."""


def forecast(data: Input, random: Mapping[str, bool], options: Options, audit_rows: int) -> str:
    """How much there is to do, in a sentence or two.

    Args:
        data: what was read.
        random: whether each arm that runs is random, and so has a part of the engine.
        options: what was asked for.
        audit_rows: of the leak audit's short log, about; 0 = none.

    Raises:
        InputError: no group is left to score.
    """
    groups, scored = data.log.groups, len(scored_groups(data.log, data.split_ms, data.scope))
    engine = [name for name, drawn in random.items() if drawn]
    counted: float = groups * (len(options.seeds) if engine else 1)
    counted *= (1.25 if audit_rows else 1.0) * (1 if engine else len(random))
    least, most = (counted * seconds for seconds in (ENGINE_S if engine else SIMPLE_S))
    if RetrainArm.name in random:
        trainings = len(options.seeds) * weeks_from(data.split_ms, data.log)
        least, most = (sum_s + trainings * groups * s for sum_s, s in zip((least, most), OFFLINE_S, strict=True))
    took = f"{duration(least)} to {duration(most)}" if most >= 10 else "some seconds"
    kept = ", less what lies in --out already" if options.resume else ""
    peers = "; peers fit models of their own beside that" if PEERS.keys() & random.keys() else ""
    past = data.log.group_t_ms >= data.split_ms
    idle = 0 if data.scope.session else int((past & ~wanted_groups(data.log)).sum())
    why = f" ({idle:,} more after the split have no event that counts as wanted)" if idle else ""
    return (
        f"{len(data.log):,} events are {groups:,} groups (of one user at one time), of which {scored:,} are scored"
        f"{why}; {many(len(random), 'arm')}, {many(len(options.seeds), 'seed')}, "
        + (f"a leak audit on about {min(audit_rows, len(data.log)):,} events" if audit_rows else "no leak audit")
        + f". As a rule {took} in all{kept}{peers}; the first groups say more"
    )


def many(n: int, what: str) -> str:
    """1 arm, 2 arms."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
