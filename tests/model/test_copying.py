"""Items of the window as terms of their own: what they are, that they learn before the backbone does, what it gains."""

import numpy as np
import pytest
from tests.model.test_hstu_learner import SETTINGS, group

from driftline.model.copying import COSINE, LAST, SHARE, WITHIN, Copying, terms_of
from driftline.model.encode import SequenceScorer
from driftline.model.sequence import SequenceLearner

HOUR_MS, START_MS = 3_600_000, 1_260_000_000_000
USERS, ITEMS = 40, 400
OWN = SETTINGS.model_copy(update={"copying": True, "full_softmax": 0, "negatives": 64, "step_groups": 4})


def comes_back(n=900, seed=0):
    """A stream of users who mostly take again one of six items of their own, never the last one, or else any."""
    random = np.random.default_rng(seed)
    own = random.integers(ITEMS, size=(USERS, 6))
    last = np.full(USERS, -1)
    for at in range(n):
        user = random.integers(USERS)
        item = random.choice(own[user][own[user] != last[user]]) if random.random() < 0.8 else random.integers(ITEMS)
        last[user] = item
        yield group(f"u{user}", START_MS + at * HOUR_MS, [int(item)])


def test_terms_are_of_each_item_once_since_its_newest_event():
    items, terms = terms_of(np.array([5, 2, 5, 9, 2]))
    assert items.tolist() == [2, 5, 9]
    np.testing.assert_allclose(
        terms, [[1, 1, 0, np.log(3)], [1, 0, np.log(3), np.log(3)], [1, 0, np.log(2), np.log(2)]], rtol=1e-6
    )


def test_before_anything_is_learnt_a_logit_is_the_bare_one():
    similarity = np.arange(6, dtype=np.float32)
    assert np.array_equal(Copying().logits(similarity, np.array([1, 4])), similarity)
    assert np.array_equal(Copying().logits(similarity, np.zeros(0, np.int64)), similarity)


def test_a_step_is_one_of_adam_on_the_softmax_over_all_that_the_candidates_stand_for():
    random = np.random.default_rng(0)
    similarity, share = random.normal(size=(2, 5)).astype(np.float32)
    terms, fixed = random.random((5, 4)).astype(np.float32), np.array([0, 0, 0, 3.0, 3.0], np.float32)
    copying, targets = Copying(), np.array([0, 2])

    def loss(weights):
        logits = np.column_stack((similarity, share, terms)) @ weights + fixed
        return np.log(np.exp(logits).sum()) - logits[targets].mean()

    before = copying.weights.copy()
    slope = np.array([(loss(before + h) - loss(before - h)) / 2e-4 for h in 1e-4 * np.eye(6)])
    copying.learn(similarity, share, terms, fixed, targets)
    np.testing.assert_allclose(before - copying.weights, 0.003 * np.sign(slope), rtol=1e-3)  # Adam's first step


def test_who_comes_back_is_offered_what_was_had_and_not_what_was_just_had():
    hits = {True: 0, False: 0}
    learners = {on: SequenceLearner(OWN.model_copy(update={"copying": on})) for on in hits}
    for number, one in enumerate(comes_back()):
        for on, learner in learners.items():
            history = learner.log.history(one.user_id)
            if number > 450 and len(history[0]):
                scores = learner.scores(history, one.t_ms)
                known = one.items[0] < len(scores)
                hits[on] += bool(known) and int((scores > scores[one.items[0]]).sum()) < 6
            learner.learn(one)
    assert hits[True] > 2 * hits[False]
    weights = learners[True].copying.weights
    assert weights[WITHIN] > 0.5
    assert weights[LAST] < -1


def test_weights_learn_from_what_nothing_has_learnt_yet():
    """A backbone that is asked for what it knows by heart is trusted; the same one on new requests is not."""
    random = np.random.default_rng(1)
    learner = SequenceLearner(OWN.model_copy(update={"rehearsal_share": 0.9, "dropout": 0.0}))
    for at in range(900):  # nothing follows from anything
        learner.learn(group(f"u{random.integers(30)}", START_MS + at * HOUR_MS, [int(random.integers(200))]))
    assert learner.copying.weights[COSINE] < 0.5


@pytest.mark.parametrize("backbone", ["hstu", "sasrec"])
def test_a_snapshot_gives_the_same_logits(backbone):
    learner = SequenceLearner(OWN.model_copy(update={"backbone": backbone, "aware": True}))
    for one in comes_back(300):
        learner.learn(one)
    scorer = SequenceScorer.from_arrays(learner.settings, learner.arrays())
    asked = learner.log.history("u3"), START_MS + 299 * HOUR_MS
    np.testing.assert_allclose(scorer.scores(*asked), learner.scores(*asked), rtol=1e-4, atol=1e-4)
    assert np.array_equal(scorer.popular(), learner.popular())
    share = learner.prior.log_share(0, len(learner.items))
    coefficient = learner.prior.coefficient.item() + learner.copying.weights[SHARE]
    np.testing.assert_allclose(learner.popular(), coefficient * share, rtol=1e-5)
    np.testing.assert_allclose(learner.prior.log_share_of(np.array([7, 0]), 0), share[[7, 0]], rtol=1e-6)


def test_a_late_group_is_asked_about_with_what_came_before_it():
    learner = SequenceLearner(OWN)
    for at, item in ((0, 1), (2, 2), (4, 3)):
        learner.observe(group("u", START_MS + at * HOUR_MS, [item]))
    asked = []
    learner.copying.learn = lambda similarity, share, terms, fixed, targets: asked.append(terms)
    learner.learn(group("u", START_MS + 3 * HOUR_MS, [1]))
    assert (asked[0][:, 0] > 0).sum() == 2, "items 1 and 2, not 3"
