"""Reading RocksDB through rocksdict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rocksdict import AccessType, Options, Rdict

from driftline.serving.lists import check_lists


def open_beside(path: Path, scratch: Path) -> Rdict:
    """A database as of its writer's last commit, whether or not one holds it: a RocksDB secondary.

    Args:
        path: of the database; one that is not there, or not whole, is an error.
        scratch: a folder of this reader alone, for what RocksDB notes about it; may be deleted after the closing.

    Raises:
        StateError: its lists are damaged.
        Exception: it can't be read; rocksdict raises it bare.
    """
    check_lists(path)
    db = Rdict(str(path), Options(raw_mode=True), access_type=AccessType.secondary(str(scratch)))
    db.try_catch_up_with_primary()
    return db


def scan(db: Rdict, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All pairs whose key starts with a prefix, in order. Not by `items()`, which takes a damaged block for the end.

    Raises:
        Exception: what follows can't be read; rocksdict raises it bare.
    """
    rows = db.iter()
    rows.seek(prefix)
    while rows.valid() and (key := rows.key()).startswith(prefix):
        yield key, rows.value()
        rows.next()
    rows.status()
