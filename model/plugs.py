"""Sequence and graph learners as the engine's plugs: one vector for a user at a time, one for each item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graph.learn import GraphLearner
    from graph.rows import Float32
    from graph.view import UserView
    from model.sequence import History


class Encoder(Protocol):
    """What `SequenceLearner` and `SequenceScorer` have in common."""

    def encode(self, histories: Sequence[History], now_ms: Sequence[int]) -> Float32:
        """Unit vectors [B, D] of users at their request times."""

    def item_matrix(self) -> Float32:
        """Unit vectors [N, D] of the items."""


def wanted_history(view: UserView) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Items and times of a view's rows that undo nothing, as a sequence model reads them."""
    keep = view.weight > 0
    return view.items[keep], view.t_ms[keep]


class SequencePlug:
    """A sequence backbone: reads the user's history at the request time."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def user_vector(self, view: UserView, now_ms: int) -> Float32:
        """[D] float32, zeros for a user without known items."""
        vector: Float32 = self.encoder.encode([wanted_history(view)], [now_ms])[0]
        return vector

    def item_matrix(self) -> Float32:
        """[N, D] float32."""
        return self.encoder.item_matrix()


class GraphPlug:
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
