"""Forgetting and events that come late: nothing is taken from others, and of the user time and place alone stay."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
import orjson
import pytest
from tests.stream.process.test_forget import renamed, traces
from tests.stream.process.test_processor import records, run, run_adopting, shop_log

from driftline.configs.settings import Settings
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event, decode_item, decode_user, encode_user, key64
from driftline.stream.events.schema import encode_event
from driftline.stream.process import ttl
from driftline.stream.process.forget import encode_forget
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import MemoryStore, RocksStore, state_sha256

MINUTE_MS = 60_000
SMALL = {"late_ms": 30 * MINUTE_MS, "future_ms": MINUTE_MS, "late_events": 60, "epoch_events": 7}


def settings_with(**state: object) -> Settings:
    return Settings.model_validate({"state": state})


def shuffled_with_requests(asked: dict[int, str], most_ms: int = 40 * MINUTE_MS, seed: int = 0) -> list[Record]:
    """The shop's log, out of order by up to `most_ms`, with requests to forget at some offsets."""
    events = shop_log(90, seed)
    delays = np.random.default_rng(seed).integers(0, most_ms, len(events))
    arrival = np.argsort([event.timestamp_ms for event in events] + delays, kind="stable")
    pairs = [(encode_event(events[n]), events[n].user_id.encode()) for n in arrival]
    for at, user_id in sorted(asked.items()):
        key, value = encode_forget(user_id)
        pairs.insert(at, (value, key))
    return [Record(offset, value, key) for offset, (value, key) in enumerate(pairs)]


ASKED = {120: "u3", 121: "u5", 122: "u3", 200: "u7", 260: "u3", 261: "nobody", 333: "u9", 400: "u11", 401: "u12"}


@pytest.mark.parametrize("state", [{}, SMALL, {"late_ms": 0, "future_ms": 0}])
def test_requests_among_late_events_end_in_one_state_cut_anywhere_and_opened_again(
    tmp_path, state: dict[str, object]
) -> None:
    settings, log = settings_with(**state), shuffled_with_requests(ASKED)
    whole = run(log, [], settings=settings)
    assert run(log, list(range(1, len(log))), settings=settings) == whole
    rng = np.random.default_rng(4)
    for n in range(4):
        cuts = [*rng.choice(np.arange(1, len(log)), 20, replace=False).tolist(), *list(ASKED)[:n]]
        assert run(log, cuts, settings=settings) == whole
    store = RocksStore(tmp_path / "partition-0", sync=False)
    for start, end in itertools.pairwise([0, *sorted({*cuts, 121, 122, 123, 261}), len(log)]):
        processor = Processor(settings, store)
        processor.commit(processor.apply(log[start:end]))
    assert state_sha256([store]) == whole
    store.close()


@pytest.mark.parametrize("partitions", [1, 2])
@pytest.mark.parametrize("late_events", [2, 40])
@pytest.mark.parametrize("seed", [7, 8])
def test_requests_among_rows_that_end_swept_ones_and_adoptions_end_in_one_state(
    monkeypatch: pytest.MonkeyPatch, seed: int, late_events: int, partitions: int
) -> None:
    """Records of an epoch that nothing needs any more may name rows that were swept: these must not come back."""
    monkeypatch.setattr(ttl, "SWEEP_OFFSETS", 16)
    late_ms = 5 * MINUTE_MS
    settings = settings_with(late_ms=late_ms, future_ms=MINUTE_MS, late_events=late_events, ttl_days=15 / 1440)
    rng = np.random.default_rng(seed)
    log = shuffled_with_requests({at: f"u{rng.integers(30)}" for at in rng.integers(20, 450, 12)}, 4 * MINUTE_MS, seed)
    models = {
        at: GraphMemory(settings.graph.model_copy(update={"seed": at})) for at in rng.integers(1, 450, 3).tolist()
    }
    driven = partial(run_adopting, log, models, settings=settings, partitions=partitions)
    whole, ended = driven([])
    assert ended > 5
    assert driven(range(1, len(log)))[0] == whole
    for _ in range(3):
        assert driven(rng.choice(np.arange(1, len(log)), 25, replace=False).tolist())[0] == whole


