"""Arms by name: which families of arms exist, and how one is made for a log."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import InputError
from configs.settings import Settings
from stream.evaluate.arms import Arm
from stream.evaluate.baselines import SIMPLE_ARMS
from stream.evaluate.log import EventLog
from stream.events import Item


@dataclass(frozen=True, slots=True)
class Setup:
    """What an arm may know before the first group.

    Attributes:
        log: the log; its rows are for the requests to hand out, its `item_ids` are in order of entry into the pool.
        settings: the whole configuration.
        seed: of everything random in the arm.
        items: what the items file says, by id; valid from the item's first appearance.
        profiles: file of profiles for replay, None = the template.
        shared: arms of one pass put here what they share (one processor, one set of features). An arm family that
            drives a Processor leaves a callable "state_sha256" here.
    """

    log: EventLog
    settings: Settings
    seed: int = 0
    items: Mapping[str, Item] = field(default_factory=dict)
    profiles: Path | None = None
    shared: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """Arms that are made alike.

    Attributes:
        names: arms to choose from; default: those that run when none are named.
        build: the arm of a name, None if the name is not of this family (composed names are allowed).
        random: results depend on the seed.
    """

    names: Sequence[str]
    default: Sequence[str]
    build: Callable[[str, Setup], Arm | None]
    random: bool = True


def _simple(name: str, setup: Setup) -> Arm | None:
    make = SIMPLE_ARMS.get(name)
    return None if make is None else make()


SIMPLE = Family(tuple(SIMPLE_ARMS), tuple(SIMPLE_ARMS), _simple, random=False)

FAMILIES: list[Family] = [SIMPLE]
"""In the order in which arms appear in reports. Other families are appended by the modules that define them."""


def default_arms() -> list[str]:
    """The arms that run when none are named."""
    return [name for family in FAMILIES for name in family.default]


def build_arm(name: str, setup: Setup) -> tuple[Arm, Family]:
    """The arm of a name.

    Raises:
        InputError: no family knows it; names the nearest one.
    """
    for family in FAMILIES:
        arm = family.build(name, setup)
        if arm is not None:
            return arm, family
    known = [known for family in FAMILIES for known in family.names]
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else "choose among these"
    raise InputError(f"--arms got {name!r}; expected any of {', '.join(known)}; {hint}")
