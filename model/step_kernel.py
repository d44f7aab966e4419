"""What lies between the products in a training step of HSTU: passes of its layers and of the softmax, compiled.

A pass reads what it needs once: a tile of logits gets prior and shift, its exponentials and the sums of its rows; what
an activation's derivative needs is kept while the activation is at hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Float32, Int64
from driftline.model.compiled import compiled, inlined

# Layers: P rows of all windows, A rows that ask (a of one window), L rows of a window, D width
# Softmax: R rows that predict (r of a tile), T targets, S negatives, C candidates, P snapshots of the prior, D width

Bool = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
_NORM_EPSILON = np.float32(1e-6)
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504088896341), np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST = np.float32(-87.0)
"""exp() of less is taken for that of it: 1e-38 beside a sum of at least 1e-26."""
_F, _FF, _L, _B = "float32[::1]", "float32[:, ::1]", "int64[::1]", "boolean[::1]"


@inlined
def _exp(x: np.float32) -> np.float32:
    """exp(x) of x up to 88 within two units of the last place, without a branch: eight or sixteen at a time.

    Source: Cephes (Moshier), expf: x = n ln 2 + f, exp(f) by a polynomial, 2^n by the bits of its exponent.
    """
    x = max(x, _LEAST)
    at = np.int32(x * _LOG2_E + np.float32(127.5))
    n = np.float32(at - 127)
    f = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * f + np.float32(1.3981999507e-3)
    p = p * f + np.float32(8.3334519073e-3)
    p = p * f + np.float32(4.1665795894e-2)
    p = p * f + np.float32(1.6666665459e-1)
    p = p * f + np.float32(5.0000001201e-1)
    return np.float32((p * f * f + f + np.float32(1)) * np.int32(at << 23).view(np.float32))


# -- layers --------------------------------------------------------------------------------------------------------


@inlined
def _norm_of(x: Float32) -> tuple[np.float32, np.float32]:
    """Mean and 1 / standard deviation of a row."""
    mean, square = np.float32(0), np.float32(0)
    for d in range(len(x)):
        mean += x[d]
    mean = np.float32(mean / np.float32(len(x)))
    for d in range(len(x)):
        square += (x[d] - mean) * (x[d] - mean)
    return mean, np.float32(1) / np.sqrt(square / np.float32(len(x)) + _NORM_EPSILON)


@compiled(f"void({_FF}, {_FF}, {_F})")
def normalised(x_PD: Float32, out_PD: Float32, rate_P: Float32) -> None:
    """Layer norm of rows without weights, and what each was multiplied with."""
    for p in range(len(x_PD)):
        mean, rate_P[p] = _norm_of(x_PD[p])
        for d in range(x_PD.shape[1]):
            out_PD[p, d] = (x_PD[p, d] - mean) * rate_P[p]


@compiled(f"void({_FF}, {_FF}, {_F}, {_FF}, {_L})")
def through_norm(grad_PD: Float32, normal_PD: Float32, rate_P: Float32, more_AD: Float32, rows_A: Int64) -> None:
    """Gradients of normalised rows become those of the rows in place, `more` added at rows [A]."""
    D = grad_PD.shape[1]
    for p in range(len(grad_PD)):
        grad, normal, total, product = grad_PD[p], normal_PD[p], np.float32(0), np.float32(0)
        for d in range(D):
            total += grad[d]
            product += grad[d] * normal[d]
        total, product = total / np.float32(D), product / np.float32(D)
        for d in range(D):
            grad[d] = (grad[d] - total - normal[d] * product) * rate_P[p]
    for a in range(len(rows_A)):
        for d in range(D):
            grad_PD[rows_A[a], d] += more_AD[a, d]


@compiled(f"void({_FF}, {_FF})")
def silu(x: Float32, slope: Float32) -> None:
    """x * sigmoid(x) in place; its derivatives go to `slope`."""
    for p in range(len(x)):
        for d in range(x.shape[1]):
            gate = np.float32(1) / (np.float32(1) + _exp(min(-x[p, d], -_LEAST)))
            slope[p, d] = gate * (np.float32(1) + x[p, d] * (np.float32(1) - gate))
            x[p, d] *= gate


@compiled(f"void({_FF}, {_FF}, {_L}, uint8[::1], {_F}, {_F}, float32)")
def weigh(
    scores_aL: Float32, slopes_aL: Float32, places: Int64, buckets: Bytes, position: Float32, time: Float32,
    scale: np.float32,
) -> None:  # fmt: skip
    """Scores become weights in place; their derivatives go to `slopes`. Buckets [L * L] are those of all rows."""
    rows = scores_aL.shape[1]
    for a in range(len(places)):
        i, scores, slopes = places[a], scores_aL[a], slopes_aL[a]
        at = i * rows
        for j in range(i + 1):
            scores[j] += position[i - j] + time[buckets[at + j]]
        for j in range(i + 1):
            score = scores[j]
            gate = np.float32(1) / (np.float32(1) + _exp(min(-score, -_LEAST)))
            scores[j] = score * gate * scale
            slopes[j] = gate * (np.float32(1) + score * (np.float32(1) - gate)) * scale
        scores[i + 1 :] = 0
        slopes[i + 1 :] = 0


@compiled(f"void({_FF}, {_FF}, {_L}, uint8[::1], {_F}, {_F})")
def through_weights(
    grad_aL: Float32, slopes_aL: Float32, places: Int64, buckets: Bytes, grad_position: Float32, grad_time: Float32
) -> None:
    """Gradients of weights become those of scores in place; the bias takes its part."""
    rows = grad_aL.shape[1]
    for a in range(len(places)):
        i, grad, slopes = places[a], grad_aL[a], slopes_aL[a]
        at = i * rows
        for j in range(rows):
            grad[j] *= slopes[j]
        for j in range(i + 1):
            grad_position[i - j] += grad[j]
        for j in range(i + 1):
            grad_time[buckets[at + j]] += grad[j]


@compiled(f"{_FF}({_FF}, {_FF}, {_FF}, {_L}, float32)")
def gated(uq_A2D: Float32, mixed_AD: Float32, lots_PD: Float32, rows_A: Int64, rate: np.float32) -> Float32:
    """u * LN(mixed), of which dropout leaves out what has a lot [P, D] below the rate; no lots = none."""
    out, kept = np.empty_like(mixed_AD), np.float32(1) / (np.float32(1) - rate)
    for a in range(len(mixed_AD)):
        mean, scale = _norm_of(mixed_AD[a])
        if len(lots_PD):
            lots = lots_PD[rows_A[a]]
            for d in range(mixed_AD.shape[1]):
                value = uq_A2D[a, d] * (mixed_AD[a, d] - mean) * scale * kept
                out[a, d] = value if lots[d] >= rate else np.float32(0)
        else:
            for d in range(mixed_AD.shape[1]):
                out[a, d] = uq_A2D[a, d] * (mixed_AD[a, d] - mean) * scale
    return out


@compiled(f"void({_FF}, {_FF}, {_FF}, {_FF}, {_FF}, {_L}, float32)")
def through_gate(
    grad_AD: Float32, uq_A2D: Float32, mixed_AD: Float32, grad_uq_A2D: Float32, lots_PD: Float32, rows_A: Int64,
    rate: np.float32,
) -> None:  # fmt: skip
    """The gradient of u goes to its place, that of `mixed` takes the place of `mixed`; `grad` is used up."""
    D, kept = mixed_AD.shape[1], np.float32(1) / (np.float32(1) - rate)
    for a in range(len(mixed_AD)):
        grad, mixed, u, grad_u = grad_AD[a], mixed_AD[a], uq_A2D[a], grad_uq_A2D[a]
        if len(lots_PD):
            lots = lots_PD[rows_A[a]]
            for d in range(D):
                grad[d] = grad[d] * kept if lots[d] >= rate else np.float32(0)
        mean, scale = _norm_of(mixed)
        total, product = np.float32(0), np.float32(0)
        for d in range(D):
            normal = (mixed[d] - mean) * scale
            grad_u[d] = grad[d] * normal
            total += grad[d] * u[d]
            product += grad[d] * u[d] * normal
        total, product = total / np.float32(D), product / np.float32(D)
        for d in range(D):
            normal = (mixed[d] - mean) * scale
            mixed[d] = (grad[d] * u[d] - total - normal * product) * scale


# -- softmax -------------------------------------------------------------------------------------------------------


@compiled(f"{_F}({_FF}, {_FF}, {_FF}, {_L}, {_L}, {_L})")
def own_logits(
    left_RD: Float32, c_CD: Float32, prior_PC: Float32, place_R: Int64, row_T: Int64, column_T: Int64
) -> Any:
    """Logits [T] of targets."""
    out = np.empty(len(row_T), np.float32)
    for t in range(len(row_T)):
        left, right, total = left_RD[row_T[t]], c_CD[column_T[t]], np.float32(0)
        for d in range(len(left)):
            total += left[d] * right[d]
        out[t] = total + prior_PC[place_R[row_T[t]], column_T[t]]
    return out


@compiled(f"void({_FF}, {_FF}, {_L}, {_F}, {_L}, {_F})")
def highest(z_rS: Float32, added_PS: Float32, place_r: Int64, own_t: Float32, row_t: Int64, top_r: Float32) -> None:
    """Fills `top` with the largest logit of each row, its targets' included."""
    for r in range(len(z_rS)):
        added, most = added_PS[place_r[r]], np.float32(-np.inf)
        for s in range(z_rS.shape[1]):
            most = max(most, z_rS[r, s] + added[s])
        top_r[r] = most
    for t in range(len(row_t)):
        top_r[row_t[t]] = max(top_r[row_t[t]], own_t[t])


