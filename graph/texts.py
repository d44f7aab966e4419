"""Text vectors of items, one table for all that read them: float32 while small, beyond that float16 in a mapped file.

A large table's pages are the system's to keep or to drop; they count as the file's, in whatever process maps it. The
file has no name (TMPDIR says on which disk it lies) and ends with the process; a snapshot's table is mapped from there.
"""

from __future__ import annotations

import tempfile
import weakref
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from driftline.graph.arrays import Arrays, Float32, Int32, Int64, grown
from driftline.graph.codes import Codes, is_small
from driftline.graph.codes_kernel import half_dots, half_rows
from driftline.graph.touched import Touched

# n items, m asked rows, X width of a vector

TEXT = "text"
"""Name of the array of vectors; those of its codes begin with it."""
AT_ONCE = 8192
"""Rows of a pass over a large table."""


class TextTable:
    """Unit vectors [n, X] by dense index; a row that was never set is zero.

    Args:
        dim: X.

    Attributes:
        codes: of a large table, for the search in it; None = it is small, and searched as a whole.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.codes: Codes | None = None
        self._rows: NDArray[Any] = np.zeros((0, dim), np.float32)
        self._file: IO[bytes] | None = None
        self._n = 0
        self._touched = Touched()

    def __len__(self) -> int:
        """One more than the last row that was set."""
        return self._n

    def __getitem__(self, rows: int | Int32 | Int64) -> Float32:
        """Vectors [m, X] float32 of rows [m], or the one [X] of a row."""
        rows = np.asarray(rows)
        known = rows < self._n
        if known.all() and self._rows.dtype == np.float32:
            return self._rows[rows]
        out = np.zeros((*rows.shape, self.dim), np.float32)
        out[known] = self._read(np.asarray(rows[known], np.int64))
        return out

    def _read(self, rows: Int64) -> Float32:
        if self._rows.dtype == np.float32:
            return self._rows[rows]
        out = np.empty((len(rows), self.dim), np.float32)
        half_rows(self._rows.view(np.uint16), rows, out)
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> TextTable:
        return TextTable.from_arrays(self.arrays())

    def dense(self, n: int) -> Float32:
        """The first rows of a small table, n of them or all that there are: [m, X] float32, not to be written to."""
        return self._rows[: min(n, self._n)]

    def first(self, n: int) -> Float32:
        """The first n rows [n, X] float32, not to be written to; not copied where they can be had as they are."""
        small = self._rows.dtype == np.float32 and n <= len(self._rows)
        return self._rows[:n] if small else self[np.arange(n)]

    def dots(self, rows: Int32, query: Float32) -> Float32:
        """Dot products [m] float32 of rows [m] of a large table with a vector [X]."""
        out = np.zeros(len(rows), np.float32)
        known = rows < self._n
        inside = np.empty(int(known.sum()), np.float32)
        half_dots(self._rows.view(np.uint16), rows[known], query, inside)
        out[known] = inside
        return out

    def set(self, row: int, vector: Float32) -> bool:
        """Sets a row; False = it was so already."""
        self._reserve(row + 1)
        stored = vector.astype(self._rows.dtype)
        if np.array_equal(self._rows[row], stored):
            return False
        self._rows[row] = stored
        self._touched.add(np.array([row]))
        if self.codes is not None:
            rows = np.array([row])
            self.codes.set(rows, self[rows])
        return True

    def _reserve(self, n: int) -> None:
        self._n = max(self._n, n)
        if self._file is None and is_small(n, self.dim):
            self._rows = grown(self._rows, n)
        elif self._file is None:
            self._map(n)
        elif n > len(self._rows):
            self._rows = self._mapped(max(n, len(self._rows) * 3 // 2))

    def _map(self, n: int) -> None:
        """Moves a table that became large, or was read, to a file of its own."""
        self._touched.everything()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it ends with the table
        weakref.finalize(self, self._file.close)
        old, size = self._rows, max(n, len(self._rows))
        self._rows = self._mapped(size)
        coded = self.codes if self.codes is not None and self.codes.complete else None
        self.codes = coded or Codes(self.dim)
        for at in range(0, len(old), AT_ONCE):
            rows = np.arange(at, min(len(old), at + AT_ONCE))
            self._rows[rows] = old[rows]
            if coded is None:
                self.codes.set(rows, self._read(rows))

    def _mapped(self, rows: int) -> NDArray[np.float16]:
        """The file, made longer."""
        assert self._file is not None
        return np.memmap(self._file, np.float16, "r+", shape=(rows, self.dim)).view(np.ndarray)

    def arrays(self) -> Arrays:
        """The whole table by name; views."""
        codes = {} if self.codes is None else self.codes.arrays(TEXT, self._n)
        return {TEXT: self._rows[: self._n], **codes}

    def touched(self) -> dict[str, Touched]:
        """Which rows of `arrays` changed."""
        return {TEXT: self._touched} | ({} if self.codes is None else self.codes.touched(TEXT))

    def restore(self, arrays: Arrays, read_only: bool = False) -> None:
        """Takes over what `arrays` gave; with `read_only` a large table is used as it is.

        A small one is copied: each request reads it whole, which takes half as long again from a mapped file.
        """
        rows = arrays[TEXT]
        self._touched.everything()
        self._n, self._file, self.codes = len(rows), None, Codes.from_arrays(self.dim, arrays, TEXT)
        self._rows = rows if rows.dtype == np.float16 else rows.copy()
        if not read_only and rows.dtype == np.float16:
            if self.codes is not None:
                self.codes = self.codes.copy()
            self._map(self._n)

    @classmethod
    def from_arrays(cls, arrays: Arrays, read_only: bool = False) -> TextTable:
        """The table whose `arrays` these are."""
        self = cls(arrays[TEXT].shape[1])
        self.restore(arrays, read_only)
        return self
