"""Forgetting a user: at the offset of the request, whatever the cuts, the restarts and who comes late."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from tests.stream.conftest import T0_MS, feed, flush, start
from tests.stream.process.test_processor import SETTINGS, records, run, shop_log
from typer.testing import CliRunner

from driftline.configs.errors import LockedError
from driftline.configs.settings import Settings, State
from driftline.graph.rows import Event, decode_item, decode_user, key64
from driftline.llm.clients import make_client
from driftline.llm.generator import ProfileGenerator
from driftline.serving.forget import Forgetter
from driftline.serving.owner import partition_of
from driftline.serving.state_reader import StateReader
from driftline.stream.cli import app
from driftline.stream.events.produce import outlet
from driftline.stream.events.records import Outgoing
from driftline.stream.events.schema import MAX_ID_BYTES, encode_event, parse_event
from driftline.stream.kafka.reading import read_all
from driftline.stream.process.forget import Forgotten, encode_forget, forgotten_user, tombstones, without_forgotten
from driftline.stream.process.intake import FORWARDED
from driftline.stream.process.processor import Processor, Record
from driftline.stream.profile.profiler import Profiler
from driftline.stream.replay.adoptions import follow
from driftline.stream.replay.rebuild import rebuild
from driftline.stream.replay.without import Log
from driftline.stream.state.layout import hold_to_layout
from driftline.stream.state.live import has_user, read_live_state
from driftline.stream.state.store import MemoryStore, RocksStore, partition_path, state_sha256


def log_with(users: dict[int, str], groups: int = 120) -> list[Record]:
    """The shop's log with requests to forget users, each put in after so many events."""
    out: list[Record] = []
    for number, record in enumerate(records(shop_log(groups))):
        if number in users:
            key, value = encode_forget(users[number])
            out.append(Record(len(out), value, key))
        out.append(Record(len(out), record.value, record.key))
    return out


def state_of(log: list[Record], settings: Settings = SETTINGS) -> Processor:
    processor = Processor(settings, MemoryStore())
    processor.commit(processor.apply(log))
    return processor


def traces(store: Any, user_id: str) -> list[bytes]:
    """Keys of a store whose key or value names a user, or an item row's ring has the user's key."""
    key, name = key64(user_id).to_bytes(8, "little"), user_id.encode()
    found = []
    for at, value in store.scan(b""):
        in_ring = at.startswith(b"i:") and key in bytes(decode_item(value).ring)
        if in_ring or name in at or (name in value and not at.startswith(b"o:")):
            found.append(at)
    return found


def renamed(log: list[Record], user_id: str, name: str) -> list[Record]:
    """The log with a user of a name that is part of nothing else."""
    out = []
    for record in log:
        value = record.value.replace(b'"%s"' % user_id.encode(), b'"%s"' % name.encode())
        key = name.encode() if record.key == user_id.encode() else record.key
        out.append(Record(record.offset, value, key))
    return out


def test_a_forgotten_user_leaves_no_row_no_event_and_no_place_in_a_ring() -> None:
    log = renamed(log_with({700: "u7"}), "u7", "Zoë Forget")[:701]
    assert forgotten_user(log[-1]) == "Zoë Forget"
    before = state_of(log[:-1])
    assert len(traces(before.store, "Zoë Forget")) > 5
    after = state_of(log)
    assert traces(after.store, "Zoë Forget") == []
    assert after.user("Zoë Forget") is None
    assert before.user("u8") is not None
    others = [(k, v) for k, v in before.store.scan(b"u:") if k != b"u:" + "Zoë Forget".encode()]
    assert list(after.store.scan(b"u:")) == others


