"""Rows that end: anew at the same event however the log is cut, opened again or shuffled, and swept without a trace."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import orjson
import pytest
from pydantic import ValidationError
from tests.stream.process.singles import singles
from tests.stream.process.test_processor import records, run, run_adopting, shop_log

from driftline.configs.settings import Settings
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event, UserRow, decode_item, decode_user, encode_user, key64
from driftline.stream.events.schema import encode_event
from driftline.stream.learn.learner import StreamLearner, group_of
from driftline.stream.process import ttl
from driftline.stream.process.ages import AGED
from driftline.stream.process.by_item import BY_ITEM, sources
from driftline.stream.process.forget import encode_forget
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor, Record
from driftline.stream.process.ttl import SWEEP_OFFSETS, spans, to_sweep
from driftline.stream.state.layout import hold_to_layout
from driftline.stream.state.store import MemoryStore, RocksStore, StateStore, state_sha256

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
T0_MS = 1_600_000_000_000


def with_ttl(days: float, **state: object) -> Settings:
    return Settings.model_validate({"state": {"ttl_days": days, **state}})


ONE_DAY = with_ttl(1)
PARTITIONS = 4


@pytest.fixture(autouse=True)
def frequent_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttl, "SWEEP_OFFSETS", 64)


def sparse_log(groups: int = 220, seed: int = 0, users: int = 12, items: int = 25) -> list[Event]:
    """Baskets minutes apart, and now and then nothing for half a day to two days: in order of time."""
    rng = np.random.default_rng(seed)
    events, now = [], T0_MS
    for group in range(groups):
        gap_ms = rng.integers(12 * HOUR_MS, 48 * HOUR_MS) if rng.random() < 0.06 else rng.integers(1, 1_500_000)
        now += int(gap_ms)
        user, basket = f"u{rng.integers(users)}", None if rng.random() < 0.3 else f"g{group}"
        for _ in range(rng.integers(1, 5)):
            item, price = f"i{rng.integers(items)}", float(rng.integers(1, 90))
            events.append(Event(user, item, now, "purchase", None, 1.0, price, basket, "UK"))
    return events


def shuffled(events: list[Event], most_ms: int, seed: int = 2) -> list[Record]:
    rng = np.random.default_rng(seed)
    arrival = np.argsort([e.timestamp_ms for e in events] + rng.integers(0, most_ms, len(events)), kind="stable")
    return records([events[i] for i in arrival])


def cuts_of(log: Sequence[Record], seed: int, n: int = 20) -> list[int]:
    return np.random.default_rng(seed).choice(np.arange(1, len(log)), n, replace=False).tolist()


def state_of(log: Sequence[Record], settings: Settings = ONE_DAY, partitions: int = 1) -> Processor:
    processor = Processor(settings, MemoryStore(), partitions=partitions)
    processor.commit(processor.apply(log))
    return processor


def one(user: str, item: str, t_ms: int, offset: int) -> Record:
    return Record(offset, encode_event(Event(user, item, t_ms, "purchase")), user.encode())


def ends(events: Sequence[Event], name: str, days: float = 1) -> dict[str, int]:
    """By id of a field, the place of the first event since its last gap."""
    start, last = dict[str, int](), dict[str, int]()
    for n, event in enumerate(events):
        key = getattr(event, name)
        if key not in last or event.timestamp_ms - last[key] > days * DAY_MS:
            start[key] = n
        last[key] = event.timestamp_ms
    return start


def test_a_log_cut_anywhere_ends_in_the_same_state_with_a_time_to_live() -> None:
    log = records(sparse_log())
    whole = run(log, [], settings=ONE_DAY)
    assert whole != run(log, [])
    assert run(log, list(range(1, len(log))), settings=ONE_DAY) == whole
    for seed in range(6):
        assert run(log, cuts_of(log, seed), settings=ONE_DAY) == whole


def reopened(log: Sequence[Record], cuts: Sequence[int], store: StateStore, settings: Settings = ONE_DAY) -> str:
    for start, end in itertools.pairwise([0, *sorted(cuts), len(log)]):
        processor = Processor(settings, store)
        processor.commit(processor.apply(log[start:end]))
    return state_sha256([store])


def test_late_events_end_in_one_state_cut_anywhere_and_opened_again_at_every_cut(tmp_path) -> None:
    log = shuffled(sparse_log(), 2 * HOUR_MS)
    processor = state_of(log)
    whole = state_sha256([processor.store])
    assert processor.too_late > 5
    for seed in range(8):
        assert run(log, cuts_of(log, seed), settings=ONE_DAY) == whole
        assert reopened(log, cuts_of(log, seed), MemoryStore()) == whole
    store = RocksStore(tmp_path / "state", sync=False)
    assert reopened(log, [63, 64, 65, *cuts_of(log, 9)], store) == whole
    store.close()


def test_a_small_late_window_and_small_runs_change_nothing_about_cuts() -> None:
    settings = with_ttl(0.3, late_ms=1_800_000, future_ms=60_000, late_events=40, epoch_events=7)
    log = shuffled(sparse_log(seed=5), HOUR_MS, seed=3)
    whole = run(log, [], settings=settings)
    for seed in range(8):
        assert run(log, cuts_of(log, seed), settings=settings) == whole
    assert reopened(log, cuts_of(log, 8), MemoryStore(), settings) == whole


def test_adoptions_and_forgotten_users_between_them_end_in_one_state_cut_anywhere() -> None:
    log = shuffled(sparse_log(seed=7), 2 * HOUR_MS)
    key, value = encode_forget("u3")
    log[200] = Record(200, value, key)
    models = {at: GraphMemory(ONE_DAY.graph.model_copy(update={"seed": at})) for at in (90, 128, 300)}

    whole, _ = run_adopting(log, models, [], ONE_DAY)
    for seed in range(5):
        assert run_adopting(log, models, cuts_of(log, seed), ONE_DAY)[0] == whole


def test_forgetting_somebody_whose_row_ended_leaves_one_state_cut_anywhere_and_no_place_in_a_ring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row is gone, its key is in the ring of an item that others keep alive, and undo records hold that item."""
    monkeypatch.setattr(ttl, "SWEEP_OFFSETS", 4)
    now = T0_MS + 3 * DAY_MS
    events = [Event("u", "i", T0_MS, "purchase"), Event("v", "i", T0_MS + 20 * HOUR_MS, "purchase")]
    events += [Event("v", "i", T0_MS + 40 * HOUR_MS, "purchase"), Event("v", "i", T0_MS + 60 * HOUR_MS, "purchase")]
    events += [Event(f"x{n}", "i", now + n, "purchase") for n in range(4)]
    late = Event("w", "i", now - 60_000, "purchase")
    log = records(events)
    key, value = encode_forget("u")
    log.append(Record(len(log), value, key))
    log.append(Record(len(log), encode_event(late), b"w"))
    every = range(1, len(log))
    stores = [MemoryStore() for _ in range(2 ** len(every))]
    cuts = [cut for size in range(len(every) + 1) for cut in itertools.combinations(every, size)]
    assert len({run(log, list(cut), store, ONE_DAY) for cut, store in zip(cuts, stores, strict=True)}) == 1
    for store in stores:
        assert not dict(store.scan(b"u:u"))
        rings = [bytes(decode_item(value).ring) for _, value in store.scan(b"i:")]
        assert rings
        assert not any(key64("u").to_bytes(8, "little") in ring for ring in rings)


