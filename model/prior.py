"""Decayed popularity as the prior of the softmax, so that the backbone learns what a user adds to it.

    logit = cosine / temperature + coefficient * log share

A training row sees the shares as they were when it was asked, a request sees them as they are now. Past shares
are kept as a bounded ring of snapshots, so a rehearsed row is off by at most one spacing, or, where it is older
than the ring (eight half-lives), sees those of the ring's beginning. This touches what is learnt, never what is scored.

Source: an offset of log prior in a softmax is the logit adjustment of Menon et al., arXiv 2007.07314, section 4,
here with a prior that moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from driftline.graph.arrays import Float32, Int32, Int64
from driftline.model.loss import Prior

# N items, C candidates of a step, R rows that predict

DAY_MS = 86_400_000
SMOOTHING = 0.1
"""Events that every item is given, so that no logarithm is of 0."""
SNAPSHOTS_A_HALF_LIFE = 8
SNAPSHOTS = 64
_REBASE = 64.0


class PopularityPrior:
    """Log shares of exponentially decayed event counts, now and in the past.

    Args:
        half_life_days: after this long an event counts half; 0 = no prior, all logits stay as they are.
    """

    def __init__(self, half_life_days: float) -> None:
        self.half_life_ms = half_life_days * DAY_MS
        self.coefficient = torch.nn.Parameter(torch.ones(1), requires_grad=half_life_days > 0)
        self._count = np.zeros(0)
        self._base_ms = 0
        self._now_ms = 0
        self._times: list[int] = []
        self._past: list[NDArray[np.float16]] = []

    @property
    def on(self) -> bool:
        """Whether there is a prior at all."""
        return self.half_life_ms > 0

    def observe(self, items: Int32, t_ms: int) -> None:
        """Counts the events of one group; a late one is counted by its own age."""
        if not self.on:
            return
        if not self._now_ms:
            self._base_ms = t_ms
        self._now_ms = max(self._now_ms, t_ms)
        spacing_ms = self.half_life_ms / SNAPSHOTS_A_HALF_LIFE
        if not self._times or self._now_ms - self._times[-1] >= spacing_ms:
            self._times.append(self._now_ms)
            share = self.log_share(self._now_ms, len(self._count) + 1)  # the last one is that of an item without events
            self._past.append(share.astype(np.float16))
            del self._times[:-SNAPSHOTS], self._past[:-SNAPSHOTS]
        if len(items) and items.max() >= len(self._count):
            grown = np.zeros(max(2 * len(self._count), int(items.max()) + 1))
            grown[: len(self._count)] = self._count
            self._count = grown
        if (self._now_ms - self._base_ms) / self.half_life_ms > _REBASE:
            self._count *= 0.5 ** ((self._now_ms - self._base_ms) / self.half_life_ms)
            self._base_ms = self._now_ms
        np.add.at(self._count, items, 2.0 ** ((t_ms - self._base_ms) / self.half_life_ms))

    def log_share(self, now_ms: int, n: int | None = None) -> Float32:
        """Log shares [n] float32 (all items ever counted without n) at a time that is not in the past."""
        n = len(self._count) if n is None else n
        decay = self._decay(now_ms)
        count = np.zeros(n)
        count[: min(n, len(self._count))] = self._count[:n] * decay
        out: Float32 = np.log((count + SMOOTHING) / (count.sum() + 1.0)).astype(np.float32)
        return out

    def log_share_of(self, rows: Int32 | Int64, now_ms: int) -> Float32:
        """Log shares [m] float32 of some items; zeros without a prior."""
        if not self.on:
            return np.zeros(len(rows), np.float32)
        decay = self._decay(now_ms)
        known = rows < len(self._count)
        count = np.zeros(len(rows))
        count[known] = self._count[rows[known]] * decay
        out: Float32 = np.log((count + SMOOTHING) / (self._count.sum() * decay + 1.0)).astype(np.float32)
        return out

    def _decay(self, now_ms: int) -> float:
        """What a count is worth at a time that is not in the past."""
        return float(0.5 ** ((max(now_ms, self._now_ms) - self._base_ms) / self.half_life_ms))

    def logits_now(self, now_ms: int, n: int, more: float = 0.0, items: Int32 | Int64 | None = None) -> Float32:
        """What a request adds to its logits [m] float32 of some items, by a coefficient that is larger by so much.

        Args:
            now_ms: the time of the request.
            n: of the items 0..n-1, where none are named.
            more: than the coefficient.
            items: which ones.
        """
        if not self.on:
            return np.zeros(n if items is None else len(items), np.float32)
        share = self.log_share(now_ms, n) if items is None else self.log_share_of(items, now_ms)
        return (float(self.coefficient.detach()) + more) * share

    def at(self, asked_ms_R: Int64, rows_C: Tensor) -> Prior:
        """What training rows add to their logits.

        Args:
            asked_ms_R: [R] int64 when each row was asked; shares are of the last snapshot not after it.
            rows_C: [C] int64 item rows.
        """
        picked = np.maximum(np.searchsorted(np.array(self._times), asked_ms_R, side="right") - 1, 0)
        used, place_R = np.unique(picked, return_inverse=True)
        shares = torch.stack([_taken(self._past[i], rows_C.numpy()) for i in used])
        return Prior(shares, torch.from_numpy(place_R), self.coefficient)

    def state_dict(self) -> dict[str, Any]:
        """Counts, snapshots and the coefficient."""
        return {
            "coefficient": self.coefficient.detach().clone(),
            "count": self._count.copy(),
            "base_ms": self._base_ms,
            "now_ms": self._now_ms,
            "times": list(self._times),
            "past": [past.copy() for past in self._past],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        with torch.no_grad():
            self.coefficient.copy_(state["coefficient"])
        self._count = state["count"].copy()
        self._base_ms, self._now_ms = state["base_ms"], state["now_ms"]
        self._times, self._past = list(state["times"]), list(state["past"])


def _taken(past: NDArray[np.float16], rows: Int64) -> Tensor:
    """A snapshot's log shares [C] float32; items that came later have that of its last entry."""
    return torch.from_numpy(past[np.minimum(rows, len(past) - 1)].astype(np.float32))
