"""Undo records: what is kept for late events can be read again, as this version writes it and as earlier ones did."""

from __future__ import annotations

import struct

import orjson
import pytest

from driftline.graph.rows import Event
from driftline.stream.events.frames import frame, unframe
from driftline.stream.events.schema import encode_event, parse_event
from driftline.stream.process.late import Undo

EVENTS = [
    Event("u", "i", 5, offset=7),
    Event("ü", "i" * 256, 6, "view", "e1", 1.5, 1e30, "g", "d", {"x": [1, {"y": None}], "offset": 3}, 9),
]
BEFORE = {b"u:u": b"\x00row", b"i:i": None, b"m:prices": b""}


def in_the_first_format(parts: list[bytes | None]) -> bytes:
    return b"".join(struct.pack("<i", -1 if p is None else len(p)) + (p or b"") for p in parts)


def test_an_undo_record_comes_back_as_it_was_written() -> None:
    undo = Undo(EVENTS, BEFORE, 12, 4)
    again = Undo.decode(undo.store_key, undo.encode())
    assert again == undo
    assert [repr(event) for event in again.events] == [repr(event) for event in EVENTS]


@pytest.mark.parametrize(("head", "top"), [(b"2", -1), (b"2 4", 4)])
def test_an_undo_record_of_an_earlier_version_is_read(head: bytes, top: int) -> None:
    parts: list[bytes | None] = [head]
    for event in EVENTS:
        parts += [b"%d" % event.offset, encode_event(event)]
    for pair in BEFORE.items():
        parts += pair
    assert Undo.decode(b"w:" + (12).to_bytes(8, "big"), in_the_first_format(parts)) == Undo(EVENTS, BEFORE, 12, top)


def test_unknown_fields_as_deep_as_they_are_accepted_can_be_kept() -> None:
    raw = b'{"user_id":"u","item_id":"i","timestamp_ms":1600000001000,"x":%s}'
    for depth in range(245, 254):
        nested = b"[" * depth + b"]" * depth
        try:
            event = parse_event(raw % nested)
        except ValueError:
            break
        undo = Undo([event], {}, 1)
        assert Undo.decode(undo.store_key, undo.encode()).events == [event]
    assert depth > 250


@pytest.mark.parametrize("parts", [[], [None], [b""], [b"a", None, b"", b"x" * 1000], [orjson.dumps([1]), b"", None]])
def test_frames_keep_parts_apart_in_both_formats(parts: list[bytes | None]) -> None:
    assert unframe(frame(parts)) == parts
    assert unframe(in_the_first_format(parts)) == parts
