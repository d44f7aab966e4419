"""The JSON Schema files accept what the parsers accept, but for what JSON Schema can't say."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib.resources import files
from typing import Any

import pytest

from driftline.graph.rows import Event
from driftline.stream.events.schema import (
    EARLIEST_MS,
    MAX_EVENT_BYTES,
    MAX_TIMESTAMP_MS,
    InvalidEvent,
    Item,
    item_of,
    parse_event,
)

SCHEMAS = {
    kind: json.loads(files("driftline.stream.events").joinpath(f"schemas/{kind}.v1.json").read_text())
    for kind in ("event", "item")
}
PARSERS = {"event": parse_event, "item": lambda raw: item_of(json.loads(raw))}
LEAST = {"event": {"user_id": "u", "item_id": "i", "timestamp_ms": EARLIEST_MS}, "item": {"item_id": "i"}}
NOTES = {"$schema", "$id", "title", "description", "default"}
TYPES = {"object": dict, "array": list, "string": str, "number": (int, float), "boolean": bool, "null": type(None)}


def accepted(kind: str, document: Any) -> bool:
    try:
        PARSERS[kind](json.dumps(document).encode())
    except InvalidEvent:
        return False
    return True


def valid(schema: dict[str, Any], value: Any) -> bool:
    """Draft 2020-12, as far as the files use it; any other keyword is an error."""
    rules = {name: rule for name, rule in schema.items() if name not in NOTES}
    return all(RULES[name](rule, value) for name, rule in rules.items())


def is_a(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, TYPES[kind])


def for_type(kind: str, rule: Any) -> Any:
    return lambda bound, value: not is_a(kind, value) or rule(bound, value)


RULES = {
    "type": lambda kinds, value: any(is_a(kind, value) for kind in ([kinds] if isinstance(kinds, str) else kinds)),
    "required": for_type("object", lambda names, value: set(names) <= set(value)),
    "properties": for_type("object", lambda of, value: all(valid(of[n], v) for n, v in value.items() if n in of)),
    "additionalProperties": lambda allowed, value: allowed is True,
    "items": for_type("array", lambda of, value: all(valid(of, part) for part in value)),
    "minLength": for_type("string", lambda bound, value: len(value) >= bound),
    "maxLength": for_type("string", lambda bound, value: len(value) <= bound),
    "minimum": for_type("number", lambda bound, value: value >= bound),
    "maximum": for_type("number", lambda bound, value: value <= bound),
}

VALUES = [
    None, "", "x", " ", "é", "x" * 64, "x" * 65, "x" * 256, "x" * 257, "x" * 5000, "1", "true", True, False,
    0, 1, -1, 0.5, -0.5, 1e30, -1e30, 1.1e30, -1.1e30, EARLIEST_MS - 1, EARLIEST_MS, MAX_TIMESTAMP_MS,
    MAX_TIMESTAMP_MS + 1, 10**18, 10**40,
    [], ["a"], ["a", ""], ["a", 1], [None], [[]], {}, {"a": "b"},
]  # fmt: skip
CASES = [
    (kind, LEAST[kind] | {name: value})
    for kind, schema in SCHEMAS.items()
    for name in [*schema["properties"], "colour"]
    for value in VALUES
]
CASES += [(kind, {n: v for n, v in LEAST[kind].items() if n != left_out}) for kind in LEAST for left_out in LEAST[kind]]
CASES += [(kind, document) for kind in LEAST for document in (None, True, 1, 0.5, "x", [], [LEAST[kind]], {})]


def test_the_files_accept_what_the_parsers_accept() -> None:
    both = [(valid(SCHEMAS[kind], document), accepted(kind, document)) for kind, document in CASES]
    assert [case for case, (schema, parser) in zip(CASES, both, strict=True) if schema != parser] == []
    assert 100 < sum(schema for schema, _ in both) < len(CASES) - 100


def test_every_field_is_in_the_files_with_its_unit() -> None:
    own = {"offset", "extra"}  # of an Event, not of what producers send
    assert set(SCHEMAS["event"]["properties"]) == set(Event.__struct_fields__) - own
    assert set(SCHEMAS["item"]["properties"]) == {field.name for field in fields(Item)}
    for schema in SCHEMAS.values():
        assert all("Unit: " in of["description"] for of in schema["properties"].values())


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("event", {"user_id": "é" * 129}),  # 258 bytes
        ("event", {"action": "é" * 33}),
        ("item", {"item_id": "é" * 129}),
        ("event", {"timestamp_ms": float(EARLIEST_MS)}),  # an integer to JSON Schema
        ("item", {"valid_from_ms": 1.0}),
        ("event", {"colour": "x" * MAX_EVENT_BYTES}),
        ("event", {"colour": json.loads("[" * 300 + "]" * 300)}),
    ],
)
def test_what_only_the_descriptions_say_is_refused_by_the_parsers_alone(kind: str, more: dict[str, Any]) -> None:
    document = LEAST[kind] | more
    assert valid(SCHEMAS[kind], document)
    assert not accepted(kind, document)
