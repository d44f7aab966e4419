"""Sampled softmax over items that were seen so far, with negatives shared by the whole batch.

A row may have several positives: the items of one basket, in no order. Each is told apart from the negatives
and the row's other positives by one softmax, and a row counts once, however large its basket.

Source: negatives and temperature as in arXiv 2402.17152; the log-q correction as in Bengio and Senecal,
"Adaptive importance sampling", 2008. Departure: the negatives are shared by the batch, which makes the logits
one matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftline.graph.arrays import Bool, Float32, Int64
from driftline.model.step_kernel import exponentials, highest, join_own, own_logits, pull

# R rows that predict, T targets of all rows, C candidate items of the batch, S snapshots of the prior, D width

ROWS_AT_ONCE = 64
"""Rows whose logits are held at one time."""
MANY = 64
"""Seen items for each negative, from which on drawing again is cheaper than a shuffle."""
_SAFE = 60.0
"""Logits that are no larger, either way, are summed as they are: float32 holds their exponentials and many of them."""


def distinct(*rows: Tensor) -> Tensor:
    """The distinct values of int64 tensors, ascending."""
    return torch.from_numpy(np.unique(torch.cat(rows).numpy()))


@dataclass(frozen=True, slots=True)
class Prior:
    """What is added to the logits of a step, before its coefficient.

    Attributes:
        shares_SC: [S, C] float32 log shares of the candidates in S snapshots.
        place_R: [R] int64 which of them each row sees.
        coefficient: [1] parameter.
    """

    shares_SC: Tensor
    place_R: Tensor
    coefficient: Tensor


@dataclass(frozen=True, slots=True)
class Candidates:
    """The items of one step: shared negatives and everybody's targets, each once.

    Attributes:
        rows_C: [C] int64 rows of the item table, ascending.
        negative_C: [C] bool, drawn as a shared negative; the others are only their own row's positives.
        log_q: natural logarithm of the chance of an item to be drawn, 0 = all are.
    """

    rows_C: Tensor
    negative_C: Tensor
    log_q: float

    @property
    def drawn(self) -> Bool | slice:
        """Index of the shared negatives among the columns; one that copies nothing where they are all."""
        return self.negative_C.numpy() if self.log_q else slice(None)


def draw_candidates(targets_T: Tensor, seen: Tensor, negatives: int, generator: torch.Generator) -> Candidates:
    """Draws shared negatives, uniformly and without replacement.

    Args:
        targets_T: [T] int64 item rows.
        seen: [n] int64 rows of the items seen so far, distinct; the only ones that may be negatives.
        negatives: how many to draw; 0, or at least n, takes all of them.
        generator: source of the draw.
    """
    if negatives == 0 or negatives >= len(seen):
        rows_C = seen.sort().values
        return Candidates(rows_C, torch.ones(len(rows_C), dtype=torch.bool), 0.0)
    drawn = seen[_places(len(seen), negatives, generator)]
    rows_C = distinct(targets_T, drawn)
    negative_C = torch.zeros(len(rows_C), dtype=torch.bool)
    negative_C[torch.searchsorted(rows_C, drawn)] = True
    return Candidates(rows_C, negative_C, math.log(len(drawn) / len(seen)))


def _places(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Distinct places below n, `count` of them: of a shuffle of all, or of draws without those that came before."""
    if n <= MANY * count:
        return torch.randperm(n, generator=generator)[:count]
    drawn, first = np.unique(torch.randint(n, (2 * count,), generator=generator).numpy(), return_index=True)
    return torch.from_numpy(drawn[np.argsort(first)[:count]])


def sampled_softmax(
    logits_RC: Tensor, candidates: Candidates, row_T: Tensor, column_T: Tensor, weight_T: Tensor, log_q: bool
) -> Tensor:
    """Mean over rows of the weighted negative log-likelihood of the targets.

    Args:
        logits_RC: [R, C] float32, already divided by the temperature.
        candidates: what the columns are.
        row_T: [T] int64 row of each target.
        column_T: [T] int64 column of each target.
        weight_T: [T] float32; targets of one row usually sum to 1.
        log_q: raise sampled negatives by -log q, so that they stand for all seen items.

    Returns:
        A scalar.
    """
    positive_T = logits_RC[row_T, column_T]
    if not bool(candidates.negative_C.all()):
        shift_C = torch.where(candidates.negative_C, -candidates.log_q if log_q else 0.0, -torch.inf)
        logits_RC = (logits_RC + shift_C).index_put((row_T, column_T), positive_T)
    nll_T = logits_RC.logsumexp(1)[row_T] - positive_T
    return (nll_T * weight_T).sum() / weight_T.sum().clamp(min=1e-9)


