"""The incremental learner of one sequence backbone: observe a group, step, encode, score.

    group -> observe -> replay log --windows--> batch -> backbone -> sampled softmax -> one optimiser step
    history, request time -> encode -> unit vector . item matrix / temperature + prior -> scores

`encode` and `scores` only read what `observe` and `step` were given before, so a caller that scores a group
first and observes it afterwards predicts before it learns. Everything random comes from generators that are part
of `state_dict`: a restored learner continues bit by bit.
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
from graph.view import Group, Int32
from model.average import Average
from model.backbone import Dropout, unit
from model.batch import Batch, build_batch
from model.encode import History, SequenceScorer, build_backbone, encode_histories, weight_arrays
from model.items import BETAS, ItemVectors
from model.loss import distinct, draw_candidates, sampled_softmax
from model.prior import PopularityPrior
from model.replay import ReplayLog, Window

__all__ = ["History", "SequenceLearner", "SequenceScorer"]

# B windows, L rows of the longest window, M = L + 1, D width, R asked rows, C candidates, U item rows of a step


class SequenceLearner:
    """Trains one backbone on the stream, one group after the other.

    Args:
        settings: section `model`; its `backbone` is not "off".
        seed: replaces `settings.seed` when given.
        text_dim: width of the text vectors that `set_text` will be given; 0 = items have no text.
    """

    def __init__(self, settings: Model, seed: int | None = None, text_dim: int = 0) -> None:
        self.settings = settings
        self._generator = torch.Generator().manual_seed(settings.seed if seed is None else seed)
        self._random = np.random.default_rng(settings.seed if seed is None else seed)
        self.backbone = build_backbone(settings, self._generator)
        self.items = ItemVectors(settings.dim, text_dim if settings.text else 0, self._generator)
        self.log = ReplayLog(settings.replay_groups, settings.max_len)
        self.prior = PopularityPrior(settings.prior_half_life_days)
        parameters = [*self.backbone.parameters(), self.items.project, self.prior.coefficient]
        self._optimizer = torch.optim.AdamW(parameters, settings.learning_rate, BETAS, weight_decay=0.0)
        self.average = Average(settings.average, self.backbone)
        self._dropout = Dropout(settings.dropout, self._generator)
        self._seen: list[int] = []
        self._is_seen: NDArray[np.bool_] = np.zeros(0, bool)
        self._fresh: list[int] = []
        self._observed = 0
        self.steps = 0
        self._cache: tuple[Tensor, Float32] | None = None

    def set_text(self, item: int, vector: Float32) -> None:
        """Gives an item the text [text_dim] that its vector starts from; nothing where the settings want no text."""
        if self.settings.text:
            self.items.set_text(item, torch.from_numpy(vector))
            self._cache = None

    def observe(self, group: Group) -> None:
        """Remembers a group; rows whose weight is not above 0 undo something and are not read."""
        keep = (group.items >= 0) & (group.weight > 0)
        items, wanted = group.items[keep], group.positive[keep]
        self._observed += 1
        if not len(items):
            return
        self.items.grow(int(items.max()) + 1)
        self._mark_seen(items)
        self.prior.observe(items[wanted], group.t_ms)
        number = self.log.add(group.user_id, items.astype(np.int32), wanted, group.t_ms)
        if self.log.has_past(number):
            self._fresh.append(number)
        self._cache = None

    def learn(self, group: Group) -> None:
        """Observes a group and takes an optimiser step every `step_groups` groups."""
        self.observe(group)
        if self._observed % self.settings.step_groups == 0:
            self.step()

    def step(self) -> float:
        """One optimiser step on the newest groups and replayed ones; returns the loss, NaN if nothing is there."""
        windows = self._draw()
        if not windows:
            return float("nan")
        batch = build_batch(windows, self.settings, self._random)
        candidates = draw_candidates(batch.target_T, torch.tensor(self._seen), self._negatives(), self._generator)
        rows_U = distinct(candidates.rows_C, *(chunk.items_BL.flatten() for chunk in batch.chunks))
        leaf_UD = self.items.leaf(rows_U)
        x_UD = self.items.compose(leaf_UD, rows_U)
        y_CD = unit(x_UD.index_select(0, torch.searchsorted(rows_U, candidates.rows_C)))
        logits_RC = self._asked_rows(batch, x_UD, rows_U) @ y_CD.T / self.settings.temperature
        if self.prior.on:
            logits_RC = logits_RC + self.prior.logits_at(batch.asked_ms_R, candidates.rows_C)
        column_T = torch.searchsorted(candidates.rows_C, batch.target_T)
        loss = sampled_softmax(logits_RC, candidates, batch.row_T, column_T, batch.weight_T, self.settings.log_q)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        assert leaf_UD.grad is not None
        self.items.step(rows_U, leaf_UD.grad, self.settings.learning_rate)
        self.average.update(self.backbone, rows_U, x_UD)
        self.steps += 1
        self._cache = None
        return float(loss.detach())

    def _negatives(self) -> int:
        """Negatives of a step; 0 = all seen items."""
        return 0 if len(self._seen) <= self.settings.full_softmax else self.settings.negatives

    def _mark_seen(self, items: Int32) -> None:
        if len(self.items) > len(self._is_seen):
            grown = np.zeros(2 * len(self.items), bool)
            grown[: len(self._is_seen)] = self._is_seen
            self._is_seen = grown
        for row in items[~self._is_seen[items]].tolist():
            if not self._is_seen[row]:
                self._is_seen[row] = True
                self._seen.append(row)

    def _draw(self) -> list[Window]:
        """Windows of one step: the newest groups, and replayed ones, recent ones more often."""
        size = self.settings.batch
        newest = self._fresh[-max(1, round(size * (1 - self.settings.replay_share))) :]
        self._fresh.clear()
        n = self.log.end - self.log.start
        replayed: list[int] = []
        if n and len(newest) < size:
            age = self._random.exponential(self.settings.replay_age, 3 * (size - len(newest))) % 1.0
            drawn = self.log.end - 1 - (age * n).astype(np.int64)
            replayed = [number for number in drawn.tolist() if self.log.has_past(number)][: size - len(newest)]
        windows = [self.log.window(number) for number in newest + replayed if self.log.has_past(number)]
        return [window for window in windows if len(window.targets)]

    def _asked_rows(self, batch: Batch, x_UD: Tensor, rows_U: Tensor) -> Tensor:
        """Outputs [R, D] of the asked rows, in their order."""
        outputs = []
        for chunk in batch.chunks:
            B, L = chunk.items_BL.shape
            at = torch.searchsorted(rows_U, chunk.items_BL.flatten())
            y_BLD = self.backbone(x_UD.index_select(0, at).view(B, L, -1), chunk.t_ms_BM, self._dropout)
            outputs.append(y_BLD.flatten(0, 1).index_select(0, chunk.asked))
        return torch.cat(outputs)

    def encode(self, histories: Sequence[History], now_ms: Sequence[int]) -> Float32:
        """Unit vectors [B, D] float32 of users at their request times (`encode_histories`)."""
        return encode_histories(self.average.backbone, self._vectors(), histories, now_ms)

    def item_matrix(self) -> Float32:
        """Unit vectors [N, D] float32 of all items of the table."""
        self._vectors()
        assert self._cache is not None
        return self._cache[1]

    def scores(self, history: History, now_ms: int) -> Float32:
        """Logits [N] float32 of all items of the table for one user: similarity plus prior, higher is better."""
        user_D = self.encode([history], [now_ms])[0]
        similarity: Float32 = self.item_matrix() @ user_D / np.float32(self.settings.temperature)
        return similarity + self.prior.logits_now(now_ms, len(similarity))

    def _vectors(self) -> Tensor:
        if self._cache is None:
            vectors = self.average.fill(self.items.vectors())
            self._cache = (vectors, unit(vectors).numpy())
        return self._cache[0]

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, replay log and random state; `torch.save` can write it."""
        return {
            "backbone": {k: v.clone() for k, v in self.backbone.state_dict().items()},
            "items": self.items.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "log": self.log.state_dict(),
            "prior": self.prior.state_dict(),
            "average": self.average.state_dict(),
            "generator": self._generator.get_state(),
            "random": self._random.bit_generator.state,
            "seen": list(self._seen),
            "fresh": list(self._fresh),
            "observed": self._observed,
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` of a learner with the same settings returned."""
        self.backbone.load_state_dict(state["backbone"])
        self.items.load_state_dict(state["items"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.log.load_state_dict(state["log"])
        self.prior.load_state_dict(state["prior"])
        self.average.load_state_dict(state["average"])
        self._generator.set_state(state["generator"])
        self._random.bit_generator.state = state["random"]
        self._seen, self._fresh = list(state["seen"]), list(state["fresh"])
        self._is_seen = np.zeros(len(self.items), bool)
        self._is_seen[self._seen] = True
        self._observed, self.steps = state["observed"], state["steps"]
        self._cache = None

    def arrays(self) -> dict[str, Float32]:
        """What serving needs: item vectors [N, D], popularity logits [N] and the backbone's weights, float32 copies."""
        return {
            "vectors": self._vectors().numpy().copy(),
            "matrix": self.item_matrix().copy(),
            "prior": self.prior.logits_now(0, len(self.items)),
            **weight_arrays(self.average.backbone),
        }
