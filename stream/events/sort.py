"""Rows sorted by time with little memory: sorted runs on disk, then merged a window at a time. The sort is stable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from driftline.serving.scratch import Scratch

RUN_BYTES = 128 * 1024 * 1024
"""Of rows that are sorted in memory at once."""
WINDOW_ROWS = 262_144
"""Rows of all runs that are merged at once; more where more have one time."""


def sorted_rows(batches: Iterable[pa.RecordBatch], folder: Path, column: str = "timestamp_ms") -> Iterator[pa.Table]:
    """All rows in order of a column of integers without null, rows of one value in the order in which they came.

    Memory holds one run or one window; `folder` must have room for all rows, unpacked. The first table comes when all
    batches were read.
    """
    with Scratch("sorting", folder) as scratch:
        runs = list(_runs(batches, scratch, column))
        yield from _merged([pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in runs], column)


def _runs(batches: Iterable[pa.RecordBatch], scratch: Path, column: str) -> Iterator[Path]:
    held: list[pa.RecordBatch] = []
    size = number = 0
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if size >= RUN_BYTES:
            yield _write(held, scratch / f"{number}.arrow", column)
            held, size, number = [], 0, number + 1
    if held:
        yield _write(held, scratch / f"{number}.arrow", column)


def _write(batches: list[pa.RecordBatch], path: Path, column: str) -> Path:
    """One run as one batch, so that its columns are single arrays."""
    run = in_order(pa.Table.from_batches(batches), column).combine_chunks()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, run.schema) as writer:
        writer.write_table(run)
    return path


def in_order(table: pa.Table, column: str) -> pa.Table:
    """A table sorted stably; itself if it is in order."""
    times = table[column].to_numpy()
    if (times[1:] >= times[:-1]).all():
        return table
    return table.take(pa.array(np.argsort(times, kind="stable")))


def _merged(runs: list[pa.Table], column: str) -> Iterator[pa.Table]:
    """Windows of all runs up to a time that is reached in each of them, rows of that time run by run."""
    runs = [run for run in runs if len(run)]
    times = [run[column].to_numpy() for run in runs]
    at = [0] * len(runs)
    step = max(WINDOW_ROWS // max(len(runs), 1), 1)
    while any(i < len(t) for i, t in zip(at, times, strict=True)):
        last = min(int(t[min(i + step, len(t)) - 1]) for i, t in zip(at, times, strict=True) if i < len(t))
        until = [i + int(np.searchsorted(t[i:], last)) for i, t in zip(at, times, strict=True)]
        parts = [run.slice(i, j - i) for run, i, j in zip(runs, at, until, strict=True) if j > i]
        if parts:
            yield in_order(pa.concat_tables(parts), column)
        for n, (run, j) in enumerate(zip(runs, until, strict=True)):
            at[n] = j + int(np.searchsorted(times[n][j:], last, side="right"))
            for start in range(j, at[n], WINDOW_ROWS):
                yield run.slice(start, min(WINDOW_ROWS, at[n] - start))
