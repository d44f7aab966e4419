"""Keys of the settings: walking them, what a key holds, and which are secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from driftline.configs.settings import Settings

SECRETS = {"broker": {"sasl_password"}, "llm": {"api_key"}, "serving": {"tokens"}}
"""Keys whose values are never shown and are part of no hash, by section."""

KeyPath = tuple[str, ...]


def shown(key: str, value: Any) -> Any:
    """What people and logs may see of a value."""
    return "***" if value and is_secret(tuple(key.split("."))) else value


def is_secret(path: KeyPath) -> bool:
    """Whether a key, or what stands below it, is never shown."""
    return len(path) > 1 and path[1] in SECRETS.get(path[0], ())


def leaves(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key path, value) of every value of a section, in the order of the schema."""
    for name in type(section).model_fields:
        yield from leaves_of(getattr(section, name), f"{prefix}{name}")


def leaves_of(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(key path, value) of every value of a section, of a group of them, or of one value."""
    if isinstance(value, BaseModel):
        yield from leaves(value, f"{path}.")
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves_of(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def model_at(path: KeyPath) -> Any:
    """The model that a section, or an entry of a group of sections, has; that above it where it has none."""
    model: Any = Settings
    for name in path:
        if name in getattr(model, "model_fields", {}):
            annotation = model.model_fields[name].annotation
            models = [part for part in (annotation, *get_args(annotation)) if hasattr(part, "model_fields")]
            model = models[0] if models else model
    return model


def is_text(path: KeyPath) -> bool:
    """Whether a key holds text: a password, or the address [::1]:9092, may begin with a bracket."""
    field = getattr(model_at(path[:-1]), "model_fields", {}).get(path[-1])
    return field is not None and field.annotation is str
