"""The processor's promises: cuts, late events, duplicates, poison and restarts do not change where a log ends."""

from __future__ import annotations

import functools
import itertools
import math
import struct
import time
from collections.abc import Sequence

import numpy as np
import orjson
import pytest

from driftline.configs.settings import Action, Settings, State
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event, decode_item
from driftline.stream.events.records import believed_ms
from driftline.stream.events.schema import InvalidEvent, encode_event, parse_event
from driftline.stream.process.known import KnownIds
from driftline.stream.process.processor import RUN_EVENTS, Changes, Processor, Record
from driftline.stream.state.store import MemoryStore, RocksStore, StateStore, state_sha256

SETTINGS = Settings()


def shop_log(groups: int = 120, seed: int = 0) -> list[Event]:
    """Baskets of up to 12 items and single events of 30 users on 40 items, in order of time."""
    rng = np.random.default_rng(seed)
    events, now = [], 1_600_000_000_000
    for group in range(groups):
        now += int(rng.integers(0, 120_000))
        user, size = f"u{rng.integers(30)}", int(rng.integers(1, 13))
        basket = None if rng.random() < 0.2 else f"g{group}"
        for _ in range(size):
            price = float(rng.integers(1, 90)) if rng.random() < 0.8 else None
            events.append(Event(user, f"i{rng.integers(40)}", now, "purchase", None, 1.0, price, basket, "UK"))
    return events


def records(events: list[Event]) -> list[Record]:
    return [Record(offset, encode_event(event), event.user_id.encode()) for offset, event in enumerate(events)]


def run(log: list[Record], cuts: list[int], store: StateStore | None = None, settings: Settings = SETTINGS) -> str:
    store = store or MemoryStore()
    processor = Processor(settings, store)
    edges = [0, *sorted(cuts), len(log)]
    for start, end in itertools.pairwise(edges):
        processor.commit(processor.apply(log[start:end]))
    return state_sha256([store])


def run_adopting(
    log: Sequence[Record], models: dict[int, GraphMemory], cuts: Sequence[int], settings: Settings, partitions: int = 1
) -> tuple[str, int]:
    """Hash of the state of a log in which versions are adopted before some offsets, and how many users' rows ended."""
    processor, ended = Processor(settings, MemoryStore(), partitions=partitions), 0
    processor.intake.is_ours = lambda record, event: True  # type: ignore[method-assign]
    for start, end in itertools.pairwise([0, *sorted({*cuts, *models}), len(log)]):
        if start in models:
            processor.commit(processor.adopt(models[start], {} if partitions > 1 else None))
        changes = processor.apply(log[start:end])
        processor.commit(changes)
        ended += changes.users_swept + changes.users_anew
    return state_sha256([processor.store]), ended


def test_a_log_cut_at_20_random_places_ends_in_the_same_state() -> None:
    log = records(shop_log())
    whole = run(log, [])
    rng = np.random.default_rng(1)
    for _ in range(3):
        assert run(log, rng.choice(np.arange(1, len(log)), 20, replace=False).tolist()) == whole


