"""Models of the library implicit, at its defaults: matrix factorisation and item neighbours.

Sources: Hu, Koren, Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008 (ALS); BM25 weights
on item-item neighbours: https://github.com/benfred/implicit. A user's vector is folded in from what the user took
until the question, as `recalculate_user` does.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
from implicit.als import AlternatingLeastSquares  # type: ignore[import-not-found]
from implicit.nearest_neighbours import BM25Recommender  # type: ignore[import-not-found]

logging.getLogger("implicit").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="Method expects CSR input")


class Implicit:
    """Fits a matrix of users x items, the weights of rows summed.

    Args:
        make: gives the library's model for a seed.
        folds: whether it can make a vector of a new user.
    """

    def __init__(self, make: Any, folds: bool) -> None:
        self._make, self._folds, self._items = make, folds, 0

    def fit(self, rows: Any, seed: int, tell: Any) -> None:
        """Learns anew."""
        self._items = rows.items
        users = int(rows.user.max(initial=-1)) + 1
        self._model = self._make(seed) if len(rows.item) else None
        if self._model is not None:
            taken = sp.csr_matrix((rows.weight, (rows.user, rows.item)), (users, rows.items), np.float32)
            self._model.fit(taken, show_progress=False)

    def score(self, query: Any) -> Any:
        """The library's scores of all items; those that its neighbours say nothing of get 0."""
        if self._model is None or len(query.items) == 0:
            return None
        ones, zeros = np.ones(len(query.items), np.float32), np.zeros(len(query.items), np.int32)
        taken = sp.csr_matrix((ones, (zeros, query.items)), (1, self._items))
        more = {"recalculate_user": True} if self._folds else {}
        items, found = self._model.recommend(0, taken, N=self._items, filter_already_liked_items=False, **more)
        scores = np.zeros(self._items, np.float32)
        scores[items[items >= 0]] = found[items >= 0]
        return scores


MODELS = {
    "als": lambda: Implicit(lambda seed: AlternatingLeastSquares(num_threads=1, random_state=seed), folds=True),
    "bm25": lambda: Implicit(lambda seed: BM25Recommender(num_threads=1), folds=False),
}
