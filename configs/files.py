"""YAML files of settings as leaves with their lines, files that they extend first."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from driftline.configs.errors import ConfigError
from driftline.configs.explain import Fault, quoted
from driftline.configs.keys import KeyPath

PRESETS = Path(__file__).parent
Leaf = tuple[KeyPath, Any, str]
"""(key path, value, origin)"""


def presets() -> list[str]:
    """Names that `load_settings` and `extends` take in place of a path."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def find(source: str | Path, what: str, beside: Path | None = None) -> Path:
    """The file of a preset's name or of a path.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(source, str) and source in presets():
        return PRESETS / f"{source}.yaml"
    path = (beside / source) if beside else Path(source)
    if path.is_file():
        return path
    names = ", ".join(presets())
    near = [str(path / one) for one in _yaml_in(path)][:1] if path.is_dir() else []
    beside_it = [str(path.with_name(one)) for one in _yaml_in(path.parent)]
    near = near or difflib.get_close_matches(str(source), [*presets(), *beside_it], 1)
    hint = f"did you mean {near[0]!r}?" if near else "check the name or the path"
    raise ConfigError(f"{what}: got {str(source)!r}; expected a preset ({names}) or the path of a YAML file; {hint}")


def _yaml_in(folder: Path) -> list[str]:
    """Names of YAML files of a folder."""
    try:
        return sorted(one.name for one in folder.iterdir() if one.suffix in (".yaml", ".yml"))
    except OSError:
        return []


def read(
    path: Path, faults: list[Fault], seen: tuple[Path, ...] = (), groups: dict[str, str] | None = None
) -> Iterator[Leaf]:
    """The leaves of the file that a file extends, then its own; what is wrong in it goes to `faults`.

    Args:
        groups: gets the origin of each group of keys, under its path with a dot at the end.

    Raises:
        ConfigError: a file can't be read, is not YAML, extends itself, or what it extends is not there.
    """
    if path.resolve() in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"{path}: extends itself: {chain}; take out one `extends`")
    lines: dict[str, str] = {}
    own = list(leaves(path, faults, lines))
    for key, base, origin in own:
        if key == ("extends",):
            if not isinstance(base, str):
                raise ConfigError(f"{origin}: extends: got {quoted(base)}; expected a preset or a path")
            yield from read(find(base, f"{origin}: extends", path.parent), faults, (*seen, path.resolve()), groups)
    if groups is not None:
        groups.update(lines)
    yield from (leaf for leaf in own if leaf[0] != ("extends",))


def leaves(path: Path, faults: list[Fault], groups: dict[str, str]) -> Iterator[Leaf]:
    """The leaves of one file; what is wrong in it goes to `faults`, and to `groups` what `read` says.

    Raises:
        ConfigError: it can't be read or is not YAML.
    """
    node = compose(path, Loader)
    if node is not None:
        yield from _walk(node, (), f"{path}:{node.start_mark.line + 1}", path, faults, groups)


class Loader(yaml.SafeLoader):
    """YAML in which only true and false are booleans: `off` is a word, and a name of some settings."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":bool") or first in "tTfF"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parsed(text: str) -> Any:
    """The value that a text has in YAML."""
    return yaml.load(text, Loader)


def compose(path: Path, loader: Any) -> yaml.Node | None:
    """The nodes of a file, with their lines.

    Raises:
        ConfigError: it can't be read or is not YAML.
    """
    text = ""
    try:
        text = path.read_text("utf-8")
        return yaml.compose(text, loader)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}; check its permissions") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start}; expected a YAML file") from error
    except yaml.MarkedYAMLError as error:
        line = f":{_line_of_mistake(text, error, error.problem_mark)}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: is not YAML: {error.problem}; mend that line") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error


def _line_of_mistake(text: str, error: yaml.MarkedYAMLError, mark: yaml.Mark) -> int:
    """The line to mend, from 1: YAML marks where it could not go on, which is after what is missing."""
    context, began = error.context or "", error.context_mark
    if began is not None and context.startswith("while scanning a "):  # a key or a quote without its end
        return began.line + 1
    in_flow = context.startswith("while parsing a flow")
    before = [token for token in _tokens(text) if token.start_mark.index < mark.index]
    last = next((token for token in reversed(before) if token.start_mark.index < token.end_mark.index), None)
    if last is None:
        return mark.line + 1
    if isinstance(last, yaml.ScalarToken) and last.start_mark.line < last.end_mark.line:
        first = last.start_mark.line
        is_value = any(isinstance(token, yaml.ValueToken) and token.start_mark.line == first for token in before)
        if last.style in ("'", '"') or (not last.style and (not is_value or in_flow)):
            return int(first) + 1
    elif in_flow:
        return int(last.end_mark.line) + 1
    return mark.line + 1


def _tokens(text: str) -> list[Any]:
    """The tokens of a text up to where it is no YAML, those that were not sure yet among them."""
    loader: Any = yaml.SafeLoader(text)
    found: list[Any] = []
    try:
        while loader.check_token():
            found.append(loader.get_token())
    except yaml.YAMLError:
        found += loader.tokens
    finally:
        loader.dispose()
    return found


def line_of(node: yaml.Node | None, path: tuple[str | int, ...]) -> int:
    """The line of what stands at a path below a node, or of the last of it that is there; from 1."""
    line = 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _walk(
    node: yaml.Node, path: KeyPath, origin: str, file: Path, faults: list[Fault], groups: dict[str, str]
) -> Iterator[Leaf]:
    """The leaves below a node; `origin` is the line of its key."""
    if not isinstance(node, yaml.MappingNode):
        if not path:
            raise ConfigError(f"{origin}: got {quoted(_plain(node, file))}; expected sections of settings")
        try:
            value = _plain(node, file)
        except ConfigError as error:
            place, _, words = str(error).rpartition(": got ")
            faults.append((place, f"got {words}"))
            return
        yield path, value, origin
        return
    if path:
        groups[f"{'.'.join(path)}."] = origin
    if path and not node.value:
        yield path, {}, origin
    names: set[str] = set()
    for key_node, value_node in node.value:
        key, place = str(_plain(key_node, file)), f"{file}:{key_node.start_mark.line + 1}"
        if key in names:
            faults.append((place, f"{'.'.join((*path, key))} stands there twice; keep one"))
            continue
        names.add(key)
        empty = isinstance(value_node, yaml.ScalarNode) and value_node.tag.endswith(":null") and not value_node.value
        if not empty:  # a section with nothing below it but comments
            yield from _walk(value_node, (*path, key), place, file, faults, groups)


def _plain(node: yaml.Node, file: Path) -> Any:
    loader = Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except yaml.YAMLError as error:
        line = node.start_mark.line + 1
        raise ConfigError(f"{file}:{line}: got a value of type {node.tag!r}; expected plain YAML") from error
    finally:
        loader.dispose()
