"""stdout and stderr of every kind: another encoding than UTF-8, closed, a pipe whose reader has gone, a full disk."""

from __future__ import annotations

import errno
import io
import os
import sys

from driftline.configs.errors import DriftlineError


def prepare() -> None:
    """Makes both streams take any text: what their encoding does not have is written as an escape."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:  # closed: no file opened later may become stdout
        os.set_inheritable(handle, True)
    os.close(handle)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the whole process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def finish() -> None:
    """Writes out what stdout still holds. A reader that has gone wants no more, and gets no more.

    Raises:
        DriftlineError, OSError: it can't be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere()
    except OSError as error:
        _to_nowhere()
        raise told(error) from None


def told(error: OSError) -> Exception:
    """A full disk as an error that a user can act on; any other error as it is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    place = error.filename or "the output"
    return DriftlineError(
        f"{place}: can't be written: {error.strerror}; expected room on its disk, make some and retry"
    )


def _to_nowhere() -> None:
    """Python flushes once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
