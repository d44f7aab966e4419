"""Items of the window as terms of their own: what they are, that they learn before the backbone does, what it gains."""

import numpy as np
import pytest
from tests.model.test_hstu_learner import SETTINGS, group

from driftline.model import sequence
from driftline.model.copying import COSINE, LAST, SHARE, WITHIN, Copying, Weighing, terms_of
from driftline.model.encode import PopularItems, SequenceScorer
from driftline.model.sequence import History, SequenceLearner
from driftline.stream.learn.contracts import CHECKS, SETTINGS_OF_A_SHOP, Checks

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


def hours(*at):
    return START_MS + HOUR_MS * np.array(at, np.int64)


def test_terms_are_of_each_item_once_since_its_newest_event():
    items, terms = terms_of(np.array([5, 2, 5, 9, 2]), hours(0, 1, 2, 3, 4))
    assert items.tolist() == [2, 5, 9]
    np.testing.assert_allclose(
        terms,
        [
            [1, 1, 0, np.log(3), 0],
            [1, 0, np.log(3), np.log(3), np.log(2)],
            [1, 0, np.log(2), np.log(2), 0],
        ],
        rtol=1e-6,
    )


def test_what_came_next_after_the_last_one_is_counted_whatever_came_between():
    items, terms = terms_of(np.array([1, 2, 1, 3, 1, 2, 4, 1]), hours(0, 1, 2, 3, 4, 5, 6, 7))
    assert items.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(terms[:, 4], np.log([1, 3, 2, 1]), rtol=1e-6)
    in_baskets = terms_of(np.array([1, 5, 2, 3, 5, 9, 2, 5]), hours(0, 0, 1, 1, 2, 3, 3, 4))
    np.testing.assert_allclose(in_baskets[1][:, 4], np.log([1, 3, 2, 1, 2]), rtol=1e-6)  # of 1, 2, 3, 5, 9
    assert terms_of(np.array([7]), hours(0))[1][:, 4].tolist() == [0]


def test_weights_of_earlier_versions_have_no_more_terms_than_they_knew():
    assert Copying.of(np.arange(1.0, 7.0)).weights.tolist() == [1, 2, 3, 4, 5, 6, 0]
    copying, kept = Copying(), {"weights": np.arange(1.0, 7.0), "mean": np.ones(6), "square": np.ones(6), "steps": 9}
    copying.load_state_dict(kept)
    assert copying.weights.tolist() == [1, 2, 3, 4, 5, 6, 0]
    assert copying.state_dict()["mean"].tolist() == [1] * 6 + [0]


def test_of_a_basket_every_item_is_the_last_one_in_whatever_order():
    (one, terms), (other, shuffled) = (
        terms_of(np.array([4, *basket]), hours(0, 1, 1, 1)) for basket in ([7, 8, 3], [8, 3, 7])
    )
    assert np.array_equal(one, other)
    assert np.array_equal(terms, shuffled)
    assert terms[:, 1].tolist() == [1, 0, 1, 1]
    np.testing.assert_allclose(terms[:, 2], np.log([1, 4, 1, 1]), rtol=1e-6)


def test_before_anything_is_learnt_a_logit_is_the_bare_one():
    similarity = np.arange(6, dtype=np.float32)
    assert np.array_equal(Copying().logits(similarity, np.array([1, 4]), hours(0, 1)), similarity)
    assert np.array_equal(Copying().logits(similarity, np.zeros(0, np.int64), hours()), similarity)


def test_a_step_is_one_of_adam_on_the_softmax_over_all_that_the_candidates_stand_for():
    random = np.random.default_rng(0)
    similarity, share = random.normal(size=(2, 5)).astype(np.float32)
    own, terms, fixed = np.array([1, 2]), random.random((2, 5)).astype(np.float32), np.array([0, 0, 0, 3.0, 3.0])
    copying, targets = Copying(), np.array([0, 2])

    def loss(weights):
        logits = weights[0] * similarity + weights[1] * share + fixed
        logits[own] += terms @ weights[2:]
        return np.log(np.exp(logits).sum()) - logits[targets].mean()

    before = copying.weights.copy()
    slope = np.array([(loss(before + h) - loss(before - h)) / 2e-4 for h in 1e-4 * np.eye(7)])
    copying.learn(Weighing(similarity, share, fixed.astype(np.float32), own, terms, targets))
    np.testing.assert_allclose(before - copying.weights, 0.003 * np.sign(slope), rtol=1e-3)  # Adam's first step


@pytest.mark.parametrize(("often", "right"), [(0.1, 0.02), (0.01, 0.003)])
def test_what_is_rare_gets_the_share_that_it_has(often, right):
    random, copying, shares = np.random.default_rng(0), Copying(), []
    nothing, once = np.zeros(50, np.float32), np.array([[1, 0, 0, 0, 0]], np.float32)
    for step in range(8000):
        target = 0 if random.random() < often else random.integers(1, 50)
        copying.learn(Weighing(nothing, nothing, nothing, np.array([0]), once, np.array([target])))
        if step > 6000:
            weight = np.exp(copying.weights[WITHIN])
            shares.append(weight / (weight + 49))
    assert np.mean(shares) == pytest.approx(often, abs=right)