def test_where_a_log_with_requests_is_cut_or_the_processor_reopened_changes_nothing(tmp_path) -> None:
    log = log_with({100: "u3", 101: "u3", 350: "u9", 600: "u3", 640: "nobody"})
    whole = run(log, [])
    rng = np.random.default_rng(1)
    assert run(log, [100, 101, 102, 103]) == whole
    for _ in range(3):
        assert run(log, rng.choice(np.arange(1, len(log)), 20, replace=False).tolist()) == whole
    cuts = [0, *sorted(rng.choice(np.arange(1, len(log)), 15, replace=False).tolist()), 100, 352, len(log)]
    for start_at, end in itertools.pairwise(sorted(cuts)):
        store = RocksStore(tmp_path / "partition-0", sync=False)
        processor = Processor(SETTINGS, store)
        processor.commit(processor.apply(log[start_at:end]))
        digest = state_sha256([store])
        store.close()
    assert digest == whole


def test_a_request_makes_no_event_too_late_whoever_it_is_for() -> None:
    """Anybody may ask to forget an id that nobody has, and one clock that is ahead makes all others late."""
    log = records(shop_log(60))
    last = orjson.loads(log[-1].value)["timestamp_ms"]
    ahead = Event("ahead", "i1", last + 240_000, "purchase")
    late = [Event(f"v{n % 7}", f"i{n % 5}", last + n, "purchase") for n in range(1, 30)]

    def told(*between: tuple[bytes, bytes]) -> list[Record]:
        pairs = [(record.value, record.key) for record in log]
        pairs += [(encode_event(ahead), b"ahead"), *((value, key) for key, value in between)]
        pairs += [(encode_event(event), event.user_id.encode()) for event in late]
        return [Record(offset, value, key) for offset, (value, key) in enumerate(pairs)]

    def rows_of(log: list[Record], cuts: list[int]) -> dict[bytes, bytes]:
        store = MemoryStore()
        run(log, cuts, store)
        return {user_id: decode_user(value).history for user_id, value in store.scan(b"u:")}

    plain = rows_of(told(), [])
    assert sum(f"u:v{n}".encode() in plain for n in range(7)) == 7
    asked = told(encode_forget("nobody"))
    for cuts in ([], [len(log)], [len(log) + 1, len(log) + 2], list(range(1, len(asked)))):
        assert rows_of(asked, cuts) == plain
    somebody = rows_of(told(encode_forget("u7")), [])
    assert somebody == {user_id: history for user_id, history in plain.items() if user_id != b"u:u7"}


def test_a_late_event_of_another_brings_nothing_of_a_forgotten_user_back() -> None:
    log = log_with({700: "u7"})[:701]
    last = orjson.loads(log[699].value)["timestamp_ms"]
    for cut in ([], [650], [699], [700]):
        store = MemoryStore()
        run(log, cut, store)
        processor = Processor(SETTINGS, store)
        late = Event("u8", "i3", last - 1, "purchase")
        processor.commit(processor.apply([Record(701, encode_event(late), b"u8")]))
        assert processor.user("u7") is None
        assert not dict(store.scan(b"u:u7"))
        in_rings = [bytes(decode_item(value).ring) for _, value in store.scan(b"i:")]
        assert not any(key64("u7").to_bytes(8, "little") in ring for ring in in_rings)


def test_a_user_who_comes_back_is_new() -> None:
    shop = records(shop_log())
    back = min({r.key for r in shop[:400]} & {r.key for r in shop[400:]}).decode()
    log = log_with({400: back})
    row = state_of(log).user(back)
    later = [r for r in log[401:] if r.key == back.encode()]
    assert any(r.key == back.encode() for r in log[:400])
    assert row is not None
    assert row.events == len(later) > 0
    assert row.first_ms == orjson.loads(later[0].value)["timestamp_ms"]
    assert [e["t"] for e in row.events_array()] == [orjson.loads(r.value)["timestamp_ms"] for r in later]


