"""The lists that RocksDB goes by: one other byte in them is an error in words, and a crash is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from rocksdict import Rdict

from driftline.configs.errors import StateError
from driftline.serving.lists import NAME, check_lists, lists_of
from driftline.serving.rocks import open_beside
from driftline.serving.state_reader import StateReader
from driftline.stream.ops.revision import ROOT
from driftline.stream.state.store import ReadOnlyStore, RocksStore, partition_path

KILLED = """
import os, sys
from pathlib import Path
from driftline.stream.state.store import RocksStore
store = RocksStore(Path(sys.argv[1]))
for file in range(3):
    for n in range(5):
        store.commit({b"u:%02d" % (row + n): os.urandom(30) for row in range(20)} | {b"m:offset": b"%d %d" % (file, n)})
    store._db.flush()
store.commit({b"m:offset": b"4 0", b"u:99": b"the last"})
os._exit(0)
"""
"""Three files, and a log with one commit; the last file is in the MANIFEST and in the note."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: Any) -> Path:
    path = partition_path(tmp_path_factory.mktemp("killed"), 0)
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=True, cwd=ROOT)
    return path


@pytest.fixture
def state(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, partition_path(tmp_path, 0), symlinks=True))


def rows_of(path: Path) -> dict[bytes, bytes]:
    store = RocksStore(path, sync=False)
    try:
        return dict(store.scan(b""))
    finally:
        store.close()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def manifest_of(path: Path) -> Path:
    return path / (path / "CURRENT").read_text().strip()


def refused(path: Path) -> bool:
    try:
        check_lists(path)
    except StateError as error:
        return "is damaged" in str(error) and "move it away to rebuild" in str(error)
    return False


def test_every_flipped_byte_of_the_lists_is_refused_before_rocksdb_reads_them(state: Path) -> None:
    manifest, current = manifest_of(state), state / "CURRENT"
    files = {path: path.read_bytes() for path in (manifest, current, state / NAME)}
    assert not refused(state)
    for path, content in files.items():
        for at in range(len(content)):
            flip(path, at)
            assert refused(state), (path.name, at)
            path.write_bytes(content)
    assert not refused(state)


def test_every_flipped_byte_at_the_end_of_a_list_that_nobody_noted_is_refused_or_changes_nothing(
    killed: Path, tmp_path: Path
) -> None:
    whole = rows_of(Path(shutil.copytree(killed, tmp_path / "whole", symlinks=True)))
    assert whole[b"u:99"] == b"the last"
    (log,) = (path for path in killed.glob("*.log") if path.stat().st_size)
    for name in (manifest_of(killed).name, log.name):
        size = (killed / name).stat().st_size
        assert size < 32_768
        for at in range(size - 60, size):
            path = tmp_path / f"{name}-{at}"
            shutil.copytree(killed, path, symlinks=True)
            (path / NAME).unlink()  # as after a file was written and the process killed at once
            flip(path / name, at)
            with suppress(StateError):
                assert rows_of(path) == whole, (name, at)


def gone(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 40)


def zeroed(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40] + bytes(40))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("name", "harm", "word"),
    [
        ("MANIFEST", cut, "bytes, expected"),
        ("MANIFEST", zeroed, "is not what was written"),
        ("MANIFEST", emptied, "has 0 bytes, expected"),
        ("CURRENT", gone, "its CURRENT is gone"),
        ("CURRENT", emptied, "its CURRENT names ''"),
        ("log", gone, "its newest log has the number 0"),
        (NAME, emptied, "can't be read"),
        (NAME, cut, "can't be read"),
    ],
)
def test_a_list_that_lost_something_is_refused_by_worker_and_readers(
    state: Path, name: str, harm: Any, word: str
) -> None:
    for path in {"MANIFEST": [manifest_of(state)], "log": [*state.glob("*.log")]}.get(name, [state / name]):
        harm(path)
    before = sorted(path.name for path in state.iterdir())
    with pytest.raises(StateError, match=f"partition-0 is damaged: .*{word}.*; move it away to rebuild"):
        RocksStore(state)
    with pytest.raises(StateError, match=word):
        ReadOnlyStore(state, state.parent / "scratch")
    assert sorted(path.name for path in state.iterdir()) == before
    with StateReader(state.parent) as reader:
        assert not reader.ready


def test_what_a_crash_leaves_opens(state: Path, tmp_path: Path) -> None:
    whole = rows_of(Path(shutil.copytree(state, tmp_path / "whole", symlinks=True)))
    with manifest_of(state).open("ab") as manifest:
        manifest.write(os.urandom(4) + b"\x60\x00\x01" + os.urandom(20))  # a record that was torn off
    note = (state / NAME).read_bytes()
    assert rows_of(state) == whole
    (state / NAME).write_bytes(note)  # opened, and killed before that could be noted
    assert rows_of(state) == whole
    (state / f"{NAME}.0123.tmp").write_bytes(b"{")  # killed while it was noted
    assert rows_of(state) == whole
    (state / NAME).unlink()  # of an earlier version of driftline
    assert rows_of(state) == whole
    assert (state / NAME).exists()


def test_what_rocksdb_writes_in_the_background_is_noted_with_the_next_commit_and_at_the_end(tmp_path: Path) -> None:
    path = partition_path(tmp_path, 0)
    store = RocksStore(path, sync=False)

    def noted() -> int:
        return int(orjson.loads((path / NAME).read_bytes())["bytes"])

    store.commit({b"u:1": b"one"})
    before = noted()
    store._db.flush()
    assert noted() == before < lists_of(path).bytes
    store.note(b"m:complete", b"1")
    assert before < noted() == lists_of(path).bytes
    written = (path / NAME).stat().st_mtime_ns
    store.commit({b"u:2": b"two"})
    assert (path / NAME).stat().st_mtime_ns == written  # nothing to note
    store._db.flush()
    store.close()
    assert noted() == lists_of(path).bytes


def test_a_reader_beside_a_writer_is_never_refused(tmp_path: Path) -> None:
    path = partition_path(tmp_path, 0)
    for opening in range(3):
        store = RocksStore(path, sync=False)
        (tmp_path / f"scratch-{opening}").mkdir()
        for n in range(10):
            store.commit({b"u:%d" % n: os.urandom(20)})
            if n % 5 == 0:
                store._db.flush()
            reader = open_beside(path, tmp_path / f"scratch-{opening}" / f"{n}")
            assert isinstance(reader, Rdict)
            reader.close()
        store.close()
