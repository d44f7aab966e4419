"""Frames: equal to events sent one by one, whole or a dead letter, never too large, read beside what was before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import orjson
import pytest
import xxhash
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from tests.stream.process.singles import single, singles
from tests.stream.process.test_items import SETTINGS, WIDTH, log_of, received, rows

from driftline.configs.settings import Graph, Settings
from driftline.graph.rows import Event
from driftline.serving.owner import partition_of
from driftline.stream.events.records import Outgoing, Record, pack, unpack
from driftline.stream.events.schema import encode_event, parse_event
from driftline.stream.process.by_item import BY_ITEM, FRAME_EVENTS, framed, sent, sources, without
from driftline.stream.process.forget import encode_forget
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor
from driftline.stream.state.store import MemoryStore

PARTITIONS = 4
T0_MS = 1_600_000_000_000


def frames_of(log: list[Record], step: int = 60) -> list[Outgoing]:
    processor, found = Processor(SETTINGS, MemoryStore(), partitions=PARTITIONS), list[Outgoing]()
    for start in range(0, len(log), step):
        changes = processor.apply(log[start : start + step])
        processor.commit(changes)
        found += [out for out in changes.outgoing if out.topic == BY_ITEM]
    return found


def items_after(records: Sequence[Record], cuts: Sequence[int] = (), partition: int = 0) -> dict[bytes, bytes]:
    store = MemoryStore()
    for start, end in zip([0, *cuts], [*cuts, len(records)], strict=True):
        processor = ItemProcessor(SETTINGS, store, partition)
        store.commit(processor.apply(records[start:end]).puts)
    return rows(store, b"i:")


def whole_events(n: int) -> list[Record]:
    """Baskets, prices, ids, domains and fields that nobody knows, some of them late."""
    rng, plain = np.random.default_rng(3), [parse_event(record.value) for record in log_of(n, spread_ms=600_000)]
    return [
        Record(
            offset,
            encode_event(
                event.changed(
                    action=str(rng.choice(["view", "purchase", "return"])),
                    event_id=f"e{offset}",
                    value=[None, 2.0][rng.integers(2)],
                    price=[None, float(rng.integers(1, 90))][rng.integers(2)],
                    group_id=f"g{event.timestamp_ms // 600_000}",
                    domain="uk",
                    extra={"colour": "red"},
                )
            ),
        )
        for offset, event in enumerate(plain)
    ]


def test_frames_end_in_the_rows_of_events_sent_one_by_one_cut_anywhere_and_sent_twice() -> None:
    log = whole_events(400)
    frames = frames_of(log)
    assert sorted(place for out in frames for place in sources(out)) == [(0, record.offset) for record in log]
    assert len({out.partition for out in frames}) == PARTITIONS
    for number in range(PARTITIONS):
        own = [out for out in frames if out.partition == number]
        found = [
            (event.offset, memory)
            for out in map(sent, own)
            for event, memory in zip(out.events, out.memories, strict=True)
        ]
        events = [parse_event(log[offset].value).changed(offset=offset) for offset, _ in found]
        assert {event.item_id for event in events} == {
            f"i{n}" for n in range(15) if partition_of(f"i{n}", PARTITIONS) == number
        }
        alone = [single(0, event, memory) for event, (_, memory) in zip(events, found, strict=True)]
        one_by_one = items_after(received(alone), partition=number)
        assert len(one_by_one) > 0
        assert items_after(received(own), partition=number) == one_by_one
        assert items_after(received(own), range(1, len(own)), number) == one_by_one
        assert items_after(received([out for out in own for _ in range(2)]), [3], number) == one_by_one


def test_what_came_of_another_log_is_a_dead_letter_and_hides_nothing_of_this_one() -> None:
    def topic(log_id: str, first: int) -> list[Outgoing]:
        store = MemoryStore()
        store.commit({b"m:topics": orjson.dumps({"interactions": {"topic_id": log_id, "offset": -1, "mark": ""}})})
        processor = Processor(SETTINGS, store, partitions=PARTITIONS)
        processor.commit(processor.pass_to(first))
        log = [*whole_events(60), Record(60, encode_forget("u1")[1])]
        changes = processor.apply([replace(record, offset=first + record.offset) for record in log])
        return [out for out in changes.outgoing if out.topic == BY_ITEM and out.partition == 1]

    ours, foreign = topic("this", 0), topic("that", 900)
    assert [sent(out).log for out in ours[:-1]] == ["this"]
    store = MemoryStore()
    store.commit({b"m:topics": orjson.dumps({"interactions": {"topic_id": "this", "offset": -1, "mark": ""}})})
    changes = ItemProcessor(SETTINGS, store, 1).apply(received([*foreign, *ours]))
    assert (changes.dead, changes.duplicates) == (2, 0)
    assert {dict(out.headers)["reason"] for out in changes.outgoing} == {b"foreign_copy"}
    assert changes.applied == sum(len(sent(out).events) for out in ours[:-1]) > 0
    store.commit(changes.puts)
    assert rows(store, b"i:") == items_after(received(ours), partition=1)
    # cut out of a frame, the rest still names its log
    left = without(ours[0], {sources(ours[0])[0]})
    assert left is not None
    assert sent(left).log == "this"


def test_a_frame_of_an_earlier_release_which_names_no_log_is_read() -> None:
    (out,) = framed(0, [Event("u", "i", T0_MS, offset=1)], np.zeros((1, WIDTH), np.float32), 1, "this")
    body = msgspec.msgpack.encode(msgspec.msgpack.decode(out.value)[:-1])
    before = replace(out, value=body, headers=(("frame", b"1:" + xxhash.xxh3_64_hexdigest(body).encode()),))
    found = sent(before)
    assert (found.partition, [event.item_id for event in found.events], found.log) == (0, ["i"], "")
    store = MemoryStore()
    store.commit({b"m:topics": orjson.dumps({"interactions": {"topic_id": "this", "offset": -1, "mark": ""}})})
    assert ItemProcessor(SETTINGS, store, 0).apply(received([before])).applied == 1


def test_what_goes_on_follows_the_partitions_of_its_own_topic() -> None:
    processor = Processor(SETTINGS, MemoryStore(), partitions=PARTITIONS, item_partitions=2)
    log = log_of(60)
    asked = next(record for record in log if record.key)
    changes = processor.apply([*log, Record(60, encode_forget(asked.key.decode())[1])])
    sent_on = [out for out in changes.outgoing if out.topic == BY_ITEM]
    assert sorted((out.partition or 0, "frame" in dict(out.headers)) for out in sent_on) == [
        (0, False), (0, True), (1, False), (1, True),
    ]  # fmt: skip


def test_what_an_earlier_release_sent_is_read_beside_frames_also_where_both_hold_an_event() -> None:
    own = [out for out in frames_of(log_of(300)) if out.partition == 1]
    before = list(singles(own[:2]))
    for mixed in ([*before, *own[2:]], [*before, *own[1:]], [*before[:-3], *own]):
        assert items_after(received(mixed), [4], 1) == items_after(received(own), partition=1)
    changes = ItemProcessor(SETTINGS, MemoryStore(), 1).apply(received([*before, *own]))
    assert (changes.applied, changes.duplicates) == (sum(len(sources(out)) for out in own), len(before))


def test_a_frame_lies_in_the_outbox_as_it_is_sent() -> None:
    frames = frames_of(log_of(100))
    assert unpack(pack(frames)) == frames


ids = st.text(min_size=1, max_size=256).filter(lambda text: 0 < len(text.encode(errors="replace")) <= 256)
numbers = st.none() | st.floats(-1e30, 1e30)


@bounds(deadline=None)
@given(st.lists(st.tuples(ids, ids, st.integers(0, 4_102_444_800_000), ids, numbers, numbers), min_size=1, max_size=9))
def test_events_come_out_of_frames_as_they_went_in(columns: list[tuple]) -> None:
    columns = [row for row in columns if all(_is_unicode(text) for text in (row[0], row[1], row[3]))]
    rng = np.random.default_rng(len(columns))
    events = [
        Event(user, item, t_ms, action, None, value, price, offset=7 + 3 * n)
        for n, (user, item, t_ms, action, value, price) in enumerate(columns)
    ]
    memories = rng.standard_normal((len(events), WIDTH)).astype(np.float32)
    found = [sent(out, WIDTH) for out in framed(5, events, memories, PARTITIONS)]
    assert {part.partition for part in found} <= {5}
    assert sorted((e for part in found for e in part.events), key=lambda event: event.offset) == events
    for part in found:
        assert part.memories.tolist() == [memories[events.index(event)].tolist() for event in part.events]


def _is_unicode(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


@pytest.mark.parametrize("width", [4, 32, 512])
def test_a_frame_is_no_larger_than_a_broker_takes_and_an_epoch_of_one_item_is_several(width: int) -> None:
    long = "é" * 128
    events = [Event(long, long, 4_000_000_000_000 + n, "a" * 64, None, 1e30, -1e30, offset=n) for n in range(4096)]
    frames = list(framed(0, events, np.full((4096, width), 1 / 3, np.float32), PARTITIONS))
    assert len(frames) >= 4096 // FRAME_EVENTS
    assert max(len(out.value or b"") for out in frames) < 1_000_000
    settings = Settings(graph=Graph(memory_dim=width, message_dim=8, time_dim=4, embed_dim=8, neighbors=5))
    changes = ItemProcessor(settings, MemoryStore(), 0).apply(received(frames))
    assert (changes.applied, changes.dead, changes.duplicates) == (4096, 0, 0)


def test_a_frame_goes_on_without_the_events_of_some_places() -> None:
    (frame, *_) = frames_of(log_of(200))
    places = sources(frame)
    assert without(frame, []) is frame
    assert without(frame, places) is None
    left = without(frame, places[::2])
    assert left is not None
    assert left.partition == frame.partition
    assert sources(left) == places[1::2]
    whole, part = sent(frame), sent(left, WIDTH)
    assert list(part.events) == list(whole.events[1::2])
    assert part.memories.tobytes() == whole.memories[1::2].tobytes()


def signed(body: bytes, version: bytes = b"1") -> tuple[tuple[str, bytes], ...]:
    return (("frame", version + b":" + xxhash.xxh3_64_hexdigest(body).encode()),)


def test_a_damaged_frame_becomes_a_dead_letter_whole_and_the_next_one_counts() -> None:
    first, second, *_ = [out for out in frames_of(log_of(300)) if out.partition == 2]
    body = first.value or b""
    zeros = np.zeros((2, WIDTH), np.float32)
    short = framed(0, [Event("u", "i", T0_MS, offset=1)], zeros[:1, 1:], 1)
    nan = framed(0, [Event("u", "i", T0_MS, offset=1)], np.full((1, WIDTH), np.nan, np.float32), 1)
    late = framed(0, [Event("u", "i", T0_MS, offset=n) for n in (2, 1)], zeros, 1)
    timeless = framed(0, [Event("u", "i", -1, offset=1)], zeros[:1], 1)
    damaged = {
        "bad_frame": [
            replace(first, value=body[:-1]),
            replace(first, value=body[:50] + bytes([body[50] ^ 1]) + body[51:]),
            replace(first, value=None),
            replace(first, headers=(("frame", b"1"),)),
            replace(first, value=body[:-1], headers=signed(body[:-1])),
            replace(first, value=b"{}", headers=signed(b"{}")),
            replace(first, value=b"", headers=signed(b"")),
            *late,
            *timeless,
        ],
        "unknown_frame": [replace(first, headers=signed(body, b"3")), replace(first, headers=(("frame", b""),))],
        "no_user_memory": [*short, *nan],
    }
    for reason, frames in damaged.items():
        for frame in frames:
            items = ItemProcessor(SETTINGS, MemoryStore(), 2)
            changes = items.apply(received([frame, second]))
            (letter,) = changes.outgoing
            headers = dict(letter.headers)
            assert (letter.topic, letter.key, letter.value) == ("interactions.dlq", None, frame.value)
            assert (headers["reason"], headers["topic"]) == (reason.encode(), BY_ITEM.encode())
            assert (changes.dead, changes.applied, items.next_offset) == (1, len(sources(second)), 2)
