"""What the trainer pays for a group: the whole engine scores it, then learns it, on the bundled shop.

A stretch of baskets is measured after a warm-up, then the rows that follow as events of their own, a second apart.
Steps of HSTU and of the graph, which come with every few groups, are spread over all of them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch

from driftline.configs.settings import Settings
from driftline.graph.arrays import Int64
from driftline.model.engine import MAIN
from driftline.stream.bench.parts import figures_of
from driftline.stream.bundled import EVENTS, ITEMS, PROFILES
from driftline.stream.events.columns import Columns
from driftline.stream.events.files import read_columns, read_items
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.engine_pass import EnginePass
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.protocol import questions

APART_MS = 1000
TARGETS = {"basket_ms": 8.0, "single_ms": 2.0}
Call = Callable[..., Any]


def bench_learn(
    settings: Settings, warm_rows: int = 20_000, basket_rows: int = 8_000, single_rows: int = 2_000
) -> dict[str, Any]:
    """Milliseconds of processor time of one thread that a group takes, on average and by part, ready for JSON.

    Args:
        settings: the whole configuration; fits the bundled shop.
        warm_rows: rows that are learnt before.
        basket_rows, single_rows: rows measured in their baskets, then each by itself.
    """
    torch.set_num_threads(1)
    columns = spread(read_columns(EVENTS, warm_rows + basket_rows + single_rows), warm_rows + basket_rows)
    log = EventLog(columns, settings.action)
    setup = Setup(log, settings, 0, read_items(ITEMS), PROFILES if Path(PROFILES).is_file() else None)
    shared = EnginePass(setup, settings)
    first_rows = log.group_rows[log.group_start[:-1]]
    phase = np.searchsorted([warm_rows, warm_rows + basket_rows], first_rows, side="right")
    clock = Clock()
    spent: list[list[float]] = [[], [], []]
    parts: list[dict[str, float]] = [defaultdict(float), defaultdict(float), defaultdict(float)]
    for request, arrival, _ in questions(log):
        now = int(phase[request.number])
        if now and not clock.watched:
            watch(clock, shared)
        before, clock.parts = time.process_time(), parts[now]
        shared.learn(request, arrival)
        spent[now].append(time.process_time() - before)
    sizes = np.diff(log.group_start)
    figures = figures_of(items=len(log.item_ids), candidates=settings.ranker.pool, targets=TARGETS)
    for number, name in ((1, "basket"), (2, "single")):
        taken_ms, groups = 1000 * np.array(spent[number]), len(spent[number])
        figures[f"{name}_ms"] = round(float(taken_ms.mean()), 3)
        figures[name] = {
            "groups": groups,
            "rows": round(float(sizes[phase == number].mean()), 1),
            "median_ms": round(float(np.median(taken_ms)), 3),
            "parts_ms": {
                part: round(1000 * parts[number][part] / groups, 3)
                for part in sorted(parts[number], key=parts[number].__getitem__, reverse=True)
            },
        }
    return figures | {"target_met": all(figures[name] <= target for name, target in TARGETS.items())}


def spread(columns: Columns, begin: int) -> Columns:
    """The rows with those of each group from row `begin` on `APART_MS` apart, in order of time."""
    t_ms, user = columns.t_ms, columns.user_id[0]
    new = np.append(True, (t_ms[1:] != t_ms[:-1]) | (user[1:] != user[:-1]))
    first: Int64 = np.maximum.accumulate(np.where(new, np.arange(len(new)), 0))
    late_ms = APART_MS * (np.arange(len(new)) - np.maximum(first, begin))
    moved = replace(columns, t_ms=t_ms + np.maximum(late_ms, 0))
    return moved.take(np.argsort(moved.t_ms, kind="stable"))


class Clock:
    """Sums the processor time of calls by part; what a watched call spends in another one counts for both."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        self.watched = 0

    def on(self, owner: Any, name: str, part: str) -> None:
        """Watches a method of an object."""
        call: Call = getattr(owner, name)
        self.watched += 1

        @wraps(call)
        def timed(*args: Any, **more: Any) -> Any:
            before = time.process_time()
            try:
                return call(*args, **more)
            finally:
                self.parts[part] += time.process_time() - before

        setattr(owner, name, timed)


def watch(clock: Clock, shared: EnginePass) -> None:
    """Watches the parts of a learner."""
    learner = shared.learner
    engine, graph, sequence = learner.engine, learner.graph, learner.sequence
    ranker = engine.arms[MAIN].ranker
    watched = [
        (learner, "view", "view"),
        (learner, "slate", "slate"),
        (ranker, "score", "slate: ranker"),
        (engine.standardiser, "apply", "slate: standardiser"),
        (ranker, "learn", "ranker"),
        (engine.standardiser, "update", "standardiser"),
        (engine.signals, "observe", "signals"),
        (learner, "_apply", "processor"),
    ]
    watched += [(plug, "opinion", "slate: plugs") for plug in engine.plugs.values()]
    watched += [] if sequence is None else [(sequence, "observe", "hstu: log"), (sequence, "step", "hstu: step")]
    watched += [] if graph is None else [(graph, "_step", "graph: step"), (graph, "refresh", "graph: memories")]
    for owner, name, part in watched:
        clock.on(owner, name, part)
