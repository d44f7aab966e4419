"""From histories to user vectors and scores: what training's evaluation and serving share.

`SequenceScorer` is a published learner: float32 arrays, read-only, perhaps memory-mapped. It never learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.settings import Model
from graph.rows import Float32
from graph.view import Int64
from model.batch import CHUNK, pad
from model.hstu import HSTU
from model.sasrec import SASRec

# B users, N items, D width of an item vector

History = tuple[NDArray[np.integer[Any]], Int64]
"""Items [n] (-1 = unknown, skipped) and times [n] int64 milliseconds, in (time, offset) order, newest last."""

_WEIGHT = "backbone."


def build_backbone(settings: Model, generator: torch.Generator) -> HSTU | SASRec:
    """The backbone that the settings name, with fresh weights."""
    make = SASRec if settings.backbone == "sasrec" else HSTU
    return make(settings.dim, settings.blocks, settings.heads, settings.max_len, generator)


def encode_histories(
    backbone: HSTU | SASRec, vectors: Tensor, histories: Sequence[History], now_ms: Sequence[int]
) -> Float32:
    """Unit vectors [B, D] float32 of users at their request times; a user without known events is a zero row.

    Args:
        backbone: any backbone.
        vectors: [N, D] float32 item vectors, not normalised.
        histories: what each user did before the request.
        now_ms: request times.
    """
    out = np.zeros((len(histories), vectors.shape[1]), np.float32)
    known: list[tuple[int, Int64, Int64]] = []
    for b, ((items, t_ms), now) in enumerate(zip(histories, now_ms, strict=True)):
        keep = np.flatnonzero((items >= 0) & (items < len(vectors)))[-backbone.max_len :]
        if len(keep):
            known.append((b, np.asarray(items, np.int64)[keep], np.append(t_ms[keep], now)))
    known.sort(key=lambda z: len(z[1]))
    with torch.no_grad():
        for at in range(0, len(known), CHUNK):
            part = known[at : at + CHUNK]
            items_BL, t_ms_BM = pad([z[1] for z in part], [z[2] for z in part])
            y_BLD = backbone(vectors[items_BL], t_ms_BM)
            last = torch.tensor([len(z[1]) - 1 for z in part])
            out[[z[0] for z in part]] = y_BLD[torch.arange(len(part)), last].numpy()
    return out


def weight_arrays(backbone: HSTU | SASRec) -> dict[str, Float32]:
    """Copies of a backbone's weights under the names that `SequenceScorer` reads."""
    return {_WEIGHT + name: value.numpy().copy() for name, value in backbone.state_dict().items()}


class SequenceScorer:
    """Read-only view of a published learner: encodes and scores, never learns.

    Args:
        settings: the settings of the learner that wrote the arrays.
        arrays: what `SequenceLearner.arrays` returned; the item arrays are used in place and may be memory-mapped.
    """

    def __init__(self, settings: Model, arrays: dict[str, Float32]) -> None:
        self.settings = settings
        self.backbone = build_backbone(settings, torch.Generator())
        weights = {k.removeprefix(_WEIGHT): torch.tensor(v) for k, v in arrays.items() if k.startswith(_WEIGHT)}
        self.backbone.load_state_dict(weights)
        self.backbone.requires_grad_(False)
        self._vectors, self._matrix, self._prior = arrays["vectors"], arrays["matrix"], arrays["prior"]

    @classmethod
    def from_arrays(cls, settings: Model, arrays: dict[str, Float32]) -> SequenceScorer:
        """Opens a snapshot's arrays."""
        return cls(settings, arrays)

    def encode(self, histories: Sequence[History], now_ms: Sequence[int]) -> Float32:
        """As `SequenceLearner.encode`; items that the snapshot does not hold are skipped."""
        used: list[History] = []
        for items, t_ms in histories:
            keep = np.flatnonzero((items >= 0) & (items < len(self._vectors)))[-self.backbone.max_len :]
            used.append((items[keep].astype(np.int64), t_ms[keep]))
        rows = np.unique(np.concatenate([items for items, _ in used] or [np.zeros(0, np.int64)]))
        local = [(np.searchsorted(rows, items), t_ms) for items, t_ms in used]
        return encode_histories(self.backbone, torch.from_numpy(self._vectors[rows]), local, now_ms)

    def item_matrix(self) -> Float32:
        """Unit vectors [N, D] float32 of all items of the snapshot."""
        return self._matrix

    def scores(self, history: History, now_ms: int) -> Float32:
        """As `SequenceLearner.scores`, with the popularity of the time when the snapshot was written."""
        user_D = self.encode([history], [now_ms])[0]
        out: Float32 = self._matrix @ user_D / np.float32(self.settings.temperature) + self._prior
        return out
