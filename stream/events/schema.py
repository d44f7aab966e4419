"""The event and item schema: bytes from Kafka to values, with a reason for every refusal.

`stream/events/schemas/` says the same as JSON Schema. An event's unknown fields are kept in `extra`; null means absent,
and so does "" in an optional field. A refusal never raises past the processor: it becomes a dead letter with the
original bytes. What is accepted can be encoded again: undo records and item events carry it.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass, field

import msgspec
import orjson

from driftline.graph.rows import MAX_ACTION_BYTES as MAX_ACTION_BYTES
from driftline.graph.rows import MAX_ID_BYTES as MAX_ID_BYTES
from driftline.graph.rows import MAX_NUMBER as MAX_NUMBER
from driftline.graph.rows import MAX_TIMESTAMP_MS as MAX_TIMESTAMP_MS
from driftline.graph.rows import Event

MAX_EVENT_BYTES = 65_536
EARLIEST_MS = 100_000_000_000
"""March 1973. Seconds, read as milliseconds, lie before it; no log of interactions does."""
EXAMPLE_MS = 1_700_000_000_000
UNITS_MS = {"seconds": (1000, 1), "microseconds": (1, 1000), "nanoseconds": (1, 1_000_000)}
"""Units that are taken for milliseconds by mistake, as fractions of one."""

_read_common = msgspec.json.Decoder(Event).decode
_BACKSLASH = ord("\\")  # looking for a number in bytes takes a ninth of looking for bytes
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


class InvalidEvent(ValueError):
    """A record that is not an event of this schema.

    Attributes:
        reason: short code for headers and counters, such as "missing_field" or "not_json".
        detail: what was received and what was expected, in words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(slots=True)
class Item:
    """One item of the catalogue.

    Attributes:
        item_id: 1..256 bytes of UTF-8.
        title, text: what the item says of itself.
        categories, brand, domain: where it belongs.
        price: current price, None = not given; for filters of requests.
        available: False takes it out of recommendations.
        valid_from_ms: when it may first be recommended, for replay; None = from its first event, as always live.
    """

    item_id: str
    title: str = ""
    text: str = ""
    categories: list[str] = field(default_factory=list)
    brand: str = ""
    price: float | None = None
    domain: str = ""
    available: bool = True
    valid_from_ms: int | None = None

    def description(self) -> str:
        """Everything in words, for the text encoder."""
        parts = (self.title, self.text, ", ".join(self.categories), self.brand)
        return ". ".join(dict.fromkeys(part for part in parts if part))


def shorten(value: object) -> str:
    """A value as one short line, however long or deep it is."""
    return _SHORT.repr(value)[:80]


def looks_like(value: float) -> str:
    """The unit in which a number that is no time in milliseconds would be one between 1973 and 2100, "" if none."""
    for unit, (times, parts) in UNITS_MS.items():
        if EARLIEST_MS * parts <= value * times <= MAX_TIMESTAMP_MS * parts:
            return unit
    return ""


def parse_event(raw: bytes | None) -> Event:
    """An event from the JSON bytes that a producer sent.

    Raises:
        InvalidEvent: with the reason; the caller keeps the bytes.
    """
    if raw is not None and (event := _common_event(raw)) is not None:
        return event
    if raw is None:
        raise InvalidEvent("no_value", "the record has no value; expected one JSON object (events are not deleted so)")
    if len(raw) > MAX_EVENT_BYTES:
        raise InvalidEvent("too_large", f"{len(raw)} bytes, at most {MAX_EVENT_BYTES} are accepted")
    event = decode_event(raw)
    if event.timestamp_ms < EARLIEST_MS:
        raise _no_time(event.timestamp_ms, "timestamp_ms", EARLIEST_MS)
    return event


