"""Files that driftline writes can be read by other users where the umask lets them."""

import os

import numpy as np
import pytest
from tests.conftest import open_to_others

from driftline.configs.permissions import as_opened
from driftline.llm import fetch
from driftline.serving.publish import publish
from driftline.serving.snapshot import Meta
from driftline.stream.durable import write_durably, write_once


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def test_every_file_of_a_snapshot_and_of_a_state_follows_the_umask(tmp_path, umask):
    publish(tmp_path / "snapshots", {"engine": {"a": np.zeros(3, np.float32)}}, Meta())
    write_durably(tmp_path / "state" / "layout.json", b"{}")
    write_once(tmp_path / "state" / "weights", b"x")
    assert modes(tmp_path) == {0o666 & ~umask}


def test_weights_that_safetensors_writes_get_the_permissions_of_a_new_file(tmp_path, umask):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    as_opened(path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert modes(tmp_path) == {0o666 & ~umask}


def test_a_second_set_up_opens_weights_that_an_older_one_kept_for_its_owner(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIFTLINE_MODELS", str(tmp_path))
    directory = tmp_path / fetch.SMOLLM
    directory.mkdir()
    for name, mode in (("complete.json", 0o644), (fetch.WEIGHTS, 0o600)):
        (directory / name).write_text("{}")
        (directory / name).chmod(mode)
    assert fetch.fetch(fetch.SMOLLM) == directory
    assert modes(directory) == {0o644}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_reads_a_snapshot_that_root_published(tmp_path):
    publish(tmp_path, {"engine": {"a": np.zeros(3, np.float32)}}, Meta())
    open_to_others(tmp_path)
    paths = [path for path in tmp_path.rglob("*") if path.is_file()]
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setuid(54321)
            os._exit(sum(not os.access(path, os.R_OK) for path in paths))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(paths) >= 3
