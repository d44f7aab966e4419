"""Byte strings joined with their lengths: undo records and the outbox in the store."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_LENGTH = struct.Struct("<i")


def frame(parts: Sequence[bytes | None]) -> bytes:
    """Length-prefixed concatenation; None is kept apart from the empty string."""
    return b"".join(_LENGTH.pack(-1) if part is None else _LENGTH.pack(len(part)) + part for part in parts)


def unframe(data: bytes) -> list[bytes | None]:
    """The parts that `frame` joined."""
    parts: list[bytes | None] = []
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        parts.append(None if length < 0 else data[at : at + length])
        at += max(length, 0)
    return parts
