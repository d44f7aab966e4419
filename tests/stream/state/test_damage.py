"""Damaged data on disk is an error in words, never less data."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import open_to_others
from typer.testing import CliRunner

from driftline.configs.errors import StateError
from driftline.configs.settings import Settings, State
from driftline.graph.rows import Event
from driftline.serving.errors import NotReady
from driftline.serving.state_reader import StateReader
from driftline.stream.cli import app
from driftline.stream.learn.checkpoint import read_checkpoint, write_checkpoint
from driftline.stream.ops.doctor import examine
from driftline.stream.ops.revision import ROOT
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.layout import hold_to_layout
from driftline.stream.state.store import ReadOnlyStore, RocksStore, partition_path

USERS = 3000


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A state whose table file has one other byte in its middle."""
    settings = Settings(state=State(root=tmp_path))
    hold_to_layout(settings, 1)
    store = RocksStore(partition_path(tmp_path, 0))
    processor = Processor(settings, store)
    events = (Event(f"u{n:05}", f"i{n % 7}", 1_600_000_000_000 + n) for n in range(USERS))
    processor.commit(processor.apply([Record(n, event) for n, event in enumerate(events)]))
    store._db.flush()
    store.close()
    table = max(tmp_path.glob("partition-0/*.sst"), key=lambda path: path.stat().st_size)
    flip(table)
    return tmp_path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_block_is_an_error_and_not_the_end(damaged: Path) -> None:
    settings = Settings(state=State(root=damaged))
    store = RocksStore(partition_path(damaged, 0))
    processor = Processor(settings, store)  # which reads no user
    again = [Record(USERS + n, Event(f"u{n:05}", "i0", 1_700_000_000_000)) for n in range(USERS)]
    with pytest.raises(StateError, match=r"partition-0 is damaged: .*orruption.*; move it away to rebuild"):
        processor.apply(again)
    with pytest.raises(StateError, match="is damaged"):
        store.get([f"u:u{n:05}".encode() for n in range(USERS)])
    store.close()
    assert [f.state for f in examine(settings) if f.part == "state"] == ["ok", "bad"]
    result = CliRunner().invoke(app, ["state", "hash"], env={"DRIFTLINE__STATE__ROOT": str(damaged)})
    assert isinstance(result.exception, StateError)
    assert result.stdout == ""


def test_a_damaged_log_is_an_error_and_its_torn_end_is_not(tmp_path: Path) -> None:
    path, code = (
        partition_path(tmp_path, 0),
        """
import os, sys
from pathlib import Path
from driftline.stream.state.store import RocksStore
store = RocksStore(Path(sys.argv[1]))
for n in range(100):
    store.commit({b"u:%03d %02d" % (n, row): os.urandom(20) for row in range(30)})
os._exit(0)
""",
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)
    (log,) = path.glob("*.log")
    whole = log.read_bytes()
    log.write_bytes(whole[:-7])  # the last commit was cut off by a crash
    store = RocksStore(path)
    assert len(list(store.scan(b"u:"))) == 99 * 30
    store.close()
    shutil.rmtree(path)
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)
    flip(next(path.glob("*.log")))
    with pytest.raises(StateError, match=r"can't be opened: .*orruption.*move it away to rebuild"):
        RocksStore(path)
    with pytest.raises(StateError, match=r"can't be read: .*orruption.*move it away to rebuild"):
        ReadOnlyStore(path, tmp_path / "scratch")


def test_a_damaged_item_store_is_told_by_doctor(damaged: Path) -> None:
    (damaged / "partition-0").rename(damaged / "items-0")
    RocksStore(partition_path(damaged, 0)).close()
    settings = Settings(state=State(root=damaged))
    assert [f.state for f in examine(settings) if f.part == "state"] == ["ok", "bad"]


def test_the_service_is_not_available_to_users_in_a_damaged_block_and_answers_the_others(damaged: Path) -> None:
    with StateReader(damaged) as reader:
        answers = set()
        for n in range(USERS):
            try:
                answers.add(reader.user(f"u{n:05}").row is not None)
            except NotReady as error:
                answers.add("orruption" in str(error))
                answers.add("not ready")
        assert answers == {True, "not ready"}
        assert reader.popular() is not None


def test_a_flipped_byte_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"settings": "s", "weights": list(range(10_000))})
    state = read_checkpoint(path, "s")
    assert state is not None
    assert state["weights"][-1] == 9_999
    flip(path)
    with pytest.raises(StateError, match=r"its check sum does not hold.*; move it away to learn from the start"):
        read_checkpoint(path, "s")


REFUSED = """
import os, subprocess, sys
from pathlib import Path
from driftline.configs.errors import StateError
from driftline.stream.learn.checkpoint import read_checkpoint
from driftline.stream.state.layout import read_layout
from driftline.stream.state.store import ReadOnlyStore, RocksStore

root, how = Path(sys.argv[1]), sys.argv[2]
if how == "read-only":
    subprocess.run(["mount", "--bind", root, root], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", root], check=True)
elif os.geteuid() == 0:
    os.setuid(54321)
calls = [lambda: RocksStore(root / "partition-0", lock_wait_s=0.2), lambda: RocksStore(root / "partition-1")]
if how == "not ours":
    calls.append(lambda: ReadOnlyStore(root / "partition-0", root))
    calls.append(lambda: read_checkpoint(root / "checkpoint.pt", ""))
    calls.append(lambda: read_layout(root))
for call in calls:
    try:
        call()
    except StateError as error:
        print(error)
"""


@pytest.mark.parametrize("how", ["read-only", "not ours"])
def test_a_disk_that_may_not_be_used_is_called_that_and_what_lies_on_it_is_not_to_be_moved(
    tmp_path: Path, how: str
) -> None:
    root = tmp_path / "blocks"  # RocksDB's words for a lock that is held name the directory
    hold_to_layout(Settings(state=State(root=root)), 1)
    RocksStore(partition_path(root, 0)).close()
    (root / "checkpoint.pt").write_bytes(b"")
    begin = []
    if how == "read-only":
        begin = ["unshare", "--map-root-user", "--mount"]
        if shutil.which("unshare") is None or subprocess.run([*begin, "true"], stderr=subprocess.DEVNULL).returncode:
            pytest.skip("no mount of its own can be had here")
    else:
        open_to_others(root)
        for path in (*(path for path in root.rglob("*") if path.is_file()), root / "partition-0", root):
            path.chmod(0o555 if path == root else 0)
    words = [*begin, sys.executable, "-c", REFUSED, str(root), how]
    try:
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    finally:
        for path in (root, root / "partition-0"):
            path.chmod(0o755)
    remedy = {"read-only": "the file system is read-only: mount it", "not ours": "this user may not: give it"}[how]
    assert len(said) == {"read-only": 2, "not ours": 5}[how]
    for line in said:
        assert remedy in line
        assert "move" not in line


def test_a_directory_whose_path_has_a_lock_in_it_is_not_locked_for_that(tmp_path: Path) -> None:
    path = tmp_path / "clocks" / "partition-0"
    RocksStore(path).close()
    (path / "CURRENT").write_text("MANIFEST-000000\n")
    (path / "driftline-lists.json").unlink()
    with pytest.raises(StateError, match=r"can't be opened: .*; move it away to rebuild the partition"):
        RocksStore(path, lock_wait_s=0.2)
