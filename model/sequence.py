"""The incremental learner of one sequence backbone: observe a group, step, encode, score.

    group -> observe -> replay log --windows--> backbone -> sampled softmax -> one optimiser step
    history, request time -> encode -> unit vector . item matrix -> scores

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
from graph.view import Group, Int32, Int64
from model.backbone import Dropout, unit
from model.hstu import HSTU
from model.items import BETAS, ItemVectors
from model.loss import distinct, draw_candidates, sampled_softmax
from model.replay import ReplayLog, Window
from model.sasrec import SASRec

# B windows, L rows of the longest window, M = L + 1, D width, R rows that predict, T targets, U item rows of a step

CHUNK = 8
"""Windows that are padded together, after sorting by length."""

History = tuple[NDArray[np.integer[Any]], Int64]
"""Items [n] (-1 = unknown, skipped) and times [n] int64 milliseconds, in (time, offset) order, newest last."""


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
        keep = np.flatnonzero(items >= 0)[-backbone.max_len :]
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


def pad(items: Sequence[Int64], t_ms: Sequence[Int64]) -> tuple[Tensor, Tensor]:
    """Pads windows on the right: items [B, L] with row 0, times [B, M] with the request time."""
    longest = max(len(z) for z in items)
    items_BL = np.zeros((len(items), longest), np.int64)
    t_ms_BM = np.empty((len(items), longest + 1), np.int64)
    for b, (i, t) in enumerate(zip(items, t_ms, strict=True)):
        items_BL[b, : len(i)] = i
        t_ms_BM[b, : len(t)] = t
        t_ms_BM[b, len(t) :] = t[-1]
    return torch.from_numpy(items_BL), torch.from_numpy(t_ms_BM)


class SequenceLearner:
    """Trains one backbone on the stream, one group after the other.

    Args:
        settings: section `model`; its `backbone` is not "off".
        seed: replaces `settings.seed` when given.
    """

    def __init__(self, settings: Model, seed: int | None = None) -> None:
        self.settings = settings
        self._generator = torch.Generator().manual_seed(settings.seed if seed is None else seed)
        self._random = np.random.default_rng(settings.seed if seed is None else seed)
        self.backbone = build_backbone(settings, self._generator)
        self.items = ItemVectors(settings.dim, settings.text_dim, self._generator)
        self.log = ReplayLog(settings.replay_groups, settings.max_len)
        parameters = [*self.backbone.parameters(), self.items.project]
        self._optimizer = torch.optim.AdamW(parameters, settings.learning_rate, BETAS, weight_decay=0.0)
        self._dropout = Dropout(settings.dropout, self._generator)
        self._seen: list[int] = []
        self._is_seen: NDArray[np.bool_] = np.zeros(0, bool)
        self._fresh: list[int] = []
        self._observed = 0
        self.steps = 0
        self._cache: tuple[Tensor, Float32] | None = None

    def observe(self, group: Group) -> None:
        """Remembers a group; rows whose weight is not above 0 undo something and are not read."""
        keep = (group.items >= 0) & (group.weight > 0)
        items, wanted = group.items[keep], group.positive[keep]
        self._observed += 1
        if not len(items):
            return
        self.items.grow(int(items.max()) + 1)
        self._mark_seen(items)
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
        windows.sort(key=lambda w: len(w.items))
        targets_T = torch.from_numpy(np.concatenate([w.targets for w in windows]))
        candidates = draw_candidates(targets_T, torch.tensor(self._seen), self._negatives(), self._generator)
        read = torch.from_numpy(np.concatenate([w.items for w in windows]))
        rows_U = distinct(candidates.rows_C, read)
        leaf_UD = self.items.leaf(rows_U)
        x_UD = self.items.compose(leaf_UD, rows_U)
        h_RD = self._predicting_rows(windows, x_UD, rows_U)
        y_CD = unit(x_UD.index_select(0, torch.searchsorted(rows_U, candidates.rows_C)))
        loss = sampled_softmax(
            h_RD @ y_CD.T / self.settings.temperature,
            candidates,
            *self._targets(windows, candidates.rows_C, targets_T),
            log_q=self.settings.log_q,
        )
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        assert leaf_UD.grad is not None
        self.items.step(rows_U, leaf_UD.grad, self.settings.learning_rate)
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
        """Windows of one step: the newest groups first, the rest replayed uniformly from the log."""
        size = self.settings.batch
        newest = self._fresh[-max(1, round(size * (1 - self.settings.replay_share))) :]
        self._fresh.clear()
        replayed: list[int] = []
        if self.log.end > self.log.start:
            drawn = self._random.integers(self.log.start, self.log.end, 3 * (size - len(newest)))
            replayed = [n for n in drawn.tolist() if self.log.has_past(n)][: size - len(newest)]
        windows = [self.log.window(n) for n in newest + replayed if self.log.has_past(n)]
        return [w for w in windows if len(w.targets)]

    def _predicting_rows(self, windows: list[Window], x_UD: Tensor, rows_U: Tensor) -> Tensor:
        """Outputs [R, D] of the rows that predict a group, in order of the windows."""
        outputs = []
        for at in range(0, len(windows), CHUNK):
            part = windows[at : at + CHUNK]
            items_BL, t_ms_BM = pad([w.items for w in part], [w.t_ms for w in part])
            B, L = items_BL.shape
            at_BL = torch.searchsorted(rows_U, items_BL).clamp_(max=len(rows_U) - 1)
            x_BLD = x_UD.index_select(0, at_BL.flatten()).view(B, L, -1)
            y_BLD = self.backbone(x_BLD, t_ms_BM, self._dropout)
            rows = np.concatenate([w.rows + b * L for b, w in enumerate(part)])
            outputs.append(y_BLD.flatten(0, 1).index_select(0, torch.from_numpy(rows)))
        return torch.cat(outputs)

    def _targets(self, windows: list[Window], rows_C: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and weight of each target [T]; the weights of a row sum to at most 1."""
        counts = np.concatenate([w.counts for w in windows])
        row_T = np.repeat(np.arange(len(counts)), counts)
        weight_T = np.where(np.concatenate([w.repeated for w in windows]), self.settings.repeat_weight, 1.0)
        total = np.bincount(row_T, weight_T, len(counts))
        weight_T = weight_T / np.maximum(total, 1e-9)[row_T]
        column_T = torch.searchsorted(rows_C, targets_T)
        return torch.from_numpy(row_T), column_T, torch.from_numpy(weight_T.astype(np.float32))

    def encode(self, histories: Sequence[History], now_ms: Sequence[int]) -> Float32:
        """Unit vectors [B, D] float32 of users at their request times (`encode_histories`)."""
        return encode_histories(self.backbone, self._vectors(), histories, now_ms)

    def item_matrix(self) -> Float32:
        """Unit vectors [N, D] float32 of all items of the table."""
        self._vectors()
        assert self._cache is not None
        return self._cache[1]

    def scores(self, history: History, now_ms: int) -> Float32:
        """Scores [N] float32 of all items of the table for one user; higher is better."""
        out: Float32 = self.item_matrix() @ self.encode([history], [now_ms])[0]
        return out

    def _vectors(self) -> Tensor:
        if self._cache is None:
            vectors = self.items.vectors()
            self._cache = (vectors, unit(vectors).numpy())
        return self._cache[0]

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, replay log and random state; `torch.save` can write it."""
        return {
            "backbone": {k: v.clone() for k, v in self.backbone.state_dict().items()},
            "items": self.items.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "log": self.log.state_dict(),
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
        self._generator.set_state(state["generator"])
        self._random.bit_generator.state = state["random"]
        self._seen, self._fresh = list(state["seen"]), list(state["fresh"])
        self._is_seen = np.zeros(len(self.items), bool)
        self._is_seen[self._seen] = True
        self._observed, self.steps = state["observed"], state["steps"]
        self._cache = None

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """What serving needs: item vectors [N, D] and the backbone's weights, float32 copies."""
        weights = {f"backbone.{k}": v.numpy().copy() for k, v in self.backbone.state_dict().items()}
        return {"vectors": self._vectors().numpy().copy(), "matrix": self.item_matrix().copy(), **weights}


