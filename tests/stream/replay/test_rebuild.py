"""A state rebuilt without forgotten users: several partitions, what was not sent, backups, logs that were cut."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from kafka import TopicPartition
from tests.stream.conftest import T0_MS
from tests.stream.process.test_processor import shop_log
from typer.testing import CliRunner

from driftline.configs.errors import InputError, StateError
from driftline.configs.settings import Graph, Settings, State
from driftline.graph.chunks import whole_users
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event, decode_item, key64
from driftline.serving.owner import partition_of
from driftline.stream.cli import app
from driftline.stream.events.produce import outlet
from driftline.stream.events.records import Outgoing, Record, unpack
from driftline.stream.events.schema import encode_event
from driftline.stream.kafka.broker import admin
from driftline.stream.kafka.reading import read_all
from driftline.stream.owned.versions import (
    GraphVersion,
    decode_version,
    encode_version,
    keep_version,
    load_version,
    version_path,
)
from driftline.stream.process.forget import encode_forget, forgotten_user
from driftline.stream.process.intake import FORWARDED
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor
from driftline.stream.replay import topics
from driftline.stream.replay.rebuild import rebuild
from driftline.stream.replay.without import LeftOut, Log
from driftline.stream.state.backup import backup
from driftline.stream.state.graphs import needed
from driftline.stream.state.layout import hold_to_layout
from driftline.stream.state.live import has_user, read_live_state
from driftline.stream.state.origin import KEY as TOPICS
from driftline.stream.state.store import MemoryStore, ReadOnlyStore, RocksStore, partition_path

PARTITIONS = 4
USER = "u7"
STEP = 25
"""Records of a partition that are applied at once."""


def item_partition(item_id: str) -> int:
    return partition_of(item_id, PARTITIONS)


def dealt(events: list[Any], ask_after: int | None = None) -> dict[int, list[Record]]:
    """Events in their users' partitions; after so many a request to forget `USER`."""
    logs: dict[int, list[Record]] = {partition: [] for partition in range(PARTITIONS)}
    for n, event in enumerate(events):
        if n == ask_after:
            key, value = encode_forget(USER)
            log = logs[partition_of(USER, PARTITIONS)]
            log.append(Record(len(log), value, key))
        log = logs[partition_of(event.user_id, PARTITIONS)]
        log.append(Record(len(log), encode_event(event), event.user_id.encode()))
    return logs


