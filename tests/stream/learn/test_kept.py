"""Rows of a trainer beside its checkpoints: whole wherever it is killed, written once, and no folder is left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.stream.conftest import ENVIRONMENT, REPOSITORY, baskets, feed, flush, log_of, start

from driftline.configs.errors import StateError
from driftline.configs.faults import ARMED, CHECKPOINT_POINTS
from driftline.configs.settings import Settings
from driftline.stream.learn import trainer as module
from driftline.stream.learn.checkpoint import write_checkpoint
from driftline.stream.learn.trainer import Trainer

LOG = log_of(list(baskets(40)))
CUTS = (30, 60, 75)
KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from driftline.configs.settings import Settings
from tests.stream.conftest import feed, start
from tests.stream.learn.test_kept import CUTS, LOG
trainer = start(Settings.model_validate_json(sys.argv[1]))
for cut in CUTS:
    feed(trainer, LOG[:cut])
    trainer.checkpoint()
"""
FULL = """
import os, resource, sys
sys.path.insert(0, sys.argv[2])
from driftline.configs.errors import StateError
from driftline.configs.settings import Settings
from tests.stream.conftest import feed, start
from tests.stream.learn.test_kept import CUTS, LOG
trainer = feed(start(Settings.model_validate_json(sys.argv[1])), LOG[:CUTS[0]])
trainer.checkpoint()
largest = max(path.stat().st_size for path in trainer.settings.trainer.root.rglob("*") if path.is_file())
resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 100_000, largest + 100_000))
try:
    for n in range(1000):
        trainer.learner.processor.store.commit({b"x%d" % (100 * n + k): os.urandom(2000) for k in range(100)})
        if n == int(sys.argv[3]):
            trainer.checkpoint()
except StateError as error:
    print(error)
trainer.close()
"""


def rows_of(trainer: Trainer) -> dict[bytes, bytes]:
    return dict(trainer.learner.processor.store.scan(b""))


def same(ours: Trainer, theirs: Trainer) -> None:
    assert ours.offsets == theirs.offsets
    assert rows_of(ours) == rows_of(theirs)
    for part, arrays in theirs.learner.arrays().items():
        for name, array in arrays.items():
            assert ours.learner.arrays()[part][name].tobytes() == array.tobytes(), (part, name)


def folders(settings: Settings) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in (settings.trainer.root / "rows").iterdir())


@pytest.mark.parametrize("at", CHECKPOINT_POINTS)
def test_a_trainer_killed_at_any_step_of_a_checkpoint_goes_on_to_the_bit_and_leaves_no_folder(
    settings: Settings, tmp_path: Path, at: str
) -> None:
    command = [sys.executable, "-c", KILLED, settings.model_dump_json(), str(REPOSITORY)]
    done = subprocess.run(command, env=ENVIRONMENT | {ARMED: f"{at}:2"}, cwd=REPOSITORY, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(folders(settings)) == 3  # two kept ones and the working one
    trainer = start(settings)
    named = "2" if at == "checkpoint-prune" else "1"
    assert trainer.offsets == {0: CUTS[int(named) - 1]}
    assert folders(settings) == [named, "working"]
    flush(feed(trainer, LOG))
    root = settings.trainer.model_copy(update={"root": tmp_path / "whole"})
    same(trainer, flush(feed(start(settings.model_copy(update={"trainer": root})), LOG)))
    trainer.checkpoint()
    trainer.close()
    assert folders(settings) == [str(int(named) + 1)]


@pytest.mark.parametrize("last", [3, 1000])
def test_where_the_disk_is_full_a_trainer_ends_with_one_sentence_and_the_checkpoint_before_stands(
    settings: Settings, last: int
) -> None:
    command = [sys.executable, "-c", FULL, settings.model_dump_json(), str(REPOSITORY), str(last)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (said,) = done.stdout.splitlines()
    assert "rows" in said
    assert "can't be written" in said
    assert "make room" in said, said
    assert start(settings).offsets == {0: CUTS[0]}


def test_a_checkpoint_writes_what_changed_and_shares_the_rest_with_the_one_before(settings: Settings) -> None:
    trainer = feed(start(settings), LOG[:30])
    trainer._rows.store.commit({b"u:%06d" % n: os.urandom(1000) for n in range(3000)})
    root, seen = settings.trainer.root, set[int]()

    def written() -> int:
        trainer.checkpoint()
        files = [path.stat() for path in (root / "rows" / str(trainer._rows._number)).iterdir()]
        new = sum(file.st_size for file in files if file.st_ino not in seen)
        seen.update(file.st_ino for file in files)
        return new

    assert written() > 3_000_000
    feed(trainer, LOG[30:60])
    assert 0 < written() < 100_000
    assert (root / "checkpoint.pt").stat().st_size < 1_000_000
    expected, trainer = rows_of(trainer), start(settings)
    assert rows_of(trainer) == expected
    assert 0 < written() < 100_000  # nor does a start write them again


def test_where_there_are_no_hard_links_rows_are_copied(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    first = feed(start(settings), LOG[:50])
    first.checkpoint()

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    same(flush(feed(start(settings), LOG)), flush(feed(first, LOG)))


def test_the_checkpoint_of_a_release_that_kept_rows_in_its_file_is_gone_on_from_and_written_anew(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = feed(start(settings), LOG[:50])

    def write_as_before(path: Path, state: dict[str, Any]) -> None:
        del state["rows"]
        write_checkpoint(path, state | {"learner": first.learner.state_dict()})

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_checkpoint", write_as_before)
        first.checkpoint()
    shutil.rmtree(settings.trainer.root / "rows")
    path = settings.trainer.root / "checkpoint.pt"
    assert b"u:u1" in path.read_bytes()
    second = start(settings)
    assert second.offsets == {0: 50}
    second.checkpoint()
    assert b"u:u1" not in path.read_bytes()
    whole = settings.model_copy(update={"trainer": settings.trainer.model_copy(update={"root": path.parent / "whole"})})
    same(flush(feed(start(settings), LOG)), flush(feed(start(whole), LOG)))


def test_rows_that_are_gone_or_damaged_are_one_sentence_that_says_what_to_do(settings: Settings) -> None:
    trainer = feed(start(settings), LOG[:50])
    trainer.checkpoint()
    trainer.close()
    kept = settings.trainer.root / "rows" / "1"
    (manifest,) = kept.glob("MANIFEST-*")
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-1])
    with pytest.raises(StateError, match=f"{kept} is damaged"):
        start(settings)
    manifest.write_bytes(whole)
    table = max(kept.glob("*.sst"), key=lambda path: path.stat().st_size)
    content = bytearray(table.read_bytes())
    content[50] ^= 1
    table.write_bytes(content)
    with pytest.raises(StateError, match=r"damaged: Corruption.*; move what is in trainer\.root away"):
        feed(start(settings), LOG)
    shutil.rmtree(kept)
    with pytest.raises(StateError, match=r"names rows in .*/rows/1, and there are none; move what is in trainer\.root"):
        start(settings)
