"""Byte strings joined with their lengths: undo records and the outbox in the store."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_LENGTH = struct.Struct("<i")
_TABLE = -2
"""Stands first where a table of all lengths follows. Before, each part came after its own length, which is never it."""


def frame(parts: Sequence[bytes | None]) -> bytes:
    """The lengths of the parts, then the parts; None is kept apart from the empty string."""
    lengths = [-1 if part is None else len(part) for part in parts]
    head = struct.pack(f"<{2 + len(lengths)}i", _TABLE, len(lengths), *lengths)
    return b"".join((head, *filter(None, parts)))


def unframe(data: bytes) -> list[bytes | None]:
    """The parts that `frame` joined, now or before there was a table."""
    if data[: _LENGTH.size] != _LENGTH.pack(_TABLE):
        return _without_table(data)
    (n,) = _LENGTH.unpack_from(data, _LENGTH.size)
    lengths = struct.unpack_from(f"<{n}i", data, 2 * _LENGTH.size)
    parts: list[bytes | None] = []
    at = (2 + n) * _LENGTH.size
    for length in lengths:
        parts.append(None if length < 0 else data[at : (at := at + length)])
    return parts


def _without_table(data: bytes) -> list[bytes | None]:
    parts: list[bytes | None] = []
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        parts.append(None if length < 0 else data[at : at + length])
        at += max(length, 0)
    return parts
