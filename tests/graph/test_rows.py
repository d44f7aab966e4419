"""Rows are canonical: what goes in comes out, to the byte."""

from __future__ import annotations

import numpy as np
import pytest

from driftline.graph.rows import (
    EVENT_DTYPE,
    ItemRow,
    UserRow,
    decode_item,
    decode_user,
    encode_item,
    encode_user,
    key64,
    pack_event,
)


def test_a_user_row_survives_its_bytes() -> None:
    rng = np.random.default_rng(0)
    row = UserRow("ünï", *rng.standard_normal((3, 8)).astype(np.float32), actions={7: 2, 3: 1}, domain="UK", version=9)
    row.history += pack_event(key64("i"), 123, 0, 1.0, 2.0, float("nan"), 7)
    again = decode_user(encode_user(row))
    assert encode_user(again) == encode_user(row)
    assert again.user_id == "ünï"
    assert again.events_array()["t"].tolist() == [123]
    assert EVENT_DTYPE.itemsize == 40


def test_an_item_row_survives_its_bytes() -> None:
    row = ItemRow("i", np.arange(4, dtype=np.float32), 5, 1, 3, 0, 1.5, 2.5, bytearray(b"\x00" * 16))
    assert encode_item(decode_item(encode_item(row))) == encode_item(row)


@pytest.mark.parametrize("decode", [decode_user, decode_item])
def test_foreign_bytes_are_refused(decode) -> None:
    with pytest.raises(ValueError, match="not a"):
        decode(b"\x09nonsense")
