"""`python -m driftline.stream.cli`: `driftline`, but that Ctrl-C while it loads is not quiet."""

from __future__ import annotations

from driftline.stream.cli import main

if __name__ == "__main__":
    main()