def test_with_several_partitions_rows_and_what_goes_to_the_items_are_the_same_cut_anywhere() -> None:
    log = shuffled(sparse_log(users=60), HOUR_MS // 2)

    def ended(cuts: Sequence[int]) -> tuple[dict[bytes, bytes], dict[tuple[int, int], int]]:
        store, sent = MemoryStore(), dict[tuple[int, int], int]()
        for start, end in itertools.pairwise([0, *sorted(cuts), len(log)]):
            processor = Processor(ONE_DAY, store, partitions=PARTITIONS)
            changes = processor.apply(log[start:end])
            processor.commit(changes)
            for out in changes.outgoing:
                for place in sources(out) if out.topic == BY_ITEM else ():
                    sent[place] = sent.get(place, 0) + 1
        assert processor.too_late == 0
        return dict(store.scan(b"u:")), sent

    whole = ended([])
    assert set(whole[1].values()) == {1}
    for seed in range(4):
        assert ended(cuts_of(log, seed)) == whole


def visible(processor: Processor) -> dict[bytes, bytes]:
    """Rows that an acceptable event would find, without the numbers of offsets; the others may or may not be there."""
    watermark_ms, found = processor.window.watermark_ms - HOUR_MS - DAY_MS, {}
    for key, value in [*processor.store.scan(b"u:"), *processor.store.scan(b"i:")]:
        row: UserRow | object = decode_user(value) if key.startswith(b"u:") else decode_item(value)
        if row.last_update_ms >= watermark_ms:  # type: ignore[attr-defined]
            if isinstance(row, UserRow):
                row.version = 0
                value = encode_user(row)
            found[key] = value
    return found


def test_shuffled_arrivals_within_the_late_window_end_in_the_rows_of_the_sorted_log() -> None:
    for seed in range(4):
        log = shuffled(sparse_log(seed=seed), HOUR_MS // 2, seed)
        in_order = sorted(log, key=lambda r: (orjson.loads(r.value)["timestamp_ms"], r.offset))
        expected = visible(state_of([Record(n, r.value, r.key) for n, r in enumerate(in_order)]))
        for cuts in ([], list(range(1, len(log))), cuts_of(log, seed)):
            store = MemoryStore()
            run(log, cuts, store, ONE_DAY)
            live = Processor(ONE_DAY, store)
            assert live.too_late == 0
            assert visible(live) == expected


def test_who_comes_back_after_the_time_to_live_has_the_row_of_a_new_user() -> None:
    events = sparse_log(users=40)
    log, start = records(events), ends(events, "user_id")
    assert sum(any(e.user_id == user for e in events[:at]) for user, at in start.items()) > 3
    live = state_of(log, partitions=PARTITIONS)  # item vectors stand still: a user's row is of their own events alone
    found = 0
    for user, at in start.items():
        row, mine = live.user(user), [r for r in log[at:] if r.key == user.encode()]
        if row is not None:
            alone = state_of(mine, Settings(), PARTITIONS).user(user)
            assert encode_user(row) == encode_user(alone)
            found += 1
    assert found > 3


@pytest.fixture
def by_item() -> list[Record]:
    """What user partitions send of a sparse log, all of it, a little out of order."""
    events = sparse_log(users=40)
    processor = Processor(Settings(), MemoryStore(), partitions=PARTITIONS)
    processor.intake.is_ours = lambda record, event: True  # type: ignore[method-assign]
    sent = list(singles(processor.apply(records(events)).outgoing))
    delay = np.random.default_rng(4).integers(0, 3 * HOUR_MS, len(sent))
    arrival = np.argsort([orjson.loads(out.value)["timestamp_ms"] for out in sent] + delay, kind="stable")
    shuffled_ = [sent[n] for n in arrival]
    return [
        Record(n, out.value, out.key, headers=(("source", b"%d:0" % n), out.headers[1]))
        for n, out in enumerate(shuffled_)
    ]


def items_after(log: Sequence[Record], cuts: Sequence[int], settings: Settings = ONE_DAY) -> dict[bytes, bytes]:
    store = MemoryStore()
    for start, end in itertools.pairwise([0, *sorted(cuts), len(log)]):
        processor = ItemProcessor(settings, store, 0)
        store.commit(processor.apply(log[start:end]).puts)
    return dict(store.scan(b"i:"))


def test_item_partitions_end_in_the_same_rows_cut_anywhere_and_opened_again(by_item: list[Record]) -> None:
    whole = items_after(by_item, [])
    assert len(whole) > 0
    assert items_after(by_item, range(1, len(by_item), 5)) == whole
    for seed in range(6):
        assert items_after(by_item, cuts_of(by_item, seed)) == whole


def test_an_item_that_comes_back_has_the_row_of_a_new_one(by_item: list[Record]) -> None:
    whole, last, start = items_after(by_item, []), dict[bytes, int](), dict[bytes, int]()
    for n, record in enumerate(by_item):
        t_ms = orjson.loads(record.value)["timestamp_ms"]
        if t_ms > last.get(record.key, -(10**15)) + DAY_MS:
            start[record.key] = n
        last[record.key] = max(t_ms, last.get(record.key, -1))
    came_back = [key for key, at in start.items() if any(r.key == key for r in by_item[:at])]
    assert len(came_back) > 5
    compared = 0
    for item in came_back:
        alone = items_after([r for r in by_item[start[item] :] if r.key == item], [], Settings())[b"i:" + item]
        if b"i:" + item in whole:
            assert whole[b"i:" + item] == alone
            compared += 1
    assert compared > 3


def test_a_late_event_right_after_a_sweep_ends_as_in_the_sorted_log() -> None:
    end = T0_MS + DAY_MS + HOUR_MS + 1_000
    for late_ms in (1, 999, 1_000, 1_001, HOUR_MS):  # before the newest: some find the row, were it not swept
        log = [one("a", "x", T0_MS, 0), *(one("b", "y", end, n) for n in range(1, 64))]
        late = one("a", "x", end - late_ms, 64)  # before it stands a sweep
        store = MemoryStore()
        run([*log, late], [30, 64], store, ONE_DAY)
        processor = Processor(ONE_DAY, store)
        in_order = [log[0], one("a", "x", end - late_ms, 1), *(one("b", "y", end, n) for n in range(2, 65))]
        assert processor.too_late == 0
        assert visible(processor) == visible(state_of(in_order))
        assert processor.user("a").events == 1


def test_a_row_that_a_late_event_could_still_see_is_not_swept() -> None:
    newest = T0_MS + DAY_MS + HOUR_MS  # the latest that may still come finds the row of T0_MS to the millisecond
    for more_ms, left in ((0, 1), (1, 0)):
        log = [one("a", "x", T0_MS, 0), *(one("b", "y", newest + more_ms, n) for n in range(1, 65))]
        processor = state_of(log)
        assert len(list(processor.store.scan(b"u:a"))) == len(list(processor.store.scan(b"i:x"))) == left
        processor.commit(processor.apply([one("a", "x", newest + more_ms - HOUR_MS, 65)]))
        row = processor.user("a")
        assert (row.events, row.first_ms) == (1 + left, T0_MS if left else newest + 1 - HOUR_MS)
        assert decode_item(dict(processor.store.scan(b"i:x"))[b"i:x"]).count == 1 + left


def test_a_sweep_takes_rows_out_of_memory_and_store_and_keeps_the_names_of_items() -> None:
    first = [one(f"a{n}", f"x{n}", T0_MS, n) for n in range(40)]
    then = [one("b", "y", T0_MS + 3 * DAY_MS, n) for n in range(40, 65)]
    store = MemoryStore()
    processor = Processor(ONE_DAY, store)
    changes = processor.apply([*first, *then])
    processor.commit(changes)
    assert (changes.users_swept, changes.items_swept, changes.users_anew, changes.items_anew) == (40, 40, 0, 0)
    assert [key for key, _ in store.scan(b"u:")] == [b"u:b"]
    assert [key for key, _ in store.scan(b"i:")] == [b"i:y"]
    assert len(list(store.scan(b"n:"))) == 41
    assert list(processor.nodes.indices) == ["b"]
    assert processor.items.name(key64("x7")) == "x7"
    assert processor.items.find("x7") == -1
    size = processor.graph.users.size, processor.graph.items.size
    processor.commit(processor.apply([one(f"c{n}", f"z{n}", T0_MS + 3 * DAY_MS, 65 + n) for n in range(40)]))
    assert (processor.graph.users.size, processor.graph.items.size) == size
    assert processor.user("c7").user_id == "c7"
    assert len(processor.nodes.indices) == 41


def test_rows_that_start_anew_are_counted_once_though_they_are_applied_again() -> None:
    back = T0_MS + 2 * DAY_MS
    processor = Processor(ONE_DAY, MemoryStore())
    processor.commit(processor.apply([one("a", "x", T0_MS, 0)]))
    changes = processor.apply([one("a", "x", back, 1)])
    assert (changes.users_anew, changes.items_anew, changes.users_swept) == (1, 1, 0)
    processor.commit(changes)
    changes = processor.apply([one("b", "y", back - 5, 2)])
    assert (changes.again, changes.users_anew, changes.items_anew) == (1, 0, 0)
    assert processor.user("a").events == 1


def test_an_event_that_fills_the_gap_late_brings_the_old_row_back() -> None:
    late = [one("a", "x", T0_MS, 0), one("a", "x", T0_MS + DAY_MS + 1, 1), one("a", "x", T0_MS + DAY_MS, 2)]
    for cuts in ([], [1, 2]):
        store = MemoryStore()
        run(late, cuts, store, ONE_DAY)
        row = Processor(ONE_DAY, store).user("a")
        assert (row.events, row.first_ms, row.version) == (3, T0_MS, 3)


def test_a_row_that_only_counts_events_that_came_too_late_goes_with_the_next_sweep() -> None:
    processor = Processor(ONE_DAY, MemoryStore())
    processor.nodes.count_too_late(["a"], processor.rows.pending)  # as earlier releases did for everybody
    processor.commit(processor.apply([one("b", "y", T0_MS + DAY_MS, 0), one("a", "x", T0_MS, 1)]))
    assert dict(processor.store.scan(b"u:a"))
    processor.commit(processor.apply([one("b", "y", T0_MS + DAY_MS, 64)]))
    assert not dict(processor.store.scan(b"u:a"))
    assert processor.too_late == 1


def test_the_count_of_too_late_events_stands_where_a_row_starts_anew() -> None:
    log = [one("a", "x", T0_MS, 0), one("a", "x", T0_MS - 2 * HOUR_MS, 1), one("a", "x", T0_MS + 2 * DAY_MS, 2)]
    row = state_of(log).user("a")
    assert (row.events, row.too_late) == (1, 1)


def test_a_profile_ends_with_its_row_and_its_versions_start_anew() -> None:
    first = Settings().profiles.first_events

    def asked(changes: object) -> list[tuple[str, bool]]:
        return [(out.topic, out.value is None) for out in changes.outgoing if out.key == b"a"]  # type: ignore[attr-defined]

    processor = Processor(ONE_DAY, MemoryStore())
    mine = [one("a", "x", T0_MS + n, n) for n in range(first)]
    assert asked(processor.apply(mine)) == [("profile-requests", False)]
    back = [one("a", "x", T0_MS + 2 * DAY_MS + n, first + n) for n in range(first)]
    gone = [("profile-requests", True), ("profiles", True)]
    assert asked(processor.apply(back)) == [*gone, ("profile-requests", False)]
    away = [one("b", "y", T0_MS + 9 * DAY_MS, 2 * first), one("b", "y", T0_MS + 9 * DAY_MS, 2 * first + 64)]
    assert asked(processor.apply(away)) == gone


def test_without_a_time_to_live_nothing_ends_and_nothing_is_written_that_was_not() -> None:
    log = records(shop_log())
    stores = [MemoryStore(), MemoryStore()]
    hashes = [run(log, [], store, s) for store, s in zip(stores, (Settings(), with_ttl(36500)), strict=True)]
    assert hashes[0] == hashes[1]
    kept = [{key for key in store.data if key[:2] not in (b"w:", b"t:") and key != AGED} for store in stores]
    assert kept[0] == kept[1]  # but for how undo records are cut, and the index that sweeps read
    assert not list(stores[0].scan(b"t:"))
    sparse = records(sparse_log())
    assert run(sparse, [], settings=with_ttl(0)) == run(sparse, [], settings=with_ttl(36500))


def test_a_sweep_stands_before_the_first_record_at_or_after_a_multiple_also_where_offsets_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ttl, "SWEEP_OFFSETS", SWEEP_OFFSETS)
    old = [one("a", "x", T0_MS, SWEEP_OFFSETS - 9), one("b", "y", T0_MS + 3 * DAY_MS, SWEEP_OFFSETS - 8)]
    for offset, swept in ((SWEEP_OFFSETS - 1, 0), (SWEEP_OFFSETS, 1), (SWEEP_OFFSETS + 5, 1), (3 * SWEEP_OFFSETS, 1)):
        for cut in (1, 2):
            store = MemoryStore()
            log = [*old, Record(offset, b"no event")]
            run(log, [cut], store, ONE_DAY)
            assert len(list(store.scan(b"u:"))) == 2 - swept


def test_a_sweep_takes_the_oldest_rows_first_and_no_more_than_a_bounded_number() -> None:
    last = np.arange(1000, dtype=np.int64)[::-1].copy()
    last[900:] = 40
    used = np.ones(1000, np.bool_)
    used[:10] = False
    swept = to_sweep(last, used, 1_000_000)
    assert len(swept) >= 64
    assert max(last[swept]) == 40
    assert set(swept) == set(np.flatnonzero(used & (last <= 40)).tolist())
    assert to_sweep(last, used, 0) == []


def test_no_span_is_longer_than_the_time_to_live_and_none_is_cut_without_need() -> None:
    rng = np.random.default_rng(0)
    events = [Event("u", "i", T0_MS + int(t), "view") for t in rng.integers(0, 3 * DAY_MS, 200)]
    for log in (events, sorted(events, key=lambda e: e.timestamp_ms)):
        parts = list(spans(log, DAY_MS))
        assert [e for part in parts for e in part] == log
        times = [[e.timestamp_ms for e in part] for part in parts]
        assert all(max(t) - min(t) <= DAY_MS for t in times)
        assert all(max(*t, after[0]) - min(*t, after[0]) > DAY_MS for t, after in itertools.pairwise(times))
    assert list(spans(events, 0)) == [events]


def test_a_forgotten_user_leaves_a_place_that_the_next_one_takes() -> None:
    processor = state_of([one(f"a{n}", "x", T0_MS, n) for n in range(5)], Settings())
    processor.commit(processor.forget(["a2"]))
    processor.commit(processor.apply([one("b", "x", T0_MS, 6)]))
    assert processor.graph.users.size == 5
    assert [processor.user(name).events for name in ("a1", "b", "a3")] == [1, 1, 1]
    assert Processor(Settings(), processor.store).user("b").memory.tobytes() == processor.user("b").memory.tobytes()


def test_a_time_to_live_within_the_late_window_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValidationError, match="rows would end before all their events are in"):
        with_ttl(0.04)
    assert with_ttl(0.05).state.ttl_ms == 4_320_000
    assert with_ttl(0).state.ttl_ms == 0