def test_a_request_in_the_epoch_of_a_sweep_brings_no_swept_row_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttl, "SWEEP_OFFSETS", 4)
    settings = settings_with(late_ms=2 * MINUTE_MS, future_ms=MINUTE_MS, ttl_days=5 / 1440)
    start = 1_600_000_000_000
    rows_ = [("v", "x", 0), ("u", "y", 0), ("w", "z", 60), ("w", "z", 61), ("w", "z", 62), ("w", "z", 63)]
    events = [Event(user, item, start + minute * MINUTE_MS) for user, item, minute in rows_]
    log = records(events)
    log.append(Record(len(log), *encode_forget("u")[::-1]))
    for cuts in ([], [3]):
        store = MemoryStore()
        run(log, cuts, store, settings)
        assert [key for key, _ in store.scan(b"u:")] == [b"u:w"]
        assert [key for key, _ in store.scan(b"i:")] == [b"i:z"]


@pytest.mark.parametrize("state", [{}, SMALL])
def test_adoptions_among_requests_and_late_events_end_in_one_state(state: dict[str, object]) -> None:
    """Also where the event that brought a later version forward is of who is forgotten."""
    settings, log = settings_with(**state), shuffled_with_requests(ASKED, seed=3)
    models = {at: GraphMemory(settings.graph.model_copy(update={"seed": at})) for at in (110, 150, 190, 255, 258, 330)}

    driven = partial(run_adopting, log, models, settings=settings)
    (whole, _), rng = driven([]), np.random.default_rng(5)
    assert driven(range(1, len(log)))[0] == whole
    for _ in range(4):
        assert driven(rng.choice(np.arange(1, len(log)), 20, replace=False).tolist())[0] == whole


def rows(store: MemoryStore) -> dict[bytes, bytes]:
    """Rows of users and items, without the numbers of offsets."""
    found = dict(store.scan(b"i:"))
    for key, value in store.scan(b"u:"):
        row = decode_user(value)
        row.version = 0
        found[key] = encode_user(row)
    return found


def order(record: Record) -> tuple[int, int]:
    return orjson.loads(record.value)["timestamp_ms"], record.offset


@pytest.mark.parametrize("cut", [None, 397, 311])
@pytest.mark.parametrize("partitions", [1, 4])
def test_a_forgotten_user_leaves_the_state_of_a_log_without_the_events_that_could_still_have_been_put_back(
    partitions: int, cut: int | None
) -> None:
    """The oracle takes the sorted log: the request stands at the start of the late window, no event of the user after
    it until the request was read. What came later, late or not and of the user or not, stands in its place."""
    settings, at = settings_with(**SMALL), 397
    plain = shuffled_with_requests({}, 5 * MINUTE_MS)
    read = sorted(plain[:at], key=order)
    since_ms = order(read[-1])[0] - 30 * MINUTE_MS
    first = max(len(read) - 59, next(n for n, record in enumerate(read) if order(record)[0] >= since_ms))
    user = next(r.key for r in reversed(read) if any(r.key == other.key for other in read[:first])).decode()
    log = shuffled_with_requests({at: user}, 5 * MINUTE_MS)[:470]
    mine = [record for record in read[first:] if record.key == user.encode()]
    assert mine
    stay = (record for record in read[first:] if record not in mine)
    follow = sorted([*stay, *log[at + 1 :]], key=order)
    sorted_log = [*read[:first], log[at], *follow]

    def live(log: Sequence[Record], cuts: Sequence[int]) -> Processor:
        processor = Processor(settings, MemoryStore(), partitions=partitions)
        processor.intake.is_ours = lambda record, event: True  # type: ignore[method-assign]
        for start, end in itertools.pairwise([0, *cuts, len(log)]):
            processor.commit(processor.apply(log[start:end]))
        return processor

    expected = live([Record(n, r.value, r.key) for n, r in enumerate(sorted_log)], [first, first + 1])
    found = live(log, [] if cut is None else [cut])
    assert found.too_late == expected.too_late == 0
    assert rows(found.store) == rows(expected.store)


def test_events_of_others_that_come_late_find_their_place_after_a_request() -> None:
    log = records(shop_log(60))
    last = orjson.loads(log[-1].value)["timestamp_ms"]
    late = [Event(f"v{n % 7}", f"i{n % 5}", last - n * 1000, "purchase") for n in range(1, 30)]
    after = [(encode_event(event), event.user_id.encode()) for event in late]
    key, value = encode_forget(orjson.loads(log[-1].value)["user_id"])

    def told(*between: tuple[bytes, bytes]) -> Processor:
        pairs = [*((record.value, record.key) for record in log), *between, *after]
        processor = Processor(Settings(), MemoryStore())
        processor.commit(processor.apply([Record(n, *pair) for n, pair in enumerate(pairs)]))
        return processor

    asked, plain = told((value, key)), told()
    assert asked.too_late == plain.too_late == 0
    for n in range(7):
        ours, theirs = asked.user(f"v{n}"), plain.user(f"v{n}")
        assert ours is not None
        assert theirs is not None
        assert ours.history == theirs.history


