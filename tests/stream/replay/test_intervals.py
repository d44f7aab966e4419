import numpy as np
import pytest

from driftline.stream.replay.intervals import bootstrap_means, holm, interval, lift_samples, two_sided_p


def test_draws_are_the_same_for_every_arm_so_equal_arms_never_differ():
    rng = np.random.default_rng(0)
    values, user = rng.random(300), rng.integers(0, 40, 300).astype(np.int32)
    samples = bootstrap_means(np.column_stack([values, values])[:, :, None], user)
    assert np.array_equal(samples[:, 0], samples[:, 1])
    assert interval(lift_samples(samples[:, 0], samples[:, 1])) == (0.0, 0.0)


def test_users_are_drawn_whole_so_repeated_rows_of_a_user_do_not_shrink_the_interval():
    rng = np.random.default_rng(1)
    values, user = rng.random(50), np.arange(50, dtype=np.int32)
    once = interval(bootstrap_means(values[:, None, None], user)[:, 0])
    often = interval(bootstrap_means(np.repeat(values, 20)[:, None, None], np.repeat(user, 20))[:, 0])
    assert often == pytest.approx(once)


def test_the_interval_of_a_mean_agrees_with_the_normal_one():
    rng = np.random.default_rng(2)
    values = rng.normal(1.0, 0.5, 2000)
    low, high = interval(bootstrap_means(values[:, None, None], np.arange(2000, dtype=np.int32))[:, 0])
    half = 1.96 * values.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)


def test_a_difference_that_only_some_seeds_show_is_not_sure_and_one_seed_is_never_drawn():
    rng = np.random.default_rng(5)
    base, user = rng.random(3000) + 1.0, np.arange(3000, dtype=np.int32)
    by_seed = np.stack([base * 1.06, base * 0.99, base * 1.02], 1)
    values = np.stack([by_seed, np.repeat(base[:, None], 3, 1)], 1)
    crossed = bootstrap_means(values, user)
    low, high = interval(lift_samples(crossed[:, 0], crossed[:, 1]))
    assert low < 0 < high
    averaged = bootstrap_means(values.mean(2)[:, :, None], user)
    assert interval(lift_samples(averaged[:, 0], averaged[:, 1]))[0] > 0.02


def test_the_spread_between_seeds_is_that_of_their_mean():
    means = np.array([0.9, 1.0, 1.4])
    values = np.tile(means, (50, 1, 1))  # no spread between users
    samples = bootstrap_means(values, np.arange(50, dtype=np.int32), resamples=20_000)[:, 0]
    assert samples.std() == pytest.approx(means.std(ddof=1) / np.sqrt(3), rel=0.03)


def test_the_same_seed_draws_the_same_users():
    values, user = np.random.default_rng(3).random((100, 2, 3)), np.arange(100, dtype=np.int32)
    assert np.array_equal(bootstrap_means(values, user, seed=5), bootstrap_means(values, user, seed=5))
    assert not np.array_equal(bootstrap_means(values, user, seed=5), bootstrap_means(values, user, seed=6))


def test_cutting_the_draws_into_chunks_changes_nothing(monkeypatch):
    values, user = np.random.default_rng(4).random((60, 1, 2)), np.arange(60, dtype=np.int32)
    whole = bootstrap_means(values, user)
    monkeypatch.setattr("driftline.stream.replay.intervals.CHUNK_WEIGHTS", 600)
    assert np.allclose(whole, bootstrap_means(values, user), rtol=1e-12)


def test_holm_agrees_with_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_p_is_small_only_if_one_side_is_rare():
    assert two_sided_p(np.full(999, 0.1)) == pytest.approx(0.002)
    assert two_sided_p(np.array([-1.0, 1.0] * 50)) == 1.0


def test_lifts_over_zero_are_infinite_and_between_zeros_nothing():
    assert lift_samples(np.array([1.0, 0.0]), np.array([0.0, 0.0])).tolist() == [np.inf, 0.0]