def test_the_worker_sends_tombstones_after_what_it_asked_for_and_again_after_a_crash() -> None:
    log = log_with({700: "u7"})[:701]
    store = MemoryStore()
    processor = Processor(SETTINGS, store)
    changes = processor.apply(log)
    processor.commit(changes)
    mine = [(out.topic, out.value is None) for out in changes.outgoing if out.key == b"u7"]
    assert mine[-2:] == [("profile-requests", True), ("profiles", True)]
    assert not any(gone for _, gone in mine[:-2])
    again = Processor(SETTINGS, store).unsent
    assert [(out.topic, out.value is None) for out in again if out.key == b"u7"] == mine
    assert changes.forgotten == 1
    assert changes.dead == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"u1", b'{"forget_user_id": "u1", "more": 1}'),
        (b"u1", b'{"forget_user_id": 7}'),
        (b"u1", b'{"forget_user_id": ""}'),
        (b"u1", b'{"forget_user_id": "u1"'),
        (b"u1", b'[{"forget_user_id": "u1"}]'),
        (b"x" * 300, b'{"forget_user_id": "%s"}' % (b"x" * 300)),
    ],
)
def test_what_is_no_whole_request_is_a_dead_letter(key: bytes, value: bytes) -> None:
    processor = Processor(SETTINGS, MemoryStore())
    processor.commit(processor.apply([Record(0, encode_event(Event("u1", "i1", T0_MS, "view")), b"u1")]))
    changes = processor.apply([Record(1, value, key)])
    assert (changes.forgotten, changes.dead) == (0, 1)
    assert processor.user("u1") is not None


def test_a_request_in_another_partition_goes_on_to_the_owner_of_the_user_once() -> None:
    user = next(f"u{n}" for n in range(99) if partition_of(f"u{n}", 4) == 2)
    key, value = encode_forget(user)
    foreign = Processor(SETTINGS, MemoryStore(), partition=1, partitions=4)
    changes = foreign.apply([Record(7, value, b"any key")])
    (copy,) = changes.outgoing
    assert (copy.topic, copy.partition, changes.forwarded, changes.forgotten) == ("interactions", 2, 1, 0)
    owner = Processor(SETTINGS, MemoryStore(), partition=2, partitions=4)
    owner.commit(owner.apply([Record(0, encode_event(Event(user, "i1", T0_MS, "view")), key)]))
    twice = [Record(n, copy.value, copy.key, -1, copy.headers) for n in (1, 3)]
    first = owner.apply([twice[0], Record(2, encode_event(Event(user, "i2", T0_MS + 1))), twice[1]])
    assert (first.forgotten, first.duplicates) == (1, 1)
    assert owner.user(user).events == 1


def test_a_request_takes_the_parts_of_a_row_that_an_earlier_release_split_out_of_all_partitions(tmp_path) -> None:
    settings = Settings(state=State(root=tmp_path, sync=False))
    hold_to_layout(settings, 2)
    stores = [RocksStore(partition_path(tmp_path, n), sync=False) for n in (0, 1)]
    for n, store in enumerate(stores):  # what an earlier release made of a user's events in both partitions
        alone = Processor(settings, MemoryStore())
        alone.commit(alone.apply([Record(0, encode_event(Event("u", f"i{n}", T0_MS)))]))
        store.commit({key: value for key, value in alone.store.scan(b"") if key[:2] in (b"u:", b"n:")})
    own = partition_of("u", 2)
    owner, other = (Processor(settings, stores[n], partition=n, partitions=2) for n in (own, 1 - own))
    key, value = encode_forget("u")
    changes = owner.apply([Record(0, value, key)])
    owner.commit(changes)
    (request,) = [out for out in changes.outgoing if out.topic == "interactions"]
    assert (request.partition, has_user(tmp_path, "u")) == (1 - own, True)
    changes = other.apply([Record(0, request.value, request.key, -1, request.headers)])
    other.commit(changes)
    assert (changes.forgotten, changes.outgoing, has_user(tmp_path, "u")) == (0, [], False)
    with StateReader(tmp_path, 2) as reader:
        assert reader.user("u").row is None
    for store in stores:
        store.close()