class SampledSoftmax(torch.autograd.Function):
    """`sampled_softmax` of y c^T / temperature + prior, gradients computed in the same pass over the logits.

    Logits are made of the negatives alone, a tile of rows at a time that the processor's cache holds, and never kept.
    A row's targets that are no negatives join its sum one by one.
    """

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, c_CD: Tensor, coefficient: Tensor, step: SoftmaxStep) -> Tensor:
        """The loss; `coefficient` is that of the step's prior."""
        drawn, shift = step.candidates.drawn, np.float32(-step.candidates.log_q if step.log_q else 0.0)
        left_RD, c = (y_RD / step.temperature).numpy(), c_CD.contiguous().numpy()
        row_T, column_T = step.row_T.numpy(), step.column_T.numpy()
        shares_PC, place_R = step.shares(len(left_RD))
        prior_PC = shares_PC * coefficient.numpy()
        own_T = own_logits(left_RD, c, prior_PC, place_R, row_T, column_T)
        c_SD, shares_PS, added_PS = c[drawn], *(np.ascontiguousarray(z[:, drawn]) for z in (shares_PC, prior_PC))
        added_PS = added_PS + shift
        right_DS, (place_T, alone_T) = np.ascontiguousarray(c_SD.T), _places_of_targets(step)
        largest = 1.0 / step.temperature + abs(float(shift)) + float(np.abs(prior_PC).max())
        share_T = (step.weight_T / step.weight_T.sum().clamp(min=1e-9)).numpy()
        share_R = np.bincount(row_T, share_T, len(left_RD)).astype(np.float32)
        grad_y, grad_c, pull_T = np.empty_like(left_RD), torch.zeros(c_SD.shape), -share_T
        log_sum_R, of_coefficient = np.empty(len(left_RD), np.float32), 0.0
        most = min(ROWS_AT_ONCE, len(left_RD))
        tile, sum_r, weighted_r = np.empty((most, len(c_SD)), np.float32), *np.empty((2, most), np.float32)
        starts = np.arange(0, len(left_RD) + ROWS_AT_ONCE, ROWS_AT_ONCE)
        ends = np.searchsorted(row_T, starts).tolist()
        for number, at in enumerate(starts[:-1].tolist()):
            rows, targets = slice(at, at + ROWS_AT_ONCE), slice(ends[number], ends[number + 1])
            row_t, own_t, place_r = row_T[targets] - at, own_T[targets], place_R[rows]
            z = np.matmul(left_RD[rows], right_DS, out=tile[: len(place_r)])
            if shift:  # a row's own target is not a draw
                drawn_t = np.flatnonzero(place_T[targets] >= 0)
                at_t = row_t[drawn_t], place_T[targets][drawn_t]
                z[at_t] = own_t[drawn_t] - added_PS[place_r[at_t[0]], at_t[1]]
            top_r = np.zeros(len(z), np.float32)
            if largest > _SAFE:
                highest(z, added_PS, place_r, own_t, row_t, top_r)
            exponentials(z, added_PS, shares_PS, place_r, top_r, sum_r, weighted_r)
            alone_t = np.empty(len(row_t), np.float32)
            join_own(own_t, row_t, alone_T[targets], top_r, sum_r, alone_t)
            log_sum_R[rows] = np.log(sum_r[: len(z)]) + top_r
            scale_r = share_R[rows] / sum_r[: len(z)]
            np.matmul(z, c_SD, out=grad_y[rows])
            grad_y[rows] *= scale_r[:, None]
            grad_c.addmm_(torch.from_numpy(z).T, torch.from_numpy(left_RD[rows] * scale_r[:, None]))
            of_coefficient += float(scale_r @ weighted_r[: len(z)])
            pull_T[targets] += alone_t * scale_r[row_t]
        grads_c = np.zeros_like(c)
        grads_c[drawn] = grad_c.numpy()
        pull(pull_T, row_T, column_T, left_RD, c, grad_y, grads_c)
        of_coefficient += float(pull_T @ shares_PC[place_R[row_T], column_T])
        of_prior = None if step.prior is None else torch.tensor([of_coefficient])
        ctx.grads = torch.from_numpy(grad_y) / step.temperature, torch.from_numpy(grads_c), of_prior
        return torch.tensor(float((log_sum_R[row_T] - own_T) @ share_T))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, c and the coefficient."""
        return *(g if g is None else g * grad for g in ctx.grads), None


@dataclass(frozen=True, slots=True)
class SoftmaxStep:
    """What a step asks of its logits; as in `sampled_softmax`, targets in the order of their rows."""

    candidates: Candidates
    row_T: Tensor
    column_T: Tensor
    weight_T: Tensor
    temperature: float
    log_q: bool
    prior: Prior | None

    def shares(self, rows: int) -> tuple[Float32, Int64]:
        """Log shares [P, C] and the snapshot [R] of each of so many rows; zeros without a prior."""
        if self.prior is not None:
            return self.prior.shares_SC.numpy(), self.prior.place_R.numpy()
        return np.zeros((1, len(self.candidates.rows_C)), np.float32), np.zeros(rows, np.int64)


def softmax_loss(y_RD: Tensor, c_CD: Tensor, step: SoftmaxStep) -> Tensor:
    """The loss of unit vectors of rows [R, D] and candidates [C, D]."""
    coefficient = step.prior.coefficient if step.prior else torch.zeros(1)
    loss: Tensor = SampledSoftmax.apply(y_RD, c_CD, coefficient, step)  # type: ignore[no-untyped-call]
    return loss


def _places_of_targets(step: SoftmaxStep) -> tuple[Int64, Bool]:
    """Places [T] of the targets among the negatives, -1 = none; and [T] bool, those that join their row's sum."""
    drawn, column_T = step.candidates.negative_C.numpy(), step.column_T.numpy()
    if drawn.all():
        return column_T, np.zeros(len(column_T), np.bool_)
    place_T = np.where(drawn, drawn.cumsum() - 1, -1)[column_T]
    _, first = np.unique(step.row_T.numpy() * len(drawn) + column_T, return_index=True)
    once_T = np.zeros(len(place_T), np.bool_)
    once_T[first] = True
    return place_T, once_T & (place_T < 0)
