from dataclasses import replace

import numpy as np
import pytest
import torch

from driftline.configs.settings import Ranker as RankerSettings
from driftline.model.ranker import Example, Ranker, lots_of

SETTINGS = RankerSettings(hidden=8, members=2, sampled=20, rehearsal_groups=30, rehearsal_steps=2)
F = 6


def request(random, c=80, own_share=0.2):
    """(features, positive, own): the first column makes an item wanted."""
    x = random.standard_normal((c, F)).astype(np.float32)
    chance = np.exp(2 * x[:, 0])
    positive = np.zeros(c, bool)
    positive[random.choice(c, 4, replace=False, p=chance / chance.sum())] = True
    return x, positive, random.random(c) < own_share


def taught(ranker: Ranker, n=150, seed=0) -> Ranker:
    random = np.random.default_rng(seed)
    for _ in range(n):
        ranker.learn(*request(random))
    return ranker


def make(settings=SETTINGS, seed=0, columns=F) -> Ranker:
    return Ranker(settings, np.arange(columns), seed)


def test_a_ranker_learns_what_makes_an_item_wanted():
    ranker = taught(make())
    x, _, _ = request(np.random.default_rng(9))
    for scores in ranker.score(x):
        assert np.corrcoef(scores, x[:, 0])[0, 1] > 0.9


def test_two_rankers_of_one_seed_are_bit_identical_and_other_seeds_differ():
    a, b, c = taught(make()), taught(make()), taught(make(seed=1))
    np.testing.assert_array_equal(a.theta, b.theta)
    assert not np.array_equal(a.theta, c.theta)


def test_a_restored_ranker_continues_bit_identically():
    whole, half = make(), make()
    random_a, random_b = np.random.default_rng(0), np.random.default_rng(0)
    for step in range(80):
        if step == 45:
            arrays = half.arrays("r")
            half = make(seed=7)
            half.restore(arrays, "r")
        whole.learn(*request(random_a))
        half.learn(*request(random_b))
    np.testing.assert_array_equal(whole.theta, half.theta)
    for name, array in whole.arrays("r").items():
        np.testing.assert_array_equal(half.arrays("r")[name], array, err_msg=name)


def test_arrays_without_the_replay_log_score_the_same():
    ranker, other = taught(make()), make(seed=5)
    other.restore(ranker.arrays("r", rehearsal=False), "r")
    x, _, _ = request(np.random.default_rng(3))
    np.testing.assert_array_equal(ranker.score(x), other.score(x))


