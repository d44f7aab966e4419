"""How the bundled games were made: `python -m driftline.stream.convert.named.bundle SOURCE [OUT_DIR]`.

What `driftline convert games` makes, without the descriptions: they may quote their games (stream/bundled/NOTICE.md).
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from driftline.stream.bundled import GAMES
from driftline.stream.convert.named import games, write_made


def bundle(source: Path, out: Path) -> None:
    """Writes the two files that ship."""
    made = games.read(source)
    assert made.items is not None
    with tempfile.TemporaryDirectory(dir=out) as folder:
        write_made(replace(made, items=made.items.drop_columns("text")), Path(folder), compression_level=19)
        for path in (GAMES.events, GAMES.items):
            (Path(folder) / path.name.removeprefix("games_")).replace(out / path.name)


if __name__ == "__main__":
    bundle(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else GAMES.events.parent)
