"""The rows of a trainer, bounded in memory, and what its checkpoints keep of them: databases that share their files.

    trainer.root/rows/N            the rows of a checkpoint, never written to
    trainer.root/rows/working-...  what the running trainer changes: rows/N by hard links, worth nothing after it

A checkpoint: 1 what changed since the last one is written, and rows/N+1 made of it, whole and on disk; 2 the
checkpoint's file, which names N+1, takes the place of the one before; 3 other numbers go. Whatever is killed between
two of them, the file names rows of its own moment, and the next start removes all others.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from driftline.configs.errors import StateError
from driftline.configs.faults import point
from driftline.serving.lists import check_lists
from driftline.stream.durable import NO_HARD_LINKS
from driftline.stream.state.store import RocksStore

WORKING = "working-"
ANEW = "move what is in trainer.root away to learn from the start, or put a copy of it back"


class KeptRows:
    """The folder `rows` of a trainer's directory; whoever uses it holds the lock of that.

    Args:
        root: `trainer.root`.
        number: that the checkpoint names; None = there is no checkpoint, or one that holds its rows itself.

    Attributes:
        store: the rows, to be read and changed.

    Raises:
        StateError: the named rows are not there or damaged, or the directory can't be written.
    """

    def __init__(self, root: Path, number: int | None) -> None:
        self._folder, self._number = root / "rows", number or 0
        kept = self._folder / str(number)
        if number is not None and not (kept / "CURRENT").is_file():
            raise StateError(f"the checkpoint in {root} names rows in {kept}, and there are none; {ANEW}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._prune()
            working = Path(tempfile.mkdtemp(prefix=WORKING, dir=self._folder))
            if number is not None:
                check_lists(kept)
                _link(kept, working)
        except OSError as error:
            raise StateError(f"{self._folder} can't be written: {error}; make room or set trainer.root") from None
        self.store = RocksStore(working, lasting=False, remedy=ANEW)

    def keep(self, forgotten: Collection[str]) -> int:
        """Makes rows of this moment, which no crash takes any more; the number to name them by.

        Args:
            forgotten: users of whom no byte is to be left in them.

        Raises:
            StateError: the directory can't be written.
        """
        try:
            if forgotten:
                self.store.scrub(forgotten)
            self._number += 1
            self.store.keep(self._folder / str(self._number))
        except OSError as error:
            raise StateError(f"{self._folder} can't be written: {error}; make room or set trainer.root") from None
        point("checkpoint-rows")
        return self._number

    def named(self) -> None:
        """The number that `keep` gave is named by the checkpoint now: the rows of the one before go."""
        point("checkpoint-prune")
        self._prune()

    def close(self) -> None:
        """Closes the rows; what was not kept is lost."""
        with suppress(Exception):  # rocksdict raises it bare where the disk is full
            self.store.close()
        shutil.rmtree(self.store.path, ignore_errors=True)

    def _prune(self) -> None:
        """Removes all but the kept rows and those in use."""
        store = getattr(self, "store", None)
        used = {str(self._number), store.path.name if store else ""}
        for path in self._folder.iterdir():
            if path.name not in used:
                shutil.rmtree(path)


def _link(kept: Path, working: Path) -> None:
    """Makes a database of one whose tables are never written to; where there are no hard links, by copying."""
    for path in kept.iterdir():
        to = working / path.name
        try:
            if path.suffix == ".sst":
                os.link(path, to)
                continue
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
        shutil.copyfile(path, to)
