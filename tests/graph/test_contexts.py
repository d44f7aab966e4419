from datetime import date

import numpy as np
import pytest
from pydantic import ValidationError

from driftline.configs.settings import EVENT_FIELDS, Signals
from driftline.graph.contexts import Contexts, context_of
from driftline.stream.events.checks import EVENT_COLUMNS

HOUR = 3_600_000
ITEMS = np.arange(4, dtype=np.int32)


def made(names=("device", "region"), most=2):
    contexts = Contexts(names, (float(HOUR), 24.0 * HOUR), most, 3)
    contexts.ensure(4)
    return contexts


def add(contexts, context, item, hours):
    contexts.add(context, np.array([item], np.int32), np.ones(1), 1_600_000_000_000 + round(hours * HOUR))


def test_a_value_reads_alike_wherever_it_comes_from():
    names = ("device", "region", "app", "referrer")
    given = {"device": 4, "region": "20", "app": True, "size": 17, "referrer": ["a"]}
    assert context_of(given, names) == ("4", "20", "true", "")
    assert context_of({"device": 4.0, "region": 2.5}, names) == ("4", "2.5", "", "")
    assert context_of(dict(zip(names, ("4.0", "-3.00", "TRUE", " x "), strict=True)), names) == ("4", "-3", "true", "x")
    odd = dict(zip(names, (12345678.25, float("nan"), float("inf"), date(2024, 5, 1)), strict=True))
    assert context_of(odd, names) == ("12345678.25", "", "", "2024-05-01")
    assert context_of({"device": "4.0.1", "region": "x" * 257}, names) == ("4.0.1", "", "", "")
    assert context_of({"device": "2.50", "region": -0.0, "app": "-0.0", "referrer": "007"}, names) == (
        "2.5", "0", "0", "007",
    )  # fmt: skip
    assert context_of(None, names) == ("", "", "", "")
    assert context_of(given, ()) == ()


def test_counts_under_a_value_are_those_of_its_groups_and_fade():
    contexts = made()
    add(contexts, ("phone", "north"), 0, 0)
    add(contexts, ("phone", "south"), 1, 1)
    add(contexts, ("desk", ""), 1, 2)
    phone, north = contexts.of(("phone", "north"))
    at_ms = 1_600_000_000_000 + 2 * HOUR
    now = [[counts.count[row, 0] * counts.fade(at_ms, 0) for row in (0, 1)] for counts in (phone, north)]
    assert now == [[0.25, 0.5], [0.25, 0.0]]
    assert contexts.everybody.count[1, 0] * contexts.everybody.fade(at_ms, 0) == 1.5
    assert contexts.of(("desk",))[1] is None
    assert [rows.tolist() for rows in contexts.best(("phone", "nowhere"))] == [[1, 0], [1, 0]]


def test_a_field_has_room_for_so_many_values_and_each_has_its_own_room():
    contexts = made(most=2)
    for n, device in enumerate(("a", "b", "c")):
        add(contexts, (device, "north"), n, n)
    known = [contexts.of((device, "north"))[0] is not None for device in "abc"]
    assert known == [True, True, False]
    assert contexts.of(("c", "north"))[1] is not None


def test_restored_counts_go_on_to_the_bit():
    whole, half = made(), made()
    for n in range(40):
        if n == 20:
            kept = {name: array.copy() for name, array in half.arrays(4).items()}
            half = made()
            half.restore(kept)
        for contexts in (whole, half):
            add(contexts, (f"d{n % 3}", f"r{n % 5}"), n % 4, 700 * n)  # the origin moves on the way
    arrays = half.arrays(4)
    assert arrays.keys() == whole.arrays(4).keys()
    for name, array in whole.arrays(4).items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_without_fields_nothing_is_counted_or_kept():
    contexts = made(())
    add(contexts, (), 0, 0)
    assert contexts.arrays(4) == {}
    assert contexts.touched() == {}
    assert contexts.best(()) == []


@pytest.mark.parametrize("names", [["value"], ["device", "device"], [" "]])
def test_a_context_of_known_fields_or_twice_the_same_is_refused(names):
    with pytest.raises(ValidationError, match=r"got context .*expected names, each once, of fields that events have"):
        Signals(context=names)


def test_the_fields_that_a_context_can_not_have_are_those_of_the_schema():
    assert set(EVENT_FIELDS) == set(EVENT_COLUMNS)
