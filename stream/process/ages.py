"""An index of the users' rows by the time of their last event, in the store: a sweep reads it in place of all rows.

    t:PLACE USER    PLACE is the time and PLACES in 8 bytes, big-endian: a scan meets the oldest rows first
    m:aged          there is such a key for every row

It is kept only while there is a time to live. A store that had none is read through once when it gets one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from driftline.graph.rows import decode_user
from driftline.stream.state.store import StateStore

AGED = b"m:aged"
PLACES = 2
"""A row's place is its time and this: 0 is free for what stands nowhere, as a row without events has time -1."""
_ROWS = 10_000
"""Keys that are written at once."""


def age_key(place: int, user_id: str) -> bytes:
    """The store's key of a row in the index."""
    return b"t:" + place.to_bytes(8, "big") + user_id.encode()


def hold_ages(store: StateStore, ttl_ms: int) -> None:
    """Makes the index of a store that has none, or drops the word that there is one: it is not kept from here on."""
    (aged,) = store.get([AGED])
    if aged is not None and not ttl_ms:
        store.commit({AGED: None})
    if aged is not None or not ttl_ms:
        return
    gone = (key for key, _ in store.scan(b"t:"))
    while some := list(islice(gone, _ROWS)):
        store.commit(dict.fromkeys(some))
    rows = (decode_user(value) for _, value in store.scan(b"u:"))
    while made := [age_key(row.last_update_ms + PLACES, row.user_id) for row in islice(rows, _ROWS)]:
        store.commit(dict.fromkeys(made, b""))
    store.commit({AGED: b"1"})


def older_than(store: StateStore, before_ms: int) -> Iterator[tuple[int, str]]:
    """(time of the last event, user_id) of the rows whose last event is older than `before_ms`, oldest first."""
    for key, _ in store.scan(b"t:"):
        last_ms = int.from_bytes(key[2:10], "big") - PLACES
        if last_ms >= before_ms:
            return
        yield last_ms, key[10:].decode()
