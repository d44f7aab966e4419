from dataclasses import replace

import numpy as np
from tests.model.test_engine import (
    DAY,
    HISTORY,
    NOW,
    SETTINGS,
    TABLE,
    Plug,
    continues_bit_identically,
    make,
    same,
    stream,
    view,
)

from driftline.configs.settings import Signals
from driftline.model.engine import Engine

SIGNALS = Signals(**SETTINGS.signals.model_dump() | {"context": ["device", "region"], "context_values": 4})
WITH = SETTINGS.model_copy(update={"signals": SIGNALS})


def in_context(groups=80):
    """The stream of the other tests, in which items below 10 are taken on phones and the others at desks."""
    for n, (group, before) in enumerate(stream(groups)):
        context = ("phone" if group.items[0] < 10 else "desk", f"r{n % 6}")
        yield replace(group, context=context), replace(before, context=context)


def taught(engine, groups=80):
    for group, before in in_context(groups):
        engine.learn(group, before, engine.slate(before, group.t_ms))
    return engine


def columns(engine, slate, start):
    names = [n for n, name in enumerate(engine.layout.names) if name.startswith(start)]
    return slate.raw[names]


def test_without_fields_the_columns_and_scores_are_those_of_before():
    plain, named = taught(make()), make(settings=WITH)
    assert "context" not in plain.layout.blocks
    assert named.layout.names[: len(plain.layout.names)] == plain.layout.names
    assert [name for name in named.layout.names if "context" in name][:4] == [
        "context_device_log_share_0.04d", "context_device_log_share_1d", "context_device_log_share_14d",
        "context_device_lift_0.04d",
    ]  # fmt: skip
    asked = view("u1", HISTORY)
    same(plain.slate(asked, NOW), plain.slate(replace(asked, context=("phone", "r1")), NOW))


def test_what_is_taken_under_a_value_has_more_share_there_and_an_unknown_value_says_nothing():
    engine = taught(make(settings=WITH))
    now = 1000 * DAY + 80 * DAY
    phone, desk, other = (
        engine.slate(replace(view("u1", []), context=(device, "")), now) for device in ("phone", "desk", "watch")
    )
    small = other.candidates < 10
    lifts = [columns(engine, slate, "context_device_lift_14d")[0] for slate in (phone, desk, other)]
    on_phone = lifts[0][phone.candidates < 10]
    assert on_phone.mean() > lifts[1][desk.candidates < 10].mean()
    assert not lifts[2].any()
    assert not columns(engine, phone, "context_region_lift").any()
    assert small.any()
    shares = columns(engine, other, "context_device_log_share")
    np.testing.assert_array_equal(shares, columns(engine, other, "context_region_log_share"))  # those of everybody


def test_the_ranker_learns_to_go_by_the_context():
    engine = taught(make(settings=WITH), 300)
    now = 1000 * DAY + 400 * DAY
    share = []
    for device in ("phone", "desk"):
        slate = engine.slate(replace(view("stranger", []), context=(device, "")), now)
        items, _ = slate.top(10)
        share.append(float((items < 10).mean()))
    assert share[0] > share[1]


def test_a_restored_engine_with_context_continues_bit_identically():
    continues_bit_identically(WITH, in_context())


def test_serving_from_a_snapshot_reads_a_context_as_training_does():
    engine = taught(make(settings=WITH))
    snapshot = {name: array.copy() for name, array in engine.arrays(rehearsal=False).items()}
    served = Engine.from_arrays(WITH, TABLE, snapshot, read_only=True)
    for context in (("phone", "r1"), ("desk", ""), ()):
        asked = replace(view("u1", HISTORY), context=context)
        same(engine.slate(asked, NOW), served.slate(asked, NOW))


def test_every_arm_sees_the_context_beside_its_own_blocks():
    engine = Engine(WITH, TABLE, {"one": Plug(1)})
    assert engine.add_arm("ranker", ()).blocks == ("base", "context")
    assert engine.add_arm("ranker+one", ("one",)).blocks == ("base", "one", "context")