class System:
    """Workers of four partitions without a broker: topics are lists."""

    def __init__(self, root: Path) -> None:
        self.settings = Settings(state=State(root=root, sync=False, lock_wait_s=0.1))
        hold_to_layout(self.settings, PARTITIONS)
        self.by_item: dict[int, list[Record]] = defaultdict(list, {n: [] for n in range(PARTITIONS)})
        self.other: list[Outgoing] = []
        self.adoptions: dict[int, list[tuple[int, str]]] = defaultdict(list)

    def run(
        self, logs: dict[int, list[Record]], models: dict[int, GraphMemory] | None = None, unsent: bool = False
    ) -> None:
        """Applies logs from where the stores stand, a step of each partition in turn; items after every round.

        Args:
            models: adopted by all partitions after so many rounds.
            unsent: the last epochs are committed and not sent.
        """
        root = self.settings.state.root
        stores = [RocksStore(partition_path(root, n), sync=False) for n in range(PARTITIONS)]
        item_stores = [RocksStore(root / f"items-{n}", sync=False) for n in range(PARTITIONS)]
        try:
            users = [self._processor(n, store) for n, store in enumerate(stores)]
            items = [ItemProcessor(self.settings, store, n, self._model(store)) for n, store in enumerate(item_stores)]
            for processor in users:
                self._send(processor.unsent)
            rounds = 1 + max(log[-1].offset for log in logs.values()) // STEP
            for step in range(1, rounds + 1):
                for n, processor in enumerate(users):
                    changes = processor.apply([r for r in logs[n] if processor.next_offset <= r.offset < step * STEP])
                    processor.commit(changes)
                    if not unsent or step < rounds:
                        self._send(changes.outgoing)
                    processor.acknowledged = True
                if step in (models or {}):
                    self._adopt(users, (models or {})[step])
                for n, item_processor in enumerate(items):
                    new = [r for r in self.by_item[n] if r.offset >= item_processor.next_offset]
                    item_processor.store.commit(item_processor.apply(new).puts)
                    if step in (models or {}):
                        item_processor.store.commit(item_processor.adopt((models or {})[step]).puts)
        finally:
            for store in [*stores, *item_stores]:
                store.close()

    def log(self, users: dict[int, list[Record]]) -> Log:
        return Log(users, self.by_item, self.adoptions, self._load)

    def rows(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for name in [f"{kind}-{n}" for kind in ("partition", "items") for n in range(PARTITIONS)]:
            store = RocksStore(self.settings.state.root / name, sync=False)
            found |= dict(whole_users(store)) | dict(store.scan(b"i:"))
            store.close()
        return found

    def _load(self, sha256: str) -> GraphVersion:
        return load_version(self.settings, sha256)

    def _processor(self, n: int, store: RocksStore) -> Processor:
        model = self._model(store)
        vectors = vectors_of(model) if model else None
        return Processor(
            self.settings, store, partition=n, partitions=PARTITIONS, model=model, item_vectors=vectors,
            version_of=lambda sha256: (self._load(sha256).model, self._load(sha256).item_vectors),
        )  # fmt: skip

    def _model(self, store: RocksStore) -> GraphMemory | None:
        (adopted,) = store.get([b"m:graph"])
        return self._load(orjson.loads(adopted)["sha256"]).model if adopted else None

    def _adopt(self, users: list[Processor], model: GraphMemory) -> None:
        path = version_path(self.settings, model.version())
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"".join(part.value or b"" for part in encode_version(model, vectors_of(model))))
        for n, processor in enumerate(users):
            self.adoptions[n].append((processor.next_offset, model.version()))
            processor.commit(processor.adopt(model, vectors_of(model)))
            processor.acknowledged = True

    def _send(self, outgoing: list[Outgoing]) -> None:
        for out in outgoing:
            if out.topic == "interactions.by-item":
                number = item_partition((out.key or b"").decode()) if out.partition is None else out.partition
                topic = self.by_item[number]
                topic.append(Record(len(topic), out.value, out.key, -1, out.headers))
            elif out.topic != "graph-versions":
                self.other.append(out)


def vectors_of(model: GraphMemory) -> dict[str, Any]:
    """Item vectors that differ from version to version."""
    weights = max(model.arrays.values(), key=lambda weight: weight.size).ravel()
    width = Settings().graph.memory_dim
    return {f"i{n}": weights[n : n + width].copy() for n in range(30)}


def without_user(logs: dict[int, list[Record]]) -> dict[int, list[Record]]:
    """Offsets stay, so that a step of the system has the same others in it."""
    own = partition_of(USER, PARTITIONS)
    asked = next(r.offset for r in logs[own] if forgotten_user(r))
    return {n: [r for r in log if n != own or (r.offset > asked or r.key != USER.encode())] for n, log in logs.items()}


MODELS = {2: GraphMemory(Graph(seed=7)), 3: GraphMemory(Graph(seed=8))}


def plain(rows: dict[bytes, bytes]) -> dict[bytes, Any]:
    """Item rows by what does not depend on the order in which partitions were read."""
    return {
        key: value if key.startswith(b"u:") else (decode_item(value).count, sorted_ring(value))
        for key, value in rows.items()
    }


def sorted_ring(value: bytes) -> list[bytes]:
    ring = bytes(decode_item(value).ring)
    return sorted(ring[at : at + 16] for at in range(0, len(ring), 16))


