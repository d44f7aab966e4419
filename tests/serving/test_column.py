"""Columns that are unpacked from one snapshot to the next: equal to those that are unpacked from scratch."""

from __future__ import annotations

import numpy as np
import pytest

from driftline.graph.view import ItemTable
from driftline.serving.arrays import pack_strings, unpack_strings
from driftline.serving.column import Column

FIRST = ["a", "ä", "", "ß 2"]


@pytest.mark.parametrize(
    "then",
    [
        FIRST,
        [*FIRST, "new", ""],
        [*FIRST, "a" * 300],
        FIRST[:2],
        [],
        ["a", "å", "", "ß 2"],  # as many bytes
        ["aä", "", "", "ß 2"],  # the same bytes
        ["a", "ä", "", "ß 2x", "y"],
    ],
)
def test_a_column_is_what_unpacking_gives_whatever_came_before(then: list[str]) -> None:
    column = Column("title", str.upper)
    for rows in (FIRST, then, FIRST, then, then):
        assert column.of(pack_strings("title", rows)) == [row.upper() for row in rows]
    assert column.of({}) == []
    assert column.of(pack_strings("title", then)) == [row.upper() for row in then]


def test_what_was_told_before_is_neither_made_again_nor_changed() -> None:
    made: list[str] = []

    def note(row: str) -> str:
        made.append(row)
        return row

    column = Column("id", note)
    first = column.of(pack_strings("id", FIRST))
    assert column.of(pack_strings("id", FIRST)) is first
    longer = column.of(pack_strings("id", [*FIRST, "new"]))
    assert (first, longer) == (FIRST, [*FIRST, "new"])
    assert made == [*FIRST, "new"]


def test_a_column_keeps_rows_of_arrays_that_have_room_to_grow() -> None:
    packed = pack_strings("id", FIRST)
    roomy = {"id.ends": packed["id.ends"], "id.utf8": np.append(packed["id.utf8"], np.zeros(9, np.uint8))}
    column = Column("id")
    assert column.of(roomy) == unpack_strings(roomy, "id") == FIRST
    assert column.of(pack_strings("id", [*FIRST, "new"])) == [*FIRST, "new"]


@pytest.mark.parametrize("ids", [["a", "b"], ["a", "b", "c"], ["a"], [], ["b", "a"], ["x", "y", "z"]])
def test_a_table_after_another_is_that_of_its_ids(ids: list[str]) -> None:
    before = ItemTable(["a", "b"])
    table = ItemTable.after(before, ids)
    assert table.ids == ids
    assert [table.find(one) for one in ids] == list(range(len(ids)))
    assert table.find("q") == -1
    assert (table is before) == (ids == ["a", "b"])
    assert before.ids == ["a", "b"]
    assert before.find("c") == -1
