"""From a preset or a YAML file and the environment to `Settings`, with the origin of every value.

    defaults in configs/settings.py  <  preset or file (`extends: NAME` first)  <  DRIFTLINE__SECTION__KEY

Whatever is wrong ends in one sentence: where it stands, what was received, what was expected.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import orjson
import yaml
from pydantic import BaseModel, ValidationError

from driftline.configs.errors import ConfigError
from driftline.configs.settings import Settings

PRESETS = Path(__file__).parent
ENVIRONMENT = "DRIFTLINE__"
DEFAULT_ORIGIN = "default"
SECRETS = {"broker": {"sasl_password"}, "llm": {"api_key"}, "serving": {"tokens"}}
"""Keys whose values are never shown and are part of no hash, by section."""
MODEL_SECTIONS = ("actions", "graph", "signals", "ranker", "model")
"""Sections that a trained model is rebuilt with."""
OPERATION = {
    "state": {"root", "sync", "epoch_events", "epoch_ms", "lock_wait_s"},
    "profiles": {"max_per_minute", "queue", "batch"},
}
"""Keys of such sections that say where and how fast, and change no result."""

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


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and where each value comes from.

    Attributes:
        origins: key path ("serving.port") -> "default", "FILE:LINE" or the name of an environment variable.
    """

    settings: Settings
    origins: dict[str, str]


KeyPath = tuple[str, ...]
Leaf = tuple[KeyPath, Any, str]
"""(key path, value, origin)"""


def presets() -> list[str]:
    """Names that `load_settings` and `extends` take in place of a path."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_settings(source: str | Path | None = None) -> Settings:
    """The settings of a preset or a YAML file, changed by the environment.

    Args:
        source: name of a preset (`default`, `ecommerce`, `media`) or path of a YAML file; None = `default`.

    Raises:
        ConfigError: the file can't be read, a key is unknown, or a value is of the wrong kind or out of bounds.
    """
    return load(source).settings


def load(source: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> Loaded:
    """As `load_settings`, with origins and with the environment as an argument."""
    found = list(_read(_find(source or "default", "settings"), ()))
    for name, text in sorted(environment.items()):
        _check_name(name, text)
        if name.upper().startswith(ENVIRONMENT):
            found.append((path := _environment_path(name), _environment_value(name, path, text), name))
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for path, value, origin in found:
        _put(tree, path, value)
        origins[".".join(path)] = origin
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, origins)) from error
    return Loaded(settings, {key: _origin(key, origins) for key, _ in leaves(settings)})


def config_sha256(settings: Settings) -> str:
    """Hash of every value but secrets, in hex; equal settings have equal hashes wherever they came from."""
    return hashlib.sha256(settings.model_dump_json(exclude=SECRETS).encode()).hexdigest()


def sections_sha256(settings: Settings, sections: Sequence[str]) -> str:
    """Hash of some sections, in hex; keys on which no result depends are left out."""
    without = {section: OPERATION[section] for section in OPERATION if section in sections}
    dump = settings.model_dump(mode="json", include=set(sections), exclude=without)
    return hashlib.sha256(orjson.dumps(dump, option=orjson.OPT_SORT_KEYS)).hexdigest()


def shown(key: str, value: Any) -> Any:
    """What people and logs may see of a value."""
    return "***" if value and _is_secret(tuple(key.split("."))) else value


def _is_secret(path: KeyPath) -> bool:
    return len(path) > 1 and path[1] in SECRETS.get(path[0], ())


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key path, value) of every value of a section, in the order of the schema."""
    for name in type(section).model_fields:
        yield from _leaves(getattr(section, name), f"{prefix}{name}")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        yield from leaves(value, f"{path}.")
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}")
    else:
        yield path, value


# ---------------------------------------------------------------------------------------------- reading


def _find(source: str | Path, what: str, beside: Path | None = None) -> Path:
    """The file of a preset's name or of a path."""
    if isinstance(source, str) and source in presets():
        return PRESETS / f"{source}.yaml"
    path = (beside / source) if beside else Path(source)
    if path.is_file():
        return path
    names = ", ".join(presets())
    near = difflib.get_close_matches(str(source), presets(), 1)
    hint = f"did you mean {near[0]!r}?" if near else "check the name or the path"
    raise ConfigError(f"{what}: got {str(source)!r}; expected a preset ({names}) or the path of a YAML file; {hint}")


def _read(path: Path, seen: tuple[Path, ...]) -> Iterator[Leaf]:
    """The leaves of the file that a file extends, then its own."""
    if path.resolve() in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"{path}: extends itself: {chain}; take out one `extends`")
    own = list(_walk(_compose(path), (), path))
    for key, base, origin in own:
        if key == ("extends",):
            if not isinstance(base, str):
                raise ConfigError(f"{origin}: extends: got {_shown(base)}; expected a preset or a path")
            yield from _read(_find(base, f"{origin}: extends", path.parent), (*seen, path.resolve()))
    yield from (leaf for leaf in own if leaf[0] != ("extends",))


