"""The bench of the trainer: every row is learnt once, singles are single, and the parts add up."""

import numpy as np
import torch

from driftline.configs.load import load_settings
from driftline.stream.bench.learn import APART_MS, bench_learn, spread
from driftline.stream.bundled import EVENTS
from driftline.stream.events.files import read_columns


def test_rows_from_one_on_stand_alone_and_those_before_stay_where_they_are():
    columns = read_columns(EVENTS, 300)
    moved = spread(columns, 100)
    np.testing.assert_array_equal(moved.t_ms[:100], columns.t_ms[:100])
    assert (np.diff(moved.t_ms) >= 0).all()
    for user in range(len(moved.user_id[1])):
        own = moved.t_ms[100:][moved.user_id[0][100:] == user]
        assert len(np.unique(own)) == len(own)
    assert moved.t_ms[-1] - columns.t_ms[-1] >= APART_MS


def test_the_bench_of_the_trainer_gives_a_group_s_cost_and_its_parts():
    threads = torch.get_num_threads()
    settings = load_settings("ecommerce")
    try:
        figures = bench_learn(settings, warm_rows=200, basket_rows=300, single_rows=40)
    finally:
        torch.set_num_threads(threads)
    assert figures["basket"]["rows"] > 5
    assert figures["single"]["rows"] == 1
    for kind in ("basket", "single"):
        parts = figures[kind]["parts_ms"]
        apart = ("view", "slate", "ranker", "signals", "processor", "hstu: step", "graph: step")
        assert 0 < sum(parts[name] for name in apart if name in parts) <= 1.05 * figures[f"{kind}_ms"]
        assert {"slate", "signals", "processor", "ranker"} <= parts.keys()