def test_rows_of_users_and_items_of_four_partitions_are_those_of_a_log_without_the_forgotten(tmp_path: Path) -> None:
    events = shop_log(60)
    logs = dealt(events, ask_after=300)
    live, clean = System(tmp_path / "live"), System(tmp_path / "clean")
    live.run(logs, MODELS)
    done = rebuild(live.settings, live.log(logs))
    assert (done.proven, done.known) == (True, {USER})
    assert done.items_sha256
    assert done.begun_from == ""
    assert done.state_sha256 == read_live_state(live.settings.state.root).state_sha256
    # the oracle: the same topics with the user's records taken out by hand, read by workers in the same steps
    own = {(n, r.offset) for n, log in logs.items() for r in log} - {
        (n, r.offset) for n, log in without_user(logs).items() for r in log
    }
    assert done.left_out == len(own)
    clean.run(without_user(logs), MODELS)
    assert {k: v for k, v in live.rows().items() if k[:2] == b"u:"} == {
        k: v for k, v in clean.rows().items() if k[:2] == b"u:"
    }
    assert plain(live.rows()).keys() == plain(clean.rows()).keys()
    counts = {k: v[0] for k, v in plain(live.rows()).items() if k[:2] == b"i:"}
    assert counts == {k: v[0] for k, v in plain(clean.rows()).items() if k[:2] == b"i:"}
    # and it goes on like a system that never was touched
    more = dealt([*events, *shop_log(90)[len(events) :]], ask_after=300)
    live.run(more)
    clean.run(without_user(more))
    after = {k: v[0] for k, v in plain(live.rows()).items() if k[:2] == b"i:"}
    assert after == {k: v[0] for k, v in plain(clean.rows()).items() if k[:2] == b"i:"}
    assert {k: v for k, v in live.rows().items() if k[:2] == b"u:"} == {
        k: v for k, v in clean.rows().items() if k[:2] == b"u:"
    }


@pytest.mark.parametrize("name", ["partition-1", "items-2"])
def test_a_rebuild_that_was_killed_between_its_two_renames_is_told_to_everybody_and_ended_by_the_next(
    tmp_path: Path, name: str
) -> None:
    logs = dealt(shop_log(40), ask_after=200)
    live = System(tmp_path / "live")
    live.run(logs)
    root = live.settings.state.root
    whole = tmp_path / "whole"
    shutil.copytree(root, whole, symlinks=True)
    (root / name).rename(root / f"{name}.leaving")
    shutil.copytree(root / f"{name}.leaving", root / f"{name}.rebuilt", symlinks=True)
    for ask in (
        lambda: hold_to_layout(live.settings, PARTITIONS),
        lambda: read_live_state(root),
        lambda: has_user(root, USER),
        lambda: backup(root, tmp_path / "backup"),
    ):
        with pytest.raises(StateError, match=rf"{name} is missing and .*{name}\.leaving is there: .*Give that command"):
            ask()
    done = rebuild(live.settings, live.log(logs))
    assert done.proven
    hold_to_layout(live.settings, PARTITIONS)
    assert not [*root.glob("*.leaving"), *root.glob("*.rebuilt")]
    settings = live.settings.model_copy(update={"state": live.settings.state.model_copy(update={"root": whole})})
    assert done == rebuild(settings, live.log(logs)), "hashes over all partitions"


def test_a_partition_is_put_back_where_the_new_one_can_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = dealt(shop_log(40), ask_after=200)
    live = System(tmp_path / "live")
    live.run(logs)
    rename, users = Path.rename, {key for key in live.rows() if key[:2] == b"u:"}

    def full(self: Path, to: Path) -> Path:
        if self.name == "partition-2.rebuilt":
            raise OSError(28, "No space left on device")
        return rename(self, to)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", full)
        with pytest.raises(StateError, match=r"can't take the place of .*partition-2: .*No space left"):
            rebuild(live.settings, live.log(logs))
    hold_to_layout(live.settings, PARTITIONS)
    assert {key for key in live.rows() if key[:2] == b"u:"} == users
    assert rebuild(live.settings, live.log(logs)).proven


def test_who_is_asked_to_be_forgotten_and_never_was_there_is_not_known() -> None:
    logs = dealt(shop_log(40), ask_after=200)
    logs[0].append(Record(len(logs[0]), encode_forget("nobody")[1], b"nobody"))
    left_out = LeftOut(Log(logs))
    assert (left_out.users, left_out.known) == ({USER, "nobody"}, {USER})


def test_a_dead_letter_of_item_events_is_not_taken_for_one_of_the_forgotten_at_the_same_place() -> None:
    left_out = LeftOut(Log(dealt(shop_log(40), ask_after=200)))
    partition, offset = min(left_out.places)

    def letter(topic: str) -> Outgoing:
        source = ("source", b"%d:%d" % (partition, offset))
        return Outgoing("interactions.dlq", None, b"{", (("reason", b"bad"), source, ("topic", topic.encode())))

    letters = [letter("interactions.by-item"), letter("interactions")]
    assert list(left_out.kept(letters, MemoryStore())) == letters[:1]


