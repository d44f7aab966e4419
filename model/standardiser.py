"""Running statistics that bring every feature to mean 0 and deviation 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from graph.arrays import Arrays
    from graph.rows import Float32

CLIP = 5.0


class Standardiser:
    """Running mean and deviation of each column, over about the last `window` learnt groups."""

    def __init__(self, present: NDArray[np.bool_], window: int = 2000) -> None:
        self.present, self.window = present, window
        self.weight = np.zeros(len(present))
        self.mean = np.zeros(len(present))
        self.square = np.ones(len(present))

    def apply(self, raw: Float32) -> Float32:
        """Standardised and clipped rows [c, f] of raw columns [f, c]."""
        deviation = np.sqrt(np.maximum(self.square - self.mean**2, 1e-8)).astype(np.float32)
        out = raw - self.mean.astype(np.float32)[:, None]
        out /= deviation[:, None]
        np.clip(out, -CLIP, CLIP, out=out)
        out[self.present] *= raw[self.present] != 0
        return np.ascontiguousarray(out.T)

    def update(self, raw: Float32) -> None:
        """Take in the raw columns [f, c] of one request."""
        held = raw[self.present]
        count = np.full(len(self.present), raw.shape[1], np.float64)
        count[self.present] = np.count_nonzero(held, axis=1)
        seen = count > 0
        rate = np.where(seen, np.maximum(1 / (self.weight + 1), 1 / self.window), 0)
        safe = np.maximum(count, 1)
        self.mean += rate * (raw.sum(1, dtype=np.float64) / safe - self.mean)
        self.square += rate * (np.einsum("fc,fc->f", raw, raw, dtype=np.float64) / safe - self.square)
        self.weight += seen

    def arrays(self, prefix: str) -> Arrays:
        """Everything that is learnt, by name."""
        return {f"{prefix}.{k}": getattr(self, k).copy() for k in ("weight", "mean", "square")}

    def restore(self, arrays: Arrays, prefix: str) -> None:
        """Take over what `arrays` gave."""
        for k in ("weight", "mean", "square"):
            setattr(self, k, np.array(arrays[f"{prefix}.{k}"], np.float64))
