"""Sequence and graph learners as the engine's plugs: one vector for a user at a time, one for each item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from driftline.graph.rows import key64
from driftline.model.incremental import History
from driftline.model.part import VectorPlug

if TYPE_CHECKING:
    from collections.abc import Sequence

    from driftline.graph.arrays import Float32
    from driftline.graph.codes import Codes
    from driftline.graph.learn import GraphLearner
    from driftline.graph.view import ItemTable, UserView


class Encoder(Protocol):
    """What `SequenceLearner` and `SequenceScorer` have in common."""

    def encode(self, histories: Sequence[History], now_ms: Sequence[int]) -> Float32:
        """Unit vectors [B, D] of users at their request times."""

    def item_matrix(self) -> Float32:
        """Unit vectors [N, D] of the items."""

    def item_codes(self) -> Codes | None:
        """Codes of these vectors where there are many."""


def wanted_history(view: UserView) -> History:
    """A view's rows as a sequence model reads them: those that undo something are passed over."""
    items = np.where(view.weight > 0, view.items, np.int32(-1))
    return History(items, view.t_ms, view.user_id, max(0, view.events - len(items)))


class SequencePlug(VectorPlug):
    """A sequence backbone: reads the user's history at the request time."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def user_vector(self, view: UserView, now_ms: int) -> Float32:
        """[D] float32, zeros for a user without known items."""
        return self.encoder.encode([wanted_history(view)], [now_ms])[0]  # type: ignore[no-any-return]

    def item_matrix(self) -> Float32:
        """[N, D] float32."""
        return self.encoder.item_matrix()

    def item_codes(self) -> Codes | None:
        """See VectorPlug."""
        return self.encoder.item_codes()


class NoisePlug(VectorPlug):
    """A useless part: random vectors that stay as they are, of users and items by number. It must change nothing.

    Args:
        table: the items.
        seed: of the vectors.
        dim: their width.
    """

    def __init__(self, table: ItemTable, seed: int, dim: int = 16) -> None:
        self.table, self.seed, self.dim = table, seed, dim
        self._items: Float32 = np.zeros((0, dim), np.float32)

    def user_vector(self, view: UserView, now_ms: int) -> Float32:
        """[D] float32, of the user's id alone."""
        vector: Float32 = self._vectors(1, key64(view.user_id), 1)[0]
        return vector

    def item_matrix(self) -> Float32:
        """[N, D] float32, made by blocks: what an item gets does not depend on when."""
        while len(self._items) < len(self.table):
            self._items = np.concatenate((self._items, self._vectors(0, len(self._items), 1024)))
        return self._items

    def _vectors(self, kind: int, number: int, rows: int) -> Float32:
        random = np.random.Generator(np.random.Philox(key=np.array([2 * self.seed + kind, number], np.uint64)))
        vectors = random.standard_normal((rows, self.dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


class GraphPlug(VectorPlug):
    """The graph: reads the user's memory and last neighbours; `fused` joins them with the profile's facets.

    A fused plug has no opinion on a user without a profile, so what it adds is what the profile adds.
    """

    def __init__(self, learner: GraphLearner, fused: bool = False) -> None:
        self.learner, self.fused = learner, fused

    def user_vector(self, view: UserView, now_ms: int) -> Float32:
        """[D] float32, zeros for a user without events."""
        if view.events == 0 or (self.fused and view.profile is None):
            return np.zeros(self.learner.settings.embed_dim, np.float32)
        query: Float32 = self.learner.user_vector(view, now_ms)
        if self.fused and view.profile is not None:
            query = self.learner.fused_vector(query, view.profile.facets)
        return query

    def item_matrix(self) -> Float32:
        """[N, D] float32."""
        return self.learner.item_matrix()

    def item_codes(self) -> Codes | None:
        """See VectorPlug."""
        return self.learner.item_codes()
