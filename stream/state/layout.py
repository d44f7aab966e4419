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
from driftline.stream.durable import write_once
from driftline.stream.state.store import state_directories

FIXED = ("partitions", "graph.memory_dim", "graph.message_dim", "graph.time_dim")
"""What can't change under a state."""
STATE = ("history", "dedupe_ids", "late_ms", "late_events", "future_ms")
REBUILD = "move the directory away to rebuild it from the topic"
LEAVING = ".leaving"
"""What `driftline forget --rebuild` adds to the name of a partition while it puts the new one in its place."""


def layout_of(settings: Settings, partitions: int) -> dict[str, Any]:
    """Everything on which user and item rows depend, by key."""
    graph, state = settings.graph, settings.state
    return {
        "partitions": partitions,
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
        raise StateError(f"{path} can't be read: {error!r}; expected the one that a worker wrote; {REBUILD}") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), int) for name in FIXED):
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


def hold_to_layout(settings: Settings, partitions: int) -> str:
    """Writes the layout of a new state root, and holds an old one to its layout.

    Returns:
        What to tell people of a state that was made with other settings; "" where it was not.

    Raises:
        StateError: the state can't be gone on with, or the directory can't be written.
    """
    root, path = settings.state.root, settings.state.root / "layout.json"
    try:
        if state_directories(root) and not path.exists():
            raise StateError(f"{root} has partitions and no layout.json; expected both; {REBUILD}")
        write_once(path, orjson.dumps(layout_of(settings, partitions), option=orjson.OPT_INDENT_2) + b"\n")
    except OSError as error:
        raise StateError(f"state.root {root} can't be used: {error!r}; expected a directory to write to") from None
    made_with = read_layout(root)
    if misfit := unusable(settings, made_with, partitions):
        raise StateError(misfit)
    return differences(settings, made_with)


def unusable(settings: Settings, made_with: dict[str, Any], partitions: int | None = None) -> str:
    """Why a state can't be gone on with; "" if it can. Without a number of `partitions` the state's own is taken."""
    now = layout_of(settings, made_with["partitions"] if partitions is None else partitions)
    changed = _changed({name: made_with[name] for name in FIXED}, {name: now[name] for name in FIXED})
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
    changed = _changed(made_with, layout_of(settings, made_with["partitions"]))
    if not changed:
        return ""
    return (
        f"the state in {settings.state.root} was made with other settings: {changed}. New events are applied with the "
        f"new ones. Use the old values, or {REBUILD} with the new"
    )


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What has changed, in words."""
    pairs = {name: (before.get(name, "none"), now.get(name, "none")) for name in {**before, **now}}
    return ", ".join(f"{name} was {old}, is {new}" for name, (old, new) in pairs.items() if old != new)