def test_only_the_copy_of_a_request_that_its_owner_takes_counts_beside_the_request() -> None:
    user = next(f"u{n}" for n in range(99) if partition_of(f"u{n}", 4) == 2)
    event = encode_event(Event(user, "i1", T0_MS))
    place = ((FORWARDED, b"2:5:105:"),)
    log = [(2, Record(5, encode_forget(user)[1], None, 105)), (1, Record(7, encode_forget(user)[1], None, 190, place))]
    whole = [(3, Record(0, event, None, 104)), (3, Record(1, event, None, 106)), *log]
    forgotten = Forgotten(lambda: whole, partitions=4)
    assert [forgotten.has(*one) for one in whole] == [True, False, True, True]


def test_a_log_of_several_partitions_leaves_out_what_was_taken_before_the_request() -> None:
    def event(at: int, taken_ms: int) -> Record:
        return Record(at, encode_event(Event("u7", "i1", T0_MS, "view")), b"u7", taken_ms)

    request = Record(5, encode_forget("u7")[1], b"u7", 100)
    log = [(0, event(4, 90)), (0, request), (1, event(9, 99)), (1, event(10, 101))]
    forgotten = Forgotten(lambda: log)
    gone = [forgotten.has(*place) for place in ((0, event(4, 90)), (0, request), (0, event(6, 90)), (1, event(9, 99)))]
    assert gone == [True, True, False, True]
    assert not forgotten.has(1, event(10, 101))


def test_what_is_left_out_takes_its_copies_and_what_has_its_event_id_with_it() -> None:
    def event(at: int, user: str, event_id: str | None = None, place: bytes | None = None) -> Record:
        headers = () if place is None else ((FORWARDED, place),)
        return Record(at, encode_event(Event(user, "i1", T0_MS, event_id=event_id)), None, 100 + at, headers)

    request = Record(2, encode_forget("u7")[1], b"u7", 102)
    log = [
        (0, event(0, "u7", "e1"), True),
        (0, event(1, "u7", None, b"1:1:101:this"), True),
        (0, request, True),
        (0, event(3, "u7", "e1"), True),
        (0, event(4, "u7", None, b"1:1:101:this"), True),
        (0, event(5, "u7", "e2"), False),
        (0, event(6, "other", "e1"), False),
        (0, event(7, "u7", None, b"1:1:101:that"), False),  # of another log: the processor refuses it
        (1, event(0, "u7", None, b"0:5:105:that"), False),
        (1, event(1, "u7"), True),
        (1, event(8, "u7", None, b"2:1:101:this"), True),  # the broker has deleted what it is a copy of
        (1, event(9, "u7", None, b"2:3:103:this"), False),
        (1, Record(10, encode_forget("other")[1], None, 110, ((FORWARDED, b"2:2:102:that"),)), False),
    ]
    records = [(partition, record) for partition, record, _ in log]
    forgotten = Forgotten(lambda: records, "this")
    assert [forgotten.has(*place) for place in records] == [gone for *_, gone in log]
    assert not Forgotten(lambda: records, "this", by_id=False).has(0, log[3][1])


def test_a_second_record_of_one_event_id_does_not_bring_a_forgotten_user_back_in_a_rebuild(tmp_path) -> None:
    settings = Settings(state=State(root=tmp_path / "state", sync=False, lock_wait_s=0.1))
    hold_to_layout(settings, 1)
    twice = encode_event(Event("u1", "i1", T0_MS, event_id="e1"))
    other = encode_event(Event("u2", "i1", T0_MS + 1))
    log = [Record(0, twice), Record(1, other), Record(2, encode_forget("u1")[1]), Record(3, twice)]
    store = RocksStore(partition_path(settings.state.root, 0), sync=False)
    processor = Processor(settings, store)
    changes = processor.apply(log)
    processor.commit(changes)
    store.close()
    assert (changes.duplicates, has_user(settings.state.root, "u1")) == (1, False)
    assert rebuild(settings, Log({0: log})).proven
    assert not has_user(settings.state.root, "u1")
    assert has_user(settings.state.root, "u2")


