"""Order of time: rows that come too late are counted as a worker would, and a sort on disk is a stable sort."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftline.stream.events import sort
from driftline.stream.events.files import order_of, read_messages
from driftline.stream.events.order import Order
from driftline.stream.events.produce import event_messages
from driftline.stream.events.sort import sorted_rows
from driftline.stream.process.late import LateWindow

T = 1_600_000_000_000


@settings(max_examples=60)
@given(
    times=st.lists(st.integers(0, 12), max_size=80),
    cuts=st.integers(1, 9),
    run_rows=st.integers(1, 20),
    window=st.integers(1, 9),
)
def test_runs_on_disk_are_merged_as_one_stable_sort(tmp_path_factory, times, cuts, run_rows, window):
    folder = tmp_path_factory.mktemp("runs")
    rows = pa.table({"timestamp_ms": pa.array(times, pa.int64()), "row": pa.array(range(len(times)), pa.int64())})
    batches = [rows.slice(i, cuts).combine_chunks().to_batches()[0] for i in range(0, len(times), cuts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sort, "RUN_BYTES", 16 * run_rows)
        patch.setattr(sort, "WINDOW_ROWS", window)
        tables = list(sorted_rows(batches, folder))
    found = [row for table in tables for row in table["row"].to_pylist()]
    assert found == sorted(range(len(times)), key=lambda row: times[row])
    assert list(folder.iterdir()) == []


@settings(max_examples=60)
@given(times=st.lists(st.integers(0, 50), min_size=1, max_size=60), late_ms=st.integers(1, 20), cuts=st.integers(1, 9))
def test_rows_that_come_too_late_are_those_that_a_worker_only_counts(times, late_ms, cuts):
    order = Order(late_ms)
    for start in range(0, len(times), cuts):
        order.see(np.array(times[start : start + cuts], np.int64))
    window = LateWindow(late_ms, 1_000_000)
    too_late = 0
    for t_ms in times:
        too_late += t_ms < window.watermark_ms - window.late_ms
        window.watermark_ms = max(window.watermark_ms, t_ms)
    newest = np.maximum.accumulate(times)
    assert (order.rows, order.earlier, order.too_late) == (len(times), int((newest > times).sum()), too_late)


def events(path: Path, times: list[int]) -> Path:
    path.write_text(
        "".join(
            f'{{"user_id":"u","item_id":"i{n}","timestamp_ms":{T + t},"colour":{n}}}\n' for n, t in enumerate(times)
        )
    )
    return path


def test_the_order_of_a_file_is_that_of_the_span_that_is_sent(tmp_path):
    path = events(tmp_path / "events.jsonl", [5000, 0, 6000, 7000])
    order = order_of(path, 1000)
    assert (order.rows, order.earlier, order.too_late) == (4, 1, 1)
    assert order_of(path, 1000, since_ms=T + 6000).earlier == 0
    assert order_of(path, 1000, until_ms=T + 5000).earlier == 0
    assert "1 of 4 rows are earlier than a row above them; sent so, 1 (25.0%) would come" in str(order)


def test_sorted_messages_are_the_same_messages_with_their_unknown_fields(tmp_path, monkeypatch):
    monkeypatch.setattr("driftline.stream.events.produce.SORTED_AT_ONCE", 3)
    monkeypatch.setattr(sort, "RUN_BYTES", 1)
    path = events(tmp_path / "events.jsonl", [5, 1, 4, 1, 3, 9, 0])
    as_they_are = list(read_messages(path))
    order = [6, 1, 3, 4, 2, 0, 5]
    assert list(event_messages(path, sort=True)) == [as_they_are[row] for row in order]
