"""What `driftline systems run` does for one system: its parts' contract, its speed, then a replay of its arms."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from driftline.configs.load import switched
from driftline.configs.settings import Model, Settings
from driftline.graph.arrays import Float32
from driftline.graph.texts import TextTable
from driftline.graph.view import Group, ItemTable
from driftline.model.encode import SequenceScorer
from driftline.model.history_cache import HistoryCache
from driftline.model.incremental import History
from driftline.model.parts import made
from driftline.model.sequence import SequenceLearner
from driftline.serving.scratch import Scratch
from driftline.stream.learn.contracts import check_part
from driftline.stream.ops.revision import git_revision
from driftline.stream.replay.run import Progress, replay
from driftline.stream.replay.source import Options
from driftline.stream.replay.systems import Row, arms_to_run


def show_system(row: Row, options: Options, settings: Settings, progress: Progress | None) -> dict[str, Any]:
    """The content of a result file: `contract` by part, `broken` in words, `speed` if it claims one, and a replay's.

    Args:
        row: of the system.
        options: of the replay; its arms are those of the system.
        settings: the whole configuration.
        progress: of the replay; None = no replay.
    """
    contract, broken = {}, []
    for name in parts_of(row.name, settings):
        with Scratch("contract") as folder:
            try:
                check_part(name, folder)
            except AssertionError as error:
                broken.append(f"part {name}: {error}")
        contract[name] = not any(reason.startswith(f"part {name}:") for reason in broken)
    found: dict[str, Any] = {"system": row.name, "row": row.number, "commit": git_revision(), "contract": contract}
    found["broken"] = broken
    if row.name in SPEEDS:
        found["speed"] = SPEEDS[row.name](settings.model)
    if progress is not None:
        found |= replay(replace(options, arms=arms_to_run(row)), settings, progress)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    return found


def candidates_at_once(model: Model) -> dict[str, Any]:
    """HSTU's scores of 256 candidates from one pass over a history, beside a pass for each; nothing is kept between.

    Scores must agree within 1e-4, and a history that goes on from kept rows must give the vector of one that is read
    anew, to the bit.
    """
    random, n, start_ms = np.random.default_rng(0), 2 * CANDIDATES, 1_600_000_000_000
    learner = SequenceLearner(model)
    for number in range(n):
        basket, ones = random.permutation(n)[:5].astype(np.int32), np.ones(5, np.float32)
        learner.observe(Group(f"u{number % 9}", start_ms + number, basket, ones, ones, ones, ones > 0))
    kept, none = (SequenceScorer.from_arrays(model, learner.arrays(), HistoryCache(mb << 20)) for mb in (8, 0))
    length = model.max_len
    items, t_ms = random.integers(0, n, length), start_ms + 3_600_000 * np.arange(length)
    history, now_ms = History(items, t_ms, "u"), int(t_ms[-1]) + 3_600_000
    asked = random.permutation(n)[:CANDIDATES]

    def one_pass() -> Float32:
        return none.scores(history, now_ms)[asked]

    def a_pass_each() -> Float32:
        return np.array([none.scores(history, now_ms)[item] for item in asked.tolist()], np.float32)

    one_pass()  # compiles
    (at_once, at_once_s), (each, each_s) = _timed(one_pass), _timed(a_pass_each)
    for end in range(length - 3, length + 1):
        part = History(items[:end], t_ms[:end], "u"), int(t_ms[end - 1]) + 1
        appended, anew = (scorer.encode([part[0]], [part[1]]).tobytes() for scorer in (kept, none))
        if appended != anew:
            break
    times, difference = each_s / at_once_s, float(np.abs(at_once - each).max())
    return {
        "candidates": CANDIDATES,
        "history": length,
        "at_once_ms": round(1000 * at_once_s, 3),
        "one_by_one_ms": round(1000 * each_s, 3),
        "times": round(times, 1),
        "difference": difference,
        "appended_equals_anew": appended == anew,
        "holds": times >= WANTED_TIMES and difference <= 1e-4 and appended == anew,
    }


def _timed(call: Callable[[], Float32]) -> tuple[Float32, float]:
    """A result, and the least processor time of three calls."""
    taken = []
    for _ in range(3):
        before = time.process_time()
        result = call()
        taken.append(time.process_time() - before)
    return result, min(taken)


CANDIDATES, WANTED_TIMES = 256, 5.0
SPEEDS = {"hstu": candidates_at_once}
"""What measures a system's claim of speed."""


def parts_of(system: str, settings: Settings) -> list[str]:
    """The parts that are there when a system is on and not when it is off."""
    text = TextTable(settings.ranker.text_dim)
    on, off = (made(switched(settings, {system: arm}), ItemTable(), text) for arm in ("on", "off"))
    return [name for name in on if name not in off]
