"""Compiles loops of the models as graph/compiled.py does, but with sums that may use vector units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from driftline.graph.compiled import Function, kept

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
}
"""The order of a sum is the processor's: one and the same for all calls on one machine, as with its BLAS. Numba
does not see a change here: delete what was compiled, as graph/compiled.py says."""


def compiled(*signatures: str) -> Callable[[Function], Function]:
    """Compiles a function for the given types when it is defined, or loads what an earlier process compiled."""
    return lambda function: kept(function, signatures, _OPTIONS)


def inlined(function: Function) -> Function:
    """Makes a function that is compiled as part of those that call it, which stand in its file."""
    made: Function = njit(**_OPTIONS)(function)
    return made
