"""Temporary folders: they go with their process, and what a killed one left goes with the next that makes one."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from driftline.serving.scratch import BEGINS, LOCK, Scratch

HOLDS = """
import sys, time
from pathlib import Path
from driftline.serving.scratch import Scratch
with Scratch("secondary", Path(sys.argv[1]) if sys.argv[1:] else None) as folder:
    (folder / "file").write_text("of a process")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("beside", [True, False])
def test_what_a_killed_process_left_goes_with_the_next_and_what_a_running_one_uses_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    words = [sys.executable, "-c", HOLDS, *([str(tmp_path)] if beside else [])]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as killed,
        subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running,
    ):
        assert killed.stdout is not None
        assert running.stdout is not None
        left, used = Path(killed.stdout.readline().strip()), Path(running.stdout.readline().strip())
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        other = tmp_path / ("." * beside + "driftline-secondary-of-somebody-else")
        other.mkdir()
        assert left.exists()
        with Scratch("secondary", tmp_path if beside else None) as mine:
            assert mine.parent == tmp_path
            assert not left.exists()
            assert (used / "file").exists()
        assert not mine.exists()
        assert other.exists()
        running.kill()


def test_a_folder_that_was_being_made_when_its_process_was_killed_goes_with_a_later_one(tmp_path: Path) -> None:
    bare, locked, young, held = (tmp_path / f"{BEGINS}{name}" for name in ("bare", "locked", "young", "held"))
    for folder in (bare, locked, young, held):
        folder.mkdir()
    for folder in (locked, held):
        (folder / LOCK).touch()
    for folder in (bare, locked, held):
        os.utime(folder, (0, 0))
    with (held / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Scratch("secondary", tmp_path):
            assert [folder.exists() for folder in (bare, locked, young, held)] == [False, False, True, True]


def test_a_folder_that_can_not_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such"):
        Scratch("sorting", tmp_path / "no-such")
