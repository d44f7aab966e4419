"""A copy of the state on this host, taken while workers run, and putting one back.

    OUT/backup.json              what it holds: state_sha256, offsets, sha256 of every other file but those of RocksDB
    OUT/layout.json              as in state.root
    OUT/graph/SHA256.safetensors the adopted graph versions
    OUT/partition-P, OUT/items-P databases, each as of one commit

A partition is read through a RocksDB secondary, which locks and changes nothing, and written row by row into a new
database: damage is met while it is copied. The directory appears under its name whole or not at all. With several
partitions each is as of a commit of its own; workers go on from each offset as after a crash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from driftline.configs.errors import InputError, StateError
from driftline.serving.arrays import sync
from driftline.serving.scratch import Scratch
from driftline.stream.durable import write_durably
from driftline.stream.state.graphs import needed
from driftline.stream.state.layout import check_whole
from driftline.stream.state.live import LiveState, count_strays, read_live_state
from driftline.stream.state.store import ReadOnlyStore, RocksStore, state_directories, write_database

SHA256 = re.compile(r"[0-9a-f]{64}")
LAYOUT, LOST_AND_FOUND = "layout.json", "lost+found"
TRIES = 5
"""A worker may delete a file of RocksDB between two reads of it: then the partition is copied again."""


def backup(root: Path, out: Path) -> LiveState:
    """Copies the state under a root; workers may run.

    Args:
        root: `state.root`.
        out: a directory that does not exist yet.

    Returns:
        What the copy holds.

    Raises:
        InputError: `out` exists or can't be written.
        StateError: there is no state, or it is damaged.
    """
    if out.exists():
        raise InputError(f"{out} exists; expected a folder to make: name another one, or move it away")
    check_whole(root)
    directories = state_directories(root)
    if not directories:
        raise StateError(f"no state in {root}; expected the partition-P folders of a worker: check state.root")
    making = out.with_name(f"{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        making.mkdir(parents=True)
        _copy_folder(root / "graph", making / "graph")
        for path in directories:
            _copy(path, making / path.name)
        _copy_file(root / LAYOUT, making / LAYOUT)
        _keep_versions(root, making)
        state = read_live_state(making)
        write_durably(making / "backup.json", orjson.dumps(_manifest(making, state), option=orjson.OPT_INDENT_2))
        making.rename(out)
        sync(out.parent)
    except OSError as error:
        raise InputError(f"{out} can't be written: {error}; make room, or name another folder") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return state


def restore(root: Path, backed_up: Path) -> LiveState:
    """Puts a backup in place of a state that is not there.

    The root itself stays, since it may be a mount point. layout.json comes last: without it no worker starts, so half a
    restore is never taken for a state.

    Raises:
        InputError: the folder is no backup, or its files are not those that were written.
        StateError: there is a state already, or the root can't be written.
    """
    manifest = read_manifest(backed_up)
    if found := [path.name for path in root.glob("*") if path.name != LOST_AND_FOUND]:
        raise StateError(
            f"{root} is not empty, it holds {', '.join(sorted(found))!s:.100}; stop the workers and move what is in it "
            "away, then restore again"
        )
    new, making = not root.exists(), root / f".restoring-{uuid.uuid4().hex[:8]}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.copytree(backed_up, making, symlinks=True)
        state = read_live_state(making)
        count_strays(making)  # reads everything, and so meets what is damaged
        _check(making, manifest, state)
        (making / "backup.json").unlink()
        for path in sorted(making.iterdir(), key=lambda path: path.name == LAYOUT):
            path.rename(root / path.name)
        new = False
        sync(root)
    except OSError as error:
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error  # the first of many
        raise StateError(
            f"{backed_up} can't be put into {root}: {why}; see that this user may read the one and write the other, "
            "make room, or set state.root"
        ) from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
        if new:
            with suppress(OSError):
                root.rmdir()
    return state


def _copy(path: Path, to: Path) -> None:
    for left in range(TRIES, 0, -1):
        try:
            with Scratch("secondary") as scratch:
                source = ReadOnlyStore(path, scratch / "notes")
                try:
                    write_database(to, source.scan(b""))
                finally:
                    source.close()
            return
        except StateError:
            if left == 1:
                raise


def _keep_versions(root: Path, making: Path) -> None:
    """The graph versions that the copied partitions go on with, and put late events in their place with.

    They were copied before the partitions, as a worker removes what it does not need any more; what was adopted
    meanwhile is still there.
    """
    wanted: set[str] = set()
    for path in state_directories(making):
        store = RocksStore(path, sync=False)
        try:
            wanted |= needed(store)
        finally:
            store.close()
    for sha256 in wanted:
        if not SHA256.fullmatch(sha256):
            raise StateError(f"{making} names graph version {sha256[:80]!r}; expected 64 hexadecimal digits")
        name = f"{sha256}.safetensors"
        if not (making / "graph" / name).exists():
            (making / "graph").mkdir(exist_ok=True)
            _copy_file(root / "graph" / name, making / "graph" / name)
    for copied in (making / "graph").glob("*"):
        if copied.name.removesuffix(".safetensors") not in wanted:
            copied.unlink()
    if not wanted:
        (making / "graph").rmdir()


def _copy_folder(path: Path, to: Path) -> None:
    """Copies the files of a folder, if there is one; they may vanish meanwhile."""
    to.mkdir()
    for file in path.glob("*.safetensors"):
        _copy_file(file, to / file.name, may_vanish=True)


def _copy_file(path: Path, to: Path, may_vanish: bool = False) -> None:
    """Copies one file. Raises StateError if it can't be read, OSError if the copy can't be written."""
    try:
        content = path.read_bytes()
    except OSError as error:
        if may_vanish and isinstance(error, FileNotFoundError):
            return
        raise StateError(
            f"{path} can't be read: {error.strerror}; it belongs to the state: see that this user may read it, and "
            "take the backup again if a worker has changed it meanwhile"
        ) from None
    to.write_bytes(content)


def _manifest(folder: Path, state: LiveState) -> dict[str, Any]:
    files = {str(path.relative_to(folder)): _sha256(path) for path in sorted(_plain_files(folder))}
    return {"format": 1, "state": _plain(state), "files": files}


def _plain_files(folder: Path) -> Iterator[Path]:
    yield folder / LAYOUT
    yield from (folder / "graph").glob("*.safetensors")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(state: LiveState) -> Any:
    return orjson.loads(orjson.dumps(dataclasses.asdict(state), option=orjson.OPT_NON_STR_KEYS))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was written of a backup. Raises InputError if the folder is none."""
    path = folder / "backup.json"
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}; expected a folder of `driftline state backup`") from None
    if not isinstance(found, dict) or found.get("format") != 1 or not isinstance(found.get("files"), dict):
        raise InputError(f"{path} holds {found!r:.60}; expected what `driftline state backup` wrote")
    return found


def _check(folder: Path, manifest: dict[str, Any], state: LiveState) -> None:
    """Raises InputError if a copy is not what was written."""
    written = manifest.get("state")
    if isinstance(written, dict) and state.partitions > 1 and written.get("items") == 0:
        written = written | {"items": state.items}  # earlier releases did not count items of several partitions
    if _plain(state) != written:
        raise InputError(
            f"the backup holds a state of hash {state.state_sha256[:12]}, not that of its backup.json: it was damaged "
            "or mixed with another; take an older one, or let the worker rebuild the state from the topic"
        )
    files = {str(path.relative_to(folder)): _sha256(path) for path in sorted(_plain_files(folder))}
    if files != manifest["files"]:
        changed = sorted(files.items() ^ manifest["files"].items())[0][0]
        raise InputError(f"the backup's {changed} is not the file that was written; take an older backup")
