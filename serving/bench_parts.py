"""Where the processor time of a Recommend goes, part by part: the request's path without gRPC, in one thread.

What a part spends in another one that is watched counts for that one alone, so the parts sum to the whole.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import wraps
from typing import Any

from driftline.configs.settings import Settings
from driftline.graph.rows import action_code
from driftline.model import engine as engine_module
from driftline.model.part import VectorPlug
from driftline.model.plugs import GraphPlug, SequencePlug
from driftline.model.ranker import Ranker
from driftline.model.standardiser import Standardiser
from driftline.serving import answers, engine_scorer, fill
from driftline.serving.bench_world import World
from driftline.serving.checks import Checks
from driftline.serving.engine_scorer import EngineScorer, engine_builder
from driftline.serving.metrics import ServingMetrics
from driftline.serving.models import ModelSlot
from driftline.serving.profiles import ProfileStore
from driftline.serving.recommender import Reading, Recommender
from driftline.serving.state_reader import StateReader
from driftline.v1 import recommendation_pb2 as pb

_WARM_UP, _ROUNDS = 50, 5
_WATCHED: tuple[tuple[Any, str, str], ...] = (
    (Recommender, "read", "row from RocksDB, profile"),
    (Reading, "view", "row to view"),
    (engine_module, "history_of", "digest of the history"),
    (engine_module, "score_texts", "recall: texts"),
    (engine_module, "score_base", "recall: sums over partners and users"),
    (VectorPlug, "opinion", "recall: products with HSTU's and the graph's vectors"),
    (SequencePlug, "user_vector", "HSTU: the user's vector"),
    (GraphPlug, "user_vector", "graph: the user's vector"),
    (engine_module, "pool_of", "pool"),
    (engine_module, "features", "features"),
    (Standardiser, "apply", "standardiser"),
    (Ranker, "score", "ranker"),
    (fill, "choose", "choice"),
    (engine_scorer, "explain", "reasons"),
    (answers, "slate", "message: slate"),
    (answers, "provenance", "message: provenance"),
    (EngineScorer, "rank", "engine: between its parts"),
)
ELSE = "checks, options, serialising"


def recommend_parts(settings: Settings, world: World, requests: int) -> dict[str, float]:
    """Microseconds of processor time of one thread for each part of a Recommend, the largest first; the best of rounds.

    Args:
        settings: where the world's snapshot and state lie.
        world: what may be asked.
        requests: of each round.
    """
    clock, rounds = _Clock(), []
    options = pb.SlateOptions(request_time_ms=world.now_ms)
    with ExitStack() as stack:
        state = stack.enter_context(StateReader(settings.state.root, 1))
        models = stack.enter_context(
            closing(ModelSlot(settings.serving.snapshots, engine_builder(settings), ServingMetrics()))
        )
        names = {action_code("purchase"): "purchase"}
        messages = answers.StateMessages(names, state.item_id)
        recommender = Recommender(settings.serving, state, ProfileStore(), models, messages)

        def ask(n: int) -> bytes:
            checks = Checks()
            asked = checks.options(options)
            checks.done()
            user_id = world.user_ids[n % len(world.user_ids)]
            origin, slate = recommender.recommend(user_id, asked, recommender.model(0))
            return pb.RecommendResponse(provenance=origin, slate=slate).SerializeToString()

        for owner, name, part in _WATCHED:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, clock.timed(getattr(owner, name), part))
        timed = clock.timed(ask, ELSE)
        for n in range(_WARM_UP):
            timed(n)
        for _ in range(_ROUNDS):
            clock.parts.clear()
            for n in range(requests):
                timed(n)
            rounds.append({part: 1e6 * s / requests for part, s in clock.parts.items()})
    best = min(rounds, key=lambda one: sum(one.values()))
    ordered = sorted(best.items(), key=lambda pair: -pair[1])
    return {part: round(us, 1) for part, us in ordered} | {"sum": round(sum(best.values()), 1)}


class _Clock:
    """Sums the processor time of a thread by part, without what inner parts take."""

    def __init__(self) -> None:
        self.parts: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The same function, watched."""

        @wraps(call)
        def watched(*args: Any, **more: Any) -> Any:
            before = time.thread_time()
            self._inner.append(0.0)
            try:
                return call(*args, **more)
            finally:
                taken = time.thread_time() - before
                self.parts[part] += taken - self._inner.pop()
                if self._inner:
                    self._inner[-1] += taken

        return watched
