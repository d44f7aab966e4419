"""A state root is held to what it was made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from configs.errors import StateError
from configs.load import load
from configs.settings import Settings, State
from stream.doctor import examine
from stream.layout import hold_to_layout, read_layout
from stream.store import RocksStore, partition_path

PRESETS = ("ecommerce", "media")


def settings(root: Path, preset: str = "ecommerce", **graph: Any) -> Settings:
    given = load(preset).settings
    return given.model_copy(update={"state": State(root=root), "graph": given.graph.model_copy(update=graph)})


def test_a_root_is_held_to_its_number_of_partitions(tmp_path: Path) -> None:
    assert hold_to_layout(settings(tmp_path), 4) == ""
    assert hold_to_layout(settings(tmp_path), 4) == ""
    with pytest.raises(StateError, match="made from 4 partitions, the topic has 2"):
        hold_to_layout(settings(tmp_path), 2)


@pytest.mark.parametrize("changed", [{"memory_dim": 8}, {"message_dim": 8}])
def test_a_root_is_held_to_the_length_of_its_vectors(tmp_path: Path, changed: dict[str, int]) -> None:
    hold_to_layout(settings(tmp_path), 1)
    with pytest.raises(StateError, match=r"graph.memory_dim and graph.message_dim \(\d+, \d+\), the settings say"):
        hold_to_layout(settings(tmp_path, **changed), 1)


def test_worker_and_doctor_tell_of_a_state_that_was_made_with_another_preset(tmp_path: Path) -> None:
    hold_to_layout(settings(tmp_path), 1)
    words = "(configuration 'ecommerce', now 'media')"
    assert words in hold_to_layout(settings(tmp_path, "media"), 1)
    RocksStore(partition_path(tmp_path, 0)).close()
    told = {name: [f.detail for f in examine(settings(tmp_path, name)) if f.part == "state"] for name in PRESETS}
    assert [len(told[name]) for name in PRESETS] == [1, 2]
    assert words in told["media"][1]


def test_where_a_worker_runs_and_how_fast_is_no_part_of_the_layout(tmp_path: Path) -> None:
    hold_to_layout(settings(tmp_path), 1)
    elsewhere = settings(tmp_path).model_copy(update={"state": State(root=tmp_path, sync=False, epoch_events=7)})
    assert hold_to_layout(elsewhere, 1) == ""


def test_a_crash_while_it_is_written_leaves_a_root_that_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            hold_to_layout(settings(tmp_path), 4)
    hold_to_layout(settings(tmp_path), 4)
    assert read_layout(tmp_path).partitions == 4


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"partitions": 1, "vectors": [32]}'])
def test_one_that_is_none_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "layout.json").write_bytes(content)
    with pytest.raises(StateError, match=r"layout.json can't be read: .*; expected the one that the worker wrote"):
        hold_to_layout(settings(tmp_path), 1)


def test_it_is_json(tmp_path: Path) -> None:
    hold_to_layout(settings(tmp_path), 1)
    found = orjson.loads((tmp_path / "layout.json").read_bytes())
    assert (found["partitions"], found["vectors"], found["config"]) == (1, [32, 32], "ecommerce")
