"""The graph versions under `state.root`/graph: a file stays as long as any partition may need it.

A partition needs the version that it adopted last and those of events that may still be put in their place; its store
names both. What it adopts next was written, or touched, right before. So a file that no store names and that nobody
has touched for a while is nobody's.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import orjson

from driftline.configs.errors import StateError
from driftline.serving.scratch import Scratch
from driftline.stream.state.store import ReadableStore, ReadOnlyStore, state_directories

LOG = logging.getLogger(__name__)
UNTOUCHED_S = 3600.0
"""Between writing a version and committing its adoption lie milliseconds; a copy of the state may take minutes."""


def remove_unneeded(root: Path, untouched_s: float = UNTOUCHED_S) -> int:
    """Removes the files of versions that nobody needs; workers may run, of other processes, too.

    Args:
        root: `state.root`.
        untouched_s: seconds for which a file must not have been touched.

    Returns:
        How many were removed; 0 where a store can't be read, which may need any of them.
    """
    before_s = time.time() - untouched_s
    old = [path for path in (root / "graph").glob("*.safetensors*") if _touched_s(path) < before_s]
    if not old:
        return 0
    try:
        wanted = {name for path in state_directories(root) for name in _needed(path)}
        unwanted = [path for path in old if path.name.removesuffix(".safetensors") not in wanted]
        # reading the stores takes a while, and what another worker adopted meanwhile it has touched before
        removed = [path for path in unwanted if _touched_s(path) < before_s and _unlinked(path)]
    except (StateError, OSError) as error:
        LOG.info("graph versions under %s stay: %s", root, error)
        return 0
    return len(removed)


def needed(store: ReadableStore) -> set[str]:
    """The versions that a partition can't be opened without: the newest and those of events that may come late."""
    newest, older = store.get([b"m:graph", b"m:graphs"])
    found = {orjson.loads(newest)["sha256"]} if newest else set()
    return {str(sha256) for sha256 in found | {sha256 for _, sha256 in orjson.loads(older or b"[]")} if sha256}


def _needed(path: Path) -> set[str]:
    with Scratch("secondary") as scratch:
        store = ReadOnlyStore(path, scratch)
        try:
            return needed(store)
        finally:
            store.close()


def _unlinked(path: Path) -> bool:
    path.unlink(missing_ok=True)
    return True


def _touched_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()  # gone meanwhile