@compiled(f"void({_FF}, {_FF}, {_FF}, {_L}, {_F}, {_F}, {_F})")
def exponentials(
    z_rS: Float32, added_PS: Float32, shares_PS: Float32, place_r: Int64, top_r: Float32, sum_r: Float32,
    of_shares_r: Float32,
) -> None:  # fmt: skip
    """Products become exp(z + added - top) in place; `sum` and `of_shares` take each row's sums, bare and by share."""
    for r in range(len(z_rS)):
        z, added, shares, top = z_rS[r], added_PS[place_r[r]], shares_PS[place_r[r]], top_r[r]
        total, weighted = np.float32(0), np.float32(0)
        for s in range(len(z)):
            e = _exp(z[s] + added[s] - top)
            z[s] = e
            total += e
            weighted += e * shares[s]
        sum_r[r], of_shares_r[r] = total, weighted


@compiled(f"void({_F}, {_L}, {_B}, {_F}, {_F}, {_F})")
def join_own(own_t: Float32, row_t: Int64, alone_t: Bool, top_r: Float32, sum_r: Float32, out_t: Float32) -> None:
    """Targets that are no negatives join the sums of their rows: exp(own - top) of those, 0 of the others, to `out`."""
    for t in range(len(row_t)):
        out_t[t] = _exp(own_t[t] - top_r[row_t[t]]) if alone_t[t] else np.float32(0)
        sum_r[row_t[t]] += out_t[t]


@compiled(f"void({_F}, {_L}, {_L}, {_FF}, {_FF}, {_FF}, {_FF})")
def pull(
    pull_T: Float32, row_T: Int64, column_T: Int64, left_RD: Float32, c_CD: Float32, grad_RD: Float32, grad_CD: Float32
) -> None:
    """Adds what each target pulls at its row, pull * c, and its row at the target, pull * left."""
    for t in range(len(row_T)):
        row, column, weight = row_T[t], column_T[t], pull_T[t]
        for d in range(left_RD.shape[1]):
            grad_RD[row, d] += weight * c_CD[column, d]
            grad_CD[column, d] += weight * left_RD[row, d]