def _common_event(raw: bytes) -> Event | None:
    """What `parse_event` gives, a third as long on the way; None where that has to look for itself.

    It knows no fields but those of the schema, counts characters where bytes are meant, and gives no reasons.
    """
    try:
        event = _read_common(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    if event.timestamp_ms < EARLIEST_MS or len(raw) > MAX_EVENT_BYTES:
        return None
    return event if (raw.isascii() and _BACKSLASH not in raw) or _fits(event) else None


def _fits(event: Event) -> bool:
    """Whether the texts of an event have no more bytes than they may have characters."""
    ids = (event.user_id, event.item_id, event.event_id, event.group_id, event.domain)
    fit = all(text is None or len(text.encode()) <= MAX_ID_BYTES for text in ids)
    return fit and len(event.action.encode()) <= MAX_ACTION_BYTES


def decode_event(raw: bytes) -> Event:
    """An event from JSON bytes of any length: `encode_event` may write up to four times what `parse_event` took.

    Raises:
        InvalidEvent: the bytes are not a JSON object; a field is missing, has another type or is out of range; or the
            unknown fields are nested too deeply to be encoded again.
    """
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidEvent("not_json", f"{error}; expected one JSON object in UTF-8") from None
    if not isinstance(data, dict):
        raise InvalidEvent("not_an_object", f"received {type(data).__name__}, expected a JSON object")
    take = data.pop
    event = Event(
        _text(take("user_id", None), "user_id", required=True) or "",
        _text(take("item_id", None), "item_id", required=True) or "",
        _timestamp(take("timestamp_ms", None)),
        _text(take("action", None), "action", MAX_ACTION_BYTES) or "interact",
        _text(take("event_id", None), "event_id"),
        _number(take("value", None), "value"),
        _number(take("price", None), "price"),
        _text(take("group_id", None), "group_id"),
        _text(take("domain", None), "domain"),
    )
    if data:
        try:
            orjson.dumps(data)
        except orjson.JSONEncodeError as error:
            raise InvalidEvent("too_deep", f"{error}; expected fields nested at most 250 levels deep") from None
        event.extra = data
    return event


def item_of(data: object) -> Item:
    """An item from a decoded JSON object.

    Raises:
        InvalidEvent: a field is missing, has another type or is out of range.
    """
    if not isinstance(data, dict):
        raise InvalidEvent("not_an_object", f"received {type(data).__name__}, expected a JSON object")
    categories = data.get("categories")
    if categories is None or categories == "":
        categories = []
    if not isinstance(categories, list) or not all(isinstance(c, str) for c in categories):
        raise InvalidEvent("wrong_type", f"categories is {shorten(categories)}, expected a list of strings")
    texts = {name: "" if (value := data.get(name)) is None else value for name in ("title", "text", "brand", "domain")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise InvalidEvent("wrong_type", f"{name} is {shorten(value)}, expected a string")
    available = data.get("available")
    if available not in (None, "") and not isinstance(available, bool):
        raise InvalidEvent("wrong_type", f"available is {shorten(available)}, expected true or false")
    valid_from = data.get("valid_from_ms")
    return Item(
        item_id=_text(data.get("item_id"), "item_id", required=True) or "",
        categories=categories,
        price=_number(data.get("price"), "price"),
        available=available is not False,
        valid_from_ms=None if valid_from in (None, "") else _timestamp(valid_from, "valid_from_ms"),
        **texts,
    )


def encode_event(event: Event) -> bytes:
    """The JSON bytes of an event; absent fields are left out."""
    data: dict[str, object] = dict(event.extra)
    data.update(user_id=event.user_id, item_id=event.item_id, timestamp_ms=event.timestamp_ms, action=event.action)
    for name in ("event_id", "value", "price", "group_id", "domain"):
        if (value := getattr(event, name)) is not None:
            data[name] = value
    return orjson.dumps(data)


def encode_item(item: Item) -> bytes:
    """The JSON bytes of an item; absent fields are left out."""
    data = {name: getattr(item, name) for name in Item.__slots__ if getattr(item, name) not in (None, "", [])}
    return orjson.dumps(data)


def _text(value: object, name: str, limit: int = MAX_ID_BYTES, required: bool = False) -> str | None:
    if not required and (value is None or value == ""):
        return None
    if value is None:
        raise InvalidEvent("missing_field", f"{name} is missing, expected a string of 1..{limit} bytes")
    if not isinstance(value, str):
        raise InvalidEvent("wrong_type", f"{name} is {shorten(value)}, expected a string of 1..{limit} bytes")
    if not 0 < len(value) <= limit or (not value.isascii() and not 0 < _utf8_bytes(value, name) <= limit):
        raise InvalidEvent("out_of_range", f"{name} has {len(value)} characters, expected 1..{limit} bytes of UTF-8")
    return value


def _utf8_bytes(value: str, name: str) -> int:
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise InvalidEvent("wrong_type", f"{name} is {shorten(value)}, which is not valid Unicode") from None


def _timestamp(value: object, name: str = "timestamp_ms") -> int:
    if value is None:
        raise InvalidEvent("missing_field", f"{name} is missing, expected unix milliseconds such as {EXAMPLE_MS}")
    if type(value) is not int:
        expected = f"expected an integer of unix milliseconds such as {EXAMPLE_MS}"
        raise InvalidEvent("wrong_type", f"{name} is {shorten(value)}, {expected}")
    if not 0 <= value <= MAX_TIMESTAMP_MS:
        raise _no_time(value, name, 0)
    return value


def _no_time(value: int, name: str, earliest_ms: int) -> InvalidEvent:
    """The refusal of a number that is no time: it says so where another unit was meant."""
    if unit := looks_like(value):
        expected = f"expected unix milliseconds such as {EXAMPLE_MS}"
        return InvalidEvent("wrong_unit", f"{name} is {value}, which looks like {unit}; {expected}")
    bounds = f"{earliest_ms}..{MAX_TIMESTAMP_MS}"
    return InvalidEvent("out_of_range", f"{name} is {shorten(value)}, expected {bounds} (unix milliseconds)")


def _number(value: object, name: str) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidEvent("wrong_type", f"{name} is {shorten(value)}, expected a number")
    if not math.isfinite(value) or abs(value) > MAX_NUMBER:
        raise InvalidEvent("out_of_range", f"{name} is {value}, expected a finite number up to {MAX_NUMBER:g}")
    return float(value)
