"""Sequence and graph learners as parts of the engine: one vector for a user at a time, one for each item."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from driftline.graph.learn import GraphLearner
from driftline.graph.rows import key64
from driftline.graph.sparse import best_rows
from driftline.model.encode import SequenceScorer, whole_logits
from driftline.model.history_cache import HistoryCache
from driftline.model.incremental import History, window_of
from driftline.model.part import Part, Plug, VectorPlug
from driftline.model.recall import Scored, best_of
from driftline.model.sequence import SequenceLearner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from driftline.configs.settings import Model, Settings
    from driftline.graph.arrays import Arrays, Float32, Int32, Int64
    from driftline.graph.codes import Codes
    from driftline.graph.texts import TextTable
    from driftline.graph.touched import Touched
    from driftline.graph.view import Group, ItemTable, UserView
    from driftline.model.copying import Copying
    from driftline.model.part import Asked
    from driftline.model.recall import Pool


NEAR_ITEMS = 20
"""Newest distinct items that a candidate is held against one by one."""
NEAR_HALF = 5.0
"""Items after which one counts half, in the mean by age."""
TOP = 3
WIDER = 4
"""Times as many as a list holds; 1 leaves a third of it unfound in the test's world, 4 a hundredth."""


class Encoder(Protocol):
    """What `SequenceLearner` and `SequenceScorer` have in common."""

    settings: Model
    copying: Copying | None

    def encode(self, histories: Sequence[History], now_ms: Sequence[int]) -> Float32:
        """Unit vectors [B, D] of users at their request times."""

    def item_matrix(self) -> Float32:
        """Unit vectors [N, D] of the items."""

    def item_codes(self) -> Codes | None:
        """Codes of these vectors where there are many."""

    def read(self, rows: Int64) -> Float32:
        """Vectors [m, D] of item rows [m] as the backbone reads them, not normalised."""

    def popular_of(self, n: int, items: Int32 | None = None) -> Float32:
        """Popularity logits [m] of some items; None = items 0..n-1."""

    def most_popular(self, n: int, k: int) -> Int32:
        """Some k of items 0..n-1 that are the most popular."""


def wanted_history(view: UserView) -> History:
    """A view's rows as a sequence model reads them: those that undo something are passed over."""
    items = np.where(view.weight > 0, view.items, np.int32(-1))
    return History(items, view.t_ms, view.user_id, max(0, view.events - len(items)))


class SequencePlug(VectorPlug):
    """A sequence backbone: reads the user's history at the request time.

    With `model.aware` it recalls by its whole logit, popularity included, and says more of a candidate: the cosine to
    the user, the best, the best three and the mean by age of the cosines to the newest items, and the cosine to what
    the last one is read as.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        if encoder.settings.aware:
            self.columns = ("score", "rank", "cosine", "near_best", "near_top", "near_mean", "near_last")

    def opinion(self, asked: Asked) -> Scored:
        """See VectorPlug; by the whole logit, in units of the cosine.

        A catalogue that is searched by codes is searched for the nearest and the most popular, WIDER times as many of
        each as are asked for: an item that is neither may be missed.
        """
        encoder, settings = self.encoder, self.encoder.settings
        by_codes = settings.aware and encoder.item_codes() is not None
        scored = super().opinion(replace(asked, k=WIDER * asked.k) if by_codes else asked)
        if not settings.aware or not len(scored.scores):
            return scored
        history, known = wanted_history(asked.view), len(encoder.item_matrix())

        def whole(cosines: Float32, items: Int32 | None = None) -> Float32:
            window = window_of(history, known if items is not None else min(len(cosines), known), settings.max_len)
            popular = encoder.popular_of(len(cosines), items)
            logits = whole_logits(cosines, popular, window, settings, encoder.copying, items)
            return logits * np.float32(settings.temperature)

        touched, n, k = asked.past.items, asked.n, asked.k
        if scored.items is None:
            scores = whole(scored.scores)
            return best_of(scores, k, touched, n, above=-np.inf, otherwise=float(scores.min()))
        cosines_of = scored.exact
        assert cosines_of is not None  # who names items gives this as well
        items = np.union1d(scored.items, encoder.most_popular(n, WIDER * k + len(touched)))
        scores = whole(cosines_of(items), items)
        best = best_rows(items, scores, k, touched, n, -np.inf)
        return Scored(items, scores, *best, exact=lambda some: whole(cosines_of(some), some))

    def features(self, asked: Asked, pool: Pool, place: Int32, scored: Scored, out: Float32) -> None:
        """See VectorPlug and the class."""
        super().features(asked, pool, place, scored, out[:2])
        matrix, near = self.encoder.item_matrix(), asked.past.items[:NEAR_ITEMS]
        near, known = near[near < len(matrix)], np.flatnonzero(pool.candidates < len(matrix))
        if len(out) == 2 or not len(near):
            return
        last = self.encoder.read(near[:1].astype(np.int64))
        user = self.user_vector(asked.view, asked.now_ms)
        queries = np.concatenate((user[None], last / max(float(np.linalg.norm(last)), 1e-6), matrix[near]))
        cosines = matrix[pool.candidates[known]] @ queries.T  # [c, 2 + near]
        nearest_first = -np.sort(-cosines[:, 2:], axis=1)
        age = 0.5 ** (np.arange(len(near), dtype=np.float32) / np.float32(NEAR_HALF))
        out[2, known], out[6, known] = cosines[:, 0], cosines[:, 1]
        out[3, known], out[4, known] = nearest_first[:, 0], nearest_first[:, :TOP].mean(1)
        out[5, known] = cosines[:, 2:] @ (age / age.sum())

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
    """A useless plug: random vectors that stay as they are, of users and items by number. It must change nothing.

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
        vector: Float32 = noise(2 * self.seed + 1, key64(view.user_id), (1, self.dim))[0]
        return vector

    def item_matrix(self) -> Float32:
        """[N, D] float32, made by blocks: what an item gets does not depend on when."""
        self._items = _lengthened(self._items, len(self.table), 2 * self.seed)
        return self._items


