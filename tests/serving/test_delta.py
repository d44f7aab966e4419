"""Snapshots by delta on a real disk: chains, what breaks them, what holds up whom, and who keeps what."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import orjson
import pytest

from driftline.configs.errors import SnapshotError
from driftline.configs.faults import ARMED, PUBLISH_POINTS
from driftline.graph.touched import Touched
from driftline.serving import delta as delta_module
from driftline.serving.arrays import file_sha256, item_part, unpack_strings
from driftline.serving.delta import Verified, change_of, laid_over
from driftline.serving.metrics import ServingMetrics
from driftline.serving.models import ModelSlot
from driftline.serving.publish import publish, release, rollback
from driftline.serving.publisher import BrokenChainError, Publisher, Taken
from driftline.serving.scorer import PopularityScorer
from driftline.serving.snapshot import Meta, current, list_snapshots, open_snapshot


class Model:
    """Something that learns: a large table by rows, counters, a weight, a growing catalogue."""

    def __init__(self, root: Path, rows: int = 4000, keep: int = 100, longest: int = 30, largest: float = 0.5) -> None:
        self.random = np.random.default_rng(0)
        self.publisher = Publisher(root, keep, longest, largest)
        self.table = self.random.standard_normal((rows, 16)).astype(np.float32)
        self.counts, self.weight, self.touched = np.zeros(rows), np.zeros((3, 3), np.float32), Touched()
        self.scalar = np.array(0)

    def learn(self, more: int = 0, touch: int = 7) -> None:
        grown = self.random.standard_normal((more, 16)).astype(np.float32)
        self.table, self.counts = np.concatenate((self.table, grown)), np.append(self.counts, np.zeros(more))
        rows = self.random.choice(len(self.table), touch, replace=False)
        self.table[rows] += 1
        self.counts[rows] += 1
        self.touched.add(rows)
        self.weight += 0.5
        self.scalar = np.array(self.scalar + 1)

    def parts(self) -> dict[str, dict[str, np.ndarray]]:
        engine = {"table": self.table, "counts": self.counts, "weight": self.weight, "scalar": self.scalar}
        ids = [f"i{n}" for n in range(len(self.table))]
        return {"engine": engine | {"none": np.zeros((0, 7))}, "items": item_part(ids, [f"T {n}" for n in ids])}

    def publish(self, **meta: object) -> str:
        if not self.publisher.ready:
            self.touched.everything()
        rows = self.touched.take(len(self.table))
        half = len(rows) // 2  # in two steps, the first of which was soon out of date
        pieces = [(rows[: half + 1], self.table[rows[: half + 1]] - 1), (rows, self.table[rows])]
        parts = self.parts()
        shapes = {part: {name: (a.dtype, a.shape) for name, a in of.items()} for part, of in parts.items()}
        whole = {part: {name: a.copy() for name, a in of.items() if name != "table"} for part, of in parts.items()}
        return self.publisher.publish(Taken(shapes, {"engine": {"table": pieces}}, whole), Meta(**meta))


def same(opened, parts) -> None:
    assert opened.parts.keys() == parts.keys()
    for part, arrays in parts.items():
        assert opened.parts[part].keys() == arrays.keys()
        for name, array in arrays.items():
            held = opened.parts[part][name]
            assert (held.dtype, held.shape) == (array.dtype, array.shape), name
            assert held.tobytes() == array.tobytes(), name
            assert not held.flags.writeable


def copied(parts):
    return {part: {name: array.copy() for name, array in of.items()} for part, of in parts.items()}


def chain(root: Path, deltas: int = 3, **options: object) -> tuple[Model, list[str], list[dict]]:
    model, versions, states = Model(root, **options), [], []
    for number in range(deltas + 1):
        if number:
            model.learn(more=number)
        versions.append(model.publish(watermark_ms=number))
        states.append(copied(model.parts()))
    return model, versions, states


def test_every_version_of_a_chain_opens_to_what_was_published_whatever_is_opened_before(tmp_path):
    _, versions, states = chain(tmp_path, 12)
    assert [entry.deltas for entry in list_snapshots(tmp_path)] == list(range(12, -1, -1))
    assert {entry.base for entry in list_snapshots(tmp_path)[:-1]} == {versions[0]}
    verified = Verified()
    opened = []
    for number in (0, 1, 5, 4, 12, 11, 0, 7):  # some are passed over, as by a server that looks less often
        opened.append((number, open_snapshot(tmp_path, versions[number], verified)))
    for number, snapshot in opened:  # what was adopted later has changed none
        same(snapshot, states[number])
        assert snapshot.meta.watermark_ms == number
    assert unpack_strings(opened[4][1].parts["items"], "id")[-1] == f"i{4000 + sum(range(13)) - 1}"


def test_a_delta_holds_what_changed(tmp_path):
    model, versions, _ = chain(tmp_path, 1)
    sizes = [sum(file.stat().st_size for file in (tmp_path / version).iterdir()) for version in versions]
    assert sizes[1] < 0.03 * sizes[0]
    assert model.publisher.bytes < 0.02 * sum(array.nbytes for array in model.parts()["engine"].values())


def test_a_chain_that_is_long_or_large_is_followed_by_a_whole_snapshot(tmp_path):
    model, _, _ = chain(tmp_path / "long", 5, longest=2)
    assert [entry.deltas for entry in reversed(list_snapshots(tmp_path / "long"))] == [0, 1, 2, 0, 1, 2]
    same(open_snapshot(tmp_path / "long"), model.parts())
    model = Model(tmp_path / "large", largest=0.25)
    deltas = []
    for _ in range(6):
        model.learn(touch=620)
        model.publish()
        deltas.append(model.publisher.deltas)
        same(open_snapshot(tmp_path / "large"), model.parts())
    assert deltas == [0, 1, 2, 0, 1, 2]
    model, _, _ = chain(tmp_path / "none", 2, longest=0)
    assert [entry.deltas for entry in list_snapshots(tmp_path / "none")] == [0, 0, 0]


def test_a_table_that_outgrows_its_room_is_still_the_same(tmp_path):
    model = Model(tmp_path, rows=2000, largest=9.0)
    model.publish()
    for more in (100, 149, 2, 900):
        model.learn(more)
        model.publish()
        same(open_snapshot(tmp_path), model.parts())
    assert model.publisher.deltas == 4


@pytest.mark.parametrize("link", range(4))
@pytest.mark.parametrize("file", ["engine.safetensors", "items.safetensors", "manifest.json"])
def test_a_flipped_byte_anywhere_in_a_chain_is_found_before_anything_is_read(tmp_path, link, file):
    _, versions, states = chain(tmp_path)
    path = tmp_path / versions[link] / file
    whole, random = path.read_bytes(), np.random.default_rng(link)
    for at in [0, len(whole) - 1, *random.integers(0, len(whole), 6).tolist()]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        for number, version in enumerate(versions):
            if number < link:
                same(open_snapshot(tmp_path, version), states[number])
                continue
            with pytest.raises(SnapshotError, match="damaged") as caught:
                open_snapshot(tmp_path, version)
            assert versions[link] in str(caught.value)
            assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    same(open_snapshot(tmp_path, versions[-1]), states[-1])


def test_a_file_that_changes_after_it_was_read_through_is_found(tmp_path):
    _, versions, _ = chain(tmp_path)
    verified = Verified()
    open_snapshot(tmp_path, versions[2], verified)
    path = tmp_path / versions[1] / "engine.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match=rf"{versions[1]} is damaged"):
        open_snapshot(tmp_path, versions[3], verified)


def test_a_missing_link_is_named_and_a_start_serves_the_newest_that_is_sound(tmp_path, caplog):
    _, versions, states = chain(tmp_path)
    shutil.rmtree(tmp_path / versions[2])
    with pytest.raises(SnapshotError, match=rf"{versions[3]} builds on another: .*{versions[2]} is missing"):
        open_snapshot(tmp_path)
    slot = follower(tmp_path)
    slot.close()
    assert slot.served.snapshot.version == versions[1]
    same(slot.served.snapshot, states[1])
    assert versions[2] in slot.refused
    shutil.rmtree(tmp_path / versions[0])
    with pytest.raises(SnapshotError, match=rf"{versions[0]} is missing"):
        open_snapshot(tmp_path, versions[1])


def test_links_in_another_order_are_refused_though_all_sums_hold(tmp_path):
    _, versions, _ = chain(tmp_path)
    manifest = orjson.loads((tmp_path / versions[3] / "manifest.json").read_bytes())
    for wrong in ([0, 2, 1], [0, 2], [1, 2], [0, 1, 1, 2]):
        body = orjson.dumps(manifest | {"chain": [manifest["chain"][n] for n in wrong]})
        other = tmp_path / f"0000000009-{hashlib.sha256(body).hexdigest()[:8]}"
        shutil.copytree(tmp_path / versions[3], other)
        (other / "manifest.json").write_bytes(body)
        with pytest.raises(SnapshotError, match="is not the link of its chain"):
            open_snapshot(tmp_path, other.name)


def test_a_publisher_whose_chain_was_damaged_writes_a_whole_snapshot_next(tmp_path):
    model, versions, _ = chain(tmp_path, 2, longest=2)
    path = tmp_path / versions[0] / "engine.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    model.learn()
    with pytest.raises(BrokenChainError, match=rf"{versions[0]} is damaged.* The next snapshot is written whole"):
        model.publish()
    assert current(tmp_path).version == versions[-1]
    assert not model.publisher.ready
    model.publish()
    same(open_snapshot(tmp_path), model.parts())
    assert model.publisher.deltas == 0
    shutil.rmtree(tmp_path / current(tmp_path).version)  # a link that is gone is noticed at once
    model.learn()
    with pytest.raises(BrokenChainError, match="missing"):
        model.publish()
    model.publish()
    same(open_snapshot(tmp_path), model.parts())


def test_what_is_not_whole_is_no_beginning(tmp_path):
    model = Model(tmp_path)
    model.touched.take(4000)
    model.touched.add(np.arange(5))
    model.publisher._chain = []
    rows = model.touched.take(4000)
    parts = model.parts()
    shapes = {part: {name: (a.dtype, a.shape) for name, a in of.items()} for part, of in parts.items()}
    taken = Taken(shapes, {"engine": {"table": [(rows, model.table[rows])]}}, parts)
    with pytest.raises(BrokenChainError, match="'table' of part 'engine' is not whole"):
        model.publisher.publish(taken, Meta())


def test_pruning_keeps_what_a_kept_snapshot_builds_on(tmp_path):
    model, versions, states = chain(tmp_path, 5, keep=1, longest=2)
    assert [entry.version for entry in list_snapshots(tmp_path)] == versions[5:2:-1]
    rollback(tmp_path, versions[4])
    for _ in range(4):
        model.learn()
        model.publish()
    have = [entry.version for entry in list_snapshots(tmp_path)]
    assert have[-2:] == [versions[4], versions[3]]
    same(open_snapshot(tmp_path), states[4])
    assert release(tmp_path) == have[0]


def test_a_gated_delta_never_serves_but_carries_the_ones_after_it(tmp_path):
    model, versions, _ = chain(tmp_path, 1)
    model.learn()
    gated = model.publish(gate="ndcg@10 fell")
    assert current(tmp_path).version == versions[-1]
    with pytest.raises(SnapshotError, match="refused by its gate"):
        open_snapshot(tmp_path, gated)
    model.learn()
    model.publish()
    same(open_snapshot(tmp_path), model.parts())


def test_a_snapshot_of_the_release_before_opens(tmp_path):
    parts = Model(tmp_path, rows=50).parts()
    version = publish(tmp_path, parts, Meta())
    manifest = orjson.loads((tmp_path / version / "manifest.json").read_bytes())
    del manifest["chain"]
    body = orjson.dumps(manifest | {"schema_version": 1})
    older = tmp_path / f"0000000001-{hashlib.sha256(body).hexdigest()[:8]}"
    (tmp_path / version).rename(older)
    (older / "manifest.json").write_bytes(body)
    same(open_snapshot(tmp_path, older.name), parts)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.serving.test_delta import Model
model = Model(Path(sys.argv[1]), keep=2, longest=2)
for number in range(12):
    model.learn()
    model.publish(watermark_ms=number)
    print(number, flush=True)
"""


