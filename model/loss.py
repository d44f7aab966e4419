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

# R rows that predict, T targets of all rows, C candidate items of the batch, S snapshots of the prior, D width

ROWS_AT_ONCE = 256
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
    def drawn(self) -> Tensor | slice:
        """Index of the shared negatives among the columns; one that copies nothing where they are all."""
        return self.negative_C if self.log_q else slice(None)


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

    Logits are made of the negatives alone, some rows at a time, and never kept; prior and shift are columns of the
    product that makes them. A row's targets that are no negatives join its sum one by one.
    """

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, c_CD: Tensor, coefficient: Tensor, step: SoftmaxStep) -> Tensor:
        """The loss; `coefficient` is that of the step's prior."""
        R, D = y_RD.shape
        left_RK, right_SK, positive_T, largest = _factors(y_RD, c_CD, coefficient, step)
        place_T, alone_T = _places_of_targets(step)
        share_T = step.weight_T / step.weight_T.sum().clamp(min=1e-9)
        share_R = torch.zeros(R).index_add_(0, step.row_T, share_T)
        summed_SD1 = torch.cat((right_SK[:, :D], torch.ones(len(right_SK), 1)), 1)
        grad_y, log_sum_R, grad_right = torch.empty_like(y_RD), torch.empty(R), torch.zeros_like(right_SK)
        pull_T = -share_T
        ends = torch.searchsorted(step.row_T, torch.arange(0, R + ROWS_AT_ONCE, ROWS_AT_ONCE)).tolist()
        for number, at in enumerate(range(0, R, ROWS_AT_ONCE)):
            rows, targets = slice(at, at + ROWS_AT_ONCE), slice(ends[number], ends[number + 1])
            row_T, own_T, alone = step.row_T[targets] - at, positive_T[targets], alone_T[targets]
            z = left_RK[rows] @ right_SK.T
            if step.candidates.log_q and step.log_q:  # a row's own target is not a draw
                drawn = place_T[targets] >= 0
                z[row_T[drawn], place_T[targets][drawn]] = own_T[drawn]
            top = torch.zeros(len(z))
            if largest > _SAFE:
                top = z.amax(1).scatter_reduce_(0, row_T, own_T, "amax")
                z.sub_(top[:, None])
            sums = z.exp_() @ summed_SD1
            own_T = (own_T - top[row_T]).exp_() * alone
            sum_R = sums[:, D].index_add(0, row_T, own_T)
            log_sum_R[rows] = sum_R.log() + top
            scale_R = share_R[rows] / sum_R
            grad_y[rows] = sums[:, :D] * scale_R[:, None]
            grad_right.addmm_(z.T, left_RK[rows] * scale_R[:, None])
            pull_T[targets] += own_T * scale_R[row_T]
        grad_y.index_add_(0, step.row_T, pull_T[:, None] * c_CD.index_select(0, step.column_T))
        grad_c = torch.zeros_like(c_CD)
        grad_c[step.candidates.drawn] = grad_right[:, :D] * step.temperature
        grad_c.index_add_(0, step.column_T, pull_T[:, None] * y_RD.index_select(0, step.row_T))
        of_prior = _of_coefficient(grad_right[:, D:], pull_T, step)
        ctx.grads = grad_y / step.temperature, grad_c / step.temperature, of_prior
        loss: Tensor = ((log_sum_R.index_select(0, step.row_T) - positive_T) * share_T).sum()
        return loss

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


def softmax_loss(y_RD: Tensor, c_CD: Tensor, step: SoftmaxStep) -> Tensor:
    """The loss of unit vectors of rows [R, D] and candidates [C, D]."""
    coefficient = step.prior.coefficient if step.prior else torch.zeros(1)
    loss: Tensor = SampledSoftmax.apply(y_RD, c_CD, coefficient, step)  # type: ignore[no-untyped-call]
    return loss


def _factors(
    y_RD: Tensor, c_CD: Tensor, coefficient: Tensor, step: SoftmaxStep
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Factors [R, K] and [S, K] of the negatives' logits, the targets' own logits [T], and a bound of their size."""
    drawn, shift = step.candidates.drawn, -step.candidates.log_q if step.log_q else 0.0
    left, right = [y_RD / step.temperature], [c_CD[drawn]]
    positive_T = (left[0].index_select(0, step.row_T) * c_CD.index_select(0, step.column_T)).sum(1)
    largest = 1.0 / step.temperature + abs(shift)
    if step.prior is not None:
        shares_SC, place_R = step.prior.shares_SC * coefficient, step.prior.place_R
        left.append(torch.nn.functional.one_hot(place_R, len(shares_SC)).float())
        right.append(shares_SC[:, drawn].T)
        positive_T = positive_T + shares_SC[place_R[step.row_T], step.column_T]
        largest += float(shares_SC.abs().max())
    if shift:
        left.append(torch.ones(len(y_RD), 1))
        right.append(torch.full((len(right[0]), 1), shift))
    return torch.cat(left, 1), torch.cat(right, 1), positive_T, largest


def _places_of_targets(step: SoftmaxStep) -> tuple[Tensor, Tensor]:
    """Places [T] of the targets among the negatives, -1 = none; and [T] bool, those that join their row's sum."""
    drawn = step.candidates.negative_C
    place_T = torch.where(drawn, drawn.cumsum(0) - 1, -1).index_select(0, step.column_T)
    if bool(drawn.all()):
        return place_T, torch.zeros(len(place_T), dtype=torch.bool)
    _, first = np.unique((step.row_T * len(drawn) + step.column_T).numpy(), return_index=True)
    once_T = torch.zeros(len(place_T), dtype=torch.bool)
    once_T[torch.from_numpy(first)] = True
    return place_T, once_T & (place_T < 0)


def _of_coefficient(grad_right_SK: Tensor, pull_T: Tensor, step: SoftmaxStep) -> Tensor | None:
    """The gradient [1] of the prior's coefficient."""
    if step.prior is None:
        return None
    shares_SC, drawn = step.prior.shares_SC, step.candidates.drawn
    all_of_them = (grad_right_SK[:, : len(shares_SC)].T * shares_SC[:, drawn]).sum()
    return (all_of_them + (pull_T * shares_SC[step.prior.place_R[step.row_T], step.column_T]).sum()).reshape(1)
