"""All item vectors as they score, kept up to date: only rows that something changed are composed again.

    row that a step used     its running mean (model/average.py)
    any other                id vector + text projected

The projection moves with every step and with it all rows that no step has used yet. Of a large catalogue they follow in
turns, ROWS_A_STEP of the table with each step, every part by the projection that its turn met.
What a row is depends on the state alone, never on when somebody asked.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from driftline.graph.arrays import Arrays, Float32, Int64, grown
from driftline.graph.codes import Codes, is_small
from driftline.graph.touched import Touched
from driftline.model.average import Average
from driftline.model.backbone import NORM_EPSILON
from driftline.model.compiled import compiled
from driftline.model.items import ItemVectors, grown_rows

# N items, D width of an item vector, W of a row of the table, E width of a text vector

ROWS_A_STEP = 8192


class ItemCache:
    """Rows [N, W] and unit vectors [N, D] of a table of items; W is D, or twice that (model/items.py).

    Args:
        items: the table.
        average: the running means of its rows.
    """

    def __init__(self, items: ItemVectors, average: Average) -> None:
        self._items, self._average = items, average
        self._projects = [items.project.detach().clone()]  # [E, D] of each part, that rows without a mean are made with
        self._n = 0
        self._stale: list[Tensor] = []
        self._moved: set[int] = set()
        self._vectors = torch.zeros(0, items.width)
        self._matrix: Float32 = np.zeros((0, items.dim), np.float32)
        self._codes: Codes | None = None
        self._touched = Touched()  # rows that were composed anew

    def touch(self, rows_U: Tensor) -> None:
        """Rows [U] int64 changed."""
        self._stale.append(rows_U)

    def step(self, rows_U: Tensor, number: int) -> None:
        """A step used rows [U] and moved the projection; `number` counts the steps."""
        self.touch(rows_U)
        parts, now = -(-len(self._items) // ROWS_A_STEP), self._items.project.detach().clone()
        moved = {number % parts, *range(len(self._projects), parts)}
        self._projects += [now] * (parts - len(self._projects))
        self._projects[number % parts] = now
        if self._items.has_text:
            self._moved |= moved

    def state(self) -> Tensor:
        """[parts, E, W], what a checkpoint needs beside the table and its means."""
        return torch.stack(self._projects)

    def forget_all(self, projects: Tensor | None = None) -> None:
        """Everything changed; `state` of a checkpoint, or the projection of the table."""
        self._projects = [self._items.project.detach().clone()] if projects is None else list(projects.clone())
        self._n, self._stale, self._codes = 0, [], None
        self._moved.clear()

    def vectors(self) -> Tensor:
        """[N, W] float32, not normalised; valid until the next change."""
        self._refresh()
        return self._vectors[: self._n]

    def matrix(self) -> Float32:
        """[N, D] float32, L2-normalised; valid until the next change."""
        self._refresh()
        return self._matrix[: self._n]

    def codes(self) -> Codes | None:
        """Codes of the matrix, None while it is small; valid until the next change."""
        self._refresh()
        return self._codes

    def arrays(self) -> Arrays:
        """What serving needs of it: vectors, and of a large table unit vectors and codes; views."""
        codes, vectors = self.codes(), self._vectors[: self._n].numpy()
        if codes is None:
            return {"vectors": vectors}
        return {"vectors": vectors, "matrix": self.matrix(), **codes.arrays("matrix", self._n)}

    def touched(self) -> dict[str, Touched]:
        """Which rows of `arrays` changed."""
        if self._codes is None:
            return {"vectors": self._touched}
        return dict.fromkeys(("vectors", "matrix"), self._touched) | self._codes.touched("matrix")

    def _refresh(self) -> None:
        n = len(self._items)
        new = torch.arange(self._n, n)
        parts = [(part * ROWS_A_STEP, min((part + 1) * ROWS_A_STEP, self._n)) for part in sorted(self._moved)]
        unused = [self._average.unused(*part) for part in parts]
        if len(new) or self._stale or any(map(len, unused)):
            known = [rows[rows < self._n] for rows in self._stale]
            lists = [rows for rows in (*known, *unused, new) if len(rows)]  # each ascending, and distinct
            self._compose(torch.unique(torch.cat(lists)) if len(lists) != 1 else lists[0], n)
        self._n, self._stale = n, []
        self._moved.clear()

    @torch.no_grad()
    def _compose(self, rows_U: Tensor, n: int) -> None:
        if n > len(self._vectors):
            self._vectors = grown_rows(self._vectors, max(n, 2 * len(self._vectors)))
            self._matrix = grown(self._matrix, len(self._vectors))
        rows, vectors = rows_U.numpy(), self._vectors.numpy()
        bare = _means_of(rows, *self._average.arrays(self._items.width), vectors)
        if len(bare):
            vectors[bare] = self._bare(torch.from_numpy(bare)).numpy()
        _unit_rows(rows, vectors, self._matrix)
        self._touched.add(rows)
        if self._codes is not None or not is_small(n, self._items.dim):
            self._code(rows, self._matrix[rows], n)

    def _bare(self, rows_U: Tensor) -> Tensor:
        """Vectors [U, D] of rows without a mean, each by the projection of its part."""
        leaf_UD, last = self._items.leaf(rows_U).detach(), len(self._projects) - 1
        part_U = (rows_U // ROWS_A_STEP).clamp(max=last)
        for part in np.unique(part_U.numpy()).tolist():
            here = part_U == part
            leaf_UD[here] = self._items.compose(leaf_UD[here], rows_U[here], self._projects[part])
        return leaf_UD

    def _code(self, rows: Int64, matrix: Float32, n: int) -> None:
        if self._codes is not None:
            self._codes.set(rows, matrix)
        else:
            self._codes = Codes(self._items.dim)
            self._touched.everything()  # from here on the matrix is published beside the vectors
            for at in range(0, n, ROWS_A_STEP):
                part = np.arange(at, min(n, at + ROWS_A_STEP))
                self._codes.set(part, self._matrix[part])


_LEAST = np.float32(NORM_EPSILON)


@compiled("int64[::1](int64[::1], float32[::1], float32[:, ::1], float32[:, ::1])")
def _means_of(rows_U: Int64, counts: Float32, means: Float32, vectors: Float32) -> Int64:
    """Copies the means of rows, and returns the rows that have none."""
    bare, found = np.empty(len(rows_U), np.int64), 0
    for row in rows_U:
        if row < len(counts) and counts[row] > 0:
            for d in range(vectors.shape[1]):
                vectors[row, d] = means[row, d]
        else:
            bare[found] = row
            found += 1
    return bare[:found].copy()


@compiled("void(int64[::1], float32[:, ::1], float32[:, ::1])")
def _unit_rows(rows_U: Int64, vectors: Float32, matrix: Float32) -> None:
    """Unit vectors of rows, of the first half of a row where it is twice as wide."""
    for row in rows_U:
        square = np.float32(0)
        for d in range(matrix.shape[1]):
            square += vectors[row, d] * vectors[row, d]
        length = max(np.sqrt(square), _LEAST)
        for d in range(matrix.shape[1]):
            matrix[row, d] = vectors[row, d] / length