@pytest.mark.parametrize("at", PUBLISH_POINTS)
def test_a_publisher_killed_at_any_step_of_a_delta_leaves_what_opens_and_the_next_one_begins_anew(tmp_path, at):
    root, tests = tmp_path / "snapshots", str(Path(__file__).parents[2])
    passes = {"publish-part": 8, "publish-prune": 1}.get(at, 5)
    command = [sys.executable, "-c", KILLED, str(root), tests]
    process = subprocess.run(command, env=os.environ | {ARMED: f"{at}:{passes}"}, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    written = len(process.stdout.split())
    assert 3 <= written < 12
    snapshot = open_snapshot(root)
    assert snapshot.meta.watermark_ms in (written - 1, written)
    model = Model(root)
    for _ in range(snapshot.meta.watermark_ms + 1):
        model.learn()
    same(snapshot, model.parts())
    for entry in list_snapshots(root):
        if entry.state != "damaged":
            open_snapshot(root, entry.version)
    model.publish()
    assert model.publisher.deltas == 0
    same(open_snapshot(root), model.parts())


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from driftline.configs.errors import SnapshotError
from driftline.serving.snapshot import open_snapshot
from tests.serving.test_delta import Model, same
root = Path(sys.argv[1])
model = Model(root, rows=4000)
model.publish()
model.learn()
model.publish()
before, state = sorted(root.rglob("*")), model.parts()["engine"]["table"].copy()
resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.RLIM_INFINITY))
model.learn(touch=500)
try:
    model.publish()
