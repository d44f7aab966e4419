"""Running statistics that bring every feature to mean 0 and deviation 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from driftline.graph.compiled import compiled as exact
from driftline.model.compiled import compiled

if TYPE_CHECKING:
    from driftline.graph.arrays import Arrays, Float32

CLIP = np.float32(5)
Float64 = NDArray[np.float64]


class Standardiser:
    """Running mean and deviation of each column, over about the last `window` learnt groups."""

    def __init__(self, present: NDArray[np.bool_], window: int = 2000) -> None:
        self.present, self.window = present, window
        self.weight = np.zeros(len(present))
        self.mean = np.zeros(len(present))
        self.square = np.ones(len(present))

    def apply(self, raw: Float32) -> Float32:
        """Standardised and clipped rows [c, f] of raw columns [f, c]; in memory they stay columns."""
        deviation = np.sqrt(np.maximum(self.square - self.mean**2, 1e-8)).astype(np.float32)
        return _standardised(raw, self.mean.astype(np.float32), deviation, self.present).T

    def update(self, raw: Float32, rows: NDArray[np.bool_], unasked: NDArray[np.bool_] | None = None) -> None:
        """Take in the raw columns [f, c] of one request, of the candidates [c] bool that count.

        Args:
            raw, rows: these.
            unasked: [f] bool, columns that nobody filled; None = none.
        """
        total, square, held = _sums(raw, rows)
        count = np.where(self.present, held, np.float64(rows.sum()))
        if unasked is not None:
            count[unasked] = 0
        seen = count > 0
        rate = np.where(seen, np.maximum(1 / (self.weight + 1), 1 / self.window), 0)
        safe = np.maximum(count, 1)
        self.mean += rate * (total / safe - self.mean)
        self.square += rate * (square / safe - self.square)
        self.weight += seen

    def arrays(self, prefix: str) -> Arrays:
        """Everything that is learnt, by name."""
        return {f"{prefix}.{k}": getattr(self, k).copy() for k in ("weight", "mean", "square")}

    def restore(self, arrays: Arrays, prefix: str) -> None:
        """Take over what `arrays` gave."""
        for k in ("weight", "mean", "square"):
            setattr(self, k, np.array(arrays[f"{prefix}.{k}"], np.float64))


@exact("float32[:, ::1](float32[:, ::1], float32[::1], float32[::1], boolean[::1])")
def _standardised(raw_fc: Float32, mean_f: Float32, deviation_f: Float32, present_f: NDArray[np.bool_]) -> Float32:
    out = np.empty_like(raw_fc)
    for f in range(len(raw_fc)):
        for c in range(raw_fc.shape[1]):
            x = (raw_fc[f, c] - mean_f[f]) / deviation_f[f]
            x = CLIP if x > CLIP else -CLIP if x < -CLIP else x
            out[f, c] = np.float32(0) if present_f[f] and raw_fc[f, c] == 0 else x
    return out


@compiled("UniTuple(float64[::1], 3)(float32[:, ::1], boolean[::1])")
def _sums(raw_fc: Float32, rows_c: NDArray[np.bool_]) -> tuple[Float64, Float64, Float64]:
    """Sums, sums of squares and the number of values other than 0 [f] of some rows."""
    columns = len(raw_fc)
    total, square, held = np.zeros(columns), np.zeros(columns), np.zeros(columns)
    counts = rows_c.astype(np.float64)
    for f in range(columns):
        of_total, of_square, of_held = 0.0, 0.0, 0.0
        for c in range(len(counts)):
            x = np.float64(raw_fc[f, c]) * counts[c]
            of_total += x
            of_square += x * x
            of_held += x != 0
        total[f], square[f], held[f] = of_total, of_square, of_held
    return total, square, held