@pytest.mark.parametrize("cuts", [[], [1, 2, 3, 4, 5, 6], [4]])
def test_an_event_that_comes_too_late_makes_no_row_for_who_was_forgotten_or_never_there(cuts: list[int]) -> None:
    key, value = encode_forget("u1")
    log = [
        Record(0, encode_event(Event("u1", "i1", T0_MS))),
        Record(1, encode_event(Event("u2", "i1", T0_MS + 9))),
        Record(2, value, key),
        *(Record(3 + n, encode_event(Event(f"u{1 + n}", f"i{1 + n}", T0_MS + 5))) for n in range(3)),
        Record(6, encode_event(Event("u3", "i3", T0_MS + 10))),
        Record(7, encode_event(Event("u3", "i3", T0_MS + 5))),
    ]
    store = MemoryStore()
    run(log, cuts, store, Settings(state=State(late_ms=0)))
    processor = Processor(Settings(state=State(late_ms=0)), store)
    assert processor.too_late == 4
    assert [(k, decode_user(v).events, decode_user(v).too_late) for k, v in store.scan(b"u:")] == [
        (b"u:u2", 1, 1), (b"u:u3", 1, 1),
    ]  # fmt: skip
    assert [(k, decode_item(v).count, decode_item(v).too_late) for k, v in store.scan(b"i:")] == [
        (b"i:i1", 2, 1), (b"i:i3", 1, 1),
    ]  # fmt: skip


def test_an_event_that_carries_the_field_is_an_event() -> None:
    value = encode_event(Event("u1", "i1", T0_MS, "view", extra={"forget_user_id": "u1"}))
    assert state_of([Record(0, value, b"u1")]).user("u1") is not None


def test_with_several_partitions_rows_of_users_are_those_of_a_log_without_the_forgotten() -> None:
    log = log_with({500: "u3", 700: "u7"})

    def rows(records: list[Record]) -> dict[bytes, bytes]:
        processor = Processor(SETTINGS, MemoryStore(), partitions=4)
        processor.commit(processor.apply(records))
        return dict(processor.store.scan(b"u:"))

    assert rows(log) == rows(without_forgotten(log))


def test_a_rebuilt_state_is_that_of_a_log_without_the_forgotten_and_the_worker_goes_on(tmp_path) -> None:
    settings = Settings(state=State(root=tmp_path / "state", sync=False, lock_wait_s=0.1))
    hold_to_layout(settings, 1)
    log = log_with({500: "u3", 700: "u7"})
    path = partition_path(settings.state.root, 0)
    store = RocksStore(path, sync=False)
    dirty = run(log, [300, 650], store, settings)
    with pytest.raises(LockedError):
        rebuild(settings, Log({0: log}))
    store.close()
    assert read_live_state(settings.state.root).state_sha256 == dirty
    done = rebuild(settings, Log({0: log}))
    named = {b"u3": 500, b"u7": 701}
    by_hand = [r for r in log if forgotten_user(r) is None and r.offset >= named.get(r.key, -1)]
    expected = run(by_hand, [77])
    assert done.state_sha256 == done.log_sha256 == expected != dirty
    assert read_live_state(settings.state.root).state_sha256 == expected
    assert done.left_out == len(log) - len(by_hand)
    assert [folder.name for folder in settings.state.root.glob("partition*")] == ["partition-0"]
    more = [Record(len(log) + n, r.value, r.key) for n, r in enumerate(records(shop_log(150))[len(log) :])]
    store = RocksStore(path, sync=False)
    processor = Processor(settings, store)
    assert processor.next_offset == len(log)
    assert processor.unsent  # of the last epoch, of which nobody knows whether it was sent
    assert not [out for out in processor.unsent if out.key == b"u7" and out.value is not None]
    processor.commit(processor.apply(more))
    store.close()
    assert read_live_state(settings.state.root).state_sha256 == run([*by_hand, *more], [])


