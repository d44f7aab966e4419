"""Near names: similar whatever their case, and cheap however many there are."""

from __future__ import annotations

import time

from driftline.serving.near import meant, near


def test_names_are_near_whatever_their_case_and_far_ones_are_not():
    assert near("gift bag", ["Gift Bags", "lamps", "gift boxes"])[0] == "Gift Bags"
    assert near("xyz", ["Gift Bags", "lamps"]) == []
    assert meant(["lampz", "bagz"], ["bags", "lamps"]) == ["did_you_mean:lamps"]
    assert meant([], ["lamps"]) == []


def test_many_names_cost_no_more_than_some():
    names = [f"{n % 10}{n:07}" for n in range(200_000)]
    began_s = time.process_time()
    assert near("30000013x", names)[0] == "30000013"
    assert time.process_time() - began_s < 1.0
