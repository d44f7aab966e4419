"""What a catalogue says of its items reaches the filters of the service, and follows what it says later."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from driftline.graph.view import ItemTable
from driftline.serving.filters import Attributes, Filter
from driftline.stream.learn.catalogue import Catalogue
from driftline.stream.learn.item_columns import ItemColumns

IDS = [f"i{n}" for n in range(6)]


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = Catalogue("items", tmp_path)
    take(made, "i0", categories=["lamps", "gifts"], brand="Acme", price=5)
    take(made, "i1", categories=["mugs", "mugs", ""], brand="Zest")
    take(made, "i3", categories=["gifts"], price=0)
    return made


def take(catalogue: Catalogue, item_id: str, **fields: Any) -> None:
    catalogue.take(orjson.dumps({"item_id": item_id, **fields}))


def passing(columns: ItemColumns, catalogue: Catalogue, table: ItemTable, **asked: Any) -> list[str]:
    items = columns.update(catalogue.take_rows(table, 100))
    events = np.array([50, 60, math.nan], np.float32)
    attributes = Attributes(items, events, np.zeros(len(table), np.int32), {}, len(table))
    return [IDS[n] for n in np.flatnonzero(attributes.passing(Filter(**asked)).mask)]


def test_categories_brands_and_prices_are_those_of_the_newest_records(catalogue: Catalogue) -> None:
    table, columns = ItemTable(IDS), ItemColumns()

    def found(**asked: Any) -> list[str]:
        return passing(columns, catalogue, table, **asked)

    assert found(categories=("gifts",)) == ["i0", "i3"]
    assert found(categories=("mugs",)) == ["i1"]
    assert found(excluded_brands=("Acme",)) == IDS[1:]
    assert found(min_price=0.0) == ["i0", "i1", "i3"]
    assert found(max_price=5.0) == ["i0", "i3"], "of i0 the catalogue's price counts, not that of its event"
    take(catalogue, "i0", categories=["tables"], brand="Zest")
    take(catalogue, "i4", categories=["gifts"])
    assert found(categories=("gifts",)) == ["i3", "i4"]
    assert found(brands=("Zest",)) == ["i0", "i1"]
    assert found(min_price=50.0) == ["i0", "i1"], "the catalogue gives i0 no price any more"
    table.add("i6")
    IDS.append("i6")
    assert found(excluded_categories=("gifts",)) == ["i0", "i1", "i2", "i5", "i6"]
