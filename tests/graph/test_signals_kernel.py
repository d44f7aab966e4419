import numpy as np
from tests.graph import plain_signals

from driftline.graph.counts import DecayedCounts
from driftline.graph.history import DAY_MS
from driftline.graph.neighbors import PartnerTable

DAY = int(DAY_MS)
LIVES = np.array([3 * DAY_MS, 30 * DAY_MS])


def some(random, n, most, alike):
    """Distinct items and their weights, many of them alike where wanted."""
    items = np.sort(random.choice(n, random.integers(1, most), replace=False)).astype(np.int32)
    return items, random.choice([0.5, 1.0], len(items)) if alike else random.random(len(items)) + 0.1


def test_the_largest_are_in_order_after_every_event_ties_and_restarts_included():
    random, n = np.random.default_rng(0), 60
    for alike in (False, True):
        counts = DecayedCounts(tuple(LIVES), top=12)
        counts.ensure(n)
        plain, origin, largest = np.zeros((n, 2)), 1000 * DAY, [np.zeros(0, np.int32)] * 2
        for step in range(400):
            t_ms = origin + (step // 20 if alike else step) * DAY // 4
            items, weight = some(random, n, 9, alike)
            counts.add(items, weight, t_ms)
            plain_signals.add_counts(items, weight, np.exp2((t_ms - origin) / LIVES), plain, largest, 12)
            if step == 200:
                arrays = counts.arrays("c", n)
                arrays["c.top"] = np.sort(arrays["c.top"], 1)  # as older versions wrote it
                counts = DecayedCounts(tuple(LIVES), top=12)
                counts.restore(arrays, "c")
            np.testing.assert_array_equal(counts.count[:n], plain)
            for h in range(2):
                np.testing.assert_array_equal(counts.best()[h], largest[h], err_msg=f"{alike} {step}")


def test_a_new_row_as_large_as_the_smallest_of_the_list_does_not_enter():
    counts = DecayedCounts((DAY_MS,), top=2)
    counts.ensure(4)
    for items in ([3, 2], [1, 0]):
        counts.add(np.array(items, np.int32), np.ones(len(items)), DAY)
    assert counts.best()[0].tolist() == [2, 3]


def test_partners_are_those_of_whole_rows_to_the_slot_ties_included():
    random, n, slots = np.random.default_rng(1), 50, 7
    for alike in (False, True):
        table = PartnerTable(slots, 10 * DAY_MS)
        table.ensure(n)
        partner, weight = np.full((n, slots), -1, np.int32), np.zeros((n, slots), np.float32)
        for step in range(300):
            source, of_source = some(random, n, 9, alike)
            target, of_target = some(random, n, 12, alike)
            of_source, of_target = of_source.astype(np.float32), of_target.astype(np.float32)
            table.add(source, target, of_source, of_target, step * DAY // 4)
            scale = np.float32(2 ** (step * (DAY // 4) / (10 * DAY_MS)))
            plain_signals.add_pairs(source, target, of_source * scale, of_target, partner, weight)
            np.testing.assert_array_equal(table.partner[:n], partner)
            np.testing.assert_array_equal(table.weight[:n], weight)
        assert (partner >= 0).all()