class SequenceScorer:
    """Read-only view of a published learner: encodes and scores, never learns.

    Args:
        settings: the settings of the learner that wrote the arrays.
        arrays: what `SequenceLearner.arrays` returned; the item arrays are used in place and may be memory-mapped.
    """

    def __init__(self, settings: Model, arrays: dict[str, NDArray[np.float32]]) -> None:
        self.backbone = build_backbone(settings, torch.Generator())
        prefix = "backbone."
        weights = {k.removeprefix(prefix): torch.tensor(v) for k, v in arrays.items() if k.startswith(prefix)}
        self.backbone.load_state_dict(weights)
        self.backbone.requires_grad_(False)
        self._vectors = arrays["vectors"]
        self._matrix = arrays["matrix"]

    @classmethod
    def from_arrays(cls, settings: Model, arrays: dict[str, NDArray[np.float32]]) -> SequenceScorer:
        """Opens a snapshot's arrays."""
        return cls(settings, arrays)

    def encode(self, histories: Sequence[History], now_ms: Sequence[int]) -> Float32:
        """As `SequenceLearner.encode`; items that the snapshot does not hold are skipped."""
        used: list[History] = []
        for items, t_ms in histories:
            known = (items >= 0) & (items < len(self._vectors))
            keep = np.flatnonzero(known)[-self.backbone.max_len :]
            used.append((items[keep], t_ms[keep]))
        rows = np.unique(np.concatenate([np.asarray(items, np.int64) for items, _ in used] or [np.zeros(0, np.int64)]))
        local = [(np.searchsorted(rows, items), t_ms) for items, t_ms in used]
        vectors = torch.from_numpy(self._vectors[rows].copy())
        return encode_histories(self.backbone, vectors, local, now_ms)

    def item_matrix(self) -> Float32:
        """Unit vectors [N, D] float32 of all items of the snapshot."""
        return self._matrix

    def scores(self, history: History, now_ms: int) -> Float32:
        """As `SequenceLearner.scores`."""
        out: Float32 = self._matrix @ self.encode([history], [now_ms])[0]
        return out
