"""Users' rows are read when they are needed and leave again: how many stay in memory changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driftline.configs.settings import Settings
from driftline.graph import chunks
from driftline.graph.chunks import chunk_keys
from driftline.graph.rows import Event, decode_user, is_whole, key64
from driftline.stream.events.records import Outgoing, Record
from driftline.stream.events.schema import encode_event
from driftline.stream.process import ttl
from driftline.stream.process.ages import AGED
from driftline.stream.process.forget import encode_forget
from driftline.stream.process.processor import Processor
from driftline.stream.state.store import MemoryStore, RocksStore, StateStore, state_sha256

HOUR_MS, DAY_MS, T0_MS = 3_600_000, 86_400_000, 1_600_000_000_000
USERS = 14


@pytest.fixture(autouse=True)
def frequent_sweeps_and_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttl, "SWEEP_OFFSETS", 64)
    monkeypatch.setattr(chunks, "CHUNK", 4)


def with_cache(users: int, **state: Any) -> Settings:
    """Rows end after a day, histories soon, and of the late window little fits into one run."""
    some = {"ttl_days": 1, "epoch_events": 24, "late_events": 150, "dedupe_ids": 50, "cache_users": users}
    some |= {"history": 22}
    return Settings.model_validate({"state": some | state, "profiles": {"first_events": 3}})


def troubled_log(seed: int, n: int = 450) -> list[Record]:
    """Baskets and single events with gaps of days, some late or too late, some sent twice, users forgotten."""
    rng, now, log = np.random.default_rng(seed), T0_MS, list[Record]()
    while len(log) < n:
        now += int(rng.integers(8 * HOUR_MS, 40 * HOUR_MS) if rng.random() < 0.03 else rng.integers(1, 600_000))
        user, basket = f"u{int(rng.zipf(1.4)) % USERS}", f"g{len(log)}" if rng.random() < 0.6 else None
        late_ms = int(rng.integers(HOUR_MS // 2, 3 * HOUR_MS // 2)) if rng.random() < 0.2 else 0
        for _ in range(rng.integers(1, 5)):
            price = float(rng.integers(1, 90)) if rng.random() < 0.7 else None
            name = f"e{len(log) - int(rng.random() < 0.1)}"
            event = Event(user, f"i{rng.integers(30)}", now - late_ms, "view", name, 1.0, price, basket)
            log.append(Record(len(log), encode_event(event), user.encode()))
        if rng.random() < 0.02:
            key, value = encode_forget(f"u{rng.integers(USERS)}")
            log.append(Record(len(log), value, key))
    return log


def ended(
    log: Sequence[Record],
    cuts: Sequence[int],
    settings: Settings,
    store: StateStore | None = None,
    partitions: int = 1,
    restarts: bool = False,
) -> tuple[str, list[Outgoing], Processor]:
    """Hash and outgoing records of a log in epochs."""
    store = store or MemoryStore()
    processor, sent = Processor(settings, store, partitions=partitions), list[Outgoing]()
    for start, end in itertools.pairwise([0, *sorted(cuts), len(log)]):
        if restarts:
            processor = Processor(settings, store, partitions=partitions)
        changes = processor.apply(log[start:end])
        processor.commit(changes)
        assert len(processor.nodes.indices) <= settings.state.cache_users
        sent += changes.outgoing
    heads = [decode_user(value) for _, value in store.scan(b"u:")]
    assert [key for key, _ in store.scan(b"h:")] == sorted(key for row in heads for key in chunk_keys(row))
    return state_sha256([store]), sent, processor


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_a_cache_of_three_users_ends_where_one_of_all_does(seed: int, partitions: int, tmp_path: Path) -> None:
    log, rng = troubled_log(seed), np.random.default_rng(seed)
    whole, _, processor = ended(log, [], with_cache(USERS), partitions=partitions)
    assert processor.too_late > 3
    for n in range(2):
        cuts = rng.choice(np.arange(1, len(log)), 30, replace=False).tolist()
        _, sent, _ = ended(log, cuts, with_cache(USERS), partitions=partitions)
        for users, restarts in ((3, n == 0), (1, False)):
            store = RocksStore(tmp_path / f"{n}-{users}", sync=False) if n == 1 else MemoryStore()
            assert ended(log, cuts, with_cache(users), store, partitions, restarts)[:2] == (whole, sent)
            store.close()


def test_without_a_late_window_and_a_time_to_live_it_is_the_same() -> None:
    log, plain, store = troubled_log(4), {"ttl_days": 0, "late_ms": 0}, MemoryStore()
    cuts = list(range(5, len(log), 7))
    assert ended(log, cuts, with_cache(2, **plain))[:2] == ended(log, cuts, with_cache(USERS, **plain), store)[:2]
    assert len(list(store.scan(b"h:"))) > 5


@pytest.mark.parametrize("history", [8, 21, 24, 1024])
def test_a_user_with_late_events_has_the_history_of_the_sorted_log_however_it_is_cut_into_chunks(history: int) -> None:
    settings, rng = with_cache(2, history=history, ttl_days=0, late_events=1000), np.random.default_rng(history)
    times = T0_MS + np.arange(300) * 10_000
    arrival = np.argsort(times + rng.integers(0, HOUR_MS, len(times)), kind="stable")
    events = [Event(f"u{n % 3}", f"i{n}", int(times[n])) for n in range(len(times))]
    log = [Record(offset, encode_event(events[n])) for offset, n in enumerate(arrival)]
    for cuts in ([], list(range(1, len(log))), sorted(rng.choice(np.arange(1, len(log)), 12, replace=False).tolist())):
        _, _, processor = ended(log, cuts, settings)
        for user in range(3):
            row = processor.user(f"u{user}")
            mine = [n for n in range(len(times)) if n % 3 == user][-history:]
            assert row.events == 100
            assert row.events_array()["t"].tolist() == times[mine].tolist()
            assert row.events_array()["item"].tolist() == [key64(f"i{n}") for n in mine]


@pytest.mark.parametrize("cuts", [[], [12], [10, 11, 12]])
def test_a_late_event_that_brings_an_ended_row_back_brings_its_chunks_back(cuts: list[int]) -> None:
    times = [*range(T0_MS, T0_MS + 11), T0_MS + 10 + DAY_MS + 1, T0_MS + 10 + DAY_MS]
    log = [Record(n, encode_event(Event("u", f"i{n}", t))) for n, t in enumerate(times)]
    _, _, processor = ended(log, cuts, with_cache(1))
    assert processor.user("u").events_array()["t"].tolist() == sorted(times)


def test_rows_of_earlier_releases_which_lie_whole_in_the_store_are_read_and_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, settings = troubled_log(3), with_cache(3, ttl_days=0)
    whole, _, _ = ended(log, [], settings)
    for cut in (150, 300):
        store = MemoryStore()
        with monkeypatch.context() as before:
            before.setattr(chunks, "CHUNK", 1 << 30)  # rows and undo records as they were
            ended(log[:cut], list(range(9, cut, 40)), settings, store)
        assert all(is_whole(value) for _, value in store.scan(b"u:"))
        assert state_sha256([store]) == ended(log[:cut], [], settings)[0]
        assert ended(log[cut:], list(range(7, len(log) - cut, 31)), settings, store)[0] == whole
        assert not all(is_whole(value) for _, value in store.scan(b"u:"))


def test_opening_reads_no_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = RocksStore(tmp_path / "state", sync=False), list[bytes]()
    ended(troubled_log(1), [], with_cache(5), store)
    scan, get = RocksStore.scan, RocksStore.get
    monkeypatch.setattr(RocksStore, "scan", lambda self, prefix: [read.append(prefix), scan(self, prefix)][1])
    monkeypatch.setattr(RocksStore, "get", lambda self, keys: [read.extend(keys), get(self, keys)][1])
    processor = Processor(with_cache(5), store)
    assert not [key for key in read if key[:1] in (b"u", b"t") or not key]
    assert not processor.nodes.indices
    store.close()


def test_rows_that_were_changed_or_removed_stand_until_the_commit() -> None:
    settings, store = with_cache(1, ttl_days=0), MemoryStore()
    processor = Processor(settings, store)
    log = [Record(n, encode_event(Event(f"u{n}", "i", T0_MS + n))) for n in range(6)]
    processor.commit(processor.apply(log))
    assert len(processor.nodes.indices) == 1
    changes = processor.forget(["u2"])
    again = [Record(6, encode_event(Event("u0", "i", T0_MS + 9)))]
    later = processor.apply(again)
    assert processor.user("u2") is None
    assert [processor.user(f"u{n}").events for n in (0, 1, 3)] == [2, 1, 1]
    processor.commit(changes)
    assert [processor.user(f"u{n}").events for n in (0, 1, 3)] == [2, 1, 1]
    processor.commit(later)
    assert len(processor.nodes.indices) == 1
    assert processor.user("u2") is None
    assert Processor(settings, store).user("u0").events == 2


def test_a_late_event_after_epochs_that_were_committed_one_behind_ends_in_the_state_of_the_log() -> None:
    log = [Record(n, encode_event(Event("u", "i", T0_MS + t))) for n, t in enumerate((0, 10, 5))]
    stores = [MemoryStore(), MemoryStore()]
    for store in stores:
        processor = Processor(Settings(), store)
        first, behind = processor.apply(log[:1]), store is stores[1]
        if not behind:
            processor.commit(first)
        second = processor.apply(log[1:2])
        if behind:
            processor.commit(first)
        processor.commit(second)
        processor.commit(processor.apply(log[2:]))
        assert processor.user("u").events == 3
    assert state_sha256(stores[:1]) == state_sha256(stores[1:])


def test_a_store_that_gets_a_time_to_live_or_had_one_before_is_swept_as_if_it_had_always_had_one() -> None:
    log = troubled_log(2)
    cut = len(log) // 2
    stores = [MemoryStore(), MemoryStore()]
    quiet = with_cache(3, ttl_days=0)
    ended(log[:cut], [], quiet, stores[0])
    ended(log[:cut], [], quiet, stores[1])
    stores[1].commit({b"t:" + bytes(7) + b"\1nobody": b"", AGED: b"1"})  # as left by an earlier time to live
    Processor(quiet, stores[1])
    for store in stores:
        ended(log[cut:], [], with_cache(3), store)
    hashes = {state_sha256([store]) for store in stores}
    assert len(hashes) == 1
    watermark_ms = Processor(with_cache(3), stores[0]).window.watermark_ms
    assert {key[:2] for key, _ in stores[1].scan(b"t:")} == {b"t:"}
    assert {key[10:] for key, _ in stores[1].scan(b"t:")} == {key[2:] for key, _ in stores[1].scan(b"u:")}
    assert watermark_ms > 0