def test_a_request_takes_the_user_out_of_the_rings_of_items_in_all_partitions(tmp_path: Path) -> None:
    live = System(tmp_path / "live")
    logs = dealt(shop_log(40), ask_after=200)
    own = partition_of(USER, PARTITIONS)
    asked = next(r.offset for r in logs[own] if forgotten_user(r))
    name, hidden = USER.encode(), key64(USER).to_bytes(8, "little")

    def traces() -> list[bytes]:
        in_rings = [key for key, value in live.rows().items() if key[:2] == b"i:" and hidden in decode_item(value).ring]
        return in_rings + [key for key in live.rows() if key == b"u:" + name]

    live.run({n: log if n != own else log[:asked] for n, log in logs.items()})
    assert len(traces()) > 5
    live.run({n: log if n != own else log[: asked + 1] for n, log in logs.items()})
    assert traces() == []
    again = {n: [*topic, *topic[-1:]] for n, topic in live.by_item.items()}  # what a crash sends twice is dropped
    store = RocksStore(live.settings.state.root / "items-0", sync=False)
    processor = ItemProcessor(live.settings, store, 0)
    assert forgotten_user(again[0][-1]) == USER
    changes = processor.apply([replace(again[0][-1], offset=len(again[0]))])
    assert (changes.duplicates, changes.dead) == (1, 0)
    store.close()


def test_after_a_rebuild_no_file_under_the_state_has_a_byte_of_who_is_forgotten(tmp_path: Path) -> None:
    live = System(tmp_path / "live")
    name = "ZoeForget"
    events = [msgspec.structs.replace(e, user_id=name) if e.user_id == USER else e for e in shop_log(40)]
    logs: dict[int, list[Record]] = {partition: [] for partition in range(PARTITIONS)}
    for event in events:
        log = logs[partition_of(event.user_id, PARTITIONS)]
        log.append(Record(len(log), encode_event(event), event.user_id.encode()))
    own = logs[partition_of(name, PARTITIONS)]
    own.append(Record(len(own), encode_forget(name)[1], name.encode()))
    hidden = key64(name).to_bytes(8, "little")

    def files() -> list[str]:
        paths = [path for path in live.settings.state.root.rglob("*") if path.is_file() and not path.is_symlink()]
        return [str(path) for path in paths if any(part in path.read_bytes() for part in (name.encode(), hidden))]

    live.run(logs)
    assert files()  # RocksDB keeps what was deleted until it compacts
    assert rebuild(live.settings, live.log(logs)).proven
    assert [path for path in files() if "/faust" not in path] == []


def test_what_the_workers_had_not_sent_or_not_read_is_sent_once_after_a_rebuild_but_for_the_forgotten(
    tmp_path: Path,
) -> None:
    events = shop_log(60)
    logs = dealt(events, ask_after=300)
    read = {n: log[: len(log) - 15] for n, log in logs.items()}  # among the rest perhaps the request
    live, clean = System(tmp_path / "live"), System(tmp_path / "clean")
    live.run(read, MODELS, unsent=True)
    assert rebuild(live.settings, live.log(logs)).proven
    live.run(logs)
    clean.run(without_user(logs), MODELS)
    assert {k: v[0] for k, v in plain(live.rows()).items() if k[:2] == b"i:"} == {
        k: v[0] for k, v in plain(clean.rows()).items() if k[:2] == b"i:"
    }
    asked = {(out.topic, out.key) for out in live.other if out.value is not None}
    assert asked >= {(out.topic, out.key) for out in clean.other if out.value is not None}


