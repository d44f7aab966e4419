"""Arms by name: which families of arms exist, and the arm that a name means."""

from __future__ import annotations

import difflib

from driftline.configs.errors import InputError
from driftline.stream.replay.arms import Arm, Family, Setup
from driftline.stream.replay.baselines import SIMPLE_ARMS
from driftline.stream.replay.engine_arms import build as build_engine_arm
from driftline.stream.replay.named import DEFAULT, ENGINE, PEERS
from driftline.stream.replay.named import PAIRS as PAIR_NAMES
from driftline.stream.replay.named import SIMPLE as SIMPLE_NAMES
from driftline.stream.replay.pairs import PAIRS
from driftline.stream.replay.peers.arm import build as build_peer


def _simple(name: str, setup: Setup) -> Arm | None:
    make = (SIMPLE_ARMS | PAIRS).get(name)
    return None if make is None else make()


SIMPLE = Family((*SIMPLE_NAMES, *PAIR_NAMES), _simple, random=False)

FAMILIES = (SIMPLE, Family(tuple(ENGINE), build_engine_arm), Family(tuple(PEERS), build_peer))
"""In the order in which arms appear in reports."""


def default_arms() -> list[str]:
    """The arms that run when none are named."""
    return list(DEFAULT)


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
    hint = f": did you mean {near[0]!r}?" if near else ""
    raise InputError(f"--arms got {name!r}{hint}; expected any of {', '.join(known)}")
