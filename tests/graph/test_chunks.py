"""A history in a head and chunks is the history, wherever it was cut; what is not needed any more is named."""

from __future__ import annotations

import numpy as np
import pytest

from driftline.configs.errors import StateError
from driftline.graph.chunks import CHUNK, chunk_keys, cut, whole
from driftline.graph.rows import EVENT_DTYPE, UserRow, decode_user, encode_user, is_whole

SIZE = EVENT_DTYPE.itemsize


def event(n: int) -> bytes:
    return n.to_bytes(SIZE, "little")


def blank(user_id: str = "u") -> UserRow:
    zeros = np.zeros(4, np.float32)
    return UserRow(user_id, zeros, zeros, zeros)


def grown(events: int, most: int, runs: np.random.Generator | None) -> tuple[UserRow, dict[bytes, bytes]]:
    """A row after so many events in runs of random length (None = one by one), and its chunks in a store."""
    row, store = blank(), dict[bytes, bytes]()
    while row.events < events:
        run = min(events - row.events, 1 if runs is None else int(runs.integers(1, 100)))
        row.history += b"".join(event(row.events + n) for n in range(run))
        row.events += run
        for key, value in cut(row, most).items():
            if value is None:
                del store[key]
            else:
                assert key not in store
                store[key] = value
        assert sorted(store) == chunk_keys(row)
        assert len(row.history) < (CHUNK * SIZE)
    return row, store


@pytest.mark.parametrize("most", [8, 31, 32, 33, 100, 1024])
@pytest.mark.parametrize("events", [1, 31, 32, 33, 64, 150, 1500])
def test_a_history_is_its_newest_events_and_lies_the_same_however_it_grew(events: int, most: int) -> None:
    row, store = grown(events, most, None)
    for seed in range(3):
        other, others = grown(events, most, np.random.default_rng(seed))
        assert encode_user(other) == encode_user(row)
        assert list(others) == chunk_keys(row) == list(store)
        lies = [b"".join(chunks.values())[-SIZE * row.earlier :] for chunks in (others, store)]
        assert lies[0] == lies[1] or not row.earlier
    again = decode_user(encode_user(row))
    assert encode_user(again) == encode_user(row)
    assert is_whole(encode_user(row)) == (row.earlier == 0)
    found = whole(again, [store[key] for key in chunk_keys(row)])
    assert bytes(found.history) == b"".join(map(event, range(max(events - most, 0), events)))
    assert is_whole(encode_user(found))


def test_a_row_that_lay_whole_is_cut_and_one_that_lacks_events_is_refused() -> None:
    row = blank()
    row.events, row.history = 150, bytearray(b"".join(map(event, range(50, 150))))
    chunks = cut(row, 100)
    assert [len(value) // SIZE for value in chunks.values() if value] == [14, 32, 32]
    assert (row.earlier, len(row.history) // SIZE) == (78, 22)
    before = encode_user(row)
    with pytest.raises(StateError, match="64 of its events lie in chunks, expected 78"):
        whole(decode_user(before), [b"", *list(chunks.values())[1:]])
    assert bytes(whole(row, list(chunks.values())).history) == b"".join(map(event, range(50, 150)))


def test_keys_of_chunks_of_different_users_are_different() -> None:
    keys = set[bytes]()
    for user_id in ("a", "a\0\0\0\0", "a\0\0\0\1", "a\0", "ab", "a\1"):
        row = blank(user_id)
        row.events, row.earlier = 96, 96
        keys.update(chunk_keys(row))
    assert len(keys) == 6 * 3
