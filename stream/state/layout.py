"""What the state under `state.root` was made with: `layout.json`, written before the first partition is opened.

Ids hash to partitions and rows hold vectors of a length, so these numbers are for life. The other settings on which
rows depend may change: what was applied stays, as far as nothing late comes, and new events are applied with the new.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from driftline.configs.errors import StateError
from driftline.configs.settings import Settings
from driftline.stream.durable import remedy_for, write_durably, write_once
from driftline.stream.state.store import state_directories

FIXED = ("partitions", "graph.memory_dim", "graph.message_dim", "graph.time_dim")
"""What can't change under a state."""
ITEM_PARTITIONS = "item_partitions"
"""Nor can this, with several partitions; states of earlier releases do not say it and take what they find."""
STATE = ("history", "dedupe_ids", "late_ms", "late_events", "future_ms")
REBUILD = "move the directory away to rebuild it from the topic"
LEAVING = ".leaving"
"""What `driftline forget --rebuild` adds to the name of a partition while it puts the new one in its place."""


def layout_of(settings: Settings, partitions: int, item_partitions: int = 0) -> dict[str, Any]:
    """Everything on which user and item rows depend, by key.

    Args:
        settings: the whole configuration.
        partitions, item_partitions: of `interactions` and `interactions.by-item`; 0 = as many as of the first.
    """
    graph, state = settings.graph, settings.state
    return {
        "partitions": partitions,
        **({ITEM_PARTITIONS: item_partitions or partitions} if partitions > 1 else {}),
        **{f"graph.{name}": getattr(graph, name) for name in ("memory_dim", "message_dim", "time_dim", "neighbors")},
        "graph.weights": graph.weights,
        "graph.seed": graph.seed,
        **{f"state.{name}": getattr(state, name) for name in STATE},
        **({"state.ttl_days": state.ttl_days} if state.ttl_days else {}),  # states from before there was one have none
        "signals.half_lives_days[0]": settings.signals.half_lives_days[0],
        **{f"actions.{name}": action.weight for name, action in sorted(settings.actions.items())},
    }


def read_layout(root: Path) -> dict[str, Any]:
    """What the state under a root was made with.

    Raises:
        StateError: its layout.json is missing, or is not one; or as `check_whole`.
    """
    check_whole(root)
    path = root / "layout.json"
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StateError(
            f"{path} can't be read: {error!r}; expected the one that a worker wrote; {remedy_for(error, REBUILD)}"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), int) for name in _fixed(found)):
        raise StateError(
            f"{path} holds {found!r:.200}; expected {', '.join(FIXED)}: an earlier version of driftline made this "
            f"state; {REBUILD}"
        )
    return found


def moved_away(root: Path) -> list[Path]:
    """Partitions that a rebuild has moved away, and in whose places there is nothing."""
    left = sorted(root.glob(f"*-*{LEAVING}"))
    return [path for path in left if not (path.with_suffix("") / "CURRENT").exists()]


def check_whole(root: Path) -> None:
    """That a rebuild which was stopped has left no place empty.

    Raises:
        StateError: it has; what would be read or made there is not the state.
    """
    for path in moved_away(root):
        place = path.with_suffix("")
        raise StateError(
            f"{place} is missing and {path} is there: `driftline forget --rebuild` was stopped while it put the new "
            f"state in its place. Give that command again; or to go on without it: mv {path} {place}"
        )


def hold_to_layout(settings: Settings, partitions: int, item_partitions: int = 0) -> str:
    """Writes the layout of a new state root, and holds an old one to its layout.

    Args:
        settings, partitions, item_partitions: as of `layout_of`.

    Returns:
        What to tell people of a state that was made with other settings; "" where it was not.

    Raises:
        StateError: the state can't be gone on with, or the directory can't be written.
    """
    root, path = settings.state.root, settings.state.root / "layout.json"
    now = layout_of(settings, partitions, item_partitions)
    try:
        if state_directories(root) and not path.exists():
            raise StateError(f"{root} has partitions and no layout.json; expected both; {REBUILD}")
        write_once(path, _encoded(now))
        made_with = read_layout(root)
        if misfit := _misfit(settings, made_with, now):
            raise StateError(misfit)
        if ITEM_PARTITIONS in now and ITEM_PARTITIONS not in made_with:
            write_durably(path, _encoded({**made_with, ITEM_PARTITIONS: now[ITEM_PARTITIONS]}))
    except OSError as error:
        raise StateError(f"state.root {root} can't be used: {error!r}; expected a directory to write to") from None
    return differences(settings, made_with)


def unusable(settings: Settings, made_with: dict[str, Any]) -> str:
    """Why a state can't be gone on with, with these settings and its own number of partitions; "" if it can."""
    return _misfit(settings, made_with, _layout_as(settings, made_with))


def _misfit(settings: Settings, made_with: dict[str, Any], now: dict[str, Any]) -> str:
    fixed = _fixed(made_with)
    changed = _changed({name: made_with[name] for name in fixed}, {name: now[name] for name in fixed if name in now})
    if not changed:
        return ""
    new_log = (
        ""
        if now["partitions"] == made_with["partitions"] == 1
        else (
            "; with several partitions take another broker.prefix, too, and produce the log again, since ids would "
            "move between partitions and `interactions.by-item` holds vectors of the old length"
        )
    )
    return (
        f"the state in {settings.state.root} was made with other settings: {changed}. Use the old values, or another "
        f"state.root, which is rebuilt from the topic{new_log}"
    )


def differences(settings: Settings, made_with: dict[str, Any]) -> str:
    """What to tell people of a state that was made with other settings than these; "" where it was not."""
    changed = _changed(made_with, _layout_as(settings, made_with))
    if not changed:
        return ""
    return (
        f"the state in {settings.state.root} was made with other settings: {changed}. New events are applied with the "
        f"new ones. Use the old values, or {REBUILD} with the new"
    )


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states were made with the same, as far as both say what."""
    unsaid = {ITEM_PARTITIONS} - (one.keys() & other.keys())
    return all(one.get(name) == other.get(name) for name in (one.keys() | other.keys()) - unsaid)


def _layout_as(settings: Settings, made_with: dict[str, Any]) -> dict[str, Any]:
    """What a state of as many partitions as another would be made with."""
    now = layout_of(settings, made_with["partitions"], made_with.get(ITEM_PARTITIONS, 0))
    return {name: value for name, value in now.items() if name != ITEM_PARTITIONS or name in made_with}


def _fixed(made_with: dict[str, Any]) -> tuple[str, ...]:
    return (*FIXED, ITEM_PARTITIONS) if ITEM_PARTITIONS in made_with else FIXED


def _encoded(layout: dict[str, Any]) -> bytes:
    return orjson.dumps(layout, option=orjson.OPT_INDENT_2) + b"\n"


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What has changed, in words."""
    pairs = {name: (before.get(name, "none"), now.get(name, "none")) for name in {**before, **now}}
    return ", ".join(f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new)
