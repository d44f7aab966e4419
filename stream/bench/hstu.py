"""The sequence model beside what one would write from the paper: training steps, appended events, many candidates.

The peer of a training step pads all windows to one length and draws negatives for each position
(stream/bench/reference_step.py); both train on the same windows, every position of which is asked. The peers of an
appended event are two ways to encode the window anew, of which the faster counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from driftline.configs.settings import Model, Settings
from driftline.graph.arrays import Float32, Int64
from driftline.model.encode import encode_histories
from driftline.model.history_cache import WindowState
from driftline.model.hstu import HSTU, bucket_edges_ms
from driftline.model.incremental import History, WindowEncoder, window_of
from driftline.model.packed import Packing
from driftline.model.sequence import SequenceLearner
from driftline.stream.bench.ingest import machine
from driftline.stream.bench.reference_step import ReferenceStep
from driftline.stream.bundled import EVENTS
from driftline.stream.events.files import read_columns
from driftline.stream.ops.revision import git_revision
from driftline.stream.replay.log import EventLog

EVENTS_READ, STEPS, WARM_UP = 30_000, 14, 2
REPEATS, CANDIDATES, CATALOGUE, QUERIES, GROUPS, SLIDES = 15, 1000, 4000, 200, 1500, 1000
START_MS, GAP_MS = 1_600_000_000_000, 3_600_000
TARGETS = {"train": 5.0, "append": 50.0, "score_1000_ms": 10.0}


def bench_hstu(settings: Settings) -> dict[str, Any]:
    """Medians of processor time in one thread; ratios are to the peer in the same run, ready for JSON.

    Args:
        settings: sections `model` and `actions` are used.
    """
    torch.set_num_threads(1)
    model = settings.model.model_copy(update={"backbone": "hstu"})
    log = EventLog(read_columns(EVENTS, EVENTS_READ), settings.action)
    train, append, score = _train(model, log), _append(model), _score(model)
    return {
        "machine": machine(),
        "commit": git_revision(),
        "parity": _parity(model),
        "train": train,
        "append": append,
        "score_1000": score,
        "stream": _stream(model, log),
        "targets": TARGETS,
        "target_met": train["ratio"] >= TARGETS["train"]
        and append["n1000_ratio"] >= TARGETS["append"]
        and score["ms"] <= TARGETS["score_1000_ms"],
    }


def _train(model: Model, log: EventLog) -> dict[str, Any]:
    """Positions a second of steps on the same windows; drawing windows from the log counts for ours alone."""
    sampled = _observed(model.model_copy(update={"full_softmax": 0}), log)
    everything = SequenceLearner(model.model_copy(update={"full_softmax": len(log.item_ids)}))
    everything.load_state_dict(sampled.state_dict())
    reference = ReferenceStep(model, len(log.item_ids))
    learners: dict[str, SequenceLearner | ReferenceStep] = {
        "ours": sampled,
        "ours_all_items": everything,
        "reference": reference,
    }
    rates: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(STEPS):
        started = time.process_time()
        windows = sampled.draw()
        drawing_s = time.process_time() - started
        positions = sum(len(window.items) for window in windows)
        for name, learner in learners.items():
            started = time.process_time()
            learner.train(windows)
            taken_s = time.process_time() - started + (0 if learner is reference else drawing_s)
            rates[name].append(positions / taken_s)
    pps = {f"{name}_pps": round(float(np.median(rate[WARM_UP:]))) for name, rate in rates.items()}
    return {
        **pps,
        "ratio": round(pps["ours_pps"] / pps["reference_pps"], 2),
        "windows": model.batch,
        "window": model.max_len,
        "items": len(log.item_ids),
        "negatives": {"ours": model.negatives, "reference": reference.negatives},
    }


def _observed(model: Model, log: EventLog) -> SequenceLearner:
    """A learner that has seen each event as a group of its own and has learnt nothing yet."""
    learner = SequenceLearner(model)
    for group in map(log.group, range(log.groups)):
        for n in range(len(group.items)):
            one = {name: getattr(group, name)[n : n + 1] for name in ("items", "weight", "value", "price", "positive")}
            learner.observe(replace(group, **one))
    return learner


class _World:
    """Random item vectors and one long history, for a backbone of some length.

    Args:
        model: for the sizes.
        max_len: rows of a window.
        n: events of the history.
    """

    def __init__(self, model: Model, max_len: int, n: int) -> None:
        generator, random = torch.Generator().manual_seed(model.seed), np.random.default_rng(model.seed)
        self.backbone = HSTU(model.dim, model.blocks, model.heads, max_len, generator).requires_grad_(False)
        self.rows = WindowEncoder(self.backbone)
        self.vectors: Float32 = random.standard_normal((CATALOGUE, model.dim)).astype(np.float32) * np.float32(0.1)
        self.items: Int64 = random.integers(0, CATALOGUE, n)
        self.t_ms: Int64 = START_MS + np.sort(random.integers(0, n * GAP_MS, n))

    def whole(self, n: int) -> Float32:
        """The last row after n events by the backbone that trains, over the whole window."""
        asked = History(self.items[:n], self.t_ms[:n])
        vector: Float32 = encode_histories(
            self.backbone, torch.from_numpy(self.vectors), [asked], [int(self.t_ms[n - 1])]
        )[0]
        return vector

    def upto(self, n: int, state: WindowState | None = None) -> tuple[Float32, WindowState]:
        """The same by rows, from a state on, and the state after it."""
        state = state or self.rows.empty()
        items, t_ms = window_of(History(self.items[:n], self.t_ms[:n]), CATALOGUE, self.rows.max_len)
        now_ms = int(self.t_ms[n - 1])
        return self.rows.last_row(state, items, t_ms, now_ms, self.vectors.__getitem__), state


def _append(model: Model) -> dict[str, Any]:
    """One event more in a full window against encoding the window anew; and events that slide it on."""
    figures: dict[str, Any] = {}
    for n in (200, 1000):
        world = _World(model, n, n)
        append_ms = _median_ms(partial(_appended, world, world.upto(n - 1)[1], n), QUERIES)
        anew = {"backbone": _median_ms(partial(world.whole, n)), "rows": _median_ms(partial(world.upto, n))}
        figures |= {f"n{n}_ms": append_ms, f"n{n}_encode_ms": anew}
        figures[f"n{n}_ratio"] = round(min(anew.values()) / append_ms, 1)
    sliding = _World(model, 1000, 1000 + SLIDES)
    _, state = sliding.upto(1000)
    started = time.process_time()
    for n in range(1001, 1001 + SLIDES):
        sliding.upto(n, state)
    sliding_s = (time.process_time() - started) / SLIDES
    return figures | {"sliding_n1000_ms": round(sliding_s * 1000, 3)}


def _appended(world: _World, state: WindowState, n: int) -> None:
    """The n-th event; the state is put back to where it was before."""
    before = state.items, state.t_ms, state.rows
    world.upto(n, state)
    state.items, state.t_ms, state.rows = before


def _score(model: Model) -> dict[str, Any]:
    """Many candidates over one history of 200 events, against each one after the history."""
    n = 200
    world = _World(model, n, n)
    _, state = world.upto(n)
    candidates, now_ms = world.vectors[:CANDIDATES], int(world.t_ms[-1]) + 1000
    window = torch.from_numpy(world.vectors[world.items])
    t_ms = torch.tensor([[*world.t_ms.tolist(), now_ms, now_ms]])

    def one_by_one(c: int) -> Float32:
        with torch.no_grad():
            rows = torch.cat((window, torch.from_numpy(candidates[c : c + 1])))
            last: Float32 = world.backbone(rows[None], t_ms)[0, -1].numpy()
        return last

    y_CD = world.rows.candidates(state, now_ms, candidates)
    apart = max(float(np.abs(y_CD[c] - one_by_one(c)).max()) for c in range(0, CANDIDATES, 97))
    ms = _median_ms(lambda: world.rows.candidates(state, now_ms, candidates))
    naive_ms = CANDIDATES * _median_ms(lambda: one_by_one(0))
    return {"ms": ms, "one_by_one_ms": round(naive_ms), "ratio_naive": round(naive_ms / ms, 1), "max_abs_diff": apart}


def _parity(model: Model) -> dict[str, float]:
    """Largest differences of unit vectors: cached rows and packed windows against the backbone on padded windows."""
    world, cached = _World(model, 64, 200), 0.0
    state: WindowState | None = None
    for n in range(1, 201):
        vector, state = world.upto(n, state)
        cached = max(cached, float(np.abs(vector - world.whole(n)).max()))
    lengths = [40, 64]
    x = [torch.from_numpy(world.vectors[world.items[:n]]) for n in lengths]
    packing = Packing.of([world.t_ms[: n + 1] for n in lengths], bucket_edges_ms().numpy())
    with torch.no_grad():
        packed = world.backbone.packed(torch.cat(x), packing)
        times = [torch.from_numpy(world.t_ms[None, : n + 1]) for n in lengths]
        padded = torch.cat([world.backbone(rows[None], t_ms)[0] for rows, t_ms in zip(x, times, strict=True)])
    apart = float((packed - padded).abs().max())
    return {"cached_max_abs_diff": cached, "packed_max_abs_diff": apart}


def _stream(model: Model, log: EventLog) -> dict[str, Any]:
    """Learning on the stream as the trainer does, baskets and all, then queries of long histories at new times."""
    learner, groups, events = SequenceLearner(model), min(log.groups, GROUPS), 0
    started, cpu = time.perf_counter(), time.process_time()
    for group in map(log.group, range(groups)):
        learner.learn(group)
        events += len(group.items)
    taken_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    users = dict.fromkeys(log.group(g).user_id for g in range(groups))
    longest = sorted((History(*learner.log.history(user), user) for user in users), key=lambda h: -len(h.items))[:20]
    asked = iter(range(20 * QUERIES))

    def query() -> None:
        n = next(asked)
        history = longest[n % len(longest)]
        vector = learner.encode([history], [int(history.t_ms[-1]) + n])[0]
        np.argpartition(-(learner.item_matrix() @ vector), 100)

    return {
        "groups": groups,
        "events": events,
        "steps": learner.steps,
        "events_per_s": round(events / taken_s),
        "events_per_cpu_s": round(events / cpu_s),
        "query_ms": _median_ms(query, QUERIES),
    }


def _median_ms(call: Callable[[], object], repeats: int = REPEATS) -> float:
    times_s = []
    for _ in range(repeats + 1):
        started = time.process_time()
        call()
        times_s.append(time.process_time() - started)
    return round(float(np.median(times_s[1:])) * 1000, 3)
