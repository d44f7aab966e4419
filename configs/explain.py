"""What is wrong with settings, in words: one sentence a mistake, in the order in which they were written.

Each says where it stands, what was received, what was expected, and the nearest name that is known.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from driftline.configs.keys import KeyPath, is_secret, leaves, model_at
from driftline.configs.settings import Settings

DEFAULT_ORIGIN = "default"
EXPECTED = {
    "int": "a whole number",
    "float": "a finite number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text; put it in quotes",
    "path": "a path",
    "tuple": "a list",
    "list": "a list",
    "dict": "a group of keys",
    "model": "a group of keys",
}
BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
Fault = tuple[str, str]
"""(origin, sentence); an origin is FILE:LINE, the name of a variable, or DEFAULT_ORIGIN."""


def sentences(faults: Iterable[Fault], origins: Iterable[str]) -> list[str]:
    """The sentences in the order in which the mistakes were written: by file and line, then variables.

    Args:
        origins: of everything that was read, in order: files that are extended first.
    """
    order = {file: n for n, file in enumerate(dict.fromkeys(_file_and_line(origin)[0] for origin in origins))}

    def place(fault: Fault) -> tuple[int, int, str]:
        file, line = _file_and_line(fault[0])
        if line:
            return order.get(file, len(order)), line, ""
        return len(order) + 1 + (file == DEFAULT_ORIGIN), 0, file.removeprefix("environment ")

    return [text if origin == DEFAULT_ORIGIN else f"{origin}: {text}" for origin, text in sorted(faults, key=place)]


def _file_and_line(origin: str) -> tuple[str, int]:
    """Of FILE:LINE; (name, 0) of a variable."""
    file, _, line = origin.rpartition(":")
    return (file, int(line)) if file and line.isdigit() else (origin, 0)


def faults_of(error: ValidationError, origins: Mapping[str, str]) -> list[Fault]:
    """Every fault that the schema found."""
    return [_fault(fault, origins) for fault in error.errors()]


def _fault(fault: Any, origins: Mapping[str, str]) -> Fault:
    path = tuple(str(part) for part in fault["loc"])
    key = ".".join(path)
    place = _origin_of_rule(fault, key, origins) if fault["type"] == "value_error" else origin_of(key, origins)
    if fault["type"] == "extra_forbidden":
        return place, f"unknown key {key!r}; {_nearest(path)}"
    got = "***" if is_secret(path) else quoted(fault["input"])
    return place, f"{key or 'the settings'}: {_words(fault, got)}"


def _words(fault: Any, got: str) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in BOUNDS:
        word, name = BOUNDS[kind]
        return f"got {got}; expected a number {word} {context[name]:g}"
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", context["expected"])
        return f"got {got}; expected {context['expected']}{did_you_mean(str(fault['input']), known)}"
    if kind == "value_error":
        return str(context["error"])
    family = re.split("_", kind)[0]
    if kind == "int_from_float":
        family = "int"
    return f"got {got}; expected {EXPECTED.get(family, fault['msg'])}"


def did_you_mean(name: str, known: Iterable[str], ratio: float = 0.6) -> str:
    """ "; did you mean 'x'?", or "" where no known name is near."""
    near = difflib.get_close_matches(name, list(known), 1, ratio)
    return f"; did you mean {near[0]!r}?" if near else ""


def _nearest(path: KeyPath) -> str:
    """The nearest key in the section where the unknown one stands, or in another section."""
    known = list(model_at(path[:-1]).model_fields)
    near = difflib.get_close_matches(path[-1], known, 1, 0.6)
    if near:
        return f"did you mean {'.'.join((*path[:-1], near[0]))!r}?"
    everywhere = {key.rsplit(".", 1)[-1]: key for key, _ in leaves(Settings())}
    other = difflib.get_close_matches(path[-1], everywhere, 1, 0.8)
    if other:
        return f"did you mean {everywhere[other[0]]!r}?"
    return f"known here: {', '.join(known)}"


def origin_of(path: str, origins: Mapping[str, str]) -> str:
    """The origin of a key path: its own, or that of the group that was set as a whole, or of the group's own key."""
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in origins:
            return origins[".".join(parts[:n])]
    below = [origin for key, origin in origins.items() if key.startswith(f"{path}.")]
    return below[0] if path and below else DEFAULT_ORIGIN


def _origin_of_rule(fault: Any, path: str, origins: Mapping[str, str]) -> str:
    """Where the last of the keys was set that a rule over several of them speaks of."""
    words = set(re.findall(r"\w+", str(fault["ctx"]["error"])))
    named = [key for key in origins if key.startswith(f"{path}.") and key.rsplit(".", 1)[-1] in words]
    return origins[named[-1]] if named else origin_of(path, origins)


def quoted(value: Any) -> str:
    """A value as it may stand in a message."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
