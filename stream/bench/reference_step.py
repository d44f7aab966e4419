"""A training step as the paper describes it and nobody hurried it: the peer of `driftline bench hstu`.

All windows are padded to one length, every position is asked for the next event, and each has negatives of its own,
drawn from all items; item vectors are a dense table under the same optimiser as the rest.

Source: arXiv 2402.17152, section 5.1 (sampled softmax, 128 negatives, temperature .05, AdamW). The backbone is the
padded one of model/hstu.py, which equals the authors' code within 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from driftline.configs.settings import Model
from driftline.model.backbone import Dropout, unit
from driftline.model.hstu import HSTU
from driftline.model.items import BETAS
from driftline.model.rehearsal import Window

# B windows, L rows of the longest that there may be, M = L + 1, S negatives of a position, D width

NEGATIVES = 128


class ReferenceStep:
    """Backbone, item table and optimiser.

    Args:
        model: sizes, dropout, temperature and learning rate.
        items: size of the table.

    Attributes:
        negatives: of one position.
    """

    negatives = NEGATIVES

    def __init__(self, model: Model, items: int) -> None:
        self._model = model
        self._generator = torch.Generator().manual_seed(model.seed)
        self._backbone = HSTU(model.dim, model.blocks, model.heads, model.max_len, self._generator)
        self._table = nn.Embedding(items, model.dim)
        self._dropout = Dropout(model.dropout, self._generator)
        parameters = [*self._backbone.parameters(), *self._table.parameters()]
        self._optimizer = torch.optim.AdamW(parameters, model.learning_rate, BETAS, weight_decay=0.0)

    def train(self, windows: Sequence[Window]) -> float:
        """One optimiser step on windows whose groups are single events; returns the loss."""
        items_BM, t_ms_BM, asked_BL = self._padded(windows)
        y_BLD = self._backbone(self._table(items_BM[:, :-1]), t_ms_BM, self._dropout)
        negatives_BLS = torch.randint(
            self._table.num_embeddings, (*asked_BL.shape, NEGATIVES), generator=self._generator
        )
        target_BL1 = items_BM[:, 1:, None]
        candidates_BLCD = unit(self._table(torch.cat((target_BL1, negatives_BLS), 2)))
        logits_BLC = (candidates_BLCD @ y_BLD[..., None])[..., 0] / self._model.temperature
        hit_BLS = negatives_BLS == target_BL1
        logits_BLC[..., 1:] = logits_BLC[..., 1:].masked_fill(hit_BLS, -torch.inf)
        nll_BL = -F.log_softmax(logits_BLC, 2)[..., 0]
        loss = (nll_BL * asked_BL).sum() / asked_BL.sum()
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return float(loss.detach())

    def _padded(self, windows: Sequence[Window]) -> tuple[Tensor, Tensor, Tensor]:
        """Items [B, M], times [B, M] and asked positions [B, L], all of the longest length that there may be."""
        L = self._model.max_len
        items_BM, t_ms_BM = np.zeros((2, len(windows), L + 1), np.int64)
        asked_BL = np.zeros((len(windows), L), np.float32)
        for b, window in enumerate(windows):
            n = len(window.items)
            items_BM[b, :n], t_ms_BM[b, : n + 1], t_ms_BM[b, n + 1 :] = window.items, window.t_ms, window.t_ms[-1]
            items_BM[b, window.rows + 1] = window.targets
            asked_BL[b, window.rows] = 1
        return torch.from_numpy(items_BM), torch.from_numpy(t_ms_BM), torch.from_numpy(asked_BL)
