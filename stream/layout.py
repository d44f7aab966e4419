"""What the state under `state.root` was made with: `layout.json`, written before the first partition is opened.

Ids hash to partitions and rows hold vectors of a length, so these numbers are for life. The other settings may change:
what is in the state stays as it is, and new events are applied with the new ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from configs.errors import StateError
from configs.load import sections_sha256
from configs.settings import Settings
from stream.durable import write_durably

SECTIONS = ("actions", "graph", "signals", "state")
"""Sections of the settings on which user and item rows depend."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a state was made with.

    Attributes:
        partitions: of `interactions`.
        vectors: lengths of memories and messages.
        config: name of the configuration, for people.
        settings: hash of SECTIONS.
    """

    partitions: int
    vectors: tuple[int, int]
    config: str
    settings: str


def layout_of(settings: Settings, partitions: int) -> Layout:
    """What a state would be made with now."""
    vectors = (settings.graph.memory_dim, settings.graph.message_dim)
    return Layout(partitions, vectors, settings.name, sections_sha256(settings, SECTIONS))


def read_layout(root: Path) -> Layout:
    """What the state under a root was made with.

    Raises:
        StateError: its layout.json is missing, or is not one.
    """
    try:
        found = orjson.loads((root / "layout.json").read_bytes())
        memory_dim, message_dim = found["vectors"]
        return Layout(int(found["partitions"]), (memory_dim, message_dim), found["config"], found["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{root / 'layout.json'} can't be read: {error!r}; expected the one that the worker wrote"
        ) from None


def hold_to_layout(settings: Settings, partitions: int) -> str:
    """Writes the layout of a new state root, and holds an old one to its layout.

    Returns:
        What to tell people where the state was made with other settings, which it outlives; "" where it was not.

    Raises:
        StateError: the state has another number of partitions or other vectors, or the directory can't be written.
    """
    root, now = settings.state.root, layout_of(settings, partitions)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "layout.json").exists():
            write_durably(root / "layout.json", orjson.dumps(asdict(now)) + b"\n")
    except OSError as error:
        raise StateError(f"state.root {root} can't be used: {error!r}; expected a directory to write to") from None
    made_with = read_layout(root)
    if made_with.partitions != partitions:
        raise StateError(
            f"the state in {root} was made from {made_with.partitions} partitions, the topic has {partitions}; ids "
            "would move between partitions. Use another state.root, or a topic with the old number."
        )
    if made_with.vectors != now.vectors:
        raise StateError(
            f"the state in {root} was made with graph.memory_dim and graph.message_dim {made_with.vectors}, the "
            f"settings say {now.vectors}. Use another state.root, which is rebuilt from the topic, or the old values."
        )
    return differs(settings, made_with)


def differs(settings: Settings, made_with: Layout) -> str:
    """What to tell people where a state was made with other settings than these; "" where it was not."""
    if made_with.settings == sections_sha256(settings, SECTIONS):
        return ""
    return (
        f"the state in {settings.state.root} was made with other {', '.join(SECTIONS)} settings (configuration "
        f"{made_with.config!r}, now {settings.name!r}): what is in it stays as it is. Start with the same --config, or "
        "move the directory away to rebuild it from the topic."
    )
