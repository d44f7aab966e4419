"""Reading RocksDB through rocksdict."""

from __future__ import annotations

from collections.abc import Iterator

from rocksdict import Rdict


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
