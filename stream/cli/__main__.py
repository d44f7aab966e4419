"""`python -m stream.cli`: the same as `driftline`."""

from __future__ import annotations

from stream.cli import main

if __name__ == "__main__":
    main()
