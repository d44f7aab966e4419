"""The engine as a scorer: a snapshot's arrays, opened read-only, behind the seam of serving/scorer.py.

Parts of a snapshot: `items` (serving.arrays.item_part) · `engine` (Engine.arrays(replay=False)) · one part for each
name in `meta.extra["plugs"]`, in that order: `graph` holds GraphLearner.arrays(), which `fused` reads as well, others
SequenceLearner.arrays().
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from configs.errors import SnapshotError
from configs.load import MODEL_SECTIONS
from configs.settings import Settings
from graph.learn import GraphLearner
from graph.rows import Float32
from graph.view import Int32, ItemTable, UserView
from model.engine import MAIN, Engine, Plug, Slate
from model.features import features
from model.plugs import GraphPlug, SequencePlug
from model.ranker import HEADS
from model.reasons import explain
from model.sequence import SequenceScorer
from serving.arrays import unpack_strings
from serving.models import BuildScorer
from serving.scorer import OVERALL, Ranking, Scorer
from serving.snapshot import Snapshot, fits

GRAPH, FUSED = "graph", "fused"
_TEXT_WEIGHT = 0.1
"""Of the text's cosine beside the basket cosine: it decides where few baskets speak."""
_ALIKE = 0.4
"""Cosine of two texts from which on they count as alike in words."""


class EngineScorer:
    """See Scorer. Its engine only reads, so threads may share it.

    Args:
        engine: opened read-only; its table names exactly the items that it knows.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def table(self) -> ItemTable:
        """See Scorer."""
        return self.engine.table

    def rank(self, view: UserView, now_ms: int) -> Ranking:
        """See Scorer."""
        engine, slate = self.engine, self.engine.slate(view, now_ms)
        past, pool = slate.past, slate.pool  # not the whole slate: rankings are kept, and its features are large

        def reasons(places: Sequence[int]) -> list[tuple[str, ...]]:
            chosen = pool.candidates[np.asarray(places, np.int64)]
            rows = explain(past, now_ms, chosen, engine.signals, engine.table, pool)
            return [(reason.text,) for reason in rows]

        return Ranking(slate.candidates, dict(zip(HEADS, slate.scores, strict=True)), reasons)

    def score(self, view: UserView, now_ms: int, items: Int32) -> dict[str, Float32]:
        """See Scorer; an item need not be among the candidates that recall would bring."""
        slate: Slate = self.engine.slate(view, now_ms)
        distinct, place = np.unique(items, return_inverse=True)
        pool = replace(slate.pool, candidates=distinct, recalled=np.zeros(len(distinct), np.uint32))
        engine = self.engine
        raw = features(view, slate.past, now_ms, pool, engine.signals, engine.known_text(), engine.layout)
        scores = engine.arms[MAIN].ranker.score(engine.standardiser.apply(raw))
        return dict(zip(HEADS, scores[:, place], strict=True))

    def similar(self, item: int, k: int) -> Ranking:
        """See Scorer: cosine over baskets, plus a little of the text's."""
        signals, text = self.engine.signals, self.engine.known_text()
        together = signals.basket.scores(np.array([item], np.int32), np.ones(1, np.float32), signals.n)
        alike = _TEXT_WEIGHT * np.maximum(text @ text[item], 0) if text.shape[1] else np.zeros_like(together)
        scores = together + alike
        scores[item] = 0
        best = np.argsort(-scores, kind="stable")[:k].astype(np.int32)
        best = best[scores[best] > 0]

        def reasons(places: Sequence[int]) -> list[tuple[str, ...]]:
            shown = best[np.asarray(places, np.int64)]
            rows = zip(together[shown] > 0, alike[shown] > _ALIKE * _TEXT_WEIGHT, strict=True)
            words = ("often taken together", "described alike")
            return [tuple(word for word, holds in zip(words, row, strict=True) if holds) for row in rows]

        return Ranking(best, {OVERALL: scores[best]}, reasons)


def engine_builder(settings: Settings) -> BuildScorer:
    """How a snapshot becomes a scorer under some settings; they must be those that trained it."""

    def build(snapshot: Snapshot) -> Scorer:
        if not fits(snapshot.meta, settings):
            raise SnapshotError(
                f"snapshot {snapshot.version} was trained with other settings than this process has: the sections "
                f"{', '.join(MODEL_SECTIONS)} must be equal. Start trainer and serve with the same --config."
            )
        torch.set_num_threads(1)
        arrays = snapshot.parts["engine"]
        known = int(arrays["signals.counts"][0])
        table = ItemTable(unpack_strings(snapshot.parts["items"], "id")[:known])
        return EngineScorer(Engine.from_arrays(settings, table, arrays, _plugs(settings, snapshot), read_only=True))

    return build


def _plugs(settings: Settings, snapshot: Snapshot) -> dict[str, Plug]:
    parts = snapshot.parts
    graph = GraphLearner.from_arrays(settings.graph, parts[GRAPH]) if GRAPH in parts else None
    plugs: dict[str, Plug] = {}
    for name in snapshot.meta.extra.get("plugs", ()):
        if graph is not None and name in (GRAPH, FUSED):
            plugs[name] = GraphPlug(graph, fused=name == FUSED)
        else:
            plugs[name] = SequencePlug(SequenceScorer.from_arrays(settings.model, parts[name]))
    return plugs
