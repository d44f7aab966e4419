"""What a worker and a backfill say of events that did not reach the state."""

from __future__ import annotations

import pytest
from faust.types import TP

from driftline.stream.ops.metrics import WorkerMetrics
from driftline.stream.ops.sayings import Sayings
from driftline.stream.process.processor import Changes


def test_the_last_count_is_said_at_the_end_where_it_is_not_what_was_said_last(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = WorkerMetrics()
    sayings = Sayings(metrics, 3_600_000)
    for too_late, dead in ((8093, 2), (11_893, 0)):
        metrics.count(Changes(too_late=too_late, dead=dead))
        sayings.outcomes(TP("interactions", 0))
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" events")[0] for line in said if "late_ms" in line] == ["partition 0 of interactions: 8093"]
    caplog.clear()
    sayings.last()
    (last,) = [record.getMessage() for record in caplog.records]
    assert last.startswith("in all: 19986 events so far came too late: more than state.late_ms, 60 min, older")
    caplog.clear()
    sayings.last()
    assert not caplog.records
