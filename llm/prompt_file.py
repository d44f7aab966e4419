"""What is wrong with a prompt file, said at once and by line: keys, kinds of values, placeholders, names of groups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Formatter
from typing import Any

import yaml
from pydantic import ValidationError

from driftline.configs.explain import did_you_mean, quoted
from driftline.configs.files import compose, line_of
from driftline.graph.view import FACETS

Place = tuple[str | int, ...]
"""Keys and numbers of list entries that lead to a value."""
Fault = tuple[Place, str]
PLACEHOLDERS: dict[Place, tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("record",): (("titles",), ("domain", "level")),
    ("neutral",): ((), ()),
    ("sentences", "crowd"): (("crowd",), ("A", "place")),
    ("sentences", "interests"): (("interests",), ()),
    ("sentences", "categories"): (("categories",), ()),
    ("sentences", "brands"): (("brands",), ()),
    ("sentences", "brands_alone"): (("brands",), ()),
    ("sentences", "place"): (("place",), ()),
    ("sentences", "empty"): ((), ("place",)),
}
"""Texts in which something is filled in: what must stand in braces, and what may."""


def told(path: Path, faults: list[Fault]) -> list[str]:
    """A sentence a mistake, in the order of the file."""
    node = compose(path, yaml.BaseLoader)
    placed = sorted(((line_of(node, place), place, words) for place, words in faults), key=lambda one: one[0])
    return [f"{path}:{line}: {'.'.join(map(str, place)) or 'the file'}: {words}" for line, place, words in placed]


def faults_of(error: ValidationError, schema: Any) -> Iterator[Fault]:
    """What the schema found; lists of other schemas are compared by their own keys."""
    for fault in error.errors():
        place, got = tuple(fault["loc"]), quoted(fault["input"])
        if fault["type"] == "extra_forbidden":
            known = _keys_at(schema, place[:-1])
            yield place, f"is no key of a prompt file{did_you_mean(str(place[-1]), known)}; known: {', '.join(known)}"
        elif fault["type"] == "missing":
            yield place, "is missing; see configs/prompts/ecommerce.yaml for what it says"
        elif fault["type"] == "value_error":
            yield place, str(fault["ctx"]["error"])
        else:
            yield place, f"got {got}; {fault['msg'].lower()}"


def _keys_at(schema: Any, place: Place) -> list[str]:
    for part in place:
        fields = getattr(schema, "model_fields", {})
        if part in fields:
            annotation = fields[part].annotation
            args = [arg for arg in getattr(annotation, "__args__", ()) if hasattr(arg, "model_fields")]
            schema = args[0] if args else annotation
    return [name for name in getattr(schema, "model_fields", ()) if name != "sha256"]


def faults_in(tree: Mapping[str, Any]) -> Iterator[Fault]:
    """What a schema does not see. Args: tree: as read, anything may stand anywhere."""
    yield from _placeholders(tree)
    cues = tree.get("cues")
    for name in cues if isinstance(cues, dict) else ():
        if name not in FACETS:
            yield ("cues", name), f"is no facet; expected {', '.join(FACETS)}{did_you_mean(name, FACETS)}"
    for facet in FACETS:
        if isinstance(cues, dict) and not cues.get(facet):
            yield ("cues",), f"has no {facet}; expected what its line begins with, for each of {', '.join(FACETS)}"
    patterns = tree.get("ignore_titles")
    for n, pattern in enumerate(patterns if isinstance(patterns, list) else ()):
        try:
            re.compile(str(pattern))
        except re.error as error:
            yield ("ignore_titles", n), f"{pattern!r} is no regular expression: {error}"
    yield from _levels(tree)
    crowds, examples = tree.get("crowd"), tree.get("examples")
    if isinstance(crowds, dict) and isinstance(examples, list):
        for n, example in enumerate(examples):
            name = example.get("crowd", "") if isinstance(example, dict) else ""
            if name and name not in crowds:
                yield ("examples", n, "crowd"), f"{name!r} is not under `crowd`{did_you_mean(str(name), crowds)}"


def _placeholders(tree: Mapping[str, Any]) -> Iterator[Fault]:
    for place, (needed, allowed) in PLACEHOLDERS.items():
        text: Any = tree
        for key in place:
            text = text.get(key) if isinstance(text, dict) else None
        if not isinstance(text, str):
            continue
        try:
            parts = [part for part in Formatter().parse(text) if part[1] is not None]
        except ValueError as error:
            yield place, f"{quoted(text)}: {error}; write {{{{ and }}}} for braces that are text"
            continue
        names = [str(name) for _, name, _, _ in parts]
        known = (*needed, *allowed)
        for _, name, spec, conversion in parts:
            if name not in known:
                may = f"expected {', '.join(f'{{{one}}}' for one in known)}" if known else "nothing is filled in here"
                yield place, f"{{{name}}} is no placeholder here; {may}{did_you_mean(str(name), known)}"
            elif spec or conversion:
                yield place, f"{{{name}}} has a format; expected the name alone"
        for name in needed:
            if name not in names:
                yield place, f"got {quoted(text)}; expected {{{name}}} in it, or the model never sees it"


def _levels(tree: Mapping[str, Any]) -> Iterator[Fault]:
    """Levels are read in order: one that is not above the one before is never reached."""
    for name in ("value_levels", "price_levels"):
        last = float("-inf")
        levels = tree.get(name)
        for n, level in enumerate(levels if isinstance(levels, list) else ()):
            try:
                below = float(level["below"])
            except (TypeError, ValueError, KeyError):
                continue  # the schema says it
            if below <= last:
                yield (name, n), f"below is {below:g} after {last:g}; expected more, since levels are read in order"
            last = max(last, below)
