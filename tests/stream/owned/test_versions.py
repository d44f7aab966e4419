"""Trained graph versions as a worker takes them from the topic and keeps them."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from driftline.configs.errors import StateError
from driftline.configs.settings import Settings, State
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event
from driftline.serving.owner import partition_of
from driftline.stream.events.records import Outgoing
from driftline.stream.events.schema import encode_event
from driftline.stream.kafka.broker import admin
from driftline.stream.owned.partitions import Partitions
from driftline.stream.owned.parts import TOPIC, cut
from driftline.stream.owned.versions import GraphVersions, encode_version, keep_version, version_path
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.graphs import remove_unneeded
from driftline.stream.state.store import RocksStore

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


def test_a_version_on_a_topic_that_was_made_anew_and_is_shorter_is_taken(world: Any) -> None:
    async def takes(versions: GraphVersions, model: GraphMemory) -> None:
        deadline = time.monotonic() + 20
        while versions.newest is None or versions.newest.sha256 != model.version():
            assert time.monotonic() < deadline, versions.newest
            await asyncio.sleep(0.05)

    async def followed() -> None:
        versions = GraphVersions(world.settings, world.bootstrap, send)
        world.create_topics()
        world.send([out for model in (trained(1), trained(2)) for out in encode_version(model, {})])
        following = asyncio.create_task(versions.follow())
        await takes(versions, trained(2))
        with admin(world.settings.broker, world.bootstrap) as client:
            client.delete_topics([world.prefix + TOPIC])
        world.create_topics()
        world.send(encode_version(trained(3), {}))
        await takes(versions, trained(3))
        following.cancel()

    asyncio.run(followed())


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


def with_items(model: GraphMemory, n: int = 5000) -> list[Any]:
    """A version of several parts."""
    memory = SETTINGS.graph.memory_dim
    vectors = {f"item-{i}": np.full(memory, i / n, np.float32) for i in range(n)}
    sent = [_received(0, out) for out in encode_version(model, vectors)]
    assert len(sent) > 1
    return sent


@pytest.mark.parametrize("order", ["reversed", "twice", "interleaved", "with a bad copy", "cut off before"])
def test_a_version_is_whole_in_whatever_order_and_company_its_parts_come(
    order: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted, other = with_items(trained(1)), with_items(trained(2))
    bad = SimpleNamespace(**vars(wanted[1]) | {"value": b"\0" + wanted[1].value[1:]})
    log = {
        "reversed": wanted[::-1],
        "twice": [part for part in wanted for _ in range(2)],
        "interleaved": [part for pair in zip(other[:-1], wanted[:-1], strict=True) for part in pair] + wanted[-1:],
        "with a bad copy": [bad, *wanted, bad],
        "cut off before": other[:-1] + wanted,
    }[order]
    versions = versions_of()
    versions.take(log, caught_up=True)
    assert versions.newest is not None
    assert versions.newest.sha256 == trained(1).version()
    assert len(versions.newest.item_vectors) == 5000
    assert caplog.text.count("does not have the sha256") == log.count(bad)
    versions.take(wanted[-1:] + other[-1:], caught_up=True)  # what is sent again begins nothing anew
    assert versions.newest.sha256 == trained(2 if order in ("interleaved", "cut off before") else 1).version()


def test_a_version_that_is_sent_again_after_another_one_is_gone_back_to_and_a_mere_repeat_is_none(
    tmp_path: Path,
) -> None:
    settings = SETTINGS.model_copy(update={"state": SETTINGS.state.model_copy(update={"root": tmp_path})})
    first, second = with_items(trained(1)), with_items(trained(2))
    versions, store = versions_of(settings), RocksStore(tmp_path / "partition-0", sync=False)
    owner = Processor(settings, store)
    adopted = []

    def applied(sent: list[Any], number: int) -> None:
        versions.take(sent, caught_up=True)
        if versions.due(owner):
            asyncio.run(versions.adopt(owner))
            adopted.append(number)
        event = Event("u1", "i1", 1_600_000_000_000 + number * 1000, "view")
        owner.commit(owner.apply([Record(number, encode_event(event), b"u1")]))

    for number, sent in enumerate((first, first, second, second, second[:1], first, first[1:], second)):
        applied(sent, number)
    assert adopted == [0, 2, 5, 7]
    assert not versions._assembler._open
    again = versions_of(settings)  # a worker that starts now
    again.take([*first, *second, *first], caught_up=True)
    assert again.newest is not None
    assert again.newest.sha256 == trained(1).version()
    store.close()


def test_a_version_that_lacks_a_part_leaves_the_one_before_it_and_is_named_when_it_is_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    versions = versions_of()
    versions.take(in_topic(trained(1)), caught_up=True)
    for seed in range(2, 8):
        versions.take(with_items(trained(seed))[1:], caught_up=True)
    assert versions.newest is not None
    assert versions.newest.sha256 == trained(1).version()
    assert caplog.text.count("is passed over") == 2
    assert len(versions._assembler._open) == 4


@pytest.mark.parametrize("looks", ["exists", "utime"])
def test_a_file_that_is_removed_while_its_version_is_adopted_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: str
) -> None:
    """As by another worker, whose look at what is needed came before."""
    settings = SETTINGS.model_copy(update={"state": SETTINGS.state.model_copy(update={"root": tmp_path})})
    versions = versions_of(settings)
    versions.take(in_topic(trained(1)), caught_up=True)
    assert versions.newest is not None
    path, looks_at = version_path(settings, versions.newest.sha256), Path if looks == "exists" else os
    look = getattr(looks_at, looks)
    keep_version(settings, versions.newest)

    def removed_after(looked_at: Path) -> Any:
        found = look(looked_at)
        if looked_at == path:
            path.unlink(missing_ok=True)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(looks_at, looks, removed_after)
        assert keep_version(settings, versions.newest) is versions.newest
    assert path.read_bytes() == versions.newest.blob


def nonsense() -> dict[str, bytes]:
    """Bytes that are whole and right by their sums, and no version."""
    model = {f"model.{name}": torch.tensor(value) for name, value in trained(1).arrays.items()}
    name = next(iter(model))
    memory, ids = torch.zeros(1, SETTINGS.graph.memory_dim), lambda text: torch.tensor(list(text), dtype=torch.uint8)
    items = {"items.memory": memory, "items.ids": ids(b'["a"]')}
    tensors = {
        "NaN weights": {**model, name: torch.full_like(model[name], torch.nan)},
        "another shape": {**model, name: torch.zeros(3)},
        "a weight is missing": {other: value for other, value in model.items() if other != name},
        "an unknown weight": {**model, "model.surprise": torch.zeros(3)},
        "NaN vectors": {**model, **items, "items.memory": memory * torch.nan},
        "half a vector": {**model, **items, "items.memory": memory[:, :3].clone()},
        "vectors of integers": {**model, **items, "items.memory": memory.int()},
        "vectors numpy does not know": {**model, **items, "items.memory": memory.bfloat16()},
        "no vectors": {**model, "items.ids": ids(b'["a"]')},
        "ids that are no JSON": {**model, **items, "items.ids": ids(b"\xff{")},
        "ids that are no list": {**model, **items, "items.ids": ids(b'{"a": 1}')},
        "ids that are numbers": {**model, **items, "items.ids": ids(b"[7]")},
        "ids that are lists": {**model, **items, "items.ids": ids(b"[[7]]")},
        "an id that is too long": {**model, **items, "items.ids": ids(b'["' + b"x" * 257 + b'"]')},
        "an id twice": {**model, "items.ids": ids(b'["a","a"]'), "items.memory": torch.cat([memory, memory])},
        "ids of numbers with a point": {**model, **items, "items.ids": torch.zeros(5)},
    }
    return {"no safetensors": b"junk", "nothing": b"x", **{what: save(found) for what, found in tensors.items()}}


@pytest.mark.parametrize("what", nonsense())
def test_a_version_that_makes_no_sense_costs_a_sentence_and_nothing_else(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    versions = versions_of()
    versions.take(in_topic(trained(1)), caught_up=True)
    versions.take([_received(n, out) for n, out in enumerate(cut("a" * 64, nonsense()[what]))], caught_up=True)
    assert versions.newest is not None
    assert versions.newest.sha256 == trained(1).version()
    assert "is passed over: a graph version does not fit" in caplog.text
    versions.take(in_topic(trained(2)), caught_up=True)
    assert versions.newest.sha256 == trained(2).version()


def test_a_version_under_the_key_of_another_one_is_passed_over() -> None:
    versions, blob = versions_of(), save({f"model.{n}": torch.tensor(v) for n, v in trained(1).arrays.items()})
    versions.take([_received(n, out) for n, out in enumerate(cut("a" * 64, blob))], caught_up=True)
    assert versions.newest is None


def test_parts_of_an_earlier_release_are_read() -> None:
    versions = versions_of()
    old = [SimpleNamespace(**vars(part) | {"headers": part.headers[:2]}) for part in with_items(trained(1))]
    versions.take(old, caught_up=True)
    assert versions.newest is not None
    assert len(versions.newest.item_vectors) == 5000


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_the_name_of_a_version_is_no_path(name: str) -> None:
    with pytest.raises(StateError, match="expected 64 hex digits"):
        version_path(SETTINGS, name)


def test_a_file_under_the_name_of_another_version_is_refused(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"state": SETTINGS.state.model_copy(update={"root": tmp_path})})
    path = version_path(settings, trained(1).version())
    path.parent.mkdir()
    path.write_bytes(save({f"model.{n}": torch.tensor(v) for n, v in trained(2).arrays.items()}))
    with pytest.raises(StateError, match="expected the one that it is named after"):
        versions_of(settings).load(trained(1).version())


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


def test_files_of_versions_that_no_partition_may_need_are_removed_and_no_others(tmp_path: Path) -> None:
    settings = Settings(state=State(root=tmp_path, sync=False))
    models = [trained(seed) for seed in range(1, 9)]
    stores = [RocksStore(tmp_path / name, sync=False) for name in ("partition-0", "partition-1", "items-0")]
    owners = [Processor(settings, store, partition=n, partitions=2) for n, store in enumerate(stores[:2])]
    items = ItemProcessor(settings, stores[2], 0)
    versions = versions_of(settings)

    async def adopt(model: GraphMemory, owner: Any) -> None:
        versions.take(in_topic(model), caught_up=True)
        assert versions.newest is not None
        await versions.adopt(owner)

    def left() -> set[str]:
        return {path.name.removesuffix(".safetensors") for path in (tmp_path / "graph").iterdir()}

    shas = [model.version() for model in models]
    users = [next(f"u{n}" for n in range(99) if partition_of(f"u{n}", 2) == p) for p in range(2)]
    now_ms = 1_600_000_000_000
    for n, model in enumerate(models[:6]):
        for p, owner in enumerate(owners):
            event = Event(users[p], "i1", now_ms + n * 1000, "view")
            owner.commit(owner.apply([Record(n, encode_event(event), b"u")]))
        asyncio.run(adopt(model, owners[0]))
    asyncio.run(adopt(models[6], items))
    asyncio.run(adopt(models[7], owners[1]))
    assert remove_unneeded(tmp_path) == 0  # all were touched a moment ago
    assert left() == set(shas)
    assert remove_unneeded(tmp_path, 0.0) == 0  # each may be needed by a late event, or is a partition's newest
    later = Event(users[0], "i1", now_ms + 2 * settings.state.late_ms, "view")
    owners[0].commit(owners[0].apply([Record(10, encode_event(later), b"u")]))
    (tmp_path / "graph" / f"{shas[0]}.safetensors.12.tmp").write_bytes(b"killed while it was written")
    assert remove_unneeded(tmp_path, 0.0) == 6
    assert left() == {shas[5], shas[6], shas[7]}
    (tmp_path / "partition-1" / "CURRENT").write_text("MANIFEST-000000")
    (tmp_path / "graph" / f"{shas[0]}.safetensors").write_bytes(b"perhaps needed by what can't be read")
    assert remove_unneeded(tmp_path, 0.0) == 0
    for store in stores:
        store.close()


@pytest.mark.parametrize("wrong", ["no safetensors", "another shape"])
@pytest.mark.parametrize("caught_up", [True, False])
def test_the_newest_version_that_makes_sense_is_taken_when_several_are_read_at_once(
    wrong: str, caught_up: bool, caplog: pytest.LogCaptureFixture
) -> None:
    versions, log = versions_of(), [out for seed in (1, 2) for out in encode_version(trained(seed), {})]
    log += [*cut("a" * 64, nonsense()[wrong]), *cut("b" * 64, nonsense()[wrong])]
    versions.take([_received(n, out) for n, out in enumerate(log)], caught_up)
    versions.take([], caught_up=True)
    assert versions.newest is not None
    assert versions.newest.sha256 == trained(2).version()
    assert caplog.text.count("is passed over: a graph version does not fit") == 2
