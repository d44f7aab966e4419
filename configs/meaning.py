"""Whether what settings say of actions, goals and files agrees: read before the schema, to say all mistakes at once.

`doubts` says of settings that the schema takes what in them can't be meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from driftline.configs import files
from driftline.configs.columns import doubts_of_files, faults_in_files
from driftline.configs.explain import Fault, did_you_mean, origin_of
from driftline.configs.settings import ACTIONS, Settings

PORTS = (
    "broker.embedded_port", "metrics.worker_port", "metrics.trainer_port", "metrics.profiler_port",
    "metrics.serving_port", "serving.port",
)  # fmt: skip
FILES = (
    "broker.tls_ca", "broker.tls_certificate", "broker.tls_key", "serving.tls_certificate", "serving.tls_key",
    "serving.tls_client_ca", "serving.token_file",
)  # fmt: skip
READ = (
    ("model.max_len", "state.history", "HSTU reads no more than the state keeps"),
    ("ranker.personal", "ranker.pool", "there is no room for all of them in the pool"),
    ("profiles.prompt_titles", "profiles.titles", "a prompt shows no more than its request carries"),
    ("profiles.picks", "profiles.candidates", "no more can be picked than there are to choose from"),
    ("profiles.batch", "profiles.queue", "no more can be taken at once than wait"),
)
"""(key, key that bounds it, why)"""


def faults_in(tree: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[Fault]:
    """What actions, goals and files say that can't be, whatever else is wrong.

    Args:
        tree: as read, before the schema: anything may stand anywhere.
        origins: of its leaves.
    """
    actions = tree.get("actions", {name: action.model_dump() for name, action in ACTIONS.items()})
    actions = actions if isinstance(actions, dict) else {}
    for name, action in actions.items():
        weight = action.get("weight", 1.0) if isinstance(action, dict) else 1.0
        if isinstance(weight, int | float) and weight < 0 and action.get("positive", True) is True:
            yield (
                origin_of(f"actions.{name}.weight", origins),
                f"actions.{name}: got weight {weight:g} with positive true; expected positive: false with it, since "
                "what undoes an interaction is nothing that the user wanted",
            )
    goals = tree.get("goals")
    weights = goals.get("action_weights") if isinstance(goals, dict) else None
    for name in weights if isinstance(weights, dict) else ():
        if name not in actions and name not in _known_to_presets():
            known = list(actions) or list(_known_to_presets())
            yield (
                origin_of(f"goals.action_weights.{name}", origins),
                f"goals.action_weights.{name}: got an action that neither `actions` nor a preset knows; expected any "
                f"of {', '.join(known)}, or set it under `actions`{did_you_mean(name, known)}",
            )
    yield from faults_in_files(tree, origins)


@cache
def _known_to_presets() -> tuple[str, ...]:
    """The actions of all presets."""
    leaves = (leaf for name in files.presets() for leaf in files.read(files.find(name, ""), []))
    return tuple(dict.fromkeys(path[1] for path, _, _ in leaves if path[0] == "actions" and len(path) > 1))


def missing_files(settings: Settings, origins: Mapping[str, str]) -> Iterator[Fault]:
    """Files that settings name and that are not there."""
    for key in FILES:
        path = _at(settings, key)
        if isinstance(path, Path) and not path.is_file():
            yield origin_of(key, origins), f"{key}: got {str(path)!r}, which is no file; check the path"


def doubts(settings: Settings, origins: Mapping[str, str]) -> Iterator[Fault]:
    """What can be run with, but hardly meant."""
    for key, bound, why in READ:
        value, most = _at(settings, key), _at(settings, bound)
        if value > most:
            yield origin_of(key, origins), f"{key} is {value} and {bound} is {most}: {why}"
    taken: dict[int, str] = {}
    for key in PORTS:
        port = _at(settings, key)
        used = port and not (key == "broker.embedded_port" and settings.broker.bootstrap)
        if used and port in taken:
            yield origin_of(key, origins), f"{key} is {port}, as {taken[port]} is: both can't listen on one host"
        elif used:
            taken[port] = key
    if settings.actions and not any(action.positive for action in settings.actions.values()):
        yield origin_of("actions", origins), "actions: none is positive, so only actions not listed here are targets"
    yield from doubts_of_files(settings, origins)


def _at(settings: Settings, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)
