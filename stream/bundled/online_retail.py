"""How the bundled files were made from the first sheet of UCI Online Retail II. Needs only numpy and pyarrow.

    python -m driftline.stream.bundled.online_retail SOURCE.parquet [OUT_DIR]

Rows without customer or description are left out. Purchases (quantity > 0) of one minute, customer and item are
one event: quantities are added, the last price counts. Returns (quantity < 0) stay events of their own, with a
positive quantity. An item is its stock code, stripped, upper case; its title and price are the first ones seen, so
that neither knows the future. All purchases of one customer and minute carry the first invoice as their group.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray


def read_source(path: Path) -> dict[str, NDArray[Any]]:
    """Rows with customer, description and a quantity, as arrays [n] in the order of the source."""
    table = pq.read_table(path)
    known = pc.and_(pc.is_valid(table["customer_id"]), pc.is_valid(table["description"]))
    table = table.filter(pc.and_(known, pc.not_equal(table["quantity"], 0)))
    return {
        "t_ms": table["invoice_date"].cast(pa.int64()).to_numpy(),
        "user": table["customer_id"].to_numpy().astype(np.int64),
        "item": np.array([code.strip().upper() for code in table["stock_code"].to_pylist()], object),
        "title": np.array([text.strip() for text in table["description"].to_pylist()], object),
        "invoice": np.array([text.strip() for text in table["invoice"].to_pylist()], object),
        "country": np.array(table["country"].cast(pa.string()).to_pylist(), object),
        "quantity": table["quantity"].to_numpy().astype(np.int64),
        "price": np.round(table["unit_price"].to_numpy().astype(np.float64), 3),
    }


def merge(rows: dict[str, NDArray[Any]]) -> list[tuple[Any, ...]]:
    """Events (user_id, item_id, timestamp_ms, action, value, price, group_id, domain), groups contiguous."""
    arrival: dict[tuple[int, int], int] = {}
    invoice: dict[tuple[int, int], str] = {}
    events: dict[tuple[Any, ...], list[Any]] = {}
    for i in range(len(rows["t_ms"])):
        moment = (int(rows["t_ms"][i]), int(rows["user"][i]))
        first = arrival.setdefault(moment, i)
        quantity = int(rows["quantity"][i])
        bought = quantity > 0
        group = invoice.setdefault(moment, rows["invoice"][i]) if bought else rows["invoice"][i]
        key = (*moment, first, rows["item"][i], -1 if bought else i)
        event = events.setdefault(key, [i, "purchase" if bought else "return", 0, 0.0, group, rows["country"][i]])
        event[2] += abs(quantity)
        event[3] = rows["price"][i]
    ordered = sorted(events.items(), key=lambda entry: (entry[0][0], entry[0][2], entry[1][0]))
    return [
        (str(key[1]), key[3], key[0], action, float(quantity), float(price), group, country)
        for key, (_, action, quantity, price, group, country) in ordered
    ]


def write(rows: dict[str, NDArray[Any]], out: Path) -> tuple[int, int]:
    """Write events.parquet and items.parquet; returns their row counts."""
    user_id, item_id, t_ms, action, value, price, group_id, domain = zip(*merge(rows), strict=True)
    text = pa.dictionary(pa.int32(), pa.string())
    events = pa.table(
        {
            "user_id": pa.array(user_id).cast(text),
            "item_id": pa.array(item_id).cast(text),
            "timestamp_ms": pa.array(t_ms, pa.int64()),
            "action": pa.array(action).cast(text),
            "value": pa.array(value, pa.float32()),
            "price": pa.array(price, pa.float64()),
            "group_id": pa.array(group_id).cast(text),
            "domain": pa.array(domain).cast(text),
        }
    )
    titles: dict[str, tuple[str, float, int]] = {}
    for code, title, first_price, t in zip(rows["item"], rows["title"], rows["price"], rows["t_ms"], strict=True):
        titles.setdefault(code, (title, float(first_price), int(t)))
    items = pa.table(
        {
            "item_id": pa.array(list(titles), pa.string()),
            "title": pa.array([title for title, _, _ in titles.values()], pa.string()),
            "price": pa.array([first_price for _, first_price, _ in titles.values()], pa.float64()),
            "valid_from_ms": pa.array([t for _, _, t in titles.values()], pa.int64()),
        }
    )
    for table, name in ((events, "events.parquet"), (items, "items.parquet")):
        plain = [column for column in table.column_names if not pa.types.is_dictionary(table.schema.field(column).type)]
        pq.write_table(
            table,
            out / name,
            compression="zstd",
            compression_level=19,
            use_dictionary=[c for c in table.column_names if c in ("price", "value") or c not in plain],
            column_encoding={"timestamp_ms": "DELTA_BINARY_PACKED"} if "timestamp_ms" in table.column_names else None,
            row_group_size=1 << 20,
        )
    return events.num_rows, items.num_rows


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent
    written = write(read_source(Path(sys.argv[1])), target)
    print(f"events {written[0]}, items {written[1]}")
