"""`python -m stream.cli` is the `driftline` command."""

from stream.cli import main

main()