class PlaceboPlug(VectorPlug):
    """Random vectors in another plug's stead, for the same users at the same times, of the same items and width.

    Args:
        own: the plug; its vectors are asked for, not read.
        block: its name, that no two placebos be alike.
        seed: of the vectors.
    """

    def __init__(self, own: VectorPlug, block: str, seed: int) -> None:
        self.own, self._key = own, (key64(block) + 2 * seed) & ~1 & (1 << 64) - 1
        self._items: Float32 = np.zeros((0, own.item_matrix().shape[1]), np.float32)

    def user_vector(self, view: UserView, now_ms: int) -> Float32:
        """[D] float32, of the user's id alone; zeros where the plug has no opinion."""
        own = self.own.user_vector(view, now_ms)
        vector: Float32 = noise(self._key + 1, key64(view.user_id), (1, len(own)))[0] if np.any(own) else own
        return vector

    def item_matrix(self) -> Float32:
        """[N, D] float32 of as many items as the plug knows."""
        n = len(self.own.item_matrix())
        self._items = _lengthened(self._items, n, self._key)
        return self._items[:n]


def noise(seed: int, number: int, shape: tuple[int, int]) -> Float32:
    """Random unit vectors [rows, D] by a key of two numbers below 2^64."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)))
    vectors = random.standard_normal(shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _lengthened(vectors: Float32, n: int, seed: int) -> Float32:
    """At least n random vectors, the first ones as they are."""
    while len(vectors) < n:
        vectors = np.concatenate((vectors, noise(seed, len(vectors), (1024, vectors.shape[1]))))
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


class SequencePart(Part):
    """The sequence backbone of `model.backbone`, which keeps the name of the first one.

    Args:
        encoder: a learner, or what a snapshot holds of one.
        cache, versions: of an opened one: what is kept of users' histories, shared by all versions, and their count.
    """

    name = "hstu"
    default = "on"

    def __init__(
        self, encoder: Encoder, cache: HistoryCache | None = None, versions: Iterator[int] | None = None
    ) -> None:
        self.encoder, self.cache, self._versions = encoder, cache, versions

    @classmethod
    def made(cls, settings: Settings, table: ItemTable, text: TextTable) -> Self | None:
        """See Part."""
        if settings.model.backbone == "off":
            return None
        learner = SequenceLearner(settings.model, text_dim=settings.ranker.text_dim, texts=text)
        learner.prepare()
        return cls(learner)

    @classmethod
    def opened(cls, settings: Settings, table: ItemTable, arrays: Arrays, before: Self | None) -> Self:
        """See Part."""
        cache = before.cache if before is not None else HistoryCache(settings.serving.sequence_cache_mb << 20)
        versions = before._versions if before is not None and before._versions is not None else count(1)
        return cls(SequenceScorer.from_arrays(settings.model, arrays, cache, next(versions)), cache, versions)

    @property
    def learner(self) -> SequenceLearner:
        """The learner; TypeError if it was opened to answer only."""
        if not isinstance(self.encoder, SequenceLearner):
            raise TypeError("a part of a snapshot only answers; expected one that learns")
        return self.encoder

    def plugs(self) -> dict[str, Plug]:
        """See Part."""
        return {self.name: SequencePlug(self.encoder)}

    def set_text(self, index: int, vector: Float32) -> None:
        """See Part."""
        self.learner.set_text(index, vector)

    def learn(self, group: Group, view: UserView, learnt: bool) -> None:
        """See Part."""
        if learnt:
            self.learner.learn(group, None if self.learner.copying is None else wanted_history(view))
        else:
            self.learner.observe(group)

    def refresh(self) -> None:
        """See Part."""
        self.encoder.item_matrix()

    def forget(self, user_id: str) -> None:
        """See Part."""
        if self.cache is not None:
            self.cache.forget(user_id)
        else:
            self.learner.forget(user_id)

    def warm(self, budget_ms: float) -> None:
        """See Part."""
        if isinstance(self.encoder, SequenceScorer):
            self.encoder.warm(budget_ms)

    def arrays(self, whole: bool = True) -> Arrays:
        """See Part."""
        return self.learner.arrays(whole)

    def touched(self) -> Mapping[str, Touched]:
        """See Part."""
        return self.learner.touched()

    def state_dict(self) -> dict[str, Any]:
        """See Part."""
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Part."""
        self.learner.load_state_dict(state)


