"""The `driftline` command. It imports nothing heavy itself, so that Ctrl-C is quiet from the first moment on."""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED_EXIT_CODE = 130  # that of configs/errors.py, which is not loaded yet


def main() -> None:
    """Entry point: see stream/cli."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # an exception may get lost in what modules do while they load
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED_EXIT_CODE))
    from driftline.stream.cli import main as run

    signal.signal(signal.SIGINT, handler)
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)


if __name__ == "__main__":
    main()
