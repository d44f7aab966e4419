"""The engine as a scorer: a snapshot's arrays, opened read-only, behind the seam of serving/scorer.py.

Parts of a snapshot: `items` (serving.arrays.item_part) · `engine` (Engine.arrays(rehearsal=False)) · what each part of
the engine keeps, under its name, if it keeps anything; `meta.extra["parts"]` names them all in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from driftline.configs.errors import SnapshotError
from driftline.configs.settings import Settings
from driftline.graph.arrays import Float32, Int32
from driftline.graph.sparse import best_rows
from driftline.graph.view import ItemTable, UserView
from driftline.model.engine import Engine, EngineSlate
from driftline.model.part import Part, VectorPlug
from driftline.model.parts import opened, plugs_of, units_of
from driftline.model.products import products
from driftline.model.ranker import HEADS
from driftline.model.reasons import explain
from driftline.model.recall import Pool, nearest
from driftline.serving.column import Column
from driftline.serving.models import BuildScorer
from driftline.serving.scorer import OVERALL, ScoredCandidates, Scorer
from driftline.serving.snapshot import PARTS, Snapshot, misfit

_TEXT_WEIGHT = 0.1
"""Of the text's cosine beside the basket cosine: it decides where few baskets speak."""
_ALIKE = 0.4
"""Cosine of two texts from which on they count as alike in words."""
_ALIKE_MOST = 1000
"""Items that are alike in words, of a large catalogue."""


class EngineScorer:
    """See Scorer. Its engine only reads, so threads may share it.

    Args:
        engine: opened read-only; its table names exactly the items that it knows.
        parts: whose plugs it has.
        warm_ms: wall time in which each of them may prepare for those who ask most.
    """

    def __init__(self, engine: Engine, parts: Sequence[Part] = (), warm_ms: float = 0.0) -> None:
        self.engine, self._parts, self._warm_ms = engine, parts, warm_ms

    @property
    def table(self) -> ItemTable:
        """See Scorer."""
        return self.engine.table

    @property
    def context(self) -> tuple[str, ...]:
        """See Scorer."""
        return self.engine.signals.contexts.names

    def oneself(self, user_id: str) -> int:
        """See Scorer."""
        return self.engine.node(user_id)

    def rank(self, view: UserView, now_ms: int) -> ScoredCandidates:
        """See Scorer."""
        return self._ranking(self.engine.slate(view, now_ms))

    def rank_all(self, views: Sequence[UserView], now_ms: Sequence[int]) -> list[ScoredCandidates]:
        """See Scorer."""
        return [self._ranking(slate) for slate in self.engine.slates(views, now_ms)]

    def _ranking(self, slate: EngineSlate) -> ScoredCandidates:
        engine, now_ms = self.engine, slate.now_ms
        # not the whole slate: rankings are kept, while features and scores of all items are large
        past, lists = slate.past, {name: one.list_alone() for name, one in slate.pool.scored.items()}
        pool = Pool(slate.candidates, slate.recalled, lists)

        def reasons(places: Sequence[int]) -> list[tuple[str, ...]]:
            rows = explain(past, now_ms, places, engine.signals, engine.table, pool)
            return [(reason.text,) for reason in rows]

        return ScoredCandidates(slate.candidates, dict(zip(HEADS, slate.scores, strict=True)), reasons)

    def score(self, view: UserView, now_ms: int, items: Int32) -> dict[str, Float32]:
        """See Scorer; an item need not be among the candidates that recall would bring."""
        distinct, place = np.unique(items, return_inverse=True)
        scores = self.engine.score_items(view, now_ms, distinct)
        return dict(zip(HEADS, scores[:, place], strict=True))

    def similar(self, item: int, k: int) -> ScoredCandidates:
        """See Scorer: cosine over baskets, plus a little of the text's."""
        signals, text = self.engine.signals, self.engine.text
        one, n = np.array([item], np.int32), signals.n
        taken, together = signals.basket.sums(one, np.ones(1, np.float32), n)
        scores, vector = np.zeros(n, np.float32), text[item]
        if text.codes is not None:
            near = nearest(text, vector, min(k, _ALIKE_MOST), one, n)
            scores[near.best] = _TEXT_WEIGHT * near.best_scores
            scores[taken] = _TEXT_WEIGHT * np.maximum(text.dots(taken, vector), 0)
        elif text.dim:
            known = text.dense(n)
            np.multiply(np.maximum(products(known, vector[None])[0], 0), _TEXT_WEIGHT, out=scores[: len(known)])
        alike = scores if not len(taken) else scores.copy()
        scores[taken] += together
        best, best_scores = best_rows(None, scores, k, one, n)

        def reasons(places: Sequence[int]) -> list[tuple[str, ...]]:
            shown = best[np.asarray(places, np.int64)]
            rows = zip(scores[shown] > alike[shown], alike[shown] > _ALIKE * _TEXT_WEIGHT, strict=True)
            words = ("often taken together", "described alike")
            return [tuple(word for word, holds in zip(words, row, strict=True) if holds) for row in rows]

        return ScoredCandidates(best, {OVERALL: best_scores}, reasons)

    def popular(self, items: Int32, k: int) -> Int32:
        """See Scorer."""
        signals = self.engine.signals
        touches = signals.popularity.count[items, signals.reference]
        largest = np.argpartition(-touches, k)[:k] if k < len(items) else np.arange(len(items))
        return items[largest[np.lexsort((items[largest], -touches[largest]))]]

    def vectors(self, items: Int32) -> Float32:
        """See Scorer: of the texts; where no item has one, those of a model."""
        text = self.engine.text[items]
        if text.any():
            return text
        for plug in self.engine.plugs.values():
            if not isinstance(plug, VectorPlug):
                continue
            matrix = plug.item_matrix()
            out = np.zeros((len(items), matrix.shape[1]), np.float32)
            known = items < len(matrix)
            out[known] = matrix[items[known]]
            return out
        return text

    def warm(self) -> None:
        """See Scorer."""
        for part in self._parts:
            part.warm(self._warm_ms)


def engine_builder(settings: Settings, on_forget: list[Callable[[str], None]] | None = None) -> BuildScorer:
    """How a snapshot becomes a scorer under some settings; they must be those that trained it.

    The parts of one snapshot may take over what those before kept of users; a call that drops a user's is put on
    `on_forget`.
    """
    newest: dict[str, Part] = {}
    ids, table = Column("id"), ItemTable()
    engine: Engine | None = None

    def forget(user_id: str) -> None:
        for part in list(newest.values()):
            part.forget(user_id)

    if on_forget is not None:
        on_forget.append(forget)

    def build(snapshot: Snapshot) -> Scorer:
        nonlocal table, engine
        if which := misfit(snapshot.meta, settings):
            raise SnapshotError(
                f"snapshot {snapshot.version} was trained with other settings than this process has: {which}. "
                "Start trainer and serve with the same --config; after a "
                "release that changed a preset (CHANGELOG.md) set it back, or wait for a snapshot of the new trainer."
            )
        torch.set_num_threads(1)
        arrays = snapshot.parts["engine"]
        known = int(arrays["signals.counts"][0])
        table = ItemTable.after(table, ids.of(snapshot.parts["items"])[:known])
        parts = opened(settings, table, snapshot.meta.extra.get(PARTS, ()), snapshot.parts, newest)
        newest.update(parts)
        plugs, units = plugs_of(parts, settings), units_of(parts, settings)
        engine = Engine.from_arrays(settings, table, arrays, plugs, read_only=True, units=units, before=engine)
        return EngineScorer(engine, list(parts.values()), settings.serving.sequence_warm_ms)

    return build
