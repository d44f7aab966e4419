"""From a preset or a YAML file and the environment to `Settings`, with the origin of every value.

    defaults in configs/settings.py  <  preset or file (`extends: NAME` first)  <  `systems` that are switched
                                     <  DRIFTLINE__SECTION__KEY

Whatever is wrong is said at once, a sentence a mistake: where it stands, what was received, what was expected.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from driftline.configs import environment as variables
from driftline.configs import files, switches
from driftline.configs.errors import ConfigError
from driftline.configs.explain import Fault, faults_of, origin_of, sentences
from driftline.configs.keys import SECRETS, KeyPath, leaves, leaves_of
from driftline.configs.meaning import faults_in
from driftline.configs.settings import Settings

MODEL_SECTIONS = ("systems", "actions", "graph", "signals", "ranker", "model")
"""Sections that a trained model is rebuilt with."""
OPERATION = {
    "state": {"root", "sync", "epoch_events", "epoch_ms", "lock_wait_s"},
    "profiles": {"max_per_minute", "queue", "batch"},
    "model": {"gate"},
}
"""Keys of such sections that say where and how fast, and change no result. What the gate does a snapshot says."""
UNSAID = (("labels", "off"),)
"""Switches that say what their absence does: who keeps a part off that came later goes on with what was learnt."""

UNSAID_KEYS = {"model.copying": "false"}
"""Keys that came later, and the value, as JSON, that says what their absence does."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and where each value comes from.

    Attributes:
        origins: key path ("serving.port") -> "default", "FILE:LINE" or the name of an environment variable.
    """

    settings: Settings
    origins: dict[str, str]


def load_settings(source: str | Path | None = None) -> Settings:
    """The settings of a preset or a YAML file, changed by the environment.

    Args:
        source: name of a preset (`default`, `ecommerce`, ...: `presets()`) or path of a YAML file; None = `default`.

    Raises:
        ConfigError: the file can't be read, a key is unknown, or a value is of the wrong kind, out of bounds or at
            odds with another; with a sentence for each mistake in the order in which they stand.
    """
    return load(source).settings


def load(source: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> Loaded:
    """As `load_settings`, with origins and with the environment as an argument."""
    faults: list[Fault] = []
    groups: dict[str, str] = {}
    found = list(files.read(files.find(source or "default", "settings"), faults, groups=groups))
    over = list(variables.read(environment, faults))
    chosen = switches.chosen([*found, *over])
    for name, (arm, origin) in chosen.items():
        if text := switches.fault_of(name, arm):
            faults.append((origin, f"systems.{name}: {text}"))
    laid = list(switches.overlay({name: arm for name, (arm, _) in chosen.items()}))
    found += [leaf for leaf in laid if not switches.is_switch(leaf)] + over + list(filter(switches.is_switch, laid))
    tree: dict[str, Any] = {}
    origins = dict(groups)
    for path, value, origin in found:
        _put(tree, path, value)
        origins[".".join(path)] = origin
    settings = None
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        faults += faults_of(error, origins)
    faults += faults_in(tree, origins)
    if settings is None or faults:
        raise ConfigError(*sentences(faults, [origin for _, _, origin in found]))
    return Loaded(settings, {key: origin_of(key, origins) for key, _ in leaves(settings)})


def switched(settings: Settings, chosen: Mapping[str, str]) -> Settings:
    """Settings with some systems switched anew.

    Raises:
        ConfigError: there is no such system, or it has no such arm.
    """
    wrong = [f"systems.{name}: {text}" for name, arm in chosen.items() if (text := switches.fault_of(name, arm))]
    if wrong:
        raise ConfigError(*wrong)
    tree = settings.model_dump()
    for path, value, _ in switches.overlay(chosen):
        _put(tree, path, value)
    tree["systems"] |= chosen
    return Settings.model_validate(tree)


def config_sha256(settings: Settings) -> str:
    """Hash of every value but secrets, in hex; equal settings have equal hashes wherever they came from."""
    return hashlib.sha256(settings.model_dump_json(exclude=SECRETS).encode()).hexdigest()


def sections_sha256(settings: Settings, sections: Sequence[str]) -> str:
    """Hash of some sections, in hex; keys on which no result depends are left out."""
    dump = _dump(settings, sections)
    for section, key in (name.split(".") for name in UNSAID_KEYS):
        if section in dump and orjson.dumps(dump[section][key]).decode() == UNSAID_KEYS[f"{section}.{key}"]:
            del dump[section][key]
    return hashlib.sha256(orjson.dumps(dump, option=orjson.OPT_SORT_KEYS)).hexdigest()


def sections_of(settings: Settings, sections: Sequence[str]) -> dict[str, str]:
    """The keys of some sections on which results depend, dotted: values as JSON."""
    found = leaves_of(_dump(settings, sections), "")
    return {path: orjson.dumps(value).decode() for path, value in found if value != {}}


def differences(then: Mapping[str, str], now: Mapping[str, str], most: int = 5) -> str:
    """Which keys of `sections_of` differ, and how, in words; "" = none."""
    then, now = UNSAID_KEYS | dict(then), UNSAID_KEYS | dict(now)
    differ = [key for key in dict.fromkeys([*then, *now]) if then.get(key) != now.get(key)]
    keys = sorted(differ, key=lambda key: (key not in then) + (key not in now))  # first what was changed in place
    said = [f"{key} was {then.get(key, 'not set')} and is {now.get(key, 'not set')}" for key in keys[:most]]
    return "; ".join([*said, f"and {len(keys) - most} more"] if keys[most:] else said)


def _dump(settings: Settings, sections: Sequence[str]) -> dict[str, Any]:
    without = {section: OPERATION[section] for section in OPERATION if section in sections}
    dump = settings.model_dump(mode="json", include=set(sections), exclude=without)
    if "systems" in dump:
        dump["systems"] = dict(switch for switch in dump["systems"].items() if switch not in UNSAID)
    return dump


def _put(tree: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set one leaf; a leaf in the way of a group is replaced by it."""
    for name in path[:-1]:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[path[-1]] = value
