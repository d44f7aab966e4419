"""Rebuilt databases take the place of the old ones while nobody can open either."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from driftline.configs.errors import LockedError
from driftline.stream.replay import rebuild as rebuilding
from driftline.stream.state.store import RocksStore

TRY_ALL = """
import sys
from rocksdict import Rdict
free, held = [], []
for path in sys.argv[1:]:
    try:
        held.append(Rdict(path))
        free.append(path.rpartition("/")[2])
    except Exception as error:
        assert "lock" in str(error).lower(), error
print(*free, flush=True)
sys.stdin.read()
"""


def other_process(*paths: Path) -> subprocess.Popen[str]:
    """Opens directories and says which were free; holds them until its input ends."""
    command = [sys.executable, "-c", TRY_ALL, *map(str, paths)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def row(path: Path) -> bytes | None:
    store = RocksStore(path, sync=False)
    (value,) = store.get([b"u:1"])
    store.close()
    return value


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two old databases, a new one beside each."""
    found = [tmp_path / "items-0", tmp_path / "partition-0"]
    for path in found:
        for directory, value in ((path, b"old"), (path.with_name(f"{path.name}.rebuilt"), b"new")):
            store = RocksStore(directory, sync=False)
            store.commit({b"u:1": value})
            store.close()
    return found


@pytest.mark.parametrize("taken", ["partition-0", "items-0.rebuilt"])
def test_a_worker_that_takes_a_directory_before_the_swap_stops_it_and_all_stays(paths: list[Path], taken: str) -> None:
    worker = other_process(paths[0].with_name(taken))
    assert worker.stdout is not None
    assert worker.stdout.readline().split() == [taken]
    with pytest.raises(LockedError, match=r"is held by .*stop it and try again"):
        rebuilding._swap(paths)
    worker.communicate()
    assert [row(path) for path in paths] == [b"old", b"old"]
    rebuilding._swap(paths)
    assert [row(path) for path in paths] == [b"new", b"new"]


def test_no_worker_opens_a_directory_between_the_swap_and_the_hash(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes, free = rebuilding._hashes_of, []

    def tried_first(found: Any) -> tuple[str, str]:
        free.append(other_process(*paths).communicate()[0].split())
        return hashes(found)

    monkeypatch.setattr(rebuilding, "_hashes_of", tried_first)
    rebuilding._swap(paths)
    assert free == [[]]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["items-0", "partition-0"]
