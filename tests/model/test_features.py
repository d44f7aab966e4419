import numpy as np
import pytest

from driftline.configs.settings import Signals
from driftline.model.columns import layout
from driftline.model.standardiser import CLIP, Standardiser

PLUGS = dict.fromkeys(("profiles", "hstu", "graph"), ("score", "rank"))


def test_columns_are_named_once_and_blocks_cover_them():
    columns = layout(
        Signals(half_lives_days=(1.0, 7.0, 30.0)), dict.fromkeys(("profiles", "hstu", "graph"), ("score", "rank"))
    )
    assert len(set(columns.names)) == len(columns.names)
    covered = np.concatenate([np.arange(len(columns.names))[block] for block in columns.blocks.values()])
    np.testing.assert_array_equal(covered, np.arange(len(columns.names)))
    assert list(columns.blocks) == ["base", "profiles", "hstu", "graph"]


def test_a_mask_holds_its_blocks_alone():
    columns = layout(
        Signals(half_lives_days=(1.0, 7.0, 30.0)), dict.fromkeys(("profiles", "hstu", "graph"), ("score", "rank"))
    )
    mask = columns.mask(("base", "graph"))
    assert not mask[columns.blocks["hstu"]].any()
    assert mask[columns.blocks["graph"]].all()
    with pytest.raises(KeyError, match="there are base, profiles, hstu, graph"):
        columns.mask(("memory",))


def test_standardised_columns_have_mean_zero_and_deviation_one():
    random = np.random.default_rng(0)
    standard = Standardiser(np.zeros(3, bool))
    rows = (random.standard_normal((300, 3, 50)) * np.array([1, 10, 0.1])[:, None] + 5).astype(np.float32)
    for raw in rows:
        standard.update(raw, np.ones(raw.shape[1], bool))
    out = standard.apply(np.concatenate(rows, axis=1))
    np.testing.assert_allclose(out.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(out.std(0), 1, atol=0.05)
    assert np.abs(standard.apply(rows[0] * 1000)).max() == CLIP


def test_present_columns_are_standardised_among_what_is_there_and_stay_zero_elsewhere():
    standard = Standardiser(np.array([True]))
    raw = np.zeros((1, 100), np.float32)
    raw[0, :10] = np.linspace(1, 2, 10)
    for _ in range(5):
        standard.update(raw, np.ones(raw.shape[1], bool))
    out = standard.apply(raw)[:, 0]
    assert np.all(out[10:] == 0)
    np.testing.assert_allclose(out[:10].mean(), 0, atol=1e-4)
    np.testing.assert_allclose(out[:10].std(), 1, rtol=1e-3)


def test_statistics_are_fixed_until_a_request_is_learnt():
    standard = Standardiser(np.zeros(2, bool))
    raw = np.arange(20, dtype=np.float32).reshape(2, 10)
    first = standard.apply(raw)
    np.testing.assert_array_equal(first, standard.apply(raw))
    standard.update(raw, np.ones(raw.shape[1], bool))
    assert not np.array_equal(first, standard.apply(raw))


def test_statistics_and_standardised_rows_equal_those_of_whole_arrays():
    random, present = np.random.default_rng(1), np.arange(9) % 3 == 0
    standard, (weight, mean, square) = Standardiser(present), (np.zeros(9), np.zeros(9), np.ones(9))
    for step in range(50):
        raw = (random.standard_normal((9, 130)) * 3 + 2).astype(np.float32)
        raw[:, random.random(130) < (0.7 if step % 5 else 1)] = 0
        rows = random.random(130) < 0.8
        deviation = np.sqrt(np.maximum(square - mean**2, 1e-8)).astype(np.float32)
        out = (raw - mean.astype(np.float32)[:, None]) / deviation[:, None]
        out = np.clip(out, -CLIP, CLIP) * (~present[:, None] | (raw != 0))
        np.testing.assert_allclose(standard.apply(raw), out.T, rtol=1e-6)
        standard.update(raw, rows)
        some = raw[:, rows].astype(np.float64)
        count = np.where(present, np.count_nonzero(some, axis=1), some.shape[1])
        rate = np.where(count > 0, np.maximum(1 / (weight + 1), 1 / 2000), 0)
        mean += rate * (some.sum(1) / np.maximum(count, 1) - mean)
        square += rate * ((some * some).sum(1) / np.maximum(count, 1) - square)
        weight += count > 0
        for name, value in (("weight", weight), ("mean", mean), ("square", square)):
            np.testing.assert_allclose(getattr(standard, name), value, rtol=1e-12)
            setattr(standard, name, value.copy())  # rounding must not tip what follows
