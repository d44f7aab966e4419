"""Snapshots on a real disk: what is published, refused, listed, rolled back and pruned."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import orjson
import pytest

from driftline.configs.errors import SnapshotError
from driftline.serving import delta as delta_module
from driftline.serving import snapshot as snapshot_module
from driftline.serving.arrays import item_part, pack_strings, unpack_strings
from driftline.serving.publish import publish, release, rollback
from driftline.serving.snapshot import Meta, current, gate, list_snapshots, open_snapshot, read_meta

PARTS = {
    "engine": {
        "matrix": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "keys": np.array([2**64 - 1], np.uint64),
        "mask": np.array([True, False]),
        "none": np.zeros((0, 7), np.float64),
        "scalar": np.array(5, np.int64),
    },
    "items": item_part(["a", "ä", ""], ["A", "", "long title"]),
}
META = Meta(offsets={"interactions:0": 7}, watermark_ms=9, metrics={"ndcg@10": 0.1}, extra={"parts": ["graph"]})


def test_what_is_published_is_what_opens(tmp_path):
    version = publish(tmp_path, PARTS, META)
    snapshot = open_snapshot(tmp_path)
    assert (snapshot.version, snapshot.sequence, snapshot.meta) == (version, 1, META)
    for name, arrays in PARTS.items():
        assert snapshot.parts[name].keys() == arrays.keys()
        for key, array in arrays.items():
            held = snapshot.parts[name][key]
            assert (held.dtype, held.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(held, array)
            assert not held.flags.writeable
    assert unpack_strings(snapshot.parts["items"], "id") == ["a", "ä", ""]
    assert unpack_strings(snapshot.parts["items"], "title") == ["A", "", "long title"]


def test_an_open_snapshot_outlives_its_directory(tmp_path):
    publish(tmp_path, PARTS, META)
    snapshot = open_snapshot(tmp_path)
    publish(tmp_path, PARTS, META, keep=1)
    assert [entry.version for entry in list_snapshots(tmp_path)] == [current(tmp_path).version]
    assert snapshot.parts["engine"]["matrix"].sum() == 66


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "manifest", "no manifest"])
def test_a_damaged_snapshot_is_refused_in_one_sentence(tmp_path, harm):
    version = publish(tmp_path, PARTS, META)
    file, manifest = tmp_path / version / "engine.safetensors", tmp_path / version / "manifest.json"
    data = bytearray(file.read_bytes())
    match harm:
        case "flip":
            data[-1] ^= 1
            file.write_bytes(data)
        case "truncate":
            file.write_bytes(data[:-8])
        case "remove":
            file.unlink()
        case "manifest":
            manifest.write_bytes(manifest.read_bytes().replace(b'"sequence": 1', b'"sequence": 2'))
        case "no manifest":
            manifest.unlink()
    with pytest.raises(SnapshotError, match=version) as caught:
        open_snapshot(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_snapshot_and_a_broken_pointer_are_told_apart(tmp_path):
    with pytest.raises(SnapshotError, match="not published one yet"):
        open_snapshot(tmp_path)
    (tmp_path / "CURRENT").write_bytes(b"{nonsense")
    with pytest.raises(SnapshotError, match="CURRENT holds"):
        open_snapshot(tmp_path)


def test_a_snapshot_of_another_schema_is_refused(tmp_path):
    import hashlib

    version = publish(tmp_path, PARTS, META)
    body = (tmp_path / version / "manifest.json").read_bytes().replace(b'"schema_version": 2', b'"schema_version": 9')
    other = f"0000000001-{hashlib.sha256(body).hexdigest()[:8]}"
    (tmp_path / version / "manifest.json").write_bytes(body)
    (tmp_path / version).rename(tmp_path / other)
    with pytest.raises(SnapshotError, match="schema version 9, expected 2"):
        open_snapshot(tmp_path, other)


def test_a_gated_snapshot_stays_on_disk_but_never_serves(tmp_path):
    first = publish(tmp_path, PARTS, META)
    second = publish(tmp_path, PARTS, Meta(gate="ndcg@10 fell"))
    assert current(tmp_path).version == first
    assert [(one.version, one.state) for one in list_snapshots(tmp_path)] == [(second, "gated"), (first, "current")]
    with pytest.raises(SnapshotError, match="refused by its gate: ndcg@10 fell"):
        open_snapshot(tmp_path, second)


def test_gated_snapshots_do_not_push_those_that_may_serve_off_the_disk(tmp_path):
    good = [publish(tmp_path, PARTS, META, keep=2) for _ in range(3)]
    gated = [publish(tmp_path, PARTS, Meta(gate="ndcg@10 fell"), keep=2) for _ in range(4)]
    assert [entry.version for entry in list_snapshots(tmp_path)] == [*gated[:1:-1], *good[:0:-1]]
    rollback(tmp_path, good[1])
    newer = [publish(tmp_path, PARTS, META, keep=2) for _ in range(2)]
    assert [entry.version for entry in list_snapshots(tmp_path)] == [*newer[::-1], good[1]]


def test_the_gate_refuses_a_fall_and_a_number_that_is_none():
    assert gate({"ndcg@10": 0.06}, {"ndcg@10": 0.1}, drop=0.5) == ""
    assert "fell from 0.1000 to 0.0400" in gate({"ndcg@10": 0.04}, {"ndcg@10": 0.1}, drop=0.5)
    assert gate({"loss": float("nan")}, {}, drop=0.5) == "loss is nan"
    assert gate({}, {"ndcg@10": 0.1}, drop=0.5) == ""
    assert gate({"ndcg@10": 0.01, "groups": 20.0}, {"ndcg@10": 0.1, "groups": 499.0}, drop=0.5) == ""
    assert gate({"ndcg@10": 0.01, "groups": 500.0}, {"ndcg@10": 0.1, "groups": 500.0}, drop=0.5) != ""


def test_the_gate_refuses_few_scored_groups_after_enough():
    served = {"ndcg@10": 0.1, "groups": 500.0}
    assert "not enough scored groups yet: 499" in gate({"ndcg@10": 0.2, "groups": 499.0}, served, drop=0.5)
    assert "not enough scored groups yet: 0" in gate({"groups": 0.0}, served, drop=0.5)
    assert gate({"groups": 0.0}, {}, drop=0.5) == ""


def test_a_rollback_holds_until_it_is_released(tmp_path):
    versions = [publish(tmp_path, PARTS, META) for _ in range(3)]
    rollback(tmp_path, versions[0])
    newest = publish(tmp_path, PARTS, META, keep=2)
    assert current(tmp_path).version == versions[0]
    assert [entry.state for entry in list_snapshots(tmp_path)] == ["kept", "kept", "held"]
    assert release(tmp_path) == newest
    assert current(tmp_path).version == newest


@pytest.mark.parametrize("content", [b"", b"{nonsense", b"[]", b'{"version": 7}'])
def test_a_broken_pointer_is_replaced_by_the_next_snapshot_that_may_serve(tmp_path, caplog, content):
    publish(tmp_path, PARTS, META)
    (tmp_path / "CURRENT").write_bytes(content)
    with pytest.raises(SnapshotError, match="CURRENT holds"):
        open_snapshot(tmp_path)
    publish(tmp_path, PARTS, Meta(gate="ndcg@10 fell"))
    assert (tmp_path / "CURRENT").read_bytes() == content
    second = publish(tmp_path, PARTS, META)
    assert current(tmp_path).version == second
    assert "a version that was held is not any more" in caplog.text


def test_a_rollback_to_a_damaged_snapshot_changes_nothing(tmp_path):
    first, second = publish(tmp_path, PARTS, META), publish(tmp_path, PARTS, META)
    (tmp_path / first / "items.safetensors").write_bytes(b"x")
    with pytest.raises(SnapshotError, match="damaged"):
        rollback(tmp_path, first)
    with pytest.raises(SnapshotError, match="missing"):
        rollback(tmp_path, "0000000099-00000000")
    assert current(tmp_path).version == second


def test_arrays_that_can_not_be_stored_leave_nothing_behind(tmp_path):
    with pytest.raises(SnapshotError, match="'names' of part 'engine' has dtype <U1"):
        publish(tmp_path, {"engine": {"names": np.array(["a"])}}, META)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SnapshotError, match="2 rows, expected 1"):
        item_part(["a"], ["A", "B"])


def test_a_directory_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError, match="can't be written"):
        publish(tmp_path / "file" / "snapshots", PARTS, META)


def test_strings_of_any_kind_survive():
    values = ["", "plain", "ünï", "\0", "x" * 1000]
    assert unpack_strings(pack_strings("c", values), "c") == values
    assert unpack_strings({}, "c") == []


def test_a_publisher_killed_at_any_time_leaves_a_snapshot_that_opens(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from driftline.serving.publish import publish; from driftline.serving.snapshot import Meta\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    publish(Path(sys.argv[1]), {'engine': {'n': np.full(50_000, n)}}, Meta(watermark_ms=n), keep=3)\n"
    )
    for round_ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        deadline = time.monotonic() + 30
        before = current(tmp_path)
        while current(tmp_path) == before and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.03 * round_)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        snapshot = open_snapshot(tmp_path)
        assert set(snapshot.parts["engine"]["n"].tolist()) == {snapshot.meta.watermark_ms}
    assert orjson.loads((tmp_path / "CURRENT").read_bytes())["version"] == snapshot.version


def test_a_snapshot_that_vanishes_or_may_not_be_read_is_a_snapshot_error_and_the_list_goes_on(tmp_path, monkeypatch):
    first, second = publish(tmp_path, PARTS, META), publish(tmp_path, PARTS, META)

    def vanish(file, private):
        raise FileNotFoundError(2, "No such file or directory", str(file))

    monkeypatch.setattr(delta_module, "map_arrays", vanish)
    with pytest.raises(SnapshotError, match=rf"{second} can't be read: .*pruned meanwhile"):
        open_snapshot(tmp_path)
    versions = snapshot_module.versions
    monkeypatch.setattr(snapshot_module, "versions", lambda root: [*versions(root), "0000000009-gone"])
    assert [entry.version for entry in list_snapshots(tmp_path)] == [second, first]
    (tmp_path / "CURRENT").write_bytes(b"{nonsense")
    assert [entry.state for entry in list_snapshots(tmp_path)] == ["kept", "kept"]


def test_while_snapshots_are_pruned_the_list_shows_none_as_damaged(tmp_path):
    seen, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            seen.extend(entry.state for entry in list_snapshots(tmp_path))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(30):
        publish(tmp_path, PARTS, META, keep=1)
    stop.set()
    thread.join()
    assert seen
    assert "damaged" not in seen


@pytest.mark.parametrize(
    "version", ["../other", "/tmp/other", "..", ".", "", "0000000001-0a1b2c3d/../x", "0000000001-XYZ", "1\n-0a1b2c3d"]
)
def test_a_version_that_leads_out_of_the_folder_is_refused_wherever_it_stands(tmp_path, version):
    root = tmp_path / "snapshots"
    publish(root, PARTS, META)
    outside = publish(tmp_path / "other", PARTS, META)
    (tmp_path / "other" / outside / "flag").touch()
    for call in (open_snapshot, read_meta, rollback):
        with pytest.raises(SnapshotError, match="is not a snapshot; expected a name such as"):
            call(root, version)
    (root / "CURRENT").write_bytes(orjson.dumps({"version": version}))
    with pytest.raises(SnapshotError, match="expected a version"):
        open_snapshot(root)


def test_a_part_whose_name_leads_out_of_the_folder_is_refused_though_all_sums_hold(tmp_path):
    version = publish(tmp_path, PARTS, META)
    manifest = orjson.loads((tmp_path / version / "manifest.json").read_bytes())
    manifest["parts"]["../elsewhere"] = manifest["parts"]["engine"]
    shutil.copy(tmp_path / version / "engine.safetensors", tmp_path / "elsewhere.safetensors")
    body = orjson.dumps(manifest)
    other = f"0000000002-{hashlib.sha256(body).hexdigest()[:8]}"
    shutil.copytree(tmp_path / version, tmp_path / other)
    (tmp_path / other / "manifest.json").write_bytes(body)
    with pytest.raises(SnapshotError, match=r"'\.\./elsewhere' is not the name of a part"):
        open_snapshot(tmp_path, other)