class GraphPart(Part):
    """The trained graph. It learns where the state takes a group in (`GraphLearner.around`); `learn` does nothing."""

    name = "graph"
    default = "on"

    def __init__(self, learner: GraphLearner) -> None:
        self.learner = learner

    @classmethod
    def made(cls, settings: Settings, table: ItemTable, text: TextTable) -> Self | None:
        """See Part."""
        if settings.graph.weights == "off":
            return None
        learner = GraphLearner(settings.graph, settings.ranker.text_dim, text)
        learner.prepare()
        return cls(learner)

    @classmethod
    def opened(cls, settings: Settings, table: ItemTable, arrays: Arrays, before: Self | None) -> Self:
        """See Part."""
        return cls(GraphLearner.from_arrays(settings.graph, arrays))

    def plugs(self) -> dict[str, Plug]:
        """See Part."""
        return {self.name: GraphPlug(self.learner), "fused": GraphPlug(self.learner, fused=True)}

    def add_item(self, index: int, item_id: str) -> None:
        """See Part."""
        self.learner.add_item(index, item_id)

    def set_text(self, index: int, vector: Float32) -> None:
        """See Part."""
        self.learner.text_changed(index)

    def refresh(self) -> None:
        """See Part."""
        self.learner.item_matrix()

    def forget(self, user_id: str) -> None:
        """See Part."""
        self.learner.forget(user_id)

    def freeze(self) -> None:
        """See Part."""
        self.learner.freeze()

    def arrays(self, whole: bool = True) -> Arrays:
        """See Part."""
        return self.learner.arrays()

    def touched(self) -> Mapping[str, Touched]:
        """See Part."""
        return self.learner.touched()

    def state_dict(self) -> dict[str, Any]:
        """See Part."""
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See Part."""
        self.learner.load_state_dict(state)


class NoisePart(Part):
    """A part that knows nothing, which a replay holds the engine against."""

    name = "noise"

    def __init__(self, table: ItemTable, seed: int) -> None:
        self._table, self._seed = table, seed

    @classmethod
    def made(cls, settings: Settings, table: ItemTable, text: TextTable) -> Self | None:
        """See Part."""
        return cls(table, settings.ranker.seed)

    @classmethod
    def opened(cls, settings: Settings, table: ItemTable, arrays: Arrays, before: Self | None) -> Self:
        """See Part."""
        return cls(table, settings.ranker.seed)

    def plugs(self) -> dict[str, Plug]:
        """See Part."""
        return {self.name: NoisePlug(self._table, self._seed)}