def test_shuffled_arrivals_within_the_late_window_end_in_the_sorted_state() -> None:
    events = shop_log()
    rng = np.random.default_rng(2)
    delay = rng.integers(0, SETTINGS.state.late_ms // 2, len(events))
    arrival = np.argsort([e.timestamp_ms for e in events] + delay, kind="stable")
    shuffled = records([events[i] for i in arrival])
    in_order = sorted(shuffled, key=lambda r: (orjson.loads(r.value)["timestamp_ms"], r.offset))
    expected = Processor(SETTINGS, MemoryStore())
    # offsets must not decrease for the oracle, so it takes the sorted events in one epoch
    renumbered = [Record(n, r.value, r.key) for n, r in enumerate(in_order)]
    expected.commit(expected.apply(renumbered))
    cuts = rng.choice(np.arange(1, len(shuffled)), 25, replace=False).tolist()
    store = MemoryStore()
    run(shuffled, cuts, store)
    live = Processor(SETTINGS, store)
    assert live.too_late == 0
    for user_id in expected.nodes.indices:
        ours, theirs = live.user(user_id), expected.user(user_id)
        assert ours is not None
        assert theirs is not None
        assert ours.memory.tobytes() == theirs.memory.tobytes()
        assert ours.history == theirs.history


def test_the_usual_price_is_that_of_the_sorted_log_however_it_arrived_and_after_restarts() -> None:
    events = shop_log(40)
    rng = np.random.default_rng(5)
    arrival = np.argsort([e.timestamp_ms for e in events] + rng.integers(0, 1_000_000, len(events)), kind="stable")
    log, store = records([events[i] for i in arrival]), MemoryStore()
    for start, end in itertools.pairwise([0, *sorted(rng.choice(np.arange(1, len(log)), 10).tolist()), len(log)]):
        processor = Processor(SETTINGS, store)
        processor.commit(processor.apply(log[start:end]))
    in_order = sorted(enumerate(arrival), key=lambda placed: (events[placed[1]].timestamp_ms, placed[0]))
    logs = [math.log(events[i].price or 1) for _, i in in_order if events[i].price]
    assert Processor(SETTINGS, store).rows.prices.encode() == struct.pack(
        "<dq", functools.reduce(float.__add__, logs), len(logs)
    )


def test_a_profile_request_knows_no_price_later_than_its_time_however_the_log_is_cut() -> None:
    settings = Settings.model_validate({"profiles": {"first_events": 3}})
    events = [Event("a", f"i{n}", 1_600_000_000_000 + n, price=10.0) for n in range(3)]
    events += [Event("b", f"i{n}", 1_600_000_000_002 + n, price=1000.0) for n in range(50)]  # the first at once
    for cut in (3, len(events)):
        processor = Processor(settings, MemoryStore())
        (request, *_) = [o for o in processor.apply(records(events)[:cut]).outgoing if o.topic == "profile-requests"]
        assert (request.key, orjson.loads(request.value)["price_ratio"]) == (b"a", 1.0)


def test_shuffled_arrivals_cut_anywhere_end_in_the_same_state_even_past_the_window() -> None:
    events = shop_log()
    settings = SETTINGS.model_copy(update={"state": State(late_ms=600_000, late_events=60)})
    rng = np.random.default_rng(3)
    arrival = np.argsort([e.timestamp_ms for e in events] + rng.integers(0, 1_500_000, len(events)), kind="stable")
    log = records([events[i] for i in arrival])
    whole = run(log, [], settings=settings)
    processor = Processor(settings, MemoryStore())
    changes = processor.apply(log)
    assert changes.late > 20
    assert changes.too_late > 20
    for _ in range(4):
        cuts = rng.choice(np.arange(1, len(log)), 20, replace=False).tolist()
        assert run(log, cuts, settings=settings) == whole


@pytest.mark.parametrize(("kind", "few"), [("a tenth 20 minutes late", 100), ("a clock that runs backwards", 250)])
def test_epochs_that_take_what_there_is_room_for_apply_little_again_and_end_in_the_same_state(
    kind: str, few: int
) -> None:
    n, rng = 3000, np.random.default_rng(4)
    times = 1_600_000_000_000 + np.arange(n) * 1000
    late = np.where(rng.random(n) < 0.1, 20 * 60_000, 0) if kind[2] == "t" else -2000 * np.arange(n)
    order = np.argsort(times + late, kind="stable")
    log = records([Event(f"u{at % 70}", f"i{at % 90}", int(times[at]), "view") for at in order])
    settings = SETTINGS.model_copy(update={"state": State(epoch_events=32)})
    again = {}
    stores = {"room": MemoryStore(), "few": MemoryStore()}
    for name, store in stores.items():
        processor, done, again[name] = Processor(settings, store), 0, 0
        while done < n:
            changes = processor.apply(log[done : (done := done + (processor.room if name == "room" else few))])
            processor.commit(changes)
            again[name] += changes.again
        assert processor.too_late == 0
    assert again["room"] < 2 * n < 3 * n < again["few"]
    assert state_sha256([stores["room"]]) == state_sha256([stores["few"]])


def test_after_a_large_epoch_a_late_event_makes_no_more_than_one_undo_record_be_applied_again() -> None:
    n, t0 = 2000, 1_600_000_000_000
    times = [*range(0, 1000 * n, 1000), 1000 * (n - 1) - 1]
    log = records([Event(f"u{at % 70}", f"i{at % 90}", t0 + t, "view") for at, t in enumerate(times)])
    processor = Processor(SETTINGS, MemoryStore())
    assert processor.room >= n
    processor.commit(processor.apply(log[:n]))
    changes = processor.apply(log[n:])
    assert (changes.late, changes.applied) == (1, 1)
    assert 0 < changes.again <= RUN_EVENTS


def test_a_processor_reopened_at_every_cut_ends_in_the_same_state(tmp_path) -> None:
    events = shop_log(80)
    rng = np.random.default_rng(4)
    arrival = np.argsort([e.timestamp_ms for e in events] + rng.integers(0, 900_000, len(events)), kind="stable")
    log = records([events[i] for i in arrival])
    whole = run(log, [])
    edges = [0, *sorted(rng.choice(np.arange(1, len(log)), 8, replace=False).tolist()), len(log)]
    for start, end in itertools.pairwise(edges):
        store = RocksStore(tmp_path / "partition-0")
        processor = Processor(SETTINGS, store)
        assert processor.next_offset == start
        lost = processor.apply(log[start : min(end + 7, len(log))])  # applied, never committed: a crash
        assert lost.applied > 0
        processor = Processor(SETTINGS, store)
        processor.commit(processor.apply(log[max(start - 5, 0) : end]))  # a broker that sends some again
        store.close()
    store = RocksStore(tmp_path / "partition-0")
    assert state_sha256([store]) == whole
    store.close()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"[1]", "not_an_object"),
        (b'{"item_id":"i","timestamp_ms":1}', "missing_field"),
        (b'{"user_id":7,"item_id":"i","timestamp_ms":1}', "wrong_type"),
        (b'{"user_id":"u","item_id":"i","timestamp_ms":"1"}', "wrong_type"),
        (b'{"user_id":"u","item_id":"i","timestamp_ms":true}', "wrong_type"),
        (b'{"user_id":"u","item_id":"i","timestamp_ms":-5}', "out_of_range"),
        (b'{"user_id":"u","item_id":"i","timestamp_ms":1,"value":1e39}', "out_of_range"),
        (b'{"user_id":"u","item_id":"i","timestamp_ms":1,"value":NaN}', "not_json"),
        (b'{"user_id":"u","item_id":"","timestamp_ms":1}', "out_of_range"),
        (b'{"user_id":"u","item_id":"' + b"x" * 300 + b'","timestamp_ms":1}', "out_of_range"),
        (b" " * 70_000, "too_large"),
    ],
)
def test_a_poison_record_becomes_a_dead_letter_with_its_bytes_and_the_stream_goes_on(raw: bytes, reason: str) -> None:
    events = shop_log(20)
    clean = run(records(events), [])
    log = records(events)
    log.insert(37, Record(37, raw, b"u"))
    log = [Record(n, r.value, r.key) for n, r in enumerate(log)]
    processor = Processor(SETTINGS, MemoryStore())
    changes = processor.apply(log)
    (letter,) = [out for out in changes.outgoing if out.topic == "interactions.dlq"]
    assert letter.value == raw
    assert dict(letter.headers)["reason"] == reason.encode()
    assert changes.applied == len(events)
    plain = Processor(SETTINGS, MemoryStore())
    plain.apply(records(events))
    assert clean
    for user_id in plain.nodes.indices:
        assert processor.user(user_id).memory.tobytes() == plain.user(user_id).memory.tobytes()