except SnapshotError as error:
    print(error)
assert sorted(root.rglob("*")) == before, "left behind"
assert (open_snapshot(root).parts["engine"]["table"] == state).all()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
model.publish()
same(open_snapshot(root), model.parts())
"""


def test_a_disk_that_is_full_leaves_nothing_behind_and_what_was_taken_is_in_the_next_snapshot(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path / "snapshots"), str(Path(__file__).parents[2])]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "can't be written" in process.stdout
    assert "Make room" in process.stdout


def test_a_rollback_while_the_trainer_publishes_goes_to_what_opens_and_holds(tmp_path):
    model, stop, errors = Model(tmp_path, rows=500, keep=2, longest=3), threading.Event(), []
    model.publish()

    def train():
        try:
            while not stop.is_set():
                model.learn()
                model.publish()
        except Exception as error:  # noqa: BLE001 - told to the test
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    held = 0
    try:
        for round_ in range(25):
            versions = [entry.version for entry in list_snapshots(tmp_path)]
            version = versions[min(round_ % 4, len(versions) - 1)]
            try:
                rollback(tmp_path, version)
            except SnapshotError:  # pruned since it was listed
                continue
            held += 1
            before = model.scalar
            while model.scalar < before + 2 and not errors:
                time.sleep(0.001)
            assert current(tmp_path).version == version
            assert open_snapshot(tmp_path).version == version
            release(tmp_path)
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert held > 5
    model.publish()
    same(open_snapshot(tmp_path), model.parts())


def follower(root: Path) -> ModelSlot:
    def build(snapshot):
        ids = unpack_strings(snapshot.parts["items"], "id")
        return PopularityScorer([(item_id, 1.0) for item_id in ids])

    return ModelSlot(root, build, ServingMetrics(), poll_s=1000)


def test_a_server_adopts_several_deltas_at_once_and_a_damaged_one_never(tmp_path):
    model, _, states = chain(tmp_path, 1, rows=300)
    slot = follower(tmp_path)
    try:
        first = slot.served
        for _ in range(2):
            model.learn(more=1)
            model.publish()
        assert slot.poll()
        same(slot.served.snapshot, model.parts())
        same(first.snapshot, states[1])
        good = slot.served.snapshot.version
        model.learn()
        broken = model.publish()
        path = tmp_path / broken / "engine.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        assert not slot.poll()
        assert broken in slot.refused
        assert slot.served.snapshot.version == good
        model.learn()
        model.publish()
        assert not slot.poll()  # it builds on the damaged one
        assert slot.served.snapshot.version == good
        model.publisher = Publisher(tmp_path, 100, 30, 0.5)
        model.publish()
        assert slot.poll()
        same(slot.served.snapshot, model.parts())
        assert slot.refused == ""
    finally:
        slot.close()


def test_snapshots_that_are_all_refused_for_one_reason_are_told_once(tmp_path, caplog):
    chain(tmp_path, 4, rows=300)

    def build(snapshot):
        raise SnapshotError(f"snapshot {snapshot.version} was trained with other settings")

    slot = ModelSlot(tmp_path, build, ServingMetrics(), poll_s=1000)
    slot.close()
    assert slot.served is None
    kept = len(list_snapshots(tmp_path))
    assert kept > 3
    first, last = caplog.messages
    assert first == f"snapshot {current(tmp_path).version} was trained with other settings"
    assert last == f"none of {kept} snapshots serves, {kept} of them for a reason that is told above"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the system does not say what is whose")
def test_adopting_a_delta_copies_the_pages_that_it_changes_and_not_the_base(tmp_path):
    def own() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024

    model = Model(tmp_path, rows=400_000)
    versions = [model.publish()]
    for _ in range(2):
        model.learn(touch=100)
        versions.append(model.publish())
    expected, size = model.table.sum(), model.table.nbytes
    del model
    verified = Verified()
    held = [open_snapshot(tmp_path, version, verified) for version in versions[:2]]
    before = own()
    held.append(open_snapshot(tmp_path, versions[2], verified))
    assert held[2].parts["engine"]["table"].sum() == expected
    assert own() - before < size / 8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.int64, np.bool_])
def test_a_change_makes_the_new_array_of_the_old_one(dtype):
    random = np.random.default_rng(0)
    for shape, more in (((50, 3), 0), ((50, 3), 4), ((50,), 9), ((0, 3), 5), ((5, 0), 3), ((), 0), ((3, 2, 2), 1)):
        old = random.integers(0, 2, shape).astype(dtype)
        new = (
            np.concatenate((old, random.integers(0, 2, (more, *shape[1:])).astype(dtype))) if shape else old + dtype(1)
        )
        if new.size and shape:
            new[: len(old)][random.integers(0, 9, len(old)) == 0] = dtype(1)
        change = change_of(old, new)
        if change is None:
            assert new.tobytes() == old.tobytes()
            continue
        made = laid_over(old.copy(), change)
        made = made[: len(new)] if shape else made
        assert (made.dtype, made.shape, made.tobytes()) == (new.dtype, new.shape, new.tobytes())
    nan = np.array([np.nan, 1.0])
    assert change_of(nan, nan.copy()) is None
    assert change_of(nan, nan[:1]).at is None


def test_touched_rows_are_those_that_changed_since_they_were_taken():
    touched = Touched()
    assert touched.take(5).tolist() == [0, 1, 2, 3, 4]
    assert touched.count(7) == 2
    touched.add(np.array([3, 6, 100]))
    assert touched.take(7, 2).tolist() == [3, 5]
    assert touched.take(7).tolist() == [6]
    assert touched.count(7) == 0
    touched.everything()
    assert touched.count(7) == 7


def test_a_server_reads_the_files_of_a_chain_through_once(tmp_path, monkeypatch):
    model, _, _ = chain(tmp_path, 1, rows=300)
    slot, read = follower(tmp_path), []
    try:
        monkeypatch.setattr(delta_module, "file_sha256", lambda file: read.append(file) or file_sha256(file))
        model.learn()
        version = model.publish()
        assert slot.poll()
        assert sorted(file.parent.name for file in read) == [version, version]
    finally:
        slot.close()