def test_a_request_that_no_worker_has_read_goes_on_from_a_rebuild_to_all_who_need_it_with_the_name_of_its_log(
    tmp_path: Path,
) -> None:
    settings = Settings(state=State(root=tmp_path, sync=False, lock_wait_s=0.1))
    hold_to_layout(settings, PARTITIONS)
    own, elsewhere = partition_of(USER, PARTITIONS), (partition_of(USER, PARTITIONS) + 1) % PARTITIONS
    key, request = encode_forget(USER)
    logs: dict[int, list[Record]] = {n: [] for n in range(PARTITIONS)}
    logs[own] = [Record(0, encode_event(Event(owned_by(own), "i1", T0_MS))), Record(1, request, key)]
    logs[elsewhere] = [Record(0, request)]  # by a producer without keys
    names = [f"{kind}-{n}" for kind in ("partition", "items") for n in range(PARTITIONS)]
    for name in names[:-1]:  # the last one is on another host
        store = RocksStore(tmp_path / name, sync=False)
        store.commit({TOPICS: orjson.dumps({"interactions": {"topic_id": "this"}})})
        store.close()
    assert rebuild(settings, Log(logs, {n: [] for n in range(PARTITIONS)})).proven

    def outbox(partition: int) -> list[Outgoing]:
        store = RocksStore(partition_path(tmp_path, partition), sync=False)
        found = [out for _, value in store.scan(b"o:") for out in unpack(value)]
        store.close()
        return found

    (copy,) = outbox(elsewhere)
    assert (copy.topic, copy.partition, copy.value) == ("interactions", own, request)
    assert dict(copy.headers)[FORWARDED] == b"%d:0:-1:this" % elsewhere
    sent = [out for out in outbox(own) if forgotten_user(Record(0, out.value)) == USER]
    assert {(out.topic, out.partition) for out in sent} == {
        *(("interactions", n) for n in range(PARTITIONS) if n != own),
        *(("interactions.by-item", n) for n in range(PARTITIONS)),
    }
    assert {value for out in sent for _, value in out.headers} == {b"%d:1:-1:this" % own, b"%d:1:this" % own}


def test_a_copy_that_a_killed_worker_sends_again_after_the_request_brings_nobody_back(tmp_path: Path) -> None:
    own = partition_of(USER, PARTITIONS)
    source = (own + 1) % PARTITIONS
    event, (key, request) = encode_event(Event(USER, "i1", T0_MS)), encode_forget(USER)
    place = ((FORWARDED, b"%d:0:%d:" % (source, T0_MS)),)
    logs = {n: [Record(0, encode_event(Event(owned_by(n), "i1", T0_MS)), None, T0_MS)] for n in range(PARTITIONS)}
    logs[source] = [Record(0, event, None, T0_MS), Record(1, logs[source][0].value, None, T0_MS + 1)]
    logs[own] = [Record(0, event, key, T0_MS + 1, place), Record(1, request, key, T0_MS + 2)]
    again = [Record(offset, event, key, T0_MS + offset, place) for offset in (2, 3)]
    live = System(tmp_path / "live")
    live.run(logs | {own: [*logs[own], again[0]]})
    assert not has_user(live.settings.state.root, USER)
    logs[own].append(again[0])
    assert rebuild(live.settings, live.log(logs)).proven
    assert not has_user(live.settings.state.root, USER)
    logs[own].append(again[1])  # from the outbox of a partition on another host
    live.run(logs)
    assert not has_user(live.settings.state.root, USER)


def test_a_rebuilt_state_has_the_versions_that_late_events_may_need_in_it(tmp_path: Path) -> None:
    settings = Settings(state=State(root=tmp_path / "state", sync=False, lock_wait_s=0.1, late_events=50))
    hold_to_layout(settings, 1)
    models = [GraphMemory(Graph(seed=seed)) for seed in (7, 8)]
    sent = {m.version(): b"".join(out.value or b"" for out in encode_version(m, {})) for m in models}
    log = [
        Record(n, encode_event(Event("many" if n >= 70 else f"u{n % 5}", f"i{n % 7}", T0_MS + n))) for n in range(200)
    ]
    log.append(Record(200, encode_forget("many")[1]))
    log += [Record(201 + n, encode_event(Event(f"u{n % 5}", "i1", T0_MS + 300 + n))) for n in range(10)]
    path = partition_path(settings.state.root, 0)
    store, places = RocksStore(path, sync=False), []
    processor = Processor(settings, store, version_of=lambda sha256: (load_version(settings, sha256).model, {}))
    for start, end, model in ((0, 20, models[0]), (20, 60, models[1]), (60, 211, None)):
        processor.commit(processor.apply(log[start:end]))
        processor.acknowledged = True
        if model is not None:
            keep_version(settings, decode_version(settings, sent[model.version()]))
            places.append((processor.next_offset, model.version()))
            processor.commit(processor.adopt(model))
            processor.acknowledged = True
    store.close()
    version_path(settings, models[0].version()).unlink()  # as `remove_unneeded` does: no store here names it
    assert needed_of(path) == {models[1].version()}
    done = rebuild(settings, Log({0: log}, {}, {0: places}, lambda sha256: decode_version(settings, sent[sha256])))
    assert done.proven
    assert needed_of(path) == set(sent)
    assert {file.stem for file in (settings.state.root / "graph").iterdir()} == set(sent)
    backup(settings.state.root, tmp_path / "backup")


