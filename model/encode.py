"""From histories to user vectors and scores: what training's evaluation and serving share.

`SequenceScorer` is a published learner: float32 arrays, read-only, perhaps memory-mapped. It never learns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from driftline.configs.settings import Model
from driftline.graph.arrays import Arrays, Float32, Int32, Int64
from driftline.graph.codes import Codes
from driftline.model.backbone import unit
from driftline.model.batch import CHUNK, pad
from driftline.model.copying import Copying
from driftline.model.history_cache import HistoryCache
from driftline.model.hstu import HSTU
from driftline.model.incremental import CachedEncoder, History, window_of
from driftline.model.items import as_read
from driftline.model.sasrec import SASRec

# B users, N items, D width of an item vector

_WEIGHT = "backbone."


def build_backbone(settings: Model, generator: torch.Generator) -> HSTU | SASRec:
    """The backbone that the settings name, with fresh weights."""
    sizes = settings.dim, settings.blocks, settings.heads, settings.max_len, generator
    return SASRec(*sizes) if settings.backbone == "sasrec" else HSTU(*sizes, gaps=settings.gaps)


def encode_histories(
    backbone: HSTU | SASRec, vectors: Tensor, histories: Sequence[History], now_ms: Sequence[int]
) -> Float32:
    """Unit vectors [B, D] float32 of users at their request times; a user without known events is a zero row.

    This is the backbone's own pass over whole windows; HSTU goes through model/incremental.py where it serves.

    Args:
        backbone: any backbone.
        vectors: [N, D] float32 item vectors, not normalised.
        histories: what each user did before the request.
        now_ms: request times.
    """
    out = np.zeros((len(histories), vectors.shape[1]), np.float32)
    known: list[tuple[int, Int64, Int64]] = []
    for b, (history, now) in enumerate(zip(histories, now_ms, strict=True)):
        items, t_ms = window_of(History(*history), len(vectors), backbone.max_len)
        if len(items):
            known.append((b, items, np.append(t_ms, now)))
    known.sort(key=lambda z: len(z[1]))
    with torch.no_grad():
        for at in range(0, len(known), CHUNK):
            part = known[at : at + CHUNK]
            items_BL, t_ms_BM = pad([z[1] for z in part], [z[2] for z in part])
            y_BLD = backbone(vectors[items_BL], t_ms_BM)
            last = torch.tensor([len(z[1]) - 1 for z in part])
            out[[z[0] for z in part]] = y_BLD[torch.arange(len(part)), last].numpy()
    return out


def cached_encoder(backbone: HSTU | SASRec, cache: HistoryCache, version: int = 0) -> CachedEncoder | None:
    """The encoder by rows; SASRec, which is there to compare with, has none."""
    return CachedEncoder(backbone, cache, version) if isinstance(backbone, HSTU) else None


def encode_each(
    encoder: CachedEncoder,
    histories: Sequence[History],
    now_ms: Sequence[int],
    known: int,
    vectors: Callable[[Int64], Float32],
) -> Float32:
    """Unit vectors [B, D] float32, user after user."""
    rows = [encoder.encode(History(*one), now, known, vectors) for one, now in zip(histories, now_ms, strict=True)]
    return np.stack(rows) if rows else np.zeros((0, encoder.rows.position.shape[1]), np.float32)


def weight_arrays(backbone: HSTU | SASRec) -> dict[str, Float32]:
    """A backbone's weights under the names that `SequenceScorer` reads, as views."""
    return {_WEIGHT + name: value.numpy() for name, value in backbone.state_dict().items()}


def whole_logits(
    cosines: Float32,
    popular: Float32,
    window: tuple[Int32 | Int64, Int64],
    settings: Model,
    copying: Copying | None,
    items: Int32 | None = None,
) -> Float32:
    """Logits [n] float32 of items.

    Args:
        cosines: [n] of a user and the items.
        popular: [n] popularity logits of the items.
        window: items and times of what the user did last, see `window_of`.
        settings: of the model.
        copying: the terms of the window's items, if it has any.
        items: [n] which ones, any; None = items 0..n-1.
    """
    logits = cosines / np.float32(settings.temperature)
    if copying is not None:
        logits = copying.logits(logits, *window, items)
    return logits + popular


class PopularItems:
    """Popularity logits [N] float32 that stay as they are; further items are as popular as the rarest of these."""

    def __init__(self, logits: Float32) -> None:
        self.logits = logits
        self._most: Int32 = np.zeros(0, np.int32)

    def of(self, n: int, items: Int32 | None = None) -> Float32:
        """Logits [m] of some items; None = items 0..n-1."""
        known = len(self.logits)
        if items is None and n <= known:
            return self.logits[:n]
        if not known:
            return np.zeros(n if items is None else len(items), np.float32)
        rows = np.arange(n) if items is None else items
        if (inside := rows < known).all():
            return self.logits[rows]
        rarest = np.abs(self.logits).argmax()  # a log share is below 0, and its weight may have any sign
        return self.logits[np.where(inside, rows, rarest)]

    def most(self, n: int, k: int) -> Int32:
        """The k of items 0..n-1, of a snapshot as many for all, whose logits are the largest, any order; found once for
        all whose k is no larger."""
        if len(self._most) < min(k, n, len(self.logits)):
            self._most = largest(self.logits[:n], 2 * k)
        return self._most[:k]


