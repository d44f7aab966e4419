"""What text or a language model made, read by key as of a time; and what stands in for it where an evaluation asks.

    own        at(key, now_ms)
    placebo    what the own one says of another key: who has one, when, and its shape stay
    template   what a rule makes of the key: no model was asked
    off        nothing

Each is an arm of `systems` (configs/switches.py), and each is written here once for all artefacts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np

K = TypeVar("K")
V = TypeVar("V")
K_contra = TypeVar("K_contra", contravariant=True)
V_co = TypeVar("V_co", covariant=True)


class Artefact(Protocol[K_contra, V_co]):
    """Anything that was made of words, by key: an item's text, the profile that answers a request."""

    def at(self, key: K_contra, now_ms: int) -> V_co | None:
        """What holds at an event time, unix milliseconds; None = nothing does. Asking changes nothing."""


class Placebo(Generic[K, V]):
    """Says of each key what another artefact says of another key.

    Args:
        own: the artefact.
        other: the key whose words a key gets; None = it has none. Keys that have none of their own must get None.
    """

    def __init__(self, own: Artefact[K, V], other: Callable[[K], K | None]) -> None:
        self._own, self._other = own, other

    def at(self, key: K, now_ms: int) -> V | None:
        """See Artefact."""
        other = self._other(key)
        return None if other is None else self._own.at(other, now_ms)


class Template(Generic[K, V]):
    """Says what a rule makes of the key alone.

    Args:
        rule: from a key to what is said of it.
    """

    def __init__(self, rule: Callable[[K], V]) -> None:
        self._rule = rule

    def at(self, key: K, now_ms: int) -> V:
        """See Artefact."""
        return self._rule(key)


def shuffled(keys: list[str], seed: int) -> dict[str, str]:
    """Another key for each key, itself for none of two or more: one cycle through all of them."""
    ids = sorted(keys)
    order = np.random.default_rng(seed).permutation(len(ids)).tolist()
    return {ids[a]: ids[b] for a, b in zip(order, order[1:] + order[:1], strict=True)}
