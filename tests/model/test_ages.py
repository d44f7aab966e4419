"""Ages on a scale of one's own: what lies between a minute and a year is told apart where the unit is a minute."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.model.test_engine import DIM, NOW, SETTINGS, TABLE, make, same, stream, view

from driftline.configs.settings import Graph, Settings, Signals
from driftline.graph.memory_net import TimeEncoder
from driftline.model.engine import Engine

MINUTE, DAY = 60_000, 86_400_000


def settings(**signals) -> Settings:
    return SETTINGS.model_copy(update={"signals": Signals(**SETTINGS.signals.model_dump() | signals)})


def learnt(made: Settings) -> Engine:
    engine = make(settings=made)
    for group, before in stream():
        engine.learn(group, before, engine.slate(before, group.t_ms))
    return engine


def columns(engine, ago_ms, name):
    """A column of the items that a user touched so long ago, once."""
    slate = engine.slate(view("u", [(3, NOW - ago_ms)]), NOW)
    return slate.raw[engine.layout.names.index(name), slate.candidates == 3][0]


@pytest.mark.parametrize("unit_days", [1.0, 1 / 1440])
def test_an_age_is_the_logarithm_of_its_units(unit_days):
    engine = learnt(settings(age_unit_days=unit_days))
    for ago_ms in (MINUTE, 60 * MINUTE, DAY, 365 * DAY):
        expected = math.log1p(ago_ms / (unit_days * DAY))
        assert columns(engine, ago_ms, "own_since_last") == pytest.approx(expected + 0.01, rel=1e-4)
        assert columns(engine, ago_ms, "user_since_last") == pytest.approx(math.log1p(24 * ago_ms / (unit_days * DAY)))


def test_a_minute_and_an_hour_are_apart_where_the_unit_is_a_minute_and_hardly_where_it_is_a_day():
    for unit_days, least, most in ((1.0, 0.0, 0.05), (1 / 1440, 3.0, 4.0)):
        engine = learnt(settings(age_unit_days=unit_days))
        apart = columns(engine, 60 * MINUTE, "own_since_last") - columns(engine, MINUTE, "own_since_last")
        assert least < apart < most


def test_personal_half_lives_are_those_of_the_settings():
    engine = learnt(settings(personal_half_lives_days=(1 / 1440, 365.0)))
    own = [name for name in engine.layout.names if name.startswith("own_decayed")]
    assert own == ["own_decayed_0.000694444d", "own_decayed_365d"]
    assert columns(engine, MINUTE, own[0]) == pytest.approx(math.log(0.5 + 1e-3), abs=1e-4)
    assert columns(engine, 365 * DAY, own[1]) == pytest.approx(math.log(0.5 + 1e-3), abs=1e-4)


def test_an_engine_with_a_scale_of_its_own_is_restored_to_the_bit():
    made = settings(age_unit_days=1 / 1440, personal_half_lives_days=(0.01, 3.0))
    engine = learnt(made)
    kept = {name: array.copy() for name, array in engine.arrays().items()}
    other = Engine.from_arrays(made, TABLE, kept)
    same(engine.slate(view("u1", [(1, NOW - DAY)]), NOW), other.slate(view("u1", [(1, NOW - DAY)]), NOW))


def test_half_lives_out_of_order_and_units_out_of_bounds_are_refused():
    with pytest.raises(ValidationError, match=r"personal_half_lives_days .*expected each once, shortest first"):
        Signals(personal_half_lives_days=(3.0, 1.0))
    with pytest.raises(ValidationError, match="age_unit_days"):
        Signals(age_unit_days=0)
    with pytest.raises(ValidationError, match="got shortest_period_h 48 with longest_period_days 2"):
        Graph(shortest_period_h=48, longest_period_days=2)


def test_the_graph_s_periods_go_from_the_shortest_to_the_longest_of_the_settings():
    plain = TimeEncoder(Graph()).w
    assert torch.equal(plain, 2 * math.pi / torch.logspace(math.log10(1 / 24), math.log10(3 * 365), 16))
    fine = 2 * math.pi / TimeEncoder(Graph(shortest_period_h=1 / 60, longest_period_days=30)).w
    assert fine.min().item() == pytest.approx(1 / 1440)
    assert fine.max().item() == pytest.approx(30)


def test_what_a_unit_changes_is_ages_alone():
    day, minute = (learnt(settings(age_unit_days=unit)) for unit in (1.0, 1 / 1440))
    asked = replace(view("u1", [(1, NOW - DAY), (2, NOW - 7 * MINUTE)]), domain="here")
    one, other = day.slate(asked, NOW), minute.slate(asked, NOW)
    np.testing.assert_array_equal(one.candidates, other.candidates)
    differ = {name for name, a, b in zip(day.layout.names, one.raw, other.raw, strict=True) if not np.array_equal(a, b)}
    assert differ == {
        "log_age", "log_since_sold", "item_interval", "trait_span", "trait_since", "item_interval_due", "age_gap",
        "user_since_last", "user_since_first", "user_rhythm", "own_since_last", "own_since_first", "own_elapsed",
    }  # fmt: skip
    assert day.text.dim == DIM
