"""Rows of a bounded table: all items while they fit, then the frequent ones and those still used."""

from __future__ import annotations

import numpy as np
import pytest

from driftline.graph.neighbors import PartnerTable
from driftline.graph.slots import LOOKED_AT, Slots

DAY_MS = 86_400_000


def pairs(seed, items, groups, hubs=0):
    """Baskets of distinct items; `hubs` items come in half of them."""
    random = np.random.default_rng(seed)
    for number in range(groups):
        some = random.choice(items, 4, replace=False)
        if hubs and number % 2:
            some[0] = random.integers(hubs)
        yield np.unique(some).astype(np.int32), 1_000 + number * DAY_MS // 10


def table_of(log, items, rows, ttl_ms=0.0, cut=None):
    table = PartnerTable(8, 30 * DAY_MS, rows, ttl_ms)
    for number, (some, t_ms) in enumerate(log):
        table.ensure(min(items, int(some.max()) + 1))
        ones = np.ones(len(some), np.float32)
        table.add(some, some, ones, ones, t_ms)
        if number == cut:
            again = PartnerTable(8, 30 * DAY_MS, rows, ttl_ms)
            again.restore({k: v.copy() for k, v in table.arrays("x").items()}, "x")
            table = again
    return table


def assert_equal(one, other):
    mine, theirs = one.arrays("x"), other.arrays("x")
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert np.array_equal(array, theirs[name]), name


def test_a_table_in_which_all_items_fit_is_the_unbounded_one_to_the_bit():
    log = list(pairs(0, 50, 300))
    bounded, unbounded = table_of(log, 50, 64), table_of(log, 50, 1 << 31)
    assert_equal(bounded, unbounded)
    source, weight = np.arange(50, dtype=np.int32), np.linspace(1, 2, 50, dtype=np.float32)
    for one, other in zip(bounded.sums(source, weight, 50), unbounded.sums(source, weight, 50), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("ttl_days", [0, 3])
@pytest.mark.parametrize("cut", [0, 150, 299])
def test_a_bounded_table_is_equal_for_equal_logs_and_goes_on_to_the_bit_where_it_was_kept(ttl_days, cut):
    log = list(pairs(1, 200, 400, hubs=10))
    once, again = (table_of(log, 200, 40, ttl_days * DAY_MS) for _ in range(2))
    assert_equal(once, again)
    assert_equal(once, table_of(log, 200, 40, ttl_days * DAY_MS, cut))


def test_memory_is_bounded_and_frequent_items_keep_their_partners():
    items, rows = 2000, 64
    table = table_of(pairs(2, items, 3000, hubs=20), items, rows)
    assert table.partner.shape == table.weight.shape == (rows, 8)
    hubs = np.arange(20, dtype=np.int32)
    assert (table.rows.of(hubs) >= 0).all()
    everyone = table.rows.of(np.arange(table.n, dtype=np.int32))
    held = everyone[everyone >= 0]
    assert sorted(held.tolist()) == list(range(rows)), "each row is one item's"
    for hub in hubs:
        found, scores = table.sums(np.array([hub], np.int32), np.ones(1, np.float32), table.n)
        assert len(found)
        assert (scores > 0).all()
        assert hub not in found
    none = np.flatnonzero(everyone < 0)[:5].astype(np.int32)
    assert len(table.sums(none, np.ones(5, np.float32), table.n)[0]) == 0
    assert table.strongest(none, np.ones(5, np.float32), 3) == (-1, 0.0)


def test_what_an_items_row_held_is_gone_when_another_takes_it():
    table = PartnerTable(4, 30 * DAY_MS, 2)
    table.ensure(6)
    ones = np.ones(2, np.float32)
    table.add(np.array([0, 1], np.int32), np.array([0, 1], np.int32), ones, ones, 1)
    for t_ms in (2, 3):
        table.add(np.array([4, 5], np.int32), np.array([4, 5], np.int32), ones, ones, t_ms)
    assert table.rows.of(np.arange(6, dtype=np.int32)).tolist() == [-1, -1, -1, -1, *sorted((0, 1))]
    assert sorted(table.sums(np.array([4, 5], np.int32), ones, 6)[0].tolist()) == [4, 5]


def test_a_row_that_was_not_used_for_longer_than_its_time_to_live_goes_to_whoever_asks():
    frequency = np.array([100.0, 50.0, 1.0], np.float32)
    for ttl_ms, expected in ((0, -1), (1000, 1)):
        slots = Slots(2, ttl_ms)
        slots.ensure(3)
        slots.admit(np.array([0], np.int32), frequency, 5000)
        slots.admit(np.array([1], np.int32), frequency, 3500)
        rows, freed = slots.admit(np.array([2], np.int32), frequency, 5500)
        assert rows.tolist() == [expected]
        assert freed.tolist() == [1] * (expected >= 0)
    assert slots.of(np.arange(3, dtype=np.int32)).tolist() == [0, -1, 1]


def test_a_rare_item_takes_nothing_from_frequent_ones_and_rows_are_looked_at_in_turns():
    n = 3 * LOOKED_AT
    frequency = np.arange(n + 1, 0, -1).astype(np.float32)
    slots = Slots(n, 0)
    slots.ensure(n + 1)
    slots.admit(np.arange(n, dtype=np.int32), frequency, 1)
    newcomer = np.array([n], np.int32)
    assert slots.admit(newcomer, frequency, 2)[0].tolist() == [-1]
    frequency[n] = LOOKED_AT + 1.5  # more than the last turn's least
    taken = [slots.admit(newcomer, frequency, t_ms)[0].tolist() for t_ms in (3, 4)]
    assert taken == [[-1], [n - 1]]