def test_an_event_from_the_far_future_does_not_hold_the_watermark_hostage() -> None:
    processor = Processor(SETTINGS, MemoryStore())
    bad = Event("u", "i", 4_000_000_000_000)
    changes = processor.apply([Record(0, encode_event(bad), b"u", timestamp_ms=1_600_000_000_000)])
    assert changes.dead == 1
    assert changes.watermark_ms == -1


@pytest.mark.parametrize("ahead_ms", [300_001, 6 * 3_600_000, 300 * 86_400_000])
def test_after_an_event_ahead_of_the_broker_none_of_400_is_too_late(ahead_ms: int) -> None:
    now = 1_600_000_000_000
    log = [Record(0, encode_event(Event("u", "i", now + ahead_ms)), b"u", now)]
    log += [Record(n, encode_event(Event("u", "i", now + n)), b"u", now + n) for n in range(1, 401)]
    changes = Processor(SETTINGS, MemoryStore()).apply(log)
    assert (changes.applied, changes.too_late, changes.dead) == (400, 0, 1)
    (letter,) = [out for out in changes.outgoing if out.topic == "interactions.dlq"]
    assert dict(letter.headers)["reason"] == b"from_the_future"
    assert b"%d ms after %d, when the broker took it" % (ahead_ms, now) in dict(letter.headers)["detail"]


