"""Several partitions: what user partitions send, what item partitions make of it, and restarts of both."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
from faust.types import TP
from tests.stream.process.singles import singles

from driftline.configs.settings import Settings
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event
from driftline.serving.owner import partition_of
from driftline.stream.epochs import Epochs
from driftline.stream.events.records import Outgoing, Record
from driftline.stream.events.schema import encode_event, parse_event
from driftline.stream.kafka.consumer import Block, Fetched
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor
from driftline.stream.state.store import MemoryStore, StateStore

SETTINGS = Settings()
WIDTH = SETTINGS.graph.memory_dim
OURS = [user for user in (f"u{n}" for n in range(99)) if partition_of(user, 4) == 0]
"""Users of partition 0 of 4."""


def log_of(n: int = 200, seed: int = 0, spread_ms: int = 0) -> list[Record]:
    """Events of 12 users on 15 items; `spread_ms` delays their arrival at random."""
    rng = np.random.default_rng(seed)
    times = 1_600_000_000_000 + np.cumsum(rng.integers(1, 60_000, n))
    arrival = np.argsort(times + rng.integers(0, spread_ms + 1, n), kind="stable")
    events = [Event(OURS[rng.integers(12)], f"i{rng.integers(15)}", int(t), "purchase") for t in times]
    return [Record(o, encode_event(events[at]), events[at].user_id.encode()) for o, at in enumerate(arrival)]


def sent_by(processor: Processor, log: list[Record], cuts: Sequence[int]) -> list[Outgoing]:
    sent: list[Outgoing] = []
    for start, end in zip([0, *cuts], [*cuts, len(log)], strict=True):
        changes = processor.apply(log[start:end])
        processor.commit(changes)
        sent += singles(changes.outgoing)
    return sent


def received(sent: Sequence[Outgoing]) -> list[Record]:
    return [Record(offset, out.value, out.key, headers=out.headers) for offset, out in enumerate(sent)]


def rows(store: StateStore, prefix: bytes) -> dict[bytes, bytes]:
    return dict(store.scan(prefix))


def vectors(seed: int, items: Sequence[int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"i{n}": rng.standard_normal(WIDTH).astype(np.float32) for n in items}


def trained(seed: int) -> GraphMemory:
    return GraphMemory(SETTINGS.graph.model_copy(update={"seed": seed}))


def test_late_events_neither_drop_nor_repeat_what_goes_to_the_item_rows() -> None:
    log = log_of(spread_ms=600_000)
    processor = Processor(SETTINGS, MemoryStore(), partitions=4)
    sent = sent_by(processor, log, [40, 41, 77, 120, 180])
    assert processor.too_late == 0
    sources = [dict(out.headers)["source"] for out in sent]
    assert sources == [b"0:%d" % record.offset for record in log]
    items = ItemProcessor(SETTINGS, MemoryStore(), 0)
    changes = items.apply(received(sent))
    assert (changes.applied, changes.duplicates, changes.dead) == (len(log), 0, 0)
    counts = {row.item_id: row.count for row in items.items.rows}
    expected = [orjson.loads(record.value)["item_id"] for record in log]
    assert counts == {item: expected.count(item) for item in set(expected)}


def test_the_memory_that_travels_with_a_late_event_is_that_of_its_place_in_time() -> None:
    times = [1_600_000_000_000 + t for t in (1000, 2000, 3000, 1500)]
    log = [Record(n, encode_event(Event("u1", f"i{n}", t))) for n, t in enumerate(times)]
    late = sent_by(Processor(SETTINGS, MemoryStore(), partitions=4), log, [3])[3]
    in_order = Processor(SETTINGS, MemoryStore(), partitions=4)
    in_order.apply(log[:1])
    assert dict(late.headers)["user_memory"] == in_order.user("u1").memory.tobytes()
    assert parse_event(late.value).item_id == "i3"


def test_a_processor_reopened_after_an_adoption_goes_on_with_its_item_vectors() -> None:
    log, first, second = log_of(150), vectors(1, range(15)), vectors(2, range(9))
    store = MemoryStore()
    whole = Processor(SETTINGS, store, partitions=4)
    broken_store = MemoryStore()
    broken = Processor(SETTINGS, broken_store, partitions=4)
    for processor in (whole, broken):
        processor.commit(processor.apply(log[:50]))
        processor.commit(processor.adopt(trained(7), first))
        processor.commit(processor.apply(log[50:90]))
        processor.commit(processor.adopt(trained(8), second))
        processor.commit(processor.apply(log[90:120]))
    whole.commit(whole.apply(log[120:]))
    broken.apply(log[120:130])  # never committed: a crash
    again = Processor(SETTINGS, broken_store, partitions=4, model=trained(8), item_vectors=second)
    again.commit(again.apply(log[120:]))
    assert rows(broken_store, b"u:") == rows(store, b"u:")
    without = MemoryStore()
    other = Processor(SETTINGS, without, partitions=4)
    other.commit(other.apply(log))
    assert rows(without, b"u:") != rows(store, b"u:")


@pytest.mark.parametrize("unseen", [65, 129, 1000])
def test_an_item_epoch_brings_more_unseen_items_than_the_columns_have_room_for(unseen: int) -> None:
    epochs = [vectors(1, range(unseen)), vectors(2, range(unseen - 1, 4 * unseen))]
    store = MemoryStore()
    for restart in range(2):
        for partition in range(2):
            reopened = {"model": trained(8), "item_vectors": epochs[1]} if restart else {}
            processor = Processor(SETTINGS, store, partition=partition, partitions=2, **reopened)
            for epoch in [] if restart else epochs:
                processor.commit(processor.adopt(trained(8), epoch))
            for n in range(4 * unseen):
                index = processor.items.index(f"i{n}")
                expected = epochs[1].get(f"i{n}", np.zeros(WIDTH, np.float32))
                assert (processor.graph.items["memory"][index] == expected).all()
            processor.commit(
                processor.apply([Record(restart, encode_event(Event("u1", f"i{4 * unseen}", 1_600_000_000_000)))])
            )


def test_items_first_heard_of_in_an_item_epoch_have_a_name_after_a_restart() -> None:
    store = MemoryStore()
    processor = Processor(SETTINGS, store, partitions=4)
    processor.commit(processor.adopt(trained(7), vectors(1, [3])))
    processor.commit(processor.apply([Record(0, encode_event(Event("u1", "i3", 1_600_000_000_000)))]))
    assert list(rows(store, b"n:").values()) == [b"i3"]


def test_an_item_partition_changes_to_a_trained_version_and_keeps_it_over_a_restart() -> None:
    sent = received(sent_by(Processor(SETTINGS, MemoryStore(), partitions=4), log_of(), []))
    store, broken = MemoryStore(), MemoryStore()
    whole, first = ItemProcessor(SETTINGS, store, 0), ItemProcessor(SETTINGS, broken, 0)
    for processor in (whole, first):
        processor.store.commit(processor.apply(sent[:100]).puts)
        processor.store.commit(processor.adopt(trained(7)).puts)
    store.commit(whole.apply(sent[100:]).puts)
    assert orjson.loads(broken.get([b"m:graph"])[0]) == {"sha256": trained(7).version(), "offset": 100}
    again = ItemProcessor(SETTINGS, broken, 0, trained(7))
    broken.commit(again.apply(sent[90:]).puts)
    assert rows(broken, b"i:") == rows(store, b"i:")
    seeded = ItemProcessor(SETTINGS, MemoryStore(), 0)
    assert rows(store, b"i:") != {k: v for k, v in seeded.apply(sent).puts.items() if k.startswith(b"i:")}


MEMORY = np.zeros(WIDTH, "<f4").tobytes()
GOOD = encode_event(Event("u1", "i", 1000))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record(0, GOOD, b"i"), "no_source"),
        (Record(0, GOOD, b"i", headers=(("source", None), ("user_memory", MEMORY))), "no_source"),
        (Record(0, GOOD, b"i", headers=(("source", b"0:x"), ("user_memory", MEMORY))), "no_source"),
        (Record(0, GOOD, b"i", headers=(("source", b"0:" + b"9" * 5000), ("user_memory", MEMORY))), "no_source"),
        (Record(0, b"{", b"i", headers=(("source", b"0:5"), ("user_memory", MEMORY))), "not_json"),
        (Record(0, b"", b"i", headers=(("source", b"0:5"), ("user_memory", MEMORY))), "not_json"),
        (Record(0, GOOD, b"j", headers=(("source", b"0:5"), ("user_memory", MEMORY))), "key_mismatch"),
        (Record(0, GOOD, b"i", headers=(("source", b"0:5"),)), "no_user_memory"),
        (Record(0, GOOD, b"i", headers=(("source", b"0:5"), ("user_memory", MEMORY[:-1]))), "no_user_memory"),
        (
            Record(0, GOOD, b"i", headers=(("source", b"0:5"), ("user_memory", MEMORY[:-4] + b"\0\0\xc0\x7f"))),
            "no_user_memory",
        ),
    ],
)
def test_a_foreign_record_among_the_item_events_becomes_a_dead_letter_and_the_next_one_counts(
    record: Record, reason: str
) -> None:
    good = Record(1, GOOD, b"i", headers=(("source", b"0:5"), ("user_memory", MEMORY)))
    items = ItemProcessor(SETTINGS, MemoryStore(), 3)
    changes = items.apply([record, good])
    (letter,) = changes.outgoing
    headers = dict(letter.headers)
    assert (letter.topic, letter.key, letter.value) == ("interactions.dlq", record.key, record.value)
    assert (headers["reason"], headers["topic"]) == (reason.encode(), b"interactions.by-item")
    assert headers["source"] == b"3:0"
    assert (changes.applied, changes.dead, items.next_offset) == (1, 1, 2)


def test_item_events_whose_offsets_were_seen_are_dropped_and_counted_by_the_worker() -> None:
    owner = ItemProcessor(SETTINGS, MemoryStore(), 0)
    headers = (("user_memory", MEMORY), ("source", b"0:5"))
    record = {"value": GOOD, "key": b"i", "timestamp": -1, "timestamp_type": 0, "headers": headers}
    received = [SimpleNamespace(offset=n, **record) for n in range(3)]

    worker = Epochs(SETTINGS, "127.0.0.1:9", 1)
    worker.consumer = SimpleNamespace(is_stale=lambda _: False)
    worker.open.items[0] = owner
    place = TP("interactions.by-item", 0)
    asyncio.run(worker.apply_by_item(Block(place, Fetched(received, 0, 0), 3, 1)))
    assert [row.count for row in owner.items.rows] == [1]
    assert worker.metrics.totals["duplicates"] == 2