def test_what_is_kept_to_put_late_events_back_says_nothing_of_who_was_forgotten() -> None:
    """Also in the epoch of the events themselves, before anything was committed."""
    log = renamed(records(shop_log(60)), "u7", "Zoë Forget")
    last = max(n for n, record in enumerate(log) if record.key == "Zoë Forget".encode()) + 1
    key, value = encode_forget("Zoë Forget")
    for cut in (None, last - 3, last):
        processor = Processor(Settings(), MemoryStore())
        records_ = [*log[:last], Record(last, value, key)]
        for part in [records_] if cut is None else [records_[:cut], records_[cut:]]:
            processor.commit(processor.apply(part))
        kept = [undo for _, undo in processor.store.scan(b"w:")]
        assert kept
        assert traces(processor.store, "Zoë Forget") == []
        for trace in ("Zoë Forget".encode(), key64("Zoë Forget").to_bytes(8, "little")):
            assert all(trace not in undo for undo in kept)


def test_an_item_that_nobody_else_touched_goes_with_the_user_in_memory_as_in_the_store() -> None:
    log = records(shop_log(30))
    now = orjson.loads(log[-1].value)["timestamp_ms"]
    more = [Event("alone", "only-here", now, "purchase"), Event("u1", "shared", now, "purchase")]
    more += [Event("alone", "shared", now, "purchase"), Event("alone", "i3", now, "purchase")]
    pairs = [(encode_event(event), event.user_id.encode()) for event in more]
    pairs.append(encode_forget("alone")[::-1])
    for cuts in ([], list(range(len(log), len(log) + len(pairs)))):
        store = MemoryStore()
        all_ = [*log, *(Record(len(log) + n, *pair) for n, pair in enumerate(pairs))]
        run(all_, cuts, store)
        live = Processor(Settings(), store)
        before = Processor(Settings(), MemoryStore())
        before.commit(before.apply([*log, Record(len(log), *pairs[1])]))
        assert live.items.find("only-here") == -1
        assert dict(store.scan(b"i:only-here")) == {}
        assert decode_item(dict(store.scan(b"i:shared"))[b"i:shared"]).count == 1
        assert dict(store.scan(b"i:i3")) == dict(before.store.scan(b"i:i3"))
        running = Processor(Settings(), MemoryStore())
        running.commit(running.apply(all_))
        assert running.items.find("only-here") == -1
        again = Record(len(all_), encode_event(Event("u2", "only-here", now, "purchase")), b"u2")
        for processor in (live, running):
            processor.commit(processor.apply([again]))
        assert dict(running.store.scan(b"i:")) == dict(live.store.scan(b"i:"))
        assert decode_item(dict(store.scan(b"i:only-here"))[b"i:only-here"]).count == 1


def test_an_item_s_count_of_what_came_too_late_stands() -> None:
    settings, log = settings_with(**SMALL), records(shop_log(30))
    now = orjson.loads(log[-1].value)["timestamp_ms"] + 60 * MINUTE_MS
    more = [Event("u1", "it", now - MINUTE_MS), Event("alone", "it", now), Event("u2", "it", now - 50 * MINUTE_MS)]
    pairs = [(encode_event(event), event.user_id.encode()) for event in more]
    pairs.append(encode_forget("alone")[::-1])
    all_ = [*log, *(Record(len(log) + n, *pair) for n, pair in enumerate(pairs))]
    for cuts in ([], list(range(len(log), len(all_)))):
        store = MemoryStore()
        run(all_, cuts, store, settings)
        row = decode_item(dict(store.scan(b"i:it"))[b"i:it"])
        assert (row.count, row.too_late) == (1, 1)


