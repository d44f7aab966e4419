"""The `driftline` command. It imports nothing heavy itself, so that Ctrl-C is quiet from the first moment on."""

from __future__ import annotations

import sys

INTERRUPTED_EXIT_CODE = 130


def main() -> None:
    """Entry point: see stream/cli."""
    try:
        from stream.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)


if __name__ == "__main__":
    main()