def test_an_event_as_far_ahead_as_is_allowed_makes_none_too_late() -> None:
    now, allowed = 1_600_000_000_000, SETTINGS.state.future_ms
    log = [Record(0, encode_event(Event("fast", "i", now + allowed)), b"fast", now)]
    log += [Record(n, encode_event(Event("u", "i", now + n)), b"u", now + n) for n in range(1, 401)]
    changes = Processor(SETTINGS, MemoryStore()).apply(log)
    assert (changes.applied, changes.late, changes.too_late, changes.dead) == (401, 400, 0, 0)


def test_history_that_is_produced_now_is_accepted_however_old_it_is() -> None:
    now = 1_795_000_000_000
    times = [100_000_000_000, 789_652_009_000, 1_291_190_000_000, now]  # 1973, MovieLens of 1995, 2010
    log = [Record(n, encode_event(Event("u", "i", t)), b"u", now) for n, t in enumerate(times)]
    assert Processor(SETTINGS, MemoryStore()).apply(log).applied == len(times)


@pytest.mark.parametrize(
    ("written", "unit"),
    [
        ("1700000000", "seconds"),
        ("100000000", "seconds"),
        ("1700000000000000", "microseconds"),
        ("1700000000000000000", "nanoseconds"),
    ],
)
def test_a_live_time_in_another_unit_is_a_dead_letter_that_names_the_unit(written: str, unit: str) -> None:
    raw = f'{{"user_id":"u","item_id":"i","timestamp_ms":{written}}}'.encode()
    now = 1_700_000_000_000
    good = encode_event(Event("u", "i", now))
    changes = Processor(SETTINGS, MemoryStore()).apply([Record(0, raw, b"u", now), Record(1, good, b"u", now)])
    assert (changes.applied, changes.too_late, changes.dead) == (1, 0, 1)
    headers = dict(changes.outgoing[0].headers)
    assert headers["reason"] == b"wrong_unit"
    said = f"timestamp_ms is {written}, which looks like {unit}; expected unix milliseconds such as 1700000000000"
    assert headers["detail"].decode() == said


@pytest.mark.parametrize("written", ["0", "1", "5000000000", "99999999999", "4102444800001", "20231114221300"])
def test_a_time_that_is_none_in_any_unit_is_out_of_range(written: str) -> None:
    with pytest.raises(InvalidEvent, match=r"^out_of_range: timestamp_ms is .*unix milliseconds"):
        parse_event(f'{{"user_id":"u","item_id":"i","timestamp_ms":{written}}}'.encode())


NOW_MS = 1_795_866_831_660


