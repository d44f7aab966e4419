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

import numpy as np
import torch
from torch import Tensor

# R rows that predict, T targets of all rows, C candidate items of the batch, S shared negatives, D width


def distinct(*rows: Tensor) -> Tensor:
    """The distinct values of int64 tensors, ascending."""
    return torch.from_numpy(np.unique(torch.cat(rows).numpy()))


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
    drawn = seen[torch.randperm(len(seen), generator=generator)[:negatives]]
    rows_C = distinct(targets_T, drawn)
    negative_C = torch.zeros(len(rows_C), dtype=torch.bool)
    negative_C[torch.searchsorted(rows_C, drawn)] = True
    return Candidates(rows_C, negative_C, math.log(negatives / len(seen)))


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
