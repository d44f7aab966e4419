"""What is accepted as an event can be stored, sent on and read again; the rest is refused with a reason."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stream.process.singles import singles

from driftline.configs.columns import TIMES
from driftline.configs.settings import EventFiles, ItemFiles, Settings, State
from driftline.graph.rows import Event, decode_user
from driftline.stream.convert.times import WORDS
from driftline.stream.events.checks import EVENT_COLUMNS, EVENT_REQUIRED, ITEM_COLUMNS, ITEM_REQUIRED
from driftline.stream.events.files import read_messages, validate
from driftline.stream.events.schema import (
    InvalidEvent,
    _common_event,
    decode_event,
    encode_event,
    item_of,
    parse_event,
)
from driftline.stream.process.items import ItemProcessor
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import MemoryStore

NAMES = ("user_id", "item_id", "timestamp_ms", "action", "event_id", "value", "price", "group_id", "domain")
GOOD = b'{"user_id":"u","item_id":"i","timestamp_ms":1600000001000'
BROKER_BYTES = 1_048_588
"""Largest record that a broker takes by default."""


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


texts = st.text(max_size=8) | st.integers(0, 260).map("x".__mul__) | st.sampled_from(["", "é" * 128, "é" * 129])
numbers = st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False, allow_infinity=False)
edges = (99_999_999_999, 100_000_000_000, 4_102_444_800_000, 4_102_444_800_001)
bounds = st.sampled_from([0, 1e15, 1e30, 1e31, 1e35, -1e35, *edges, True, None])
deep = st.sampled_from([1, 252, 253, 254, 300, 1000, 1021]).map(lambda depth: orjson.loads(nested(depth)))
cells = texts | numbers | bounds | deep | st.lists(numbers, max_size=3)
good = {"user_id": st.text(min_size=1, max_size=8), "item_id": st.text(min_size=1, max_size=8)}
good["timestamp_ms"] = st.integers(100_000_000_000, 4_102_444_800_000)
unknown = st.dictionaries(st.text(max_size=5), cells, max_size=2)
valid = {name: good.get(name, st.text(max_size=8) if name not in ("value", "price") else numbers) for name in NAMES}
rows = st.builds(
    lambda row, wild, more: {**more, **row, **wild},
    st.fixed_dictionaries({name: valid[name] for name in good}, optional={n: valid[n] for n in NAMES if n not in good}),
    st.dictionaries(st.sampled_from(NAMES), cells, max_size=2),
    unknown,
)


def as_json(value: object) -> bytes:
    """JSON of any depth: orjson itself writes 254 levels only."""
    if isinstance(value, dict):
        return b"{" + b",".join(orjson.dumps(name) + b":" + as_json(part) for name, part in value.items()) + b"}"
    if isinstance(value, list):
        depth = 0
        while value and isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
            depth, value = depth + 1, value[0]
        return b"[" * depth + b"[" + b",".join(orjson.dumps(part) for part in value) + b"]" + b"]" * depth
    return orjson.dumps(value)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows.map(as_json) | st.binary(max_size=64) | st.integers(0, 1100).map(nested))
def test_what_is_accepted_can_be_encoded_and_read_again_and_the_rest_is_refused(raw: bytes) -> None:
    try:
        event = parse_event(raw)
    except InvalidEvent:
        return
    assert decode_event(encode_event(event)) == event
    assert parse_event(encode_event(event)) == event


ODD = [
    b" ",
    b"\n",
    b"\x0c",
    b"\\",
    b'"',
    b"0",
    b"-",
    b"e9",
    b".",
    b"\xff",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\\u0000",
    b"\xef\xbb\xbf",
]
places = st.tuples(st.integers(0, 200), st.integers(0, 2), st.sampled_from(ODD))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows.map(as_json), st.lists(places, max_size=2))
def test_the_fast_reader_gives_what_the_careful_one_gives_or_nothing(raw: bytes, changes: list) -> None:
    for at, cut, odd in changes:
        raw = raw[:at] + odd + raw[at + cut :]
    event = _common_event(raw)
    if event is not None:
        assert repr(event) == repr(decode_event(raw))


@pytest.mark.parametrize(
    "more", [b"", b',"value":-0,"price":1E2', b',"action":"view","group_id":"g","domain":"d","event_id":"e"']
)
def test_the_fast_reader_reads_the_common_case(more: bytes) -> None:
    raw = GOOD + more + b"}"
    event = _common_event(raw)
    assert event is not None
    assert repr(event) == repr(decode_event(raw))


@pytest.mark.parametrize(
    "field", [b'"offset":5', b'"extra":{}', b'"extra":{"a":1}', b'"x":1', b'"offset":-1', b'"extra":null']
)
def test_a_field_that_only_the_engine_sets_is_an_unknown_one_of_a_producer(field: bytes) -> None:
    event = parse_event(GOOD + b"," + field + b"}")
    assert event.offset == -1
    assert event.extra == orjson.loads(b"{" + field + b"}")


def test_the_fast_reader_counts_bytes_where_texts_are_not_ascii() -> None:
    for text, good in (("é" * 128, True), ("é" * 129, False)):
        for name in ("event_id", "group_id", "domain"):
            raw = orjson.dumps({**orjson.loads(GOOD + b"}"), name: text})
            assert (_common_event(raw) is not None) == good


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows)
def test_a_row_that_validate_accepts_is_an_event(tmp_path_factory: pytest.TempPathFactory, row: dict) -> None:
    path = tmp_path_factory.mktemp("rows") / "events.jsonl"
    path.write_bytes(as_json(row) + b"\n")
    if validate(path).ok:
        ((key, value),) = read_messages(path)
        assert parse_event(value).user_id.encode() == key


@pytest.mark.parametrize("depth", [254, 300, 1000, 1022])
@pytest.mark.parametrize("name", ["x", "user_id", "value", "timestamp_ms"])
def test_a_deeply_nested_event_becomes_a_dead_letter_and_the_stream_goes_on(name: str, depth: int) -> None:
    raw = b'{"user_id":"u","item_id":"i","timestamp_ms":1600000001000,"%s":%s}' % (name.encode(), nested(depth))
    processor = Processor(Settings(), MemoryStore(), partition=3, partitions=4)
    changes = processor.apply([Record(0, raw, b"u"), Record(1, GOOD + b"}", b"u")])
    assert (changes.dead, changes.applied) == (1, 1)
    reason = dict(changes.outgoing[0].headers)["reason"]
    assert reason == (b"too_deep" if name == "x" else b"wrong_type")


def test_a_deeply_nested_item_is_refused_with_a_short_message() -> None:
    for name in ("categories", "title", "available", "price"):
        with pytest.raises(InvalidEvent, match=rf"^wrong_type: {name} is .{{1,80}}, expected"):
            item_of({"item_id": "i", name: orjson.loads(nested(1000))})


def longest_event() -> bytes:
    """An event of the largest size accepted whose encoding is the longest: 1e15 is written 1000000000000000.0."""
    start, end = GOOD + b',"x":[', b"1]}"
    numbers = (65_536 - len(start) - len(end)) // 5
    return (start + b"1e15," * numbers + end).ljust(65_536)


@pytest.mark.parametrize("raw", [longest_event(), GOOD + b',"x":"' + b"y" * (65_536 - len(GOOD) - 8) + b'"}'])
def test_an_event_of_the_largest_size_is_kept_over_a_restart_and_reaches_its_item(raw: bytes) -> None:
    assert len(raw) == 65_536 < len(encode_event(parse_event(raw)))
    store = MemoryStore()
    processor = Processor(Settings(), store, partition=3, partitions=4)
    changes = processor.apply([Record(0, raw, b"u")])
    processor.commit(changes)
    again = Processor(Settings(), store, partition=3, partitions=4)
    late = GOOD.replace(b"1000", b"0999") + b"}"
    assert again.apply([Record(1, late, b"u")]).late == 1  # rolls the large one back and applies it again
    (copy,) = [out for out in changes.outgoing if out.topic == "interactions.by-item"]
    headers = sum(len(name) + len(value) for name, value in copy.headers)
    assert len(copy.value) + len(copy.key or b"") + headers + 1024 < BROKER_BYTES
    for out in (copy, *singles([copy])):
        item = ItemProcessor(Settings(), MemoryStore(), 0).apply([Record(0, out.value, out.key, headers=out.headers)])
        assert (item.applied, item.dead) == (1, 0)


def test_an_empty_optional_field_is_absent() -> None:
    empty = dict.fromkeys(("action", "event_id", "value", "price", "group_id", "domain"), "")
    raw = orjson.dumps({"user_id": "u", "item_id": "i", "timestamp_ms": 1_600_000_000_000, **empty})
    assert parse_event(raw) == Event("u", "i", 1_600_000_000_000)
    item = item_of({"item_id": "i", "price": "", "available": "", "valid_from_ms": "", "categories": "", "title": ""})
    assert item == item_of({"item_id": "i"})


@pytest.mark.parametrize("window", [{"late_ms": 0}, {"late_events": 0}])
def test_without_a_late_window_memory_is_bounded_and_the_state_is_that_of_the_log(window: dict[str, int]) -> None:
    log = [Record(n, Event(f"u{n % 7}", f"i{n % 5}", 1000 + n - 3 * (n % 100 == 99))) for n in range(10_000)]
    store = MemoryStore()
    processor = Processor(Settings(state=State(**window)), store)
    too_late = 0
    for start in range(0, len(log), 500):
        changes = processor.apply(log[start : start + 500])
        too_late += changes.too_late
        processor.commit(changes)
    assert too_late == 100
    assert sum(decode_user(value).events for _, value in store.scan(b"u:")) == 9_900
    assert not list(store.scan(b"w:"))
    held = [value for value in vars(processor.window).values() if hasattr(value, "__len__")]
    assert max(map(len, held)) < 10
    wider = Processor(Settings(), store)  # what was applied without undo can't be rolled back by a wider window
    late = wider.apply([Record(10_000, Event("u1", "i1", 10_000))])
    assert (late.late, late.too_late) == (0, 1)


def test_the_settings_know_the_fields_of_the_schema() -> None:
    assert (tuple(EVENT_COLUMNS), EVENT_REQUIRED) == (EventFiles.FIELDS, EventFiles.REQUIRED)
    assert (tuple(ITEM_COLUMNS), ITEM_REQUIRED) == (ItemFiles.FIELDS, ItemFiles.REQUIRED)
    assert set(WORDS) == set(TIMES)