def test_who_was_not_there_lately_goes_without_a_way_back_and_late_events_end_as_in_the_sorted_log() -> None:
    log = records(shop_log(60))
    first, last = (orjson.loads(log[n].value)["timestamp_ms"] for n in (0, -1))
    events = [Event("long-ago", f"i{n}", first - 300 * MINUTE_MS + n, "purchase") for n in range(40)]
    late = [Event(f"v{n % 3}", f"i{n % 40}", last - n * 9_000, "purchase") for n in range(1, 30)]
    pairs = [(encode_event(event), event.user_id.encode()) for event in events] + [(r.value, r.key) for r in log]
    pairs.append(encode_forget("long-ago")[::-1])
    told = len(pairs)
    pairs += [(encode_event(event), event.user_id.encode()) for event in late]
    all_ = [Record(n, *pair) for n, pair in enumerate(pairs)]
    for cuts in ([], [100], [40, told - 1], list(range(40, told, 3))):
        processor = Processor(Settings(), MemoryStore())
        for start, end in itertools.pairwise([0, *cuts, told, len(all_)]):
            changes = processor.apply(all_[start:end])
            processor.commit(changes)
            if end == told and 40 in cuts:
                assert changes.again == 0
                assert traces(processor.store, "long-ago") == []
        assert traces(processor.store, "long-ago") == []
        assert processor.too_late == 0
        expected = Processor(Settings(), MemoryStore())
        in_order = [*all_[:41], all_[told - 1], *sorted([*all_[41 : told - 1], *all_[told:]], key=order)]
        expected.commit(expected.apply([Record(n, r.value, r.key) for n, r in enumerate(in_order)]))
        assert rows(processor.store) == rows(expected.store)


@pytest.mark.parametrize("between", [0, 1])
def test_requests_of_one_epoch_go_back_once(between: int) -> None:
    """Whether they follow one another or stand between events of others."""
    log = records(shop_log(60))
    users, now = sorted({record.key.decode() for record in log})[:20], orjson.loads(log[-1].value)["timestamp_ms"]
    pairs = []
    for n, user in enumerate(users):
        pairs.append(encode_forget(user)[::-1])
        pairs += [(encode_event(Event(f"v{n}", f"i{n % 5}", now, "purchase")), b"v")] * between
    asked = [Record(len(log) + n, *pair) for n, pair in enumerate(pairs)]
    processor = Processor(Settings(), MemoryStore())
    processor.commit(processor.apply(log))
    changes = processor.apply(asked)
    assert changes.forgotten == 20
    assert 0 < changes.again <= len(log) + len(users)
    apart = Processor(Settings(), MemoryStore())
    apart.commit(apart.apply(log))
    processor.commit(changes)
    for record in asked:
        apart.commit(apart.apply([record]))
    assert state_sha256([apart.store]) == state_sha256([processor.store])


def test_many_requests_among_late_events_end_in_one_state_cut_anywhere() -> None:
    """Also of users who come back, who are asked for again, and of events that come too late meanwhile."""
    settings = settings_with(**SMALL)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        asked = {at: f"u{rng.integers(40)}" for at in rng.integers(5, 480, 90).tolist()}
        log = shuffled_with_requests(asked, 40 * MINUTE_MS, seed)
        whole = run(log, [], settings=settings)
        assert run(log, list(range(1, len(log))), settings=settings) == whole
        cuts = rng.choice(np.arange(1, len(log)), 12, replace=False).tolist()
        assert run(log, cuts, settings=settings) == whole


def test_an_item_that_goes_with_a_user_starts_anew_for_who_comes_after_the_request() -> None:
    """Also its count of what came too late, wherever the log is cut."""
    start = 1_600_000_000_000
    rows_ = [("z", "q", 0), ("a", "x", 20), ("c", "x", 0), None, ("b", "x", 21), ("b", "q", 22)]
    pairs = [
        encode_forget("a")[::-1]
        if row is None
        else (encode_event(Event(row[0], row[1], start + row[2] * MINUTE_MS, "purchase")), row[0].encode())
        for row in rows_
    ]
    log, settings = [Record(n, *pair) for n, pair in enumerate(pairs)], settings_with(late_ms=10 * MINUTE_MS)
    for cuts in ([], [4], [3], list(range(1, 6))):
        store = MemoryStore()
        run(log, cuts, store, settings)
        row = decode_item(dict(store.scan(b"i:x"))[b"i:x"])
        assert (row.count, row.too_late) == (1, 0)


def test_a_second_request_after_the_window_moved_on_changes_nothing() -> None:
    start = 1_600_000_000_000
    pairs = [(encode_event(Event("u", "x", start, "purchase")), b"u"), encode_forget("u")[::-1]]
    pairs += [(encode_event(Event("v", "y", start + 2 * Settings().state.late_ms, "purchase")), b"v")]
    log = [Record(n, *pair) for n, pair in enumerate([*pairs, encode_forget("u")[::-1]])]
    assert run(log, []) == run(log, [1, 2, 3])
