"""Backups taken beside a running worker, and what is put back from them."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.stream.conftest import ENVIRONMENT, REPOSITORY
from tests.stream.process.test_processor import records, run, shop_log
from typer.testing import CliRunner

from driftline.configs.errors import InputError, StateError
from driftline.configs.settings import Graph, Settings, State
from driftline.graph.memory import GraphMemory
from driftline.stream.cli import app
from driftline.stream.owned.partitions import Partitions
from driftline.stream.owned.versions import encode_version, load_version, version_path
from driftline.stream.process.processor import Processor
from driftline.stream.state.backup import backup, restore
from driftline.stream.state.layout import hold_to_layout
from driftline.stream.state.live import read_live_state
from driftline.stream.state.store import RocksStore, partition_path

LOG = records(shop_log())


def settings_at(root: Path) -> Settings:
    settings = Settings(state=State(root=root, sync=False))
    hold_to_layout(settings, 1)
    return settings


def go_on(settings: Settings, log: list[Any]) -> str:
    """A worker over what is there; the hash in the end."""
    store = RocksStore(partition_path(settings.state.root, 0), sync=False)
    processor = Processor(settings, store)
    processor.commit(processor.apply(log))
    store.close()
    return read_live_state(settings.state.root).state_sha256


def test_a_restored_state_and_the_rest_of_the_log_end_in_the_hash_of_the_whole_log(tmp_path) -> None:
    settings = settings_at(tmp_path / "state")
    go_on(settings, LOG[:400])
    store = RocksStore(partition_path(settings.state.root, 0), sync=False)  # held by its worker meanwhile
    saved = backup(settings.state.root, tmp_path / "saved")
    store.close()
    assert saved.next_offset == {0: 400}
    assert go_on(settings, LOG) == run(LOG, []) != saved.state_sha256
    shutil.rmtree(settings.state.root)
    assert restore(settings.state.root, tmp_path / "saved") == saved
    hold_to_layout(settings, 1)
    assert sorted(path.name for path in settings.state.root.iterdir()) == ["layout.json", "partition-0"]
    assert go_on(settings, LOG) == run(LOG, [])


def test_a_backup_beside_a_writer_is_the_state_after_one_of_its_commits(tmp_path) -> None:
    settings = settings_at(tmp_path / "state")
    hashes = {}
    store = RocksStore(partition_path(settings.state.root, 0), sync=False)
    processor = Processor(settings, store)
    processor.commit(processor.apply(LOG[:50]))
    done = threading.Event()

    def write() -> None:
        for at in range(50, len(LOG), 3):
            processor.commit(processor.apply(LOG[at : at + 3]))
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    saved = []
    while len(saved) < 2 or not done.is_set():
        saved.append(backup(settings.state.root, tmp_path / f"saved-{len(saved)}"))
    writer.join()
    store.close()
    for state in {state.next_offset[0]: state for state in saved[:6]}.values():
        offset = state.next_offset[0]
        hashes[offset] = run(LOG[:offset], [])
        assert state.state_sha256 == hashes[offset]


def test_the_adopted_graph_version_is_part_of_the_backup(tmp_path) -> None:
    settings = settings_at(tmp_path / "state")
    store = RocksStore(partition_path(settings.state.root, 0), sync=False)
    processor = Processor(settings, store)
    model = GraphMemory(Graph(seed=7))
    processor.commit(processor.apply(LOG[:90]))
    processor.commit(processor.adopt(model))
    store.close()
    path = version_path(settings, model.version())
    path.parent.mkdir()
    path.write_bytes(b"weights")
    backup(settings.state.root, tmp_path / "saved")
    shutil.rmtree(settings.state.root)
    assert restore(settings.state.root, tmp_path / "saved").graph == {0: model.version()}
    assert path.read_bytes() == b"weights"
    shutil.rmtree(settings.state.root)
    (tmp_path / "saved" / "graph" / path.name).write_bytes(b"other")
    with pytest.raises(InputError, match=r"graph/.*\.safetensors is not the file that was written"):
        restore(settings.state.root, tmp_path / "saved")
    assert not settings.state.root.exists()


def test_a_restored_partition_has_the_versions_that_late_events_may_need(tmp_path) -> None:
    settings = settings_at(tmp_path / "state")
    store = RocksStore(partition_path(settings.state.root, 0), sync=False)
    processor = Processor(settings, store)
    models = [GraphMemory(Graph(seed=seed)) for seed in (7, 8)]
    for at, model in zip((90, 100), models, strict=True):
        version_path(settings, model.version()).parent.mkdir(exist_ok=True)
        blob = b"".join(part.value or b"" for part in encode_version(model, {}))
        version_path(settings, model.version()).write_bytes(blob)
        processor.commit(processor.apply(LOG[:at]))
        processor.commit(processor.adopt(model))
    assert len(processor.versions) == 3
    store.close()
    backup(settings.state.root, tmp_path / "saved")
    shutil.rmtree(settings.state.root)
    restore(settings.state.root, tmp_path / "saved")
    hold_to_layout(settings, 1)

    async def send(_: Any) -> None:
        pass

    partitions = Partitions(settings, 1, send, lambda sha256: load_version(settings, sha256))
    assert asyncio.run(partitions.open_users(0))
    assert len(partitions.users[0].versions) == 3
    partitions.close_all()


def test_a_state_is_restored_into_a_mount_point(tmp_path) -> None:
    """Which can't be moved nor replaced, beside which there is no room, and which is never quite empty."""
    settings = settings_at(tmp_path / "first")
    go_on(settings, LOG[:50])
    saved = backup(settings.state.root, tmp_path / "saved")
    root = tmp_path / "disk" / "state"
    (root / "lost+found").mkdir(parents=True)
    before = root.stat().st_ino, root.parent.stat().st_mtime_ns
    assert restore(root, tmp_path / "saved") == saved
    assert (root.stat().st_ino, root.parent.stat().st_mtime_ns) == before
    assert sorted(path.name for path in root.iterdir()) == ["layout.json", "lost+found", "partition-0"]
    mounted = settings_at(root)
    assert go_on(mounted, LOG) == run(LOG, [])


