"""The items that may not be recommended, in one small file beside the snapshots.

A deleted item leaves no trace in a compacted topic: its record goes first, then the tombstone that deleted it. The file
keeps its id, for serving processes and trainers that start later, and when and in which partition that was said, since
an older record of the item may stay in another partition for good. All who follow the topic `items` write it; each adds
what it knows to be withdrawn and takes out what the topic offers again, so they end with one content.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path

import orjson

from driftline.serving.arrays import sync
from driftline.serving.partitions import Word

LOG = logging.getLogger(__name__)
NAME = "withdrawn.json"


class WithdrawnFile:
    """The file of one directory of snapshots.

    Args:
        root: the directory, `serving.snapshots`.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / NAME
        self._seen: tuple[int, int, int] | None = None
        self._unwritable = False
        self.words: dict[str, Word] = {}
        """Which record withdrew an id, as far as the file said when it was read or written last."""

    def changed(self) -> bool:
        """Whether another process wrote it since it was read or written here."""
        return self._stat() != self._seen

    def read(self) -> frozenset[str]:
        """The ids in it; none if it is not there, or can't be read, which is logged."""
        self._seen = self._stat()
        try:
            return self._ids()
        except (OSError, ValueError, KeyError, TypeError) as error:
            LOG.warning(
                "%s can't be read (%r); the topic items says what it still says of withdrawn items", NAME, error
            )
            return frozenset()

    def _ids(self) -> frozenset[str]:
        """What is in it. Raises OSError, ValueError, KeyError or TypeError if it can't be read."""
        self.words = {}
        try:
            found = orjson.loads(self.path.read_bytes())
            item_ids = frozenset(map(str, found["item_ids"]))
            self.words = {item_id: (int(t_ms), int(p)) for item_id, (t_ms, p) in found.get("words", {}).items()}
        except FileNotFoundError:
            return frozenset()
        return item_ids

    def _ids_to_keep(self) -> frozenset[str]:
        """As `_ids`; a damaged file is moved aside, since what it held may be nowhere else. Raises OSError."""
        try:
            return self._ids()
        except (ValueError, KeyError, TypeError) as error:
            aside = self.path.with_name(f"{NAME}.damaged-{os.getpid()}")
            self.path.rename(aside)
            LOG.warning(
                "%s can't be read (%r) and is kept as %s: items that were deleted long ago may be in it and nowhere "
                "else; withdraw them again with available: false",
                self.path, error, aside.name,
            )  # fmt: skip
            return frozenset()

    def merge(
        self,
        withdrawn: Collection[str],
        is_offered: Callable[[str], bool],
        word_of: Callable[[str], Word | None] = lambda item_id: None,
    ) -> frozenset[str]:
        """Adds ids and takes out those that are offered again; what is in it then.

        Where it can't be written, what was known to it before is lost with the process.

        Args:
            withdrawn: by what the caller knows.
            is_offered: whether the topic offers an item again.
            word_of: the record that counts of an item, None = not known.
        """
        if not withdrawn and not self.path.exists():
            return frozenset()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with (self.path.parent / ".withdrawn.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                before = self._ids_to_keep()
                after = frozenset(item_id for item_id in before if not is_offered(item_id)).union(withdrawn)
                said = {item_id: word for item_id in withdrawn if (word := word_of(item_id)) is not None}
                newest = {item_id: max(word, self.words.get(item_id, word)) for item_id, word in said.items()}
                words = {item_id: word for item_id, word in (self.words | newest).items() if item_id in after}
                if (after, words) != (before, self.words):
                    self._write(after, words)
                return after
        except OSError as error:
            if not self._unwritable:
                LOG.warning(
                    "%s can't be written (%s): withdrawn items are known from the topic alone", self.path, error
                )
            self._unwritable = True
            return frozenset(withdrawn)

    def _write(self, item_ids: Collection[str], words: dict[str, Word]) -> None:
        temporary = self.path.with_name(f".{NAME}-{os.getpid()}")
        temporary.write_bytes(orjson.dumps({"item_ids": sorted(item_ids), "words": dict(sorted(words.items()))}))
        sync(temporary)
        temporary.replace(self.path)
        sync(self.path.parent)
        self._seen, self.words = self._stat(), words

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size
