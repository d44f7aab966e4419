"""The items that a profile request names, against loops over the events."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from driftline.graph.rows import EVENT_DTYPE
from driftline.llm.request import RECORD_ITEMS
from driftline.stream.process.requests import _latest


@pytest.mark.parametrize(("n", "items"), [(1, 1), (9, 3), (60, 59), (400, 90), (1024, 5), (1024, 900)])
def test_the_items_last_seen_are_those_of_a_loop_also_where_many_are_as_late_as_the_last(n: int, items: int) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        events = np.zeros(n, EVENT_DTYPE)
        events["item"] = (rng.integers(1, 2**64, items, np.uint64))[rng.integers(0, items, n)]
        events["t"] = np.sort(rng.integers(0, n // 3 + 1, n))
        events["weight"] = rng.choice([-1, 0, 1, 2], n)
        counts, last_ms = Counter[int](), dict[int, int]()
        for event in events:
            last_ms[int(event["item"])] = int(event["t"])
            counts[int(event["item"])] += event["weight"] > 0
        wanted = {key: times for key, times in counts.items() if times}
        latest = sorted((last_ms[key] for key in wanted), reverse=True)
        first_ms = latest[RECORD_ITEMS - 1] if len(latest) > RECORD_ITEMS else 0
        expected = sorted((last_ms[key], key, times) for key, times in wanted.items() if last_ms[key] >= first_ms)
        assert sorted(_latest(events)) == expected
