"""Trained graph versions as a worker takes them from the topic and keeps them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from configs.settings import Settings
from graph.memory import GraphMemory
from stream.partitions import Partitions
from stream.records import Outgoing
from stream.versions import GraphVersions, encode_version

SETTINGS = Settings()


def trained(seed: int, memory_dim: int = SETTINGS.graph.memory_dim) -> GraphMemory:
    return GraphMemory(SETTINGS.graph.model_copy(update={"seed": seed, "memory_dim": memory_dim}))


def in_topic(*versions: GraphMemory) -> list[Any]:
    sent = [out for model in versions for out in encode_version(model, {})]
    return [SimpleNamespace(offset=n, key=o.key, value=o.value, headers=o.headers) for n, o in enumerate(sent)]


async def send(outgoing: Any) -> None:
    """A broker that takes everything."""


def versions_of(settings: Settings = SETTINGS) -> GraphVersions:
    return GraphVersions(settings, "", send)


def test_old_versions_are_not_adopted_while_a_worker_catches_up() -> None:
    versions, log = versions_of(), in_topic(trained(1), trained(2), trained(3))
    middle = len(log) * 2 // 3
    versions.take(log[:middle], caught_up=False)
    assert versions.newest is None
    versions.take(log[middle:], caught_up=True)
    assert versions.newest.sha256 == trained(3).version()


def test_a_version_is_taken_though_its_last_part_was_read_before_the_end_was_known() -> None:
    versions, log = versions_of(), in_topic(trained(1))
    versions.take(log, caught_up=False)
    versions.take([], caught_up=True)
    assert versions.newest.sha256 == trained(1).version()


def test_a_version_of_another_shape_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    versions = versions_of()
    versions.take(in_topic(trained(1)), caught_up=True)
    versions.take(in_topic(trained(2, memory_dim=8)), caught_up=True)
    assert versions.newest.sha256 == trained(1).version()
    assert "is passed over" in caplog.text
    versions.take(in_topic(trained(3)), caught_up=True)
    assert versions.newest.sha256 == trained(3).version()


def test_a_record_that_no_trainer_sent_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    versions = versions_of()
    foreign = [
        SimpleNamespace(offset=0, key=None, value=None, headers=(("kind", b"weights"),)),
        SimpleNamespace(offset=1, key=None, value=b"x", headers=(("kind", b"weights"), ("part", b"one"))),
        SimpleNamespace(offset=2, key=None, value=b"x", headers=(("kind", b"weights"), ("part", b"0/1"))),
        SimpleNamespace(offset=3, key=None, value=b"x", headers=()),
    ]
    versions.take(foreign, caught_up=True)
    assert versions.newest is None
    assert caplog.text.count("is passed over") == 3


def test_a_partition_opened_again_has_the_item_vectors_that_it_adopted(tmp_path: Path) -> None:
    state = SETTINGS.state.model_copy(update={"root": tmp_path})
    settings = SETTINGS.model_copy(update={"state": state})
    vectors = {"a": np.full(settings.graph.memory_dim, 0.5, np.float32)}
    model = trained(1)

    async def adopt_and_open_again() -> np.ndarray:
        versions = versions_of(settings)
        opened = Partitions(settings, 4, send, versions.load)
        for item_vectors in (vectors, {"a": vectors["a"] * 2}):  # two epochs of one sha256: the first one holds
            sent = [_received(n, out) for n, out in enumerate(encode_version(model, item_vectors))]
            versions.take(sent, caught_up=True)
            partition = len(opened.users)
            await opened.open_users(partition)
            await versions.adopt(opened.users[partition])
        await opened.open_items(2)
        assert versions.due(opened.items[2])
        await versions.adopt(opened.items[2])
        opened.close_all()
        again = Partitions(settings, 4, send, versions.load)
        await again.open_users(1)
        await again.open_items(2)
        assert not versions.due(again.users[1])
        assert not versions.due(again.items[2])
        assert again.items[2].graph.model.version() == model.version()
        processor = again.users[1]
        memory = processor.graph.items["memory"][processor.items.find("a")].copy()
        assert processor.graph.model.version() == model.version()
        again.close_all()
        return memory

    np.testing.assert_array_equal(asyncio.run(adopt_and_open_again()), vectors["a"])


def _received(offset: int, out: Outgoing) -> Any:
    return SimpleNamespace(offset=offset, key=out.key, value=out.value, headers=out.headers)