def test_a_trainer_keeps_no_row_history_sample_or_open_group_of_a_forgotten_user(
    settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("driftline.stream.learn.trainer.SOON_S", 0.0)
    settings = settings.model_copy(update={"signals": settings.signals.model_copy(update={"refresh_ms": 1})})
    log = log_with({400: "u7"}, groups=100)
    log = renamed([r for r in log if r.offset <= 400], "u7", "ZoeForget")
    trainer = feed(start(settings), [r for r in log if forgotten_user(r) is None])
    flush(trainer)
    trainer.checkpoint()
    name = "ZoeForget"
    hidden = key64(name).to_bytes(8, "little")

    def kept() -> set[Path]:
        """Files under `trainer.root` that have bytes of the user."""
        files = {path: path.read_bytes() for path in settings.trainer.root.rglob("*") if path.is_file()}
        return {path for path, content in files.items() if name.encode() in content or hidden in content}

    def served() -> list[str]:
        folder = settings.serving.snapshots / trainer.publish()
        return [path.name for path in folder.rglob("*") if path.is_file() and hidden in path.read_bytes()]

    assert {path.suffix for path in kept()} >= {".pt", ".sst"}
    assert served()
    last = orjson.loads(log[399].value)
    trainer.take(0, Record(400, encode_event(Event(name, "i1", last["timestamp_ms"] + 5, "purchase")), name.encode()))
    assert trainer.open_groups == 1
    key, value = encode_forget(name)
    trainer.take(0, Record(401, value, key))
    assert trainer.open_groups == 0
    trainer.checkpoint_if_due()
    assert trainer.learner.processor.user(name) is None
    assert kept() == set()
    assert trainer.publish_news() is not None  # the snapshot that has the user's vector is replaced
    assert served() == []
    flush(feed(trainer, [Record(402 + n, r.value, r.key) for n, r in enumerate(records(shop_log(160))[500:700])]))
    trainer.publish()
    second = start(settings)
    assert second.offsets[0] == 402
    name, hidden = "u6", key64("u6").to_bytes(8, "little")
    before = kept()
    second.forget(name)
    second.checkpoint()
    assert hidden not in b"".join(path.read_bytes() for path in (settings.trainer.root / "rows" / "3").iterdir())
    assert {path.suffix for path in before} >= {".pt", ".sst"}


@pytest.mark.parametrize(
    ("seen", "code", "words"),
    [
        ([True, True, False], 0, "row: gone"),
        ([False, False], 65, "check the id"),
        ([True, True], 75, "still there"),
        ([None, None], 69, "no state on this host"),
    ],
)
def test_forget_ends_with_0_only_where_a_row_was_and_is_gone(
    world: Any, monkeypatch: pytest.MonkeyPatch, seen: list[bool | None], code: int, words: str
) -> None:
    answers = iter(seen)
    monkeypatch.setattr("driftline.stream.state.live.has_user", lambda *_: next(answers))
    wait_s = "0" if code == 75 else "5"
    result = CliRunner().invoke(app, ["forget", "u7", "--wait", wait_s, "--config", str(world.config)])
    assert result.exit_code == code, result.output
    assert words in result.stdout
    assert "the request to forget u7 is in the topic" in result.stdout


def test_forget_on_a_running_worker_takes_the_row_within_seconds_and_rebuild_proves_it(world: Any, wait: Any) -> None:
    log = [(r.key, r.value) for r in records(shop_log(60))]
    world.produce(log)
    config = str(world.config)

    def command(*arguments: str) -> Any:
        result = CliRunner().invoke(app, ["forget", "u7", "--json", "--config", config, *arguments])
        assert result.exit_code == 0, result.output
        return orjson.loads(result.stdout)

    with world.worker() as worker:
        wait(lambda: worker.applied() == len(log), what="everything is applied")
        assert has_user(world.settings.state.root, "u7")
        said = command()
        assert (said["row"], said["rebuilt"]) == ("gone", None)
        assert not has_user(world.settings.state.root, "u7")
        nobody = CliRunner().invoke(app, ["forget", "U00002", "--config", config])
        assert (nobody.exit_code, "check the id" in nobody.stdout) == (65, True), nobody.output
        world.produce([(b"u8", encode_event(Event("u8", "i1", 1_700_000_000_000, "view")))])
        wait(lambda: worker.applied() == len(log) + 3, what="the worker goes on")
        assert CliRunner().invoke(app, ["forget", "u7", "--rebuild", "--config", config]).exit_code != 0
        worker.stop()
    done = command("--rebuild")["rebuilt"]
    without = [r for r in world.log() if r.key not in (b"u7", b"U00002")]
    expected, _ = follow(without, [], world.settings)
    assert done["state_sha256"] == done["log_sha256"] == expected
    assert read_live_state(world.settings.state.root).state_sha256 == expected
    misspelt = CliRunner().invoke(app, ["forget", "U7", "--rebuild", "--config", config])
    assert (misspelt.exit_code, "check the id" in misspelt.stdout) == (65, True), misspelt.output


@pytest.mark.parametrize("letter", ["a", '"', "\\", "\x01", "é", "\U0001f600"])
def test_whoever_has_events_can_be_forgotten_however_long_the_id_is_in_json(letter: str) -> None:
    user_id = letter * (MAX_ID_BYTES // len(letter.encode()))
    assert parse_event(encode_event(Event(user_id, "i1", T0_MS))).user_id == user_id
    for value in (encode_forget(user_id)[1], json.dumps({"forget_user_id": user_id}).encode()):
        assert forgotten_user(Record(0, value)) == user_id


def test_a_request_over_grpc_is_the_record_that_the_worker_reads(world: Any) -> None:
    world.create_topics()
    forgetter = Forgetter(world.settings.broker, world.bootstrap)
    assert forgetter.forget("u7") == (0, 0)
    assert forgetter.forget("Zoë Forget") == (0, 1)
    forgetter.close()
    assert [forgotten_user(record) for record in world.log()] == ["u7", "Zoë Forget"]


def test_a_user_whose_items_have_no_words_gets_one_profile_until_they_have(settings, caplog) -> None:
    sent: list[Any] = []
    client = make_client(settings.llm.model_copy(update={"client": "template"}))
    profiler = Profiler(settings, ProfileGenerator(client, settings.profiles), sent.extend)

    def request(version: int) -> bytes:
        as_of_ms = 1_600_000_000_000 + version * (settings.profiles.min_interval_ms + 1)
        items = [{"item_id": "i1", "count": 1, "last_ms": as_of_ms}]
        return orjson.dumps({"user_id": "u", "as_of_ms": as_of_ms, "version": version, "events": 3, "items": items})

    written = []
    for version in range(1, 11):
        profiler.take_request(request(version))
        written += profiler.write()
    assert [profile.version for profile in written] == [1]
    assert profiler.without_text == profiler.metrics.without_text._value.get() == 9
    assert [record.message for record in caplog.records if "no further one" in record.message] == [
        record.message for record in caplog.records
    ][:1]
    profiler.take_item(b'{"item_id": "i1", "title": "RED RETROSPOT CAKE STAND"}')
    profiler.take_request(request(11))
    assert [profile.version for profile in profiler.write()] == [11]


def test_a_profile_that_was_being_written_when_its_user_was_forgotten_is_taken_back(settings) -> None:
    sent: list[Any] = []
    processor = Processor(settings, MemoryStore())
    requests = [
        out.value
        for record in records(shop_log())
        for out in processor.apply([record]).outgoing
        if out.topic == "profile-requests" and out.value
    ]
    generator = ProfileGenerator(make_client(settings.llm.model_copy(update={"client": "template"})), settings.profiles)
    profiler = Profiler(settings, generator, sent.extend)
    for request in requests:
        profiler.take_request(request)
    (first, *_) = [profile.user_id for profile in profiler.write()]
    sent.clear()
    profiler.forget("somebody else")
    assert sent == []
    profiler.forget(first)
    assert [(out.topic, out.key, out.value) for out in sent] == [("profiles", first.encode(), None)]
    assert first not in [profile.user_id for profile in profiler.write()]


def test_a_profile_is_taken_back_however_late_the_request_to_forget_is_read_and_over_a_restart(settings) -> None:
    def asks(user_id: str, version: int = 1) -> bytes:
        items = [{"item_id": "i1", "count": 1, "last_ms": T0_MS}]
        return orjson.dumps({"user_id": user_id, "as_of_ms": T0_MS, "version": version, "events": 3, "items": items})

    def started() -> tuple[Profiler, list[Any]]:
        sent: list[Any] = []
        client = make_client(settings.llm.model_copy(update={"client": "template"}))
        profiler = Profiler(settings, ProfileGenerator(client, settings.profiles), sent.extend)
        profiler.take_item(b'{"item_id": "i1", "title": "RED RETROSPOT CAKE STAND"}')
        return profiler, sent

    taken_back = [("profiles", b"u1", None)]
    profiler, sent = started()
    for user_id in ("u1", "u2"):  # a batch each, while the tombstone of the first lies behind thousands of requests
        profiler.take_request(asks(user_id))
        assert [profile.user_id for profile in profiler.write()] == [user_id]
    profile = next(out.value for out in sent if out.key == b"u1")
    sent.clear()
    profiler.forget("u1")
    profiler.forget("u1")
    assert [(out.topic, out.key, out.value) for out in sent] == taken_back
    # it was killed before it read the tombstone: the profile, which came later than its own, is all that is there
    profiler, sent = started()
    profiler.take_profile(profile)
    profiler.forget("u1")
    profiler.write()
    assert [(out.topic, out.key, out.value) for out in sent] == taken_back
    # the user came back since, and the profile is of then
    profiler, sent = started()
    profiler.take_profile(profile)
    profiler.forget("u1")
    profiler.take_request(asks("u1"))
    profiler.write()
    assert None not in [out.value for out in sent]
    # the topic still has the profile from before, its tombstone, and one of whoever writes profiles without requests
    profiler, sent = started()
    profiler.take_profile(profile)
    profiler.forget_profile("u1")
    profiler.take_profile(profile)
    profiler.write()
    assert sent == []


def test_a_profile_in_a_partition_to_which_its_key_leads_no_more_does_not_come_back_once_tombstones_are_gone(
    world: Any,
) -> None:
    world.partitions = 4
    world.create_topics()
    key, broker = b"u7", world.settings.broker
    written = partition_of("u7", 2)  # where it was sent while the topic had two
    assert written != partition_of("u7", 4)
    with outlet(broker, world.bootstrap, "t") as send:
        for topic in ("profiles", "profile-requests"):
            send([Outgoing(topic, key, b"what is said of u7", partition=written)])
        send(list(tombstones("u7")))
    for topic in ("profiles", "profile-requests"):
        log = [(r.partition, r.key, r.value) for r in read_all(broker, world.bootstrap, topic)]
        compacted = {(partition, name): value for partition, name, value in log}
        assert [name for (_, name), value in compacted.items() if value is not None] == []


def test_a_worker_takes_who_is_forgotten_out_of_every_partition_of_profiles_and_their_requests(
    world: Any, wait: Any
) -> None:
    world.partitions = 4
    key, value = encode_forget("u7")
    world.produce([(b"u7", encode_event(Event("u7", "i1", T0_MS))), (key, value)])

    def gone(topic: str) -> list[int]:
        return sorted(r.partition for r in read_all(world.settings.broker, world.bootstrap, topic) if r.value is None)

    with world.worker() as worker:
        wait(lambda: gone("profiles") == gone("profile-requests") == [0, 1, 2, 3], what="tombstones are everywhere")
        worker.stop()