@pytest.mark.parametrize(
    ("stamp_ms", "kind", "believed"),
    [
        (NOW_MS - 3_600_000, 1, NOW_MS - 3_600_000),
        (NOW_MS + 3_600_000, 1, NOW_MS + 3_600_000),  # the broker's clock, not this one, is what counts
        (NOW_MS - 3_600_000, 0, NOW_MS - 3_600_000),
        (0, 0, NOW_MS),
        (-1, 0, NOW_MS),
        (NOW_MS // 1000, 0, NOW_MS),
        (NOW_MS * 1000, 0, NOW_MS),
        (NOW_MS + 6 * 3_600_000, 0, NOW_MS),
        (978_300_000_000, 0, NOW_MS),  # an event of 2001, stamped with its own time
        (None, None, NOW_MS),
    ],
)
def test_a_time_at_which_no_broker_can_have_taken_a_record_is_not_believed(
    stamp_ms: int | None, kind: int | None, believed: int
) -> None:
    assert believed_ms(stamp_ms, kind, NOW_MS) == believed


@pytest.mark.parametrize(("late_ms", "future_ms"), [(300_000, 300_000), (1000, 300_000), (1, 1)])
def test_a_future_that_is_not_under_the_late_window_is_refused_with_a_sentence(late_ms: int, future_ms: int) -> None:
    with pytest.raises(ValueError, match=rf"got future_ms {future_ms} with late_ms {late_ms}; expected less"):
        State(late_ms=late_ms, future_ms=future_ms)
    assert State(late_ms=0, future_ms=future_ms).future_ms == future_ms


def test_a_second_event_of_one_id_is_dropped_also_after_a_restart() -> None:
    store = MemoryStore()
    event = Event("u", "i", 1_600_000_000_000, event_id="a")
    processor = Processor(SETTINGS, store)
    processor.commit(processor.apply([Record(0, encode_event(event)), Record(1, encode_event(event))]))
    processor = Processor(SETTINGS, store)
    changes = processor.apply([Record(2, encode_event(event))])
    assert changes.duplicates == 1
    assert processor.user("u").events == 1


def test_forgetting_old_ids_costs_the_same_whatever_is_remembered() -> None:
    def seconds(remembered: int) -> float:
        known = KnownIds(remembered)
        for n in range(remembered * 3 // 2):
            known.is_second(Event("u", "i", 0, event_id=f"old{n}", offset=n), {})
        events = [Event("u", "i", 0, event_id=f"e{n}", offset=n) for n in range(4000)]
        started = time.process_time()
        assert not any(known.is_second(event, {}) for event in events)
        return time.process_time() - started

    seconds(10)
    assert seconds(200_000) < 5 * seconds(10)  # a walk past all that was dropped takes several times as long


def test_a_group_whose_rows_arrive_apart_ends_as_one_that_arrives_whole() -> None:
    basket = [Event("u", f"i{n}", 1_600_000_000_000, group_id="b") for n in range(9)]
    other = [Event("v", f"x{n}", 1_600_000_000_000, group_id="c") for n in range(9)]
    apart = [event for pair in zip(basket, other, strict=True) for event in pair]
    whole = Processor(SETTINGS, MemoryStore())
    whole.apply(records(basket + other))
    split = Processor(SETTINGS, MemoryStore())
    split.apply(records(apart))
    assert whole.user("u").memory.tobytes() == split.user("u").memory.tobytes()


def test_outgoing_records_that_were_not_seen_sent_are_sent_again_after_a_restart() -> None:
    store = MemoryStore()
    processor = Processor(SETTINGS, store)
    processor.commit(processor.apply([Record(0, b"poison", b"u")]))
    again = Processor(SETTINGS, store)
    assert [out.value for out in again.unsent] == [b"poison"]
    again.commit(again.apply([Record(1, encode_event(Event("u", "i", 1_600_000_000_000)))]))
    assert Processor(SETTINGS, store).unsent == []


def test_outgoing_records_are_taken_out_of_the_store_once_they_are_acknowledged_and_not_before() -> None:
    store = MemoryStore()
    processor = Processor(SETTINGS, store)
    processor.commit(processor.apply([Record(0, b"poison", b"u")]))
    processor.clear_outbox()
    again = Processor(SETTINGS, store)
    assert len(again.unsent) == 1
    again.acknowledged = True
    again.clear_outbox()
    assert Processor(SETTINGS, store).unsent == []


def test_replayed_offsets_change_nothing() -> None:
    log = records(shop_log(10))
    store = MemoryStore()
    digest = run(log, [], store)
    processor = Processor(SETTINGS, store)
    changes: Changes = processor.apply(log)
    processor.commit(changes)
    assert changes.applied == 0
    assert state_sha256([store]) == digest


def test_an_item_is_as_popular_as_its_events_weigh_and_a_return_takes_nothing_away() -> None:
    settings = Settings(actions={"purchase": Action(), "view": Action(weight=0.1), "return": Action(weight=-1.0)})
    store = MemoryStore()
    processor = Processor(settings, store)
    events = [Event(f"u{n}", "i", 1_600_000_000_000, action) for n, action in enumerate(["purchase", "view", "return"])]
    processor.commit(processor.apply(records(events)))
    (row,) = [decode_item(value) for _, value in store.scan(b"i:")]
    assert (row.count, row.popularity) == (3, pytest.approx(1.1))
