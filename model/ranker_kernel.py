"""The passes of the ranker's network between its products, compiled: hidden units, listwise losses, scores, Adam."""

from __future__ import annotations

import numpy as np

from driftline.graph.arrays import Bool, Float32, Int64
from driftline.model.compiled import compiled

# N rows of all examples of a step, M members, G hidden units of all members and skips, L = 3 heads

BETAS, EPSILON = (0.9, 0.999), 1e-8
HEADS = 3


@compiled(
    "float32[:, ::1](float32[:, ::1], Array(float32, 1, 'C', readonly=True), Array(float32, 2, 'C', readonly=True))"
)
def head_scores(hidden: Float32, b1: Float32, w2: Float32) -> Float32:
    """Scores [3, N] of hidden units before their bias and, in the last three columns, the skips: [N, G + 3]."""
    units = len(b1)
    out = np.empty((len(w2), len(hidden)), np.float32)
    for r in range(len(hidden)):
        for g in range(units):
            hidden[r, g] = max(hidden[r, g] + b1[g], np.float32(0))
        for head in range(len(w2)):
            total = np.float32(0)
            for g in range(units):
                total += hidden[r, g] * w2[head, g]
            out[head, r] = total + hidden[r, units + head]
    return out


@compiled("void(float32[:, ::1], Array(float32, 1, 'C', readonly=True))")
def rectify(wide_NG: Float32, b1: Float32) -> None:
    """Adds their bias to the hidden units, which stand first, and cuts them at 0, in place."""
    for r in range(len(wide_NG)):
        for g in range(len(b1)):
            wide_NG[r, g] = max(wide_NG[r, g] + b1[g], np.float32(0))


@compiled("void(float32[:, ::1], float32[:, ::1], float32[::1])")
def through_rectified(grad_NG: Float32, wide_NG: Float32, of_bias: Float32) -> None:
    """The gradient of hidden units becomes that of what was cut at 0, in place; its sum is that of the bias."""
    of_bias[:] = 0
    for r in range(len(grad_NG)):
        for g in range(len(of_bias)):
            grad = grad_NG[r, g] if wide_NG[r, g] > 0 else np.float32(0)
            grad_NG[r, g] = grad
            of_bias[g] += grad


@compiled("float64(float32[:, :, ::1], float32[::1], boolean[::1], boolean[::1], int64[::1])")
def through_lists(z_NML: Float32, log_weight_N: Float32, positive_N: Bool, own_N: Bool, ends: Int64) -> float:
    """The sum over examples and members of the listwise losses; logits become the gradient of their mean in place.

    Args:
        z_NML: logits; log_weight_N: log of the inverse chance of being drawn.
        positive_N, own_N: as in `Example`; the heads rank those that are not own, those that are, and all.
        ends: where each example ends.
    """
    loss, start, examples = 0.0, 0, np.float32(len(ends))
    for end in ends:
        for head in range(HEADS):
            wanted = 0
            for r in range(start, end):
                wanted += positive_N[r] and (head == 2 or own_N[r] == (head == 1))
            if wanted == 0:
                z_NML[start:end, :, head] = 0
                continue
            target = np.float32(1) / np.sqrt(np.float32(wanted))
            weight = np.float32(wanted) * target
            for m in range(z_NML.shape[1]):
                most, total, of_targets = np.float32(-np.inf), np.float32(0), np.float32(0)
                for r in range(start, end):
                    if head == 2 or own_N[r] == (head == 1):
                        z_NML[r, m, head] += log_weight_N[r]
                        most = max(most, z_NML[r, m, head])
                for r in range(start, end):
                    if head == 2 or own_N[r] == (head == 1):
                        z = z_NML[r, m, head] - most
                        of_targets += z * target if positive_N[r] else np.float32(0)
                        z_NML[r, m, head] = np.exp(z)
                        total += z_NML[r, m, head]
                loss += weight * np.log(total) - of_targets
                for r in range(start, end):
                    if head == 2 or own_N[r] == (head == 1):
                        grad = z_NML[r, m, head] / total * weight - (target if positive_N[r] else np.float32(0))
                        z_NML[r, m, head] = grad / examples
                    else:
                        z_NML[r, m, head] = 0
        start = end
    return loss


_F = "float32[::1]"


@compiled(f"void({_F}, {_F}, {_F}, {_F}, {_F}, float32, float32)")
def adam(
    gradient: Float32,
    first: Float32,
    second: Float32,
    theta: Float32,
    mean: Float32,
    rate: np.float32,
    move: np.float32,
) -> None:
    """One step of Adam, moments and parameters in place; their running mean moves towards them by a share."""
    of_first, of_second = np.float32(1 - BETAS[0]), np.float32(1 - BETAS[1])
    for p in range(len(theta)):
        g = gradient[p]
        first[p] += of_first * (g - first[p])
        second[p] += of_second * (g * g - second[p])
        theta[p] -= rate * first[p] / (np.sqrt(second[p]) + np.float32(EPSILON))
        mean[p] += move * (theta[p] - mean[p])
