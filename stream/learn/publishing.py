"""From what learns to a snapshot on disk: copied in short steps between two groups, written by a thread beside.

    learner's thread: copy, copy, ... (STEP_S each), write (the rest of the copy), ..., written
    thread beside:                                     files, sums, CURRENT, pruning

One snapshot at a time: the next copy begins when the last one is on disk.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from driftline.configs.settings import Serving
from driftline.graph.view import ItemTable
from driftline.serving.publisher import Publisher, Taken
from driftline.serving.snapshot import Meta
from driftline.stream.learn.allocator import return_freed_memory
from driftline.stream.learn.capture import Arrays, Capture, Marks
from driftline.stream.learn.catalogue import Catalogue
from driftline.stream.learn.item_columns import ItemColumns, ItemRow

STEP_S = 0.015
"""Learning waits about so long for one step of a copy."""


@dataclass(frozen=True, slots=True)
class Written:
    """A snapshot on disk.

    Attributes:
        version: its name.
        meta: what it says of itself.
        bytes: of its files; deltas: how many its chain has, 0 = it is whole.
        seconds: from its state to the disk.
        pause_s: the longest that learning waited for it.
    """

    version: str
    meta: Meta
    bytes: int
    deltas: int
    seconds: float
    pause_s: float


class Publishing:
    """Publishes what a learner and its catalogue hold.

    Args:
        serving: where to, and how long chains may be.
        arrays, marks: of each part but "items", see Capture.
        catalogue: what is said of the items of the table.
        table: the items.
    """

    def __init__(
        self,
        serving: Serving,
        arrays: Callable[[bool], Arrays],
        marks: Callable[[], Marks],
        catalogue: Catalogue,
        table: ItemTable,
    ) -> None:
        self._arrays, self._marks, self._catalogue, self._table = arrays, marks, catalogue, table
        self._publisher = Publisher(serving.snapshots, serving.keep, serving.deltas, serving.delta_share)
        self._columns = ItemColumns()
        self._beside = ThreadPoolExecutor(1, "publish")
        self._capture: Capture | None = None
        self._writing: Future[Written] | None = None
        self._anew = False
        self._step_s = self._longest_s = 0.0

    @property
    def copying(self) -> bool:
        """Whether a copy was begun and not handed on."""
        return self._capture is not None

    @property
    def writing(self) -> bool:
        """Whether a snapshot is on its way whose end nobody was told."""
        return self._writing is not None

    def anew(self) -> None:
        """The next snapshot shares no file with those before."""
        self._anew = True

    def copy(self, seconds: float = STEP_S) -> bool:
        """One step; whether `write` may follow at once. Nothing may be on its way."""
        started = time.perf_counter()
        if self._capture is None:
            self._longest_s = 0.0
            everything = not self._publisher.ready
            self._capture = Capture(self._arrays, self._marks, self._catalogue, self._table, everything)
        gc.disable()  # a full collection that falls due amid a step would hold up learning for several
        try:
            little_left = self._capture.advance(seconds)
        finally:
            gc.enable()
        self._step_s = time.perf_counter() - started
        self._longest_s = max(self._longest_s, self._step_s)
        return little_left

    def copy_all(self) -> None:
        """All steps at once."""
        while not self.copy(math.inf):
            pass

    def write(self, meta: Meta, began_s: float) -> None:
        """Takes the rest of the copy; that state is written as a snapshot.

        Args:
            meta: what it says of itself.
            began_s: `time.perf_counter()` since which learning waits for this call.
        """
        assert self._capture is not None, "copy first"
        capture, self._capture = self._capture, None
        taken, anew, self._anew = capture.finish(), self._anew, False
        pause_s = max(self._longest_s, self._step_s + time.perf_counter() - began_s)
        self._writing = self._beside.submit(self._write, taken, capture.items, meta, anew, pause_s)

    def written(self, wait: bool) -> Written | None:
        """The snapshot that was on its way, once; None if none is, or it is not written yet.

        Raises:
            BrokenChainError: it was not written; the next copy is of everything.
            SnapshotError: it can't be written.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        writing, self._writing = self._writing, None
        return writing.result()

    def _write(self, taken: Taken, items: dict[int, ItemRow], meta: Meta, anew: bool, pause_s: float) -> Written:
        started, publisher = time.perf_counter(), self._publisher
        taken.whole["items"] = self._columns.update(items)
        taken.shapes["items"] = {name: (array.dtype, array.shape) for name, array in taken.whole["items"].items()}
        version = publisher.publish(taken, meta, anew)
        del taken
        return_freed_memory()
        seconds = time.perf_counter() - started
        return Written(version, meta, publisher.bytes, publisher.deltas, seconds, pause_s)