def test_half_a_restore_is_no_state(tmp_path, monkeypatch) -> None:
    settings = settings_at(tmp_path / "first")
    go_on(settings, LOG[:50])
    backup(settings.state.root, tmp_path / "saved")
    root, rename = tmp_path / "state", Path.rename

    def killed(self: Path, to: Path) -> Path:
        if self.name == "layout.json":
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            restore(root, tmp_path / "saved")
    assert (root / "partition-0" / "CURRENT").exists()
    with pytest.raises(StateError, match=r"has partitions and no layout\.json"):
        settings_at(root)
    with pytest.raises(StateError, match="is not empty, it holds partition-0; stop the workers and move what is in it"):
        restore(root, tmp_path / "saved")


def test_a_part_of_the_state_that_can_not_be_read_is_not_told_as_a_full_disk(tmp_path) -> None:
    settings = settings_at(tmp_path / "state")
    go_on(settings, LOG[:50])
    root = settings.state.root
    (root / "graph" / f"{'a' * 64}.safetensors").mkdir(parents=True)
    with pytest.raises(StateError, match=r"graph/a+\.safetensors can't be read: Is a directory"):
        backup(root, tmp_path / "saved")
    shutil.rmtree(root / "graph")
    (root / "layout.json").unlink()
    with pytest.raises(StateError, match=r"layout\.json can't be read: No such file"):
        backup(root, tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_can_not_be_backed_up_or_restored_is_one_sentence_and_leaves_nothing(tmp_path) -> None:
    settings = settings_at(tmp_path / "state")
    root = settings.state.root
    with pytest.raises(StateError, match="no state in"):
        backup(root, tmp_path / "saved")
    go_on(settings, LOG[:50])
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="taken exists; expected a folder to make"):
        backup(root, tmp_path / "taken")
    backup(root, tmp_path / "saved")
    with pytest.raises(StateError, match="is not empty, it holds layout"):
        restore(root, tmp_path / "saved")
    with pytest.raises(InputError, match="expected a folder of `driftline state backup`"):
        restore(tmp_path / "fresh", tmp_path / "taken")
    manifest = orjson.loads((tmp_path / "saved" / "backup.json").read_bytes())
    go_on(settings_at(tmp_path / "other"), LOG[:60])
    shutil.rmtree(tmp_path / "saved" / "partition-0")
    shutil.copytree(tmp_path / "other" / "partition-0", tmp_path / "saved" / "partition-0", symlinks=True)
    with pytest.raises(InputError, match=r"not that of its backup\.json"):
        restore(tmp_path / "fresh", tmp_path / "saved")
    (tmp_path / "saved" / "backup.json").write_bytes(orjson.dumps(manifest | {"format": 2}))
    with pytest.raises(InputError, match="expected what `driftline state backup` wrote"):
        restore(tmp_path / "fresh", tmp_path / "saved")
    assert not (tmp_path / "fresh").exists()
    assert list(tmp_path.glob("*.tmp")) == []


def test_a_worker_goes_on_from_a_backup_that_was_taken_while_it_ran(world: Any, wait: Any) -> None:
    log = [(r.key, r.value) for r in LOG]
    root, saved = world.settings.state.root, world.root / "saved"
    world.produce(log[:300])
    command = ["--json", "--config", str(world.config)]
    with world.worker() as worker:
        wait(lambda: worker.applied() == 300, what="the first part is applied")
        done = CliRunner().invoke(app, ["state", "backup", str(saved), *command])
        assert done.exit_code == 0, done.output
        assert orjson.loads(done.stdout)["next_offset"] == {"0": 300}
        world.produce(log[300:])
        wait(lambda: worker.applied() == len(log), what="the rest is applied")
        worker.stop()
    whole = read_live_state(root)
    shutil.rmtree(root)
    assert CliRunner().invoke(app, ["state", "restore", str(saved), *command]).exit_code == 0
    with world.worker() as worker:
        wait(lambda: worker.applied() == len(log), what="the rest is applied again")
        worker.stop()
    assert read_live_state(root) == whole


FULL = """
import resource, signal, sys
from pathlib import Path
from driftline.configs.errors import InputError, StateError
from driftline.stream.process.forget import encode_forget
from driftline.stream.process.processor import Record
from driftline.stream.replay.rebuild import rebuild
from driftline.stream.replay.without import Log
from driftline.stream.state.backup import backup
from tests.stream.state.test_backup import LOG, settings_at

settings, what = settings_at(Path(sys.argv[1]) / "state"), sys.argv[2]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a disk has no more room
try:
    if what == "backup":
        backup(settings.state.root, Path(sys.argv[1]) / "saved")
    else:
        rebuild(settings, Log({0: [*LOG, Record(len(LOG), encode_forget("u7")[1])]}))
except (InputError, StateError) as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("what", "words"), [("backup", "saved can't be written"), ("rebuild", "the rebuilt state can't be written")]
)
def test_a_disk_that_fills_while_a_state_is_written_anew_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, what: str, words: str
) -> None:
    go_on(settings_at(tmp_path / "state"), LOG)
    before = read_live_state(tmp_path / "state")
    command = [sys.executable, "-c", FULL, str(tmp_path), what]
    done = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert words in done.stdout, done.stderr
    assert "make room" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert not list((tmp_path / "state").glob("*.rebuilt"))
    assert read_live_state(tmp_path / "state") == before