def test_a_changed_time_to_live_is_said_and_a_state_of_before_there_was_one_is_quiet(tmp_path) -> None:
    def told(days: float) -> str:
        return hold_to_layout(with_ttl(days, root=tmp_path / "state"), 1)

    assert told(0) == told(0) == ""
    assert "state.ttl_days was none, is 30.0" in told(30)


def learnt() -> Iterator[tuple[StreamLearner, list[Event]]]:
    learner = StreamLearner(ONE_DAY)
    log = [event for _, event in zip(range(160), sparse_log(), strict=False)]
    for n, event in enumerate(log):
        event.offset = n
    for _, rows in itertools.groupby(log, key=lambda e: (e.user_id, e.timestamp_ms)):
        yield learner, list(rows)


def test_what_learns_sees_a_user_who_comes_back_as_new_and_ends_in_the_worker_s_state() -> None:
    last, came_back, log = dict[str, int](), 0, []
    for learner, events in learnt():
        user, t_ms = events[0].user_id, events[0].timestamp_ms
        view = learner.view(user, t_ms)
        new = t_ms - last.get(user, -(10**15)) > DAY_MS
        assert (len(view.items) == 0) == new
        came_back += new and user in last
        learner.add_items([event.item_id for event in events])
        learner.learn(group_of(events, learner.table, ONE_DAY), events, view, learner.slate(view, t_ms))
        last[user] = t_ms
        log += events
    assert came_back > 0
    assert state_sha256([learner.processor.store]) == run(records(log), cuts_of(log, 1), settings=ONE_DAY)


def test_a_worker_starts_rows_anew_as_a_processor_does_and_counts_them(world, wait, monkeypatch) -> None:
    monkeypatch.setattr(ttl, "SWEEP_OFFSETS", SWEEP_OFFSETS)  # as in the worker's process
    world.state["ttl_days"] = 1
    log = shuffled(sparse_log(), HOUR_MS // 2)
    world.produce([(r.key, r.value) for r in log])
    with world.worker() as worker:
        wait(lambda: worker.applied() == len(log), what="everything is applied")
        assert wait(lambda: sum(worker.labelled("driftline_expired_total")) > 10, what="rows that end are counted")
        worker.stop()
    assert world.stored_rows() == world.expected_rows()
