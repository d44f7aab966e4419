"""A state root is held to what it was made with."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from driftline.configs.errors import StateError
from driftline.configs.load import load
from driftline.configs.settings import Settings, State
from driftline.stream.app import create_app
from driftline.stream.ops.doctor import examine
from driftline.stream.owned.partitions import Partitions
from driftline.stream.state.layout import alike, differences, hold_to_layout, read_layout, unusable
from driftline.stream.state.store import RocksStore, partition_path

PRESETS = ("ecommerce", "media")


def settings(root: Path, preset: str = "ecommerce", **graph: Any) -> Settings:
    given = load(preset).settings
    return given.model_copy(update={"state": State(root=root), "graph": given.graph.model_copy(update=graph)})


def test_a_root_is_held_to_its_number_of_partitions(tmp_path: Path) -> None:
    assert hold_to_layout(settings(tmp_path), 4) == ""
    assert hold_to_layout(settings(tmp_path), 4) == ""
    with pytest.raises(StateError, match=r"made with other settings: partitions was 4, is 2.*produce the log again"):
        hold_to_layout(settings(tmp_path), 2)


def test_a_root_is_held_to_the_number_of_partitions_of_item_events(tmp_path: Path) -> None:
    opened = Partitions(settings(tmp_path), 4, nothing, no_version, 2)
    assert opened.counts == {"interactions": 4, "interactions.by-item": 2}
    assert hold_to_layout(settings(tmp_path), 4, 2) == ""
    with pytest.raises(StateError, match=r"item_partitions was 2, is 4\. .*produce the log again"):
        Partitions(settings(tmp_path), 4, nothing, no_version, 4)


def test_a_root_of_an_earlier_release_takes_the_partitions_of_item_events_that_it_finds(tmp_path: Path) -> None:
    hold_to_layout(settings(tmp_path), 4, 4)
    said = read_layout(tmp_path)
    unsaid = {name: value for name, value in said.items() if name != "item_partitions"}
    (tmp_path / "layout.json").write_bytes(orjson.dumps(unsaid))
    assert (alike(said, unsaid), alike(said, said | {"partitions": 2})) == (True, False)
    assert differences(settings(tmp_path), unsaid) == unusable(settings(tmp_path), unsaid) == ""
    assert hold_to_layout(settings(tmp_path), 4, 8) == ""
    assert read_layout(tmp_path) == {**unsaid, "item_partitions": 8}
    with pytest.raises(StateError, match=r"item_partitions was 8, is 4"):
        hold_to_layout(settings(tmp_path), 4)


async def nothing(outgoing: object) -> None:
    """Nothing is sent."""


def no_version(sha256: str) -> Any:
    raise StateError(sha256)


@pytest.mark.parametrize("changed", [{"memory_dim": 8}, {"message_dim": 8}, {"time_dim": 8}])
def test_a_root_is_held_to_the_length_of_its_vectors(tmp_path: Path, changed: dict[str, int]) -> None:
    hold_to_layout(settings(tmp_path), 1)
    RocksStore(partition_path(tmp_path, 0)).close()
    words = rf"made with other settings: graph.{next(iter(changed))} was \d+, is 8. Use the old values"
    with pytest.raises(StateError, match=words):
        hold_to_layout(settings(tmp_path, **changed), 1)
    (found,) = [f for f in examine(settings(tmp_path, **changed)) if f.part == "state" and f.state == "bad"]
    assert re.search(words, found.detail)


def test_worker_and_doctor_tell_of_a_state_that_was_made_with_another_preset(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    create_app(settings(tmp_path), "127.0.0.1:9", 1)
    assert "other settings" not in caplog.text
    create_app(settings(tmp_path, "media"), "127.0.0.1:9", 1)
    words = "was made with other settings: signals.half_lives_days[0] was 1.0, is 0.02, "
    assert words in caplog.text
    RocksStore(partition_path(tmp_path, 0)).close()
    told = {name: [f.detail for f in examine(settings(tmp_path, name)) if f.part == "state"] for name in PRESETS}
    assert [len(told[name]) for name in PRESETS] == [1, 2]
    assert words in told["media"][1]


@pytest.mark.parametrize("changed", [{"learning_rate": 0.5}, {"publish_groups": 7}])
def test_settings_on_which_no_row_depends_are_no_part_of_the_layout(tmp_path: Path, changed: dict[str, Any]) -> None:
    hold_to_layout(settings(tmp_path), 1)
    elsewhere = settings(tmp_path, **changed).model_copy(update={"state": State(root=tmp_path, sync=False)})
    assert hold_to_layout(elsewhere, 1) == ""


def test_of_two_workers_that_start_at_once_the_first_one_sets_the_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival writes its layout after we have looked and before we write ours."""
    ours, rivals = settings(tmp_path), settings(tmp_path, memory_dim=8)
    link = os.link

    def late(source: Path, target: Path) -> None:
        monkeypatch.undo()
        hold_to_layout(rivals, 1)
        link(source, target)

    monkeypatch.setattr("os.link", late)
    with pytest.raises(StateError, match=r"graph.memory_dim was 8, is 32"):
        hold_to_layout(ours, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["layout.json"]


def test_a_file_system_without_hard_links_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert hold_to_layout(settings(tmp_path), 4) == ""
    assert read_layout(tmp_path)["partitions"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["layout.json"]


def test_a_crash_while_it_is_written_leaves_a_root_that_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("os.link", crash)
        with pytest.raises(KeyboardInterrupt):
            hold_to_layout(settings(tmp_path), 4)
    assert list(tmp_path.iterdir()) == []
    hold_to_layout(settings(tmp_path), 4)
    assert read_layout(tmp_path)["partitions"] == 4


@pytest.mark.parametrize("content", [b"", b"[]", b'{"partitions": 1}', b'{"partitions": "1", "graph.memory_dim": 32}'])
def test_one_that_is_none_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "layout.json").write_bytes(content)
    with pytest.raises(StateError, match=r"layout.json (can't be read|holds).*; expected .*; move the directory away"):
        hold_to_layout(settings(tmp_path), 1)


def test_a_layout_is_not_made_up_for_a_state_that_has_none(tmp_path: Path) -> None:
    hold_to_layout(settings(tmp_path), 1)
    RocksStore(partition_path(tmp_path, 0)).close()
    (tmp_path / "layout.json").unlink()
    with pytest.raises(StateError, match=r"has partitions and no layout.json"):
        hold_to_layout(settings(tmp_path), 1)