def _put(tree: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set one leaf; a leaf in the way of a group is replaced by it."""
    for name in path[:-1]:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[path[-1]] = value


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are booleans: `off` is a word, and a name of some settings."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":bool") or first in "tTfF"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _compose(path: Path) -> yaml.Node | None:
    try:
        return yaml.compose(path.read_text("utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}; check its permissions") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start}; expected a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: is not YAML: {error.problem}; mend that line") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error


def _walk(node: yaml.Node | None, path: KeyPath, file: Path) -> Iterator[Leaf]:
    """The leaves below a node with their lines."""
    if node is None:
        return
    origin = f"{file}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        if not path:
            raise ConfigError(f"{origin}: got {_shown(_plain(node, file))}; expected sections of settings")
        yield path, _plain(node, file), origin
        return
    if path and not node.value:
        yield path, {}, origin
    names: set[str] = set()
    for key_node, value_node in node.value:
        key = str(_plain(key_node, file))
        if key in names:
            line = key_node.start_mark.line + 1
            raise ConfigError(f"{file}:{line}: {'.'.join((*path, key))} stands there twice; keep one")
        names.add(key)
        empty = isinstance(value_node, yaml.ScalarNode) and value_node.tag.endswith(":null") and not value_node.value
        if not empty:  # a section with nothing below it but comments
            yield from _walk(value_node, (*path, key), file)


def _plain(node: yaml.Node, file: Path) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:
        line = node.start_mark.line + 1
        raise ConfigError(f"{file}:{line}: got a value of type {node.tag!r}; expected plain YAML") from error
    finally:
        loader.dispose()


def _check_name(name: str, text: str) -> None:
    """That a key of a section has two underscores before it: with one it would be passed over in silence.

    DRIFTLINE_SERVING_PORT=tcp://... is how Kubernetes tells of a service named driftline-serving.
    """
    for section, field in Settings.model_fields.items():
        start = f"DRIFTLINE_{section.upper()}_"
        key = name.upper().removeprefix(start).strip("_")
        keys = getattr(field.annotation, "model_fields", ())
        if name.upper().startswith(start) and key.lower() in keys and not text.startswith("tcp://"):
            expected = f"{ENVIRONMENT}{section.upper()}__{key}"
            raise ConfigError(f"environment {name}: expected two underscores before each key: {expected}")


def _environment_path(name: str) -> KeyPath:
    path = tuple(name[len(ENVIRONMENT) :].lower().split("__"))
    if not all(path):
        raise ConfigError(f"environment {name}: got an empty key; expected {ENVIRONMENT}SECTION__KEY")
    return path


def _is_text(path: KeyPath) -> bool:
    """Whether a key holds text: a password, or the address [::1]:9092, may begin with a bracket."""
    model: Any = Settings
    for name in path[:-1]:
        model = _inner(model, name)
    field = getattr(model, "model_fields", {}).get(path[-1])
    return field is not None and field.annotation is str


def _environment_value(name: str, path: KeyPath, text: str) -> Any:
    """Lists and groups are written as in YAML; the schema turns the text of anything else into its type."""
    if _is_text(path) or not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        got = "***" if path[0] in SECRETS else repr(text)
        raise ConfigError(f"environment {name}: got {got}; expected a list or group as in YAML") from error


# ---------------------------------------------------------------------------------------------- explaining


def _explain(error: ValidationError, origins: dict[str, str]) -> str:
    """The first fault in plain words, and how many more there are."""
    faults = error.errors()
    fault = faults[0]
    path = tuple(str(part) for part in fault["loc"])
    key = ".".join(path)
    place = _origin_of_rule(fault, key, origins) if fault["type"] == "value_error" else _origin(key, origins)
    where = f"{place}: " if place != DEFAULT_ORIGIN else ""
    more = f" ({len(faults) - 1} more like this)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        return f"{where}unknown key {key!r}; {_nearest(path)}{more}"
    got = "***" if _is_secret(path) else _shown(fault["input"])
    return f"{where}{key or 'the settings'}: {_fault(fault, got)}{more}"


def _fault(fault: Any, got: str) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in BOUNDS:
        word, name = BOUNDS[kind]
        return f"got {got}; expected a number {word} {context[name]:g}"
    if kind == "literal_error":
        return f"got {got}; expected {context['expected']}"
    if kind == "value_error":
        return str(context["error"])
    family = re.split("_", kind)[0]
    if kind == "int_from_float":
        family = "int"
    return f"got {got}; expected {EXPECTED.get(family, fault['msg'])}"


def _nearest(path: KeyPath) -> str:
    """The nearest key in the section where the unknown one stands, or in another section."""
    model: Any = Settings
    for name in path[:-1]:
        model = _inner(model, name)
    known = list(model.model_fields)
    near = difflib.get_close_matches(path[-1], known, 1, 0.6)
    if near:
        return f"did you mean {'.'.join((*path[:-1], near[0]))!r}?"
    everywhere = {key.rsplit(".", 1)[-1]: key for key, _ in leaves(Settings())}
    other = difflib.get_close_matches(path[-1], everywhere, 1, 0.8)
    if other:
        return f"did you mean {everywhere[other[0]]!r}?"
    return f"known here: {', '.join(known)}"


def _inner(model: Any, name: str) -> Any:
    """The model that a section, or an entry of a dict of sections, has."""
    if name not in getattr(model, "model_fields", {}):
        return model
    annotation = model.model_fields[name].annotation
    models = [part for part in (annotation, *get_args(annotation)) if hasattr(part, "model_fields")]
    return models[0] if models else model


def _origin(path: str, origins: dict[str, str]) -> str:
    """The origin of a key path: its own, or that of the group that was set as a whole, or of its first key."""
    parts = path.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in origins:
            return origins[".".join(parts[:n])]
    below = [origin for key, origin in origins.items() if key.startswith(f"{path}.")]
    return below[0] if path and below else DEFAULT_ORIGIN


def _origin_of_rule(fault: Any, path: str, origins: dict[str, str]) -> str:
    """Where the last of the keys was set that a rule over several of them speaks of."""
    words = set(re.findall(r"\w+", str(fault["ctx"]["error"])))
    named = [key for key in origins if key.startswith(f"{path}.") and key.rsplit(".", 1)[-1] in words]
    return origins[named[-1]] if named else _origin(path, origins)


def _shown(value: Any) -> str:
    """A value as it may stand in a message."""
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
