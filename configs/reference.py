"""default.yaml: every key with its default, its bounds and its meaning, written from the schema.

    python -m driftline.configs.reference    # after a change of configs/settings.py

A test compares the file with the schema, so that a key can't be added without its comment.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import orjson
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from driftline.configs.settings import Settings

FILE = Path(__file__).parent / "default.yaml"
COMMENT_COLUMN = 44
LINE = 120
HEAD = """\
# Every setting of driftline with its default. Copy what you change into a file of your own and name it with
# --config FILE; `extends: default` (or ecommerce, media, sessions, news, a file) as its first line brings the rest.
# The environment goes over the file: DRIFTLINE__SERVING__PORT=7000. `driftline config show --origin` prints what
# counts and where it comes from. Written by `python -m driftline.configs.reference` from configs/settings.py.
"""


def default_yaml() -> str:
    """The text of default.yaml."""
    return HEAD + "\n".join(_section(Settings(), 0)) + "\n"


def _section(section: BaseModel, depth: int) -> Iterator[str]:
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            indent = "  " * depth
            yield from ("", f"{indent}# {_summary(value)}", f"{indent}{name}:")
            yield from _section(value, depth + 1)
        elif isinstance(value, dict) and value:
            yield from ("", f"# {_sentence(info)}", f"{name}:")
            yield from _entries(value, depth + 1)
        else:
            yield from _commented(f"{'  ' * depth}{name}: {_yaml(value)}", _sentence(info), "  " * depth)


def _entries(entries: dict[str, BaseModel], depth: int) -> Iterator[str]:
    """Entries of a group of sections; only the first carries comments."""
    for number, (name, section) in enumerate(entries.items()):
        yield f"{'  ' * depth}{name}:"
        for line in _section(section, depth + 1):
            yield line if number == 0 else line.split("#")[0].rstrip()


def _commented(line: str, comment: str, indent: str) -> tuple[str, ...]:
    beside = f"{line:<{COMMENT_COLUMN}}  # {comment}"
    return (beside,) if len(beside) <= LINE else (f"{indent}# {comment}", line)


def _summary(section: BaseModel) -> str:
    return (inspect.getdoc(type(section)) or "").split("\n\n")[0].replace("\n", " ")


def _sentence(info: FieldInfo) -> str:
    """Description and bounds of a key."""
    bounds = [text for item in info.metadata if (text := _bound(item))]
    if get_origin(info.annotation) is Literal:
        bounds.append(" | ".join(str(choice) or '""' for choice in get_args(info.annotation)))
    return f"{info.description} [{', '.join(bounds)}]" if bounds else f"{info.description}"


def _bound(item: Any) -> str:
    for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        if hasattr(item, name):
            return f"{sign} {getattr(item, name)}"
    return ""


def _yaml(value: Any) -> str:
    """A value as it stands in YAML on one line; JSON is YAML."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str) and value.replace("-", "").replace("_", "").isalnum():
        return value
    if isinstance(value, tuple):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return orjson.dumps(value).decode()


if __name__ == "__main__":
    FILE.write_text(default_yaml(), "utf-8")
