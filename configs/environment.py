"""Variables of the environment that are settings, and those that were meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from driftline.configs.explain import Fault, did_you_mean
from driftline.configs.files import Leaf, parsed
from driftline.configs.keys import SECRETS, KeyPath, is_text
from driftline.configs.settings import Settings

PREFIX = "DRIFTLINE__"
RESULTS = (
    "systems", "actions", "goals", "graph", "signals", "model", "ranker", "state", "profiles", "peers", "event_files",
    "item_files",
)  # fmt: skip
"""Sections on which what a replay says depends; none holds a secret."""
OTHERS = {
    "DRIFTLINE_CONFIG": "preset or file of settings for every command",
    "DRIFTLINE_MODELS": "folder of the fetched language model and encoder",
    "DRIFTLINE_TOKEN": "bearer token of the commands that ask the service",
    "DRIFTLINE_CERTIFICATE": "certificate that they trust",
    "DRIFTLINE_CLIENT_CERTIFICATE": "certificate that they bring",
    "DRIFTLINE_CLIENT_KEY": "its key",
}
"""Variables that are no settings, by name."""
BETWEEN_PROCESSES = ("DRIFTLINE_SUPERVISOR_PIPE", "DRIFTLINE_CHAOS_POINT", "DRIFTLINE_TEST_")
"""How names begin that processes of driftline hand to each other."""
SERVICE = ("_SERVICE_HOST", "_SERVICE_PORT", "_PORT", "_TCP", "_UDP", "_ADDR", "_PROTO")
"""How names end that an orchestrator makes of a service called driftline-something."""


def read(environment: Mapping[str, str], faults: list[Fault]) -> Iterator[Leaf]:
    """The settings in an environment, in the order of their names; what is wrong goes to `faults`."""
    for name, text in sorted(environment.items()):
        if expected := _with_two_underscores(name, text):
            faults.append((f"environment {name}", f"expected two underscores before each key: {expected}"))
        elif name.upper().startswith(PREFIX):
            path = tuple(name[len(PREFIX) :].lower().split("__"))
            if not all(path):
                faults.append((f"environment {name}", f"got an empty key; expected {PREFIX}SECTION__KEY"))
                continue
            try:
                yield path, _value(path, text), name
            except yaml.YAMLError:
                got = "***" if path[0] in SECRETS else repr(text)
                faults.append((f"environment {name}", f"got {got}; expected a list or group as in YAML"))


def told(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and value of the variables that change results, as a report tells them; in the order of their names."""
    return [(name, environment[name]) for path, _, name in read(environment, []) if path[0] in RESULTS]


def strays(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like one of ours and is none, in the order of their names."""
    found = []
    for name in sorted(environment):
        start = name.upper().split("__")[0] + "__"
        ours = name.upper().startswith("DRIFTLINE_") and not name.upper().startswith(PREFIX)
        if ours and name not in OTHERS and not _passed_over(name, environment[name]):
            hint = did_you_mean(name, OTHERS, 0.8)
            found.append(f"environment {name} is read by nothing; settings are {PREFIX}SECTION__KEY{hint}")
        elif start != PREFIX and "__" in name and difflib.SequenceMatcher(None, start, PREFIX).ratio() > 0.85:
            near = PREFIX + name.split("__", 1)[1]
            found.append(f"environment {name} is read by nothing; did you mean {near!r}?")
    return found


def _passed_over(name: str, text: str) -> bool:
    known = name.startswith(BETWEEN_PROCESSES) or name.upper().endswith(SERVICE)
    return known or text.startswith("tcp://")


def _with_two_underscores(name: str, text: str) -> str:
    """How a key of a section should be named that has one underscore before it; "" if the name is none.

    DRIFTLINE_SERVING_PORT=tcp://... is how Kubernetes tells of a service named driftline-serving.
    """
    for section, field in Settings.model_fields.items():
        start = f"DRIFTLINE_{section.upper()}_"
        key = name.upper().removeprefix(start).strip("_")
        keys = getattr(field.annotation, "model_fields", ())
        if name.upper().startswith(start) and key.lower() in keys and not text.startswith("tcp://"):
            return f"{PREFIX}{section.upper()}__{key}"
    return ""


def _value(path: KeyPath, text: str) -> Any:
    """Lists and groups are written as in YAML; the schema turns the text of anything else into its type."""
    if is_text(path) or not text.lstrip().startswith(("[", "{")):
        return text
    return parsed(text)
