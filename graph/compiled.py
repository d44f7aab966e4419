"""Compiles what Python would be slow at, by numba; the machine code is kept between processes."""

from __future__ import annotations

import fcntl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
"""A division that checks for 0, as Python's does, keeps a loop from working on vectors. `fastmath` stays off: it would
reorder sums, and a row would depend on the processor."""
LOOK_S = 0.02
"""Between two looks whether another process still compiles."""
SAYS_S = 5.0
"""Of compiling, before and between two lines that say so."""
_waits_s = 60.0
"""At most for a function that another process compiles."""


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
    source = Path(function.__code__.co_filename)
    began_s = time.monotonic()
    try:
        made: Any = njit(cache=True, **options)(function)
        with nullcontext() if _may_be_there(made, source, function) else _alone(source):
            began_s = time.monotonic()
            for signature in signatures:
                made.compile(signature)
        made.disable_compile()
        new = bool(made.stats.cache_misses)
    except Exception:  # noqa: BLE001 - whatever a damaged cache raises; what the function itself raises comes again
        made, new = njit(list(signatures), **options)(function), True
    if new:
        _told.compiled(time.monotonic() - began_s)
    return made  # type: ignore[no-any-return]


def _may_be_there(made: Any, source: Path, function: Callable[..., Any]) -> bool:
    """Whether machine code of a function lies there that is newer than its source."""
    name = f"{source.stem}.{function.__qualname__.replace('<', '').replace('>', '')}-{function.__code__.co_firstlineno}"
    index = Path(made.stats.cache_path, f"{name}.py{sys.version_info[0]}{sys.version_info[1]}{sys.abiflags}.nbi")
    return index.exists() and index.stat().st_mtime > source.stat().st_mtime


@contextmanager
def _alone(source: Path) -> Iterator[None]:
    """Lets one process compile at a time, whose work the others then find; one that waited in vain waits no more.

    Args:
        source: file of the function; where nothing can be written or locked beside it nobody waits.
    """
    global _waits_s
    try:
        folder = source.resolve(strict=True).parent / "__pycache__"
        folder.mkdir(exist_ok=True)
        file = (folder / "compiling.lock").open("ab")
    except OSError:
        yield
        return
    with file:
        until_s = time.monotonic() + _waits_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    _waits_s = 0.0
                    break
                time.sleep(LOOK_S)
            except OSError:  # some file systems know no locks
                break
        yield


class _Told:
    """Says on stderr that a process compiles, where that takes long."""

    def __init__(self) -> None:
        self._functions, self._seconds, self._said_s = 0, 0.0, 0.0

    def compiled(self, seconds: float) -> None:
        """Takes note of a function that was compiled here."""
        self._functions, self._seconds = self._functions + 1, self._seconds + seconds
        if self._seconds - self._said_s >= SAYS_S:
            so_far = f"{self._functions} function{'s' if self._functions > 1 else ''} so far"
            words = f"compiling machine code, once for each version of the code: {so_far}"
            print(words, file=sys.stderr, flush=True)
            self._said_s = self._seconds


_told = _Told()


def inlined(function: Function) -> Function:
    """Makes a function that is compiled as part of those that call it."""
    made: Function = njit(**_OPTIONS)(function)
    return made
