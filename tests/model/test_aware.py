"""The columns that a ranker which is told more sees of HSTU: the whole logit, and cosines to the newest items."""

import numpy as np
import pytest
from tests.model.test_hstu_learner import SESSIONS, SETTINGS, stream, taught

from driftline.graph.history import history_of
from driftline.graph.view import UserView
from driftline.model.encode import SequenceScorer
from driftline.model.part import Asked
from driftline.model.plugs import NEAR_HALF, NEAR_ITEMS, SequencePlug
from driftline.model.recall import Pool

N = 30
NOW_MS = stream()[-1].t_ms


def view_of(items, gap_ms=3_600_000):
    n = len(items)
    ones, none = np.ones(n, np.float32), np.full(n, np.nan, np.float32)
    t_ms = NOW_MS - gap_ms * np.arange(n, 0, -1, dtype=np.int64)
    return UserView("u", np.array(items, np.int32), t_ms, ones, none, none, np.zeros(n, np.uint64), ones, events=n)


def asked(view, k=5):
    return Asked(view, history_of(view, N), NOW_MS, N, k)


def columns(plug, question, candidates):
    scored = plug.opinion(question)
    pool, place = Pool(candidates, np.zeros(len(candidates), np.uint32), {}), np.full(N, -1, np.int32)
    place[candidates] = np.arange(len(candidates))
    out = np.zeros((len(plug.columns), len(candidates)), np.float32)
    plug.features(question, pool, place, scored, out)
    return scored, dict(zip(plug.columns, out, strict=True))


@pytest.fixture(scope="module")
def learner():
    return taught(SETTINGS.model_copy(update={"aware": True} | SESSIONS))


def test_it_recalls_by_the_whole_logit_and_leaves_out_what_was_touched(learner):
    view = view_of([3, 7, 3, 9])
    scored = SequencePlug(learner).opinion(asked(view))
    logits = learner.scores((view.items, view.t_ms), NOW_MS)[:N]
    np.testing.assert_allclose(scored.scores, logits * SETTINGS.temperature, atol=1e-6)
    untouched = [item for item in np.argsort(-logits) if item not in (3, 7, 9)]
    assert scored.best.tolist() == untouched[:5]


def test_columns_are_the_cosines_to_the_user_and_to_the_newest_distinct_items(learner):
    view, candidates = view_of([3, 7, 3, 9, 12]), np.array([4, 9, 20, 1], np.int32)
    _, of = columns(SequencePlug(learner), asked(view), candidates)
    matrix, user = learner.item_matrix(), learner.encode([(view.items, view.t_ms)], [NOW_MS])[0]
    newest = [12, 9, 3, 7]
    cosines = matrix[candidates] @ matrix[newest].T
    last = learner.read(np.array([12]))[0]
    weight = 0.5 ** (np.arange(4) / NEAR_HALF)
    expected = {
        "cosine": matrix[candidates] @ user,
        "near_best": cosines.max(1),
        "near_top": np.sort(cosines, 1)[:, -3:].mean(1),
        "near_mean": (cosines * weight).sum(1) / weight.sum(),
        "near_last": matrix[candidates] @ last / np.linalg.norm(last),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(of[name], values, atol=1e-5, err_msg=name)
    assert len(set(of["rank"].tolist())) > 1


def test_a_history_longer_than_is_held_against_counts_by_its_newest_items(learner):
    items = np.random.default_rng(0).permutation(N)
    _, long = columns(SequencePlug(learner), asked(view_of(items)), np.arange(N, dtype=np.int32))
    _, short = columns(SequencePlug(learner), asked(view_of(items[-NEAR_ITEMS:])), np.arange(N, dtype=np.int32))
    for name in ("near_best", "near_top", "near_mean", "near_last"):
        np.testing.assert_allclose(long[name], short[name], atol=1e-6)


def test_a_snapshot_says_what_its_learner_says(learner):
    scorer = SequenceScorer.from_arrays(learner.settings, learner.arrays())
    question, candidates = asked(view_of([3, 7, 12])), np.arange(N, dtype=np.int32)
    (one, ours), (other, theirs) = (columns(SequencePlug(z), question, candidates) for z in (learner, scorer))
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, err_msg=name)


def test_who_did_nothing_gets_zeros_and_without_the_setting_there_are_two_columns(learner):
    scored, of = columns(SequencePlug(learner), asked(view_of([])), np.arange(4, dtype=np.int32))
    assert not len(scored.best)
    assert all(not values.any() for values in of.values())
    assert SequencePlug(taught()).columns == ("score", "rank")