def test_it_is_not_trusted_less_than_not_at_all():
    copying, one = Copying(), np.array([1, 0], np.float32)
    nothing, none = np.zeros(2, np.float32), np.zeros((0, 5), np.float32)
    for _ in range(2000):
        copying.learn(Weighing(one, nothing, nothing, np.zeros(0, np.int64), none, np.array([1])))
    assert copying.weights[COSINE] == 0


@pytest.mark.parametrize("sampled", [False, True])
def test_a_group_is_weighed_before_anything_of_it_is_learnt(sampled, monkeypatch):
    if sampled:
        monkeypatch.setattr(sequence, "WEIGHED", 10)
    learner, seen = SequenceLearner(OWN.model_copy(update={"step_groups": 1})), []
    for one in comes_back(60):
        learner.learn(one)
    learn = learner.copying.learn

    def spy(asked):
        seen.append((asked, learner.steps, learner.log.end, len(learner.items)))
        learn(asked)

    learner.copying.learn = spy
    history, now_ms = learner.log.history("u3"), START_MS + 60 * HOUR_MS
    window, t_ms = history
    target = next(item for item in range(len(learner.items)) if item not in window)
    cosines = learner.item_matrix() @ learner.encode([history], [now_ms])[0]
    share = learner.prior.log_share(now_ms, len(learner.items))
    steps, groups, items = learner.steps, learner.log.end, len(learner.items)
    coefficient = np.float32(learner.prior.coefficient.item())
    learner.learn(group("u3", now_ms, [target, items + 5]))
    ((asked, *then),) = seen
    assert then == [steps, groups, items]
    assert learner.steps == steps + 1
    own, terms = terms_of(window, t_ms)
    rows = np.union1d(own, target) if sampled else np.arange(items)
    np.testing.assert_allclose(asked.similarity_C[: len(rows)], cosines[rows] / OWN.temperature, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(asked.share_C[: len(rows)], share[rows], rtol=1e-5)
    assert rows[asked.own].tolist() == own.tolist()
    assert np.array_equal(asked.terms, terms)
    assert rows[asked.targets].tolist() == [target]
    counts = np.exp(asked.fixed_C - coefficient * asked.share_C)
    assert counts.sum() == pytest.approx(items, rel=1e-4)


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
    assert weights[LAST] < -0.3


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


@pytest.mark.parametrize("given", [False, True])
def test_a_late_group_is_asked_about_with_what_came_before_it(given):
    learner, asked = SequenceLearner(OWN), []
    for at, item in ((0, 1), (2, 2), (4, 3)):
        learner.observe(group("u", START_MS + at * HOUR_MS, [item]))
    learner.copying.learn = asked.append
    history = History(*learner.log.history("u"), "u", 0) if given else None
    learner.learn(group("u", START_MS + 3 * HOUR_MS, [1]), history)
    assert asked[0].own.tolist() == [1, 2]


def test_what_a_request_reads_is_what_the_weights_learn_from():
    """The user's own history where it is given, though the rehearsal log has forgotten most of it."""
    learner, asked = SequenceLearner(OWN.model_copy(update={"rehearsal_groups": 4})), []
    for at in range(9):
        learner.observe(group("u" if at < 7 else "v", START_MS + at * HOUR_MS, [at]))
    learner.copying.learn = asked.append
    learner.learn(group("u", START_MS + 9 * HOUR_MS, [8]), History(np.arange(7), hours(*range(7)), "u", 0))
    assert asked[0].own.tolist() == list(range(7))


@pytest.mark.parametrize("more", [3.0, -3.0])
def test_an_unknown_item_is_as_popular_as_the_rarest_whatever_popularity_is_worth(more):
    popular = PopularItems(more * np.log(np.array([0.01, 0.3, 0.69], np.float32)))
    logits = popular.of(5)
    assert logits[3] == logits[4] == logits[0]
    assert popular.of(5, np.array([4, 1, 0], np.int32)).tolist() == [logits[0], logits[1], logits[0]]
    assert popular.of(2).tolist() == logits[:2].tolist()
    assert PopularItems(np.zeros(0, np.float32)).of(3).tolist() == [0.0] * 3


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    more = {"copying": True, "aware": True, "untied": True, "asked_rows": 4, "full_softmax": 0}
    settings = SETTINGS_OF_A_SHOP.model_copy(update={"model": SETTINGS_OF_A_SHOP.model.model_copy(update=more)})
    return Checks("hstu", tmp_path_factory.mktemp("copying"), settings)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_part_that_copies_keeps_the_contract(checks, check):
    check(checks)
