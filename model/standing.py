"""What a part of the engine is worth, and whether it is on: as numbers, as JSON, as a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Gain:
    """Of one ranking over another, relative.

    Attributes:
        gain: the means' ratio less 1; nan = there was no hit.
        low, high: its bounds, -inf and inf where nothing is known.
        groups: requests compared.
    """

    gain: float
    low: float
    high: float
    groups: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How a part stands.

    Attributes:
        gain: of the present comparison, or of the last one while that is young.
        on: whether it takes part.
        since_ms: time of the event since which that is so, -1 = from the start.
    """

    gain: Gain
    on: bool
    since_ms: int

    def told(self) -> dict[str, Any]:
        """As JSON; None where nothing is known."""
        gain = {name: getattr(self.gain, name) for name in ("gain", "low", "high")}
        known = {name: round(value, 5) if math.isfinite(value) else None for name, value in gain.items()}
        return known | {"groups": self.gain.groups, "on": self.on, "since_ms": self.since_ms}


def sentence(name: str, told: Mapping[str, Any]) -> str:
    """How a part stands for people, from `Standing.told`: "profiles: +0.1% [-0.3, 0.5], off since 2011-03-02"."""

    def percent(value: float | None, sign: str = "") -> str:
        return "?" if value is None else f"{100 * value:{sign}.1f}"

    by = f"{percent(told['gain'], '+')}% [{percent(told['low'])}, {percent(told['high'])}]"
    since = told["since_ms"]
    day = "" if since < 0 else f" since {datetime.fromtimestamp(since / 1000, UTC):%Y-%m-%d}"
    return f"{name}: {by if is_known(told) else 'not known yet'}, {'on' if told['on'] else 'off'}{day}"


def is_known(told: Mapping[str, Any]) -> bool:
    """Whether a standing says anything of the gain."""
    return told["gain"] is not None and (told["low"] is not None or told["high"] is not None)