def reference(ranker: Ranker, x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Logits [n, members, heads] by torch."""
    m, h = SETTINGS.members, SETTINGS.hidden
    sizes = [int(np.prod(shape)) for shape in ranker._shapes.values()]
    w1, b1, w2, skip = (
        part.view(shape) for part, shape in zip(theta.split(sizes), ranker._shapes.values(), strict=True)
    )
    hidden = torch.relu(x @ w1 + b1).view(-1, m, h)
    return torch.einsum("nmh,mhl->nml", hidden, w2) + torch.einsum("nf,mfl->nml", x, skip)


def test_scores_equal_the_network_that_is_trained():
    ranker = taught(make())
    x, _, _ = request(np.random.default_rng(3))
    logits = reference(ranker, torch.from_numpy(x), torch.from_numpy(ranker.mean))
    np.testing.assert_allclose(ranker.score(x), logits.mean(1).T.numpy(), rtol=1e-4, atol=1e-5)


def test_loss_and_gradient_equal_automatic_differentiation():
    ranker = taught(make(), n=40)
    batch = ranker.log[:4]
    theta = torch.from_numpy(ranker.theta.copy()).requires_grad_(True)
    expected = torch.zeros(())
    for one in batch:
        logits = reference(ranker, torch.from_numpy(one.x.astype(np.float32)), theta)
        for head, inside in enumerate((~one.own, one.own, np.ones_like(one.own))):
            if (inside & one.positive).any():
                rows = logits[torch.from_numpy(inside), :, head]
                weighted = rows + torch.from_numpy(one.log_weight[inside])[:, None]
                positive = torch.from_numpy(one.positive[inside])
                expected = expected + (torch.logsumexp(weighted, 0) - rows[positive].mean(0)).sum() * (
                    float(positive.sum()) ** 0.5 / len(batch)
                )
    (gradient,) = torch.autograd.grad(expected, theta)
    loss, got = ranker.loss(batch)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    np.testing.assert_allclose(got, gradient.numpy(), rtol=1e-3, atol=1e-5)


def test_weights_of_sampled_rows_keep_the_sum_of_the_softmax_unbiased():
    ranker = taught(make(SETTINGS.model_copy(update={"sampled": 12})))
    x, positive, _ = request(np.random.default_rng(4), c=200)
    own = np.zeros(200, bool)
    scores = np.exp(ranker.score(x)[0].astype(np.float64))
    full = scores.sum()
    weighted, unweighted = [], []
    for step in range(500):
        ranker.steps = step
        one = ranker.example(x, positive, own)
        drawn = np.exp(ranker.score(one.x.astype(np.float32))[0].astype(np.float64))
        weighted.append((drawn * np.exp(one.log_weight)).sum())
        unweighted.append(drawn.sum())
    assert np.mean(weighted) == pytest.approx(full, rel=0.03)
    assert np.mean(unweighted) < 0.7 * full


def test_the_gradient_of_weighted_hard_negatives_is_that_of_all_rows_and_without_weights_it_is_not():
    settings = SETTINGS.model_copy(update={"sampled": 20, "hard": 0.8})
    ranker = taught(make(settings), n=60)
    x, positive, _ = request(np.random.default_rng(4), c=200)
    own = np.zeros(200, bool)
    all_rows = Example(x.astype(np.float16), np.zeros(200, np.float32), positive, own)
    weighted, unweighted = [], []
    for step in range(200):
        ranker.steps = step
        one = ranker.example(x, positive, own)
        weighted.append(ranker.loss([one])[1])
        unweighted.append(ranker.loss([replace(one, log_weight=np.zeros_like(one.log_weight))])[1])
    full = ranker.loss([all_rows])[1]
    off = [float(np.linalg.norm(np.mean(g, 0) - full) / np.linalg.norm(full)) for g in (weighted, unweighted)]
    assert off[0] < 0.15
    assert off[1] > 3 * off[0]


def test_the_replay_log_is_bounded_and_a_group_without_targets_is_not_logged():
    ranker = taught(make(), n=60)
    assert len(ranker.log) == SETTINGS.rehearsal_groups
    steps = ranker.steps
    x, positive, own = request(np.random.default_rng(1))
    ranker.learn(x, np.zeros_like(positive), own)
    assert ranker.steps == steps


def test_a_ranker_sees_only_its_columns():
    ranker = taught(Ranker(SETTINGS, np.array([0, 2]), 0))
    x, _, _ = request(np.random.default_rng(3))
    other = x.copy()
    other[:, [1, 3, 4, 5]] = 9
    np.testing.assert_array_equal(ranker.score(x), ranker.score(other))


def test_an_empty_pool_scores_to_nothing():
    assert make().score(np.zeros((0, F), np.float32)).shape == (3, 0)


def test_what_is_sampled_of_an_item_depends_on_seed_step_and_item_alone():
    x, positive, _ = request(np.random.default_rng(4), c=200)
    own, scores = np.zeros(200, bool), np.zeros((3, 200), np.float32)
    items = np.random.default_rng(5).permutation(1000)[:200].astype(np.int32)

    def drawn(ranker, keep):
        one = ranker.example(x[keep], positive[keep], own[keep], scores[:, keep], items[keep])
        rows = (x[keep].astype(np.float16)[None] == one.x[:, None]).all(2).argmax(1)
        return set(items[keep][rows[one.log_weight > 0]].tolist())

    settings = SETTINGS.model_copy(update={"hard": 0.0})
    everything, fewer = np.arange(200), np.arange(190)
    whole = drawn(make(settings), everything)
    assert len(whole) == settings.sampled
    assert drawn(make(settings), everything[::-1]) == whole
    assert whole & set(items[fewer].tolist()) <= drawn(make(settings), fewer)  # others only take the places of ten
    later = make(settings)
    later.steps = 1
    assert len(drawn(later, everything) & whole) < settings.sampled / 2
    assert len(drawn(make(settings, seed=1), everything) & whole) < settings.sampled / 2


def test_every_item_is_sampled_equally_often():
    counts = np.zeros(50)
    for step in range(4000):
        counts[np.argsort(lots_of(3, step, np.arange(50)))[:10]] += 1
    assert np.abs(counts / 4000 - 0.2).max() < 0.03


def test_a_column_of_a_part_changes_nothing_before_it_is_learnt_and_nothing_while_it_says_nothing():
    alone = Ranker(SETTINGS, np.arange(F - 1), base=F - 1)
    joined = Ranker(SETTINGS, np.arange(F), base=F - 1)
    random = np.random.default_rng(0)
    x, positive, own = request(random)
    np.testing.assert_allclose(joined.score(x), alone.score(x[:, :-1]), atol=1e-6)
    for _ in range(100):
        x, positive, own = request(random)
        x[:, -1] = 0
        joined.learn(x, positive, own)
        alone.learn(x[:, :-1].copy(), positive, own)
    np.testing.assert_allclose(joined.score(x), alone.score(x[:, :-1]), atol=1e-3)
