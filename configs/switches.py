"""Systems by name, each switched as a whole: `systems: {NAME: off|on|placebo|template}`.

What an arm of a system changes is an overlay in configs/systems/NAME.yaml. It lies over files and under the
environment. A part that an installed package brings (model/parts.py) has no file and is on, off or a placebo.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from driftline.configs import files
from driftline.configs.errors import ConfigError
from driftline.configs.explain import Fault, did_you_mean
from driftline.configs.files import Leaf

FOLDER = Path(__file__).parent / "systems"
PARTS = "driftline.parts"
"""Group of the entry points under which packages bring parts."""
BROUGHT = ("off", "on", "placebo")
"""Arms of such a part."""
EVALUATION = (("profiles", "placebo"), ("text", "placebo"))
"""Arms that a replay alone can tell: live nobody knows whose words they are."""


@dataclass(frozen=True, slots=True)
class System:
    """A file of configs/systems.

    Attributes:
        row: number among the published systems (docs/systems.md), 0 = an ingredient or a control.
        arms: leaves of settings by arm.
    """

    row: int
    arms: dict[str, list[Leaf]]


@cache
def systems() -> dict[str, System]:
    """Those with a file, by name."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.yaml"))}


def _read(path: Path) -> System:
    faults: list[Fault] = []
    row, arms = 0, dict[str, list[Leaf]]()
    for key, value, origin in files.leaves(path, faults, {}):
        if key == ("row",):
            row = value
        else:
            leaf = [(key[2:], value, origin)] if len(key) > 2 else []
            arms.setdefault(key[1], []).extend(leaf)
    if faults:
        raise ConfigError(*(f"{origin}: {text}" for origin, text in faults))
    return System(row, arms)


def is_brought(name: str) -> bool:
    """Whether an installed package brings a part of this name; nothing of it is loaded."""
    return bool(entry_points(group=PARTS, name=name))


def arms_of(name: str) -> tuple[str, ...]:
    """The arms of a system or part; () = there is none of this name."""
    if name in systems():
        return tuple(systems()[name].arms)
    return BROUGHT if is_brought(name) else ()


def fault_of(name: str, arm: Any) -> str:
    """What is wrong with a switch, in words; "" = nothing."""
    arms = arms_of(name)
    if not arms:
        brought = sorted({entry.name for entry in entry_points(group=PARTS)})
        known = list(dict.fromkeys((*systems(), *brought)))
        return (
            f"got a system that is not known here; expected any of {', '.join(known)}{did_you_mean(name, known)}; "
            f"one of your own is an entry point of group {PARTS} of an installed package (docs/extending.md)"
        )
    return "" if arm in arms else f"got {arm!r}; expected any of {', '.join(arms)}"


def overlay(chosen: Mapping[str, Any]) -> Iterator[Leaf]:
    """The leaves that switches stand for; those without an arm of their name are passed over.

    A system may switch others, which `chosen` overrules.
    """
    for name, arm in chosen.items():
        found = systems().get(name)
        for path, value, origin in found.arms.get(arm, ()) if found is not None else ():
            if not is_switch((path, value, origin)):
                yield path, value, origin
            elif path[1] not in chosen:
                yield path, value, origin
                yield from overlay({path[1]: value})


def is_switch(leaf: Leaf) -> bool:
    """Whether a leaf is of `systems`."""
    return leaf[0][0] == "systems"


def chosen(leaves: Iterable[Leaf]) -> dict[str, tuple[Any, str]]:
    """(arm, origin) of each system that leaves of settings switch, the last word counts; a whole group is the last."""
    found: dict[str, tuple[Any, str]] = {}
    for path, value, origin in filter(is_switch, leaves):
        if len(path) == 2:
            found[path[1]] = value, origin
        elif len(path) == 1 and isinstance(value, dict):
            found = {name: (arm, origin) for name, arm in value.items()}
    return found


def refuse_evaluation(systems: Mapping[str, str]) -> None:
    """Raises ConfigError where a live process is to run what only a replay can."""
    for name, arm in EVALUATION:
        if systems.get(name) == arm:
            raise ConfigError(
                f"systems.{name}: got {arm}, an arm of `driftline replay`; a live system takes "
                f"{' or '.join(one for one in arms_of(name) if one != arm)}"
            )
