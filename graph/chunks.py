"""How a user's row lies in a store: a head, which each event changes, and chunks of history, which none does.

    u:USER          the row, but for its events in chunks
    h:USER NUMBER   events NUMBER * CHUNK to (NUMBER + 1) * CHUNK - 1 of the row; NUMBER is 4 bytes, big-endian

So an event writes the head and every CHUNK-th a chunk, whatever the length of the history. Where a history is cut into
chunks depends on the row alone; the oldest may lack events that are older than the history. A row that is written
whole, as all were in earlier releases, is read as it is and is cut when it changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from driftline.configs.errors import StateError
from driftline.graph.rows import EVENT_DTYPE, UserRow, decode_user, encode_user, is_whole

CHUNK = 32
"""Events. Fewer make heads smaller and reading a whole history dearer."""
EVENT_BYTES = EVENT_DTYPE.itemsize
_ROWS = 1000
"""Rows whose chunks are read at once."""


class Readable(Protocol):
    """A sorted map of bytes."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of some keys, None where there is none."""

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """All pairs whose key starts with `prefix`, in order of the keys."""


def user_key(user_id: str) -> bytes:
    """The store's key of a head."""
    return b"u:" + user_id.encode()


def chunk_keys(row: UserRow) -> list[bytes]:
    """The store's keys of the chunks of a head, oldest first."""
    prefix = b"h:" + row.user_id.encode()
    return [prefix + number.to_bytes(4, "big") for number in _numbers(row)]


def cut(row: UserRow, most: int) -> dict[bytes, bytes | None]:
    """Makes a head of a row after events were appended to its history, and keeps so many events as a history may have.

    Args:
        row: changed.
        most: events of a history.

    Returns:
        Chunks that are new, and None for those that are not needed any more.
    """
    tail = len(row.history) // EVENT_BYTES
    if tail == row.events % CHUNK and row.earlier + tail <= most:
        return {}
    before = chunk_keys(row)
    over = max(row.earlier + tail - most, 0)
    dropped = max(over - row.earlier, 0)
    row.earlier, tail = row.earlier - (over - dropped), tail - dropped
    start, moved = row.events - tail, max(tail - row.events % CHUNK, 0)
    events = bytes(memoryview(row.history)[dropped * EVENT_BYTES : (dropped + moved) * EVENT_BYTES])
    del row.history[: (dropped + moved) * EVENT_BYTES]
    row.earlier += moved
    after = dict(zip(chunk_keys(row), _numbers(row), strict=True))
    changes: dict[bytes, bytes | None] = {key: None for key in before if key not in after}
    for key in [key for key in after if key not in before]:
        first, end = max(after[key] * CHUNK - start, 0), (after[key] + 1) * CHUNK - start
        changes[key] = events[first * EVENT_BYTES : end * EVENT_BYTES]
    return changes


def whole(row: UserRow, chunks: Sequence[bytes | None]) -> UserRow:
    """A head with all its events: it becomes the whole row.

    Args:
        row: changed.
        chunks: values of its `chunk_keys`.

    Raises:
        StateError: events are missing.
    """
    if not row.earlier:
        return row
    earlier, size = b"".join(chunk or b"" for chunk in chunks), row.earlier * EVENT_BYTES
    if len(earlier) < size or None in chunks:
        raise StateError(
            f"the row of user {row.user_id!r:.80} is damaged: {len(earlier) // EVENT_BYTES} of its events lie in "
            f"chunks, expected {row.earlier}; move the state directory away to rebuild the partition from the topic"
        )
    row.history, row.earlier = bytearray(earlier[len(earlier) - size :]) + row.history, 0
    return row


def whole_users(store: Readable) -> Iterator[tuple[bytes, bytes]]:
    """Keys and canonical bytes of all user rows, in order of the keys.

    Raises:
        StateError: a row is damaged.
    """
    heads = store.scan(b"u:")
    while some := list(islice(heads, _ROWS)):
        rows = {key: decode_user(value) for key, value in some if not is_whole(value)}
        keys = {key: chunk_keys(row) for key, row in rows.items()}
        chunks = iter(store.get([chunk for its in keys.values() for chunk in its]))
        for key, value in some:
            its = list(islice(chunks, len(keys.get(key, ()))))
            yield key, encode_user(whole(rows[key], its)) if its else value


def _numbers(row: UserRow) -> range:
    end = row.events - len(row.history) // EVENT_BYTES
    return range((end - row.earlier) // CHUNK, end // CHUNK) if row.earlier else range(0)
