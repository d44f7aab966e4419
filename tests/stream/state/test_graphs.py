"""Files of graph versions that nobody needs go, others stay."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from driftline.stream.state import graphs
from driftline.stream.state.store import RocksStore


def test_a_version_that_is_adopted_while_the_stores_are_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RocksStore(tmp_path / "partition-0", sync=False).close()
    (tmp_path / "graph").mkdir()
    again, nobodys = (tmp_path / "graph" / f"{name}.safetensors" for name in ("again", "nobodys"))
    for path in (again, nobodys):
        path.write_bytes(b"weights")
        os.utime(path, (0, 0))
    read = graphs._needed

    def touched_after(path: Path) -> set[str]:
        found = read(path)
        again.touch()  # a worker of another process adopts it now; its commit comes after the store was read
        return found

    monkeypatch.setattr(graphs, "_needed", touched_after)
    assert graphs.remove_unneeded(tmp_path) == 1
    assert again.exists()
    assert not nobodys.exists()
