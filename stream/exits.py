"""How a process of driftline ends: one message for what a user can mend, a traceback for what only we can."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from driftline.configs.errors import UNEXPECTED_EXIT_CODE, DriftlineError


def report(error: BaseException) -> int:
    """Writes an error to stderr; returns the exit code that goes with it."""
    if isinstance(error, DriftlineError):
        print(f"driftline: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    traceback.print_exception(error, file=sys.stderr)
    print("driftline: ends on an unexpected error", file=sys.stderr, flush=True)
    return UNEXPECTED_EXIT_CODE


def end_process(error: BaseException) -> NoReturn:
    """Ends the process now, whatever else runs in it.

    Nothing is closed or flushed beyond the log: what counts was committed before, and a framework that goes on past
    an error would step over the events that caused it.
    """
    code = report(error)
    sys.stdout.flush()
    os._exit(code)
