"""Compiles what Python would be slow at, by numba; the machine code is kept between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
"""A division that checks for 0, as Python's does, keeps a loop from working on vectors. `fastmath` stays off: it would
reorder sums, and a row would depend on the processor."""


def compiled(*signatures: str) -> Callable[[Function], Function]:
    """Compiles a function for the given types when it is defined, or loads what an earlier process compiled.

    The machine code lies in NUMBA_CACHE_DIR, else beside the source, else in the user's cache folder. Where nothing can
    be written, or what lies there can't be read, each process compiles for itself, some seconds long. Numba knows the
    code by time and size of the source file, so all that is compiled into a function has to stand in its file, and
    who changes `_OPTIONS` deletes what was compiled (`__pycache__/*.nb?`, or NUMBA_CACHE_DIR): else old code runs.
    """

    return lambda function: kept(function, signatures, _OPTIONS)


def kept(function: Function, signatures: tuple[str, ...], options: dict[str, Any]) -> Function:
    """`compiled` with other options of numba."""
    try:
        made: Function = njit(list(signatures), cache=True, **options)(function)
    except Exception:  # noqa: BLE001 - whatever a damaged cache raises; what the function itself raises comes again
        made = njit(list(signatures), **options)(function)
    return made


def inlined(function: Function) -> Function:
    """Makes a function that is compiled as part of those that call it."""
    made: Function = njit(**_OPTIONS)(function)
    return made
