"""Training windows to one batch: which rows are asked, for what, and padding.

Two kinds of rows are asked. The last row of a group is asked for the whole next group, at the time of that group:
what a request asks. A row inside a group is asked for the rest of its group, at the group's own time, so the
time bias tells the two apart: that teaches which items go together, and only a share of such rows is drawn.
The order inside a group means nothing, so training shuffles it; a request reads the order that is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from configs.settings import Model
from graph.rows import Float32
from graph.view import Int64
from model.replay import Window

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
    """One step's windows.

    Attributes:
        chunks: the windows; asked rows are numbered 0..R-1 chunk after chunk.
        asked_ms_R: [R] int64 when each row is asked.
        row_T: [T] int64 asked row of each target.
        target_T: [T] int64 item row of each target.
        weight_T: [T] float32; the targets of a row sum to the row's weight.
    """

    chunks: list[Chunk]
    asked_ms_R: Int64
    row_T: Tensor
    target_T: Tensor
    weight_T: Tensor


@dataclass(frozen=True, slots=True)
class _Asked:
    rows: Int64  # [r]
    ms: Int64  # [r]
    counts: Int64  # [r]
    targets: Int64  # [t], row after row
    weights: Float32  # [t]


def build_batch(windows: Sequence[Window], settings: Model, random: np.random.Generator) -> Batch:
    """Shuffles inside groups, draws inside rows and pads.

    Args:
        windows: at least one, each with targets.
        settings: section `model`.
        random: source of shuffles and draws.
    """
    ordered = [shuffled(w, random) for w in sorted(windows, key=lambda w: len(w.items))]
    asked = [_joined(_next_groups(w, settings), _inside_groups(w, settings, random)) for w in ordered]
    chunks = []
    for at in range(0, len(ordered), CHUNK):
        part = ordered[at : at + CHUNK]
        items_BL, t_ms_BM = pad([w.items for w in part], [w.t_ms for w in part])
        L = items_BL.shape[1]
        places = np.concatenate([a.rows + b * L for b, a in enumerate(asked[at : at + CHUNK])])
        chunks.append(Chunk(items_BL, t_ms_BM, torch.from_numpy(places)))
    counts = np.concatenate([a.counts for a in asked])
    return Batch(
        chunks=chunks,
        asked_ms_R=np.concatenate([a.ms for a in asked]),
        row_T=torch.from_numpy(np.repeat(np.arange(len(counts)), counts)),
        target_T=torch.from_numpy(np.concatenate([a.targets for a in asked])),
        weight_T=torch.from_numpy(np.concatenate([a.weights for a in asked])),
    )


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


def shuffled(window: Window, random: np.random.Generator) -> Window:
    """The window with a new order inside each of its groups; asked rows keep their place and their past."""
    n = len(window.items)
    group = np.searchsorted(window.ends, np.arange(n), side="right")
    order = np.lexsort((random.random(n), group))
    return Window(
        window.items[order],
        window.t_ms,
        window.ends,
        window.rows,
        window.targets,
        window.counts,
        window.repeated,
    )


def _next_groups(window: Window, settings: Model) -> _Asked:
    """The last row of each group, asked for the next group; every row weighs 1, or 0 if nothing in it counts."""
    weight = np.where(window.repeated, settings.repeat_weight, 1.0)
    row = np.repeat(np.arange(len(window.rows)), window.counts)
    total = np.bincount(row, weight, len(window.rows))
    weights = (weight / np.maximum(total, 1e-9)[row]).astype(np.float32)
    return _Asked(window.rows, window.t_ms[window.rows + 1], window.counts, window.targets, weights)


def _inside_groups(window: Window, settings: Model, random: np.random.Generator) -> _Asked:
    """A drawn share of the rows inside groups, each asked for what is left of its group."""
    n = len(window.items)
    drawn = random.random(n) < settings.inside_share
    drawn[window.ends - 1] = False
    rows = np.flatnonzero(drawn)
    ends = window.ends[np.searchsorted(window.ends, rows, side="right")]
    counts = ends - rows - 1
    targets = [window.items[row + 1 : end] for row, end in zip(rows, ends, strict=True)]
    weights = np.repeat(settings.inside_weight / np.maximum(counts, 1), counts).astype(np.float32)
    none = np.zeros(0, np.int64)
    return _Asked(rows, window.t_ms[rows + 1], counts, np.concatenate([none, *targets]), weights)


def _joined(first: _Asked, second: _Asked) -> _Asked:
    return _Asked(
        np.concatenate([first.rows, second.rows]),
        np.concatenate([first.ms, second.ms]),
        np.concatenate([first.counts, second.counts]),
        np.concatenate([first.targets, second.targets]),
        np.concatenate([first.weights, second.weights]),
    )