def needed_of(path: Path) -> set[str]:
    store = RocksStore(path, sync=False)
    try:
        return needed(store)
    finally:
        store.close()


def test_what_a_rebuild_sends_goes_to_the_partitions_that_the_topic_of_item_events_has(tmp_path: Path) -> None:
    settings = Settings(state=State(root=tmp_path, sync=False, lock_wait_s=0.1))
    hold_to_layout(settings, PARTITIONS, 2)
    for name in [*(f"partition-{n}" for n in range(PARTITIONS)), "items-0", "items-1"]:
        RocksStore(tmp_path / name, sync=False).close()
    logs, items = dealt(shop_log(20), ask_after=40), {n: list[Record]() for n in range(PARTITIONS)}
    with pytest.raises(InputError, match=r"interactions.by-item has 4 partitions; expected the 2 of the state"):
        rebuild(settings, Log(logs, items))
    assert rebuild(settings, Log(logs, {0: [], 1: []})).proven
    waiting: list[Outgoing] = []
    for n in range(PARTITIONS):
        store = RocksStore(partition_path(tmp_path, n), sync=False)
        waiting += [out for _, value in store.scan(b"o:") for out in unpack(value)]
        store.close()
    assert {out.partition for out in waiting if out.topic == "interactions.by-item"} == {0, 1}


def owned_by(partition: int) -> str:
    return next(f"v{n}" for n in range(99) if partition_of(f"v{n}", PARTITIONS) == partition)


def test_events_right_before_the_request_do_not_come_back_when_the_worker_goes_on(tmp_path: Path) -> None:
    events = shop_log(40)
    events += [e for e in shop_log(40) if e.user_id == USER][-3:]  # the user's own at the very end
    logs = dealt(events)
    own = logs[partition_of(USER, PARTITIONS)]
    key, value = encode_forget(USER)
    own.append(Record(len(own), value, key))
    live = System(tmp_path / "live")
    live.run(logs)
    assert rebuild(live.settings, live.log(logs)).proven
    before = live.rows()
    live.run(logs)
    assert live.rows() == before
    state = read_live_state(live.settings.state.root)
    assert state.next_offset == {n: len(log) for n, log in logs.items()}