def largest(values: Float32, k: int) -> Int32:
    """Places [k] int32 of the largest of some values, the largest first; all of them where there are fewer."""
    k = min(k, len(values))
    first = np.argpartition(-values, k - 1)[:k].astype(np.int32) if k else np.zeros(0, np.int32)
    return first[np.argsort(-values[first], kind="stable")]


class SequenceScorer:
    """Read-only view of a published learner: encodes and scores, never learns. Threads may share it.

    Args:
        settings: the settings of the learner that wrote the arrays.
        arrays: what `SequenceLearner.arrays` returned; the item vectors are used in place and may be memory-mapped.
        cache: keys and values of users, shared with the scorers of other versions; None = nothing is kept.
        version: counts up with every scorer of one cache.
    """

    def __init__(self, settings: Model, arrays: Arrays, cache: HistoryCache | None = None, version: int = 0) -> None:
        self.settings = settings
        self.backbone = build_backbone(settings, torch.Generator())
        weights = {k.removeprefix(_WEIGHT): torch.tensor(v) for k, v in arrays.items() if k.startswith(_WEIGHT)}
        self.backbone.load_state_dict(weights)
        self.backbone.requires_grad_(False)
        self._vectors, self._popular = arrays["vectors"], PopularItems(arrays["prior"])
        self.copying = Copying.of(arrays["copying"]) if settings.copying else None
        self._codes = Codes.from_arrays(settings.dim, arrays, "matrix")
        self._matrix: Float32 = (
            unit(torch.from_numpy(np.array(self._vectors[:, : settings.dim]))).numpy()
            if self._codes is None
            else arrays["matrix"]
        )
        self._encoder = cached_encoder(self.backbone, HistoryCache(0) if cache is None else cache, version)

    @classmethod
    def from_arrays(
        cls, settings: Model, arrays: Arrays, cache: HistoryCache | None = None, version: int = 0
    ) -> SequenceScorer:
        """Opens a snapshot's arrays."""
        return cls(settings, arrays, cache, version)

    def encode(self, histories: Sequence[History], now_ms: Sequence[int]) -> Float32:
        """As `SequenceLearner.encode`; items that the snapshot does not hold are skipped."""
        if self._encoder is not None:
            return encode_each(self._encoder, histories, now_ms, len(self._vectors), self._taken)
        windows = [window_of(History(*one), len(self._vectors), self.backbone.max_len) for one in histories]
        rows = np.unique(np.concatenate([items for items, _ in windows] or [np.zeros(0, np.int64)]))
        local = [History(np.searchsorted(rows, items), t_ms) for items, t_ms in windows]
        return encode_histories(self.backbone, torch.from_numpy(self._taken(rows)), local, now_ms)

    def warm(self, budget_ms: float) -> int:
        """Encodes users that older versions hold in the cache, those who ask most first; returns how many."""
        return self._encoder.warm(len(self._vectors), self._taken, budget_ms) if self._encoder else 0

    def _taken(self, rows: Int64) -> Float32:
        return as_read(self._vectors[rows], self.settings.dim)

    def read(self, rows: Int64) -> Float32:
        """As `SequenceLearner.read`."""
        return self._taken(rows)

    def popular(self) -> Float32:
        """As `SequenceLearner.popular`, of the snapshot's last event."""
        return self._popular.logits

    def popular_of(self, n: int, items: Int32 | None = None) -> Float32:
        """As `SequenceLearner.popular_of`."""
        return self._popular.of(n, items)

    def most_popular(self, n: int, k: int) -> Int32:
        """As `SequenceLearner.most_popular`."""
        return self._popular.most(n, k)

    def item_matrix(self) -> Float32:
        """Unit vectors [N, D] float32 of all items of the snapshot."""
        return self._matrix

    def item_codes(self) -> Codes | None:
        """Codes of these vectors, if the snapshot has any."""
        return self._codes

    def scores(self, history: History, now_ms: int) -> Float32:
        """As `SequenceLearner.scores`, with the popularity of the time when the snapshot was written."""
        cosines: Float32 = self._matrix @ self.encode([history], [now_ms])[0]
        window = window_of(History(*history), len(cosines), self.settings.max_len)
        return whole_logits(cosines, self._popular.of(len(cosines)), window, self.settings, self.copying)
