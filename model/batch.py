"""Training windows to one batch: which rows are asked, and for what.

Two kinds of rows are asked. The last row of a group is asked for the whole next group, at the time of that group:
what a request asks. A row inside a group is asked for the rest of its group, at the group's own time, so the
time bias tells the two apart: that teaches which items go together, and only a share of such rows is drawn.
The order inside a group means nothing, so training shuffles it; a request reads the order that is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from driftline.configs.settings import Model
from driftline.graph.arrays import Bool, Int64
from driftline.model.rehearsal import Window
from driftline.model.windows_kernel import ROWS, asked_rows

# B windows padded together, L rows of the longest, M = L + 1, n events of a window, R asked rows, T targets

CHUNK = 8
"""Windows that are padded together, after sorting by length."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Windows of about one length.

    Attributes:
        items_BL: [B, L] int64 item rows, padded with row 0.
        t_ms_BM: [B, M] int64, padded with the request time.
        asked: [r] int64 asked rows, as positions in [B * L].
    """

    items_BL: Tensor
    t_ms_BM: Tensor
    asked: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's windows, short ones first.

    Attributes:
        items: of each window [L] int64 item rows.
        t_ms: of each window [L + 1] int64, the last one is the request time.
        asked: of each window [r] int64 asked rows; they are numbered 0..R-1 window after window.
        asked_ms_R: [R] int64 when each row is asked.
        row_T: [T] int64 asked row of each target.
        target_T: [T] int64 item row of each target.
        weight_T: [T] float32; the targets of a row sum to the row's weight.
    """

    items: list[Int64]
    t_ms: list[Int64]
    asked: list[Int64]
    asked_ms_R: Int64
    row_T: Tensor
    target_T: Tensor
    weight_T: Tensor

    def chunks(self) -> Iterator[Chunk]:
        """The windows in padded chunks, for a backbone that takes them so."""
        for at in range(0, len(self.items), CHUNK):
            items_BL, t_ms_BM = pad(self.items[at : at + CHUNK], self.t_ms[at : at + CHUNK])
            places = [rows + b * items_BL.shape[1] for b, rows in enumerate(self.asked[at : at + CHUNK])]
            yield Chunk(items_BL, t_ms_BM, torch.from_numpy(np.concatenate(places)))


def build_batch(windows: Sequence[Window], settings: Model, random: np.random.Generator) -> Batch:
    """Shuffles inside groups and draws inside rows.

    The last row of each group is asked for the next group: it weighs 1, or 0 if nothing in it counts. A drawn share of
    the rows inside groups is asked for what is left of its group.

    Args:
        windows: at least one, each with targets.
        settings: section `model`.
        random: source of shuffles and draws.
    """
    ordered = sorted(windows, key=lambda w: len(w.items))
    sizes = [(len(w.items), len(w.ends), len(w.rows), len(w.targets)) for w in ordered]
    starts = np.zeros((4, len(ordered) + 1), np.int64)
    np.cumsum(np.array(sizes).T, axis=1, out=starts[:, 1:])
    names = ("items", "t_ms", "ends", "rows", "targets", "counts", "repeated")
    given: list[Any] = [np.concatenate([getattr(w, name) for w in ordered]) for name in names]
    given += [random.random(starts[0, -1]), random.random(starts[0, -1])]  # for the order, and for the draw
    given += [settings.inside_share, settings.inside_weight, settings.repeat_weight]
    items, asked_starts, places, ms, counts, targets, weights = asked_rows(starts, *given)
    if settings.asked_rows:
        rows, asked_starts = _some(starts, asked_starts, settings.asked_rows, random)
        targets, weights = (z[np.repeat(rows, counts)] for z in (targets, weights))
        places, ms, counts = places[rows], ms[rows], counts[rows]
    return Batch(
        items=np.split(items, starts[0, 1:-1]),
        t_ms=[w.t_ms for w in ordered],
        asked=np.split(places, asked_starts[1:-1]),
        asked_ms_R=ms,
        row_T=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        target_T=torch.from_numpy(targets),
        weight_T=torch.from_numpy(weights),
    )


def _some(starts: Int64, asked_starts: Int64, most: int, random: np.random.Generator) -> tuple[Bool, Int64]:
    """Draws rows [R] bool, so many of each window at most and its newest always; and where each window's begin."""
    first, sizes = asked_starts[:-1], np.diff(asked_starts)
    lot = random.random(asked_starts[-1])
    lot[first + np.maximum(np.diff(starts[ROWS]), 1) - 1] = -1.0
    order = np.lexsort((lot, np.repeat(np.arange(len(sizes)), sizes)))
    kept = np.empty(len(lot), np.bool_)
    kept[order] = np.arange(len(lot)) - np.repeat(first, sizes) < most
    return kept, np.append(0, np.minimum(sizes, most).cumsum())


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