def test_the_last_backup_from_before_the_first_event_is_begun_from_and_others_are_not(tmp_path: Path) -> None:
    events = [e for e in shop_log(30) if e.user_id != USER] + shop_log(60)[200:]
    logs = dealt(events, ask_after=len(events) - 40)
    own = partition_of(USER, PARTITIONS)
    first = next(r.offset for r in logs[own] if r.key == USER.encode())
    live = System(tmp_path / "live")
    saved = tmp_path / "saved"
    saved.mkdir()
    ends = {"0-early": first // 2, "1-just before": first, "2-too late": first + 20}
    for name, end in ends.items():
        live.run({n: log[:end] for n, log in logs.items()}, {1: MODELS[2]} if name == "0-early" else {})
        backup(live.settings.state.root, saved / name)
    live.run(logs)
    whole = System(tmp_path / "whole")
    whole_root = whole.settings.state.root
    shutil.rmtree(whole_root)
    shutil.copytree(live.settings.state.root, whole_root, symlinks=True)
    from_start = rebuild(whole.settings, live.log(logs))
    done = rebuild(live.settings, live.log(logs), [saved])
    assert Path(done.begun_from).name == "1-just before"
    assert done.proven
    assert (done.state_sha256, done.items_sha256) == (from_start.state_sha256, from_start.items_sha256)
    assert live.rows() == whole.rows()
    # a log that begins later can only be begun from a backup
    cut = {("interactions", n): ends["0-early"] for n in range(PARTITIONS)}
    users = {n: log[ends["0-early"] :] for n, log in logs.items()}
    short = Log(users, live.by_item, live.adoptions, live.log(logs).version_of, cut)
    with pytest.raises(StateError, match=r"begins at offset \d+: .*give --from"):
        rebuild(live.settings, short)
    with pytest.raises(StateError, match="a record of who is forgotten lies at"):
        rebuild(live.settings, short, [saved / "2-too late"])
    assert rebuild(live.settings, short, [saved]).state_sha256 == from_start.state_sha256
    # a backup of a rebuilt state holds nothing of whom it was rebuilt without
    backup(live.settings.state.root, saved / "3-rebuilt")
    done = rebuild(live.settings, live.log(logs), [saved])
    assert Path(done.begun_from).name == "3-rebuilt"
    assert done.state_sha256 == from_start.state_sha256
    with pytest.raises(InputError, match="holds no backup"):
        rebuild(live.settings, live.log(logs), [tmp_path / "nothing"])
    shutil.rmtree(saved / "3-rebuilt" / "partition-0")
    shutil.copytree(saved / "0-early" / "partition-0", saved / "3-rebuilt" / "partition-0", symlinks=True)
    with pytest.raises(InputError, match=r"not [0-9a-f]+ of its backup\.json"):
        rebuild(live.settings, live.log(logs), [saved / "3-rebuilt"])


def test_forget_rebuilds_the_four_partitions_that_a_worker_left_and_proves_it(world: Any, wait: Any) -> None:
    world.partitions = PARTITIONS
    events = shop_log(40)
    world.produce([(e.user_id.encode(), encode_event(e)) for e in events])
    command = ["forget", USER, "--json", "--config", str(world.config)]

    root = world.settings.state.root
    with world.worker() as worker:
        wait(lambda: counted(root) == len(events), what="items have counted every event")
        worker.stop()
    result = CliRunner().invoke(app, [*command, "--rebuild"])
    assert result.exit_code == 0, result.output
    done = orjson.loads(result.stdout)["rebuilt"]
    assert done["state_sha256"] == done["log_sha256"]
    assert done["items_sha256"] == done["log_items_sha256"] != ""
    others = sum(e.user_id != USER for e in events)
    assert counted(root) == others
    assert b"u:" + USER.encode() not in world.stored_rows()
    expected = world.expected_rows()  # of the log with the request: users do not read one another's rows
    assert world.stored_rows() == expected


def test_a_rebuild_follows_the_item_vectors_that_this_host_adopted_whatever_was_sent_under_their_name_since(
    world: Any, tmp_path: Path
) -> None:
    world.partitions = 2
    world.create_topics()
    model, vectors = MODELS[2], vectors_of(MODELS[2])
    others = {name: vector + 1 for name, vector in vectors.items()}  # of a trainer that was killed and learnt it again
    sent = [encode_version(model, found) for found in (vectors, others)]
    with outlet(world.settings.broker, world.bootstrap, "t") as send:
        for parts in sent:
            send(parts)
    keep_version(world.settings, decode_version(world.settings, b"".join(out.value or b"" for out in sent[0])))
    found = topics.read_log(world.settings, world.bootstrap, tmp_path).version_of(model.version())
    assert {name: vector.tolist() for name, vector in found.item_vectors.items()} == {
        name: vector.tolist() for name, vector in vectors.items()
    }


def test_records_that_the_broker_deletes_while_a_rebuild_reads_are_missing_and_not_taken_for_none(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = [Record(n, encode_event(event), event.user_id.encode()) for n, event in enumerate(shop_log(40))]
    log.append(Record(len(log), encode_forget(USER)[1]))
    world.produce([(record.key, record.value) for record in log])
    hold_to_layout(world.settings, 1)
    store = RocksStore(partition_path(world.settings.state.root, 0), sync=False)
    processor = Processor(world.settings, store)
    processor.commit(processor.apply(log))
    store.close()

    def read_cut(*where: Any) -> Any:
        with admin(world.settings.broker, world.bootstrap) as client:
            client.delete_records({TopicPartition(world.prefix + "interactions", 0): 100})
        return read_all(*where)

    monkeypatch.setattr(topics, "read_all", read_cut)
    found = topics.read_log(world.settings, world.bootstrap, tmp_path)
    assert found.users[0][0].offset == 100
    with pytest.raises(StateError, match="begins at offset 100: what the state took before can't be replayed"):
        rebuild(world.settings, found)


def counted(root: Path) -> int:
    """Events that the item rows have counted, while workers run or not."""
    total = 0
    for n in range(PARTITIONS):
        if not (root / f"items-{n}" / "CURRENT").exists():
            continue
        with tempfile.TemporaryDirectory() as scratch:
            store = ReadOnlyStore(root / f"items-{n}", Path(scratch))
            total += sum(decode_item(value).count for _, value in store.scan(b"i:"))
            store.close()
    return total
