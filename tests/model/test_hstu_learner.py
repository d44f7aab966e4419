"""The sequence learner: streaming equals batch, restore, negatives, order, growth."""

import io

import numpy as np
import pytest
import torch

from driftline.configs.settings import Model
from driftline.graph.view import Group
from driftline.model.batch import build_batch
from driftline.model.loss import draw_candidates, sampled_softmax
from driftline.model.prior import PopularityPrior
from driftline.model.rehearsal import RehearsalLog
from driftline.model.sequence import SequenceLearner, SequenceScorer
from driftline.stream.learn.tree import read_tree, write_tree

DAY_MS = 86_400_000
SETTINGS = Model(dim=16, max_len=12, batch=6, step_groups=2, learning_rate=0.01)
PLAIN: dict[str, object] = {}
SESSIONS = {"untied": True, "gaps": True, "asked_rows": 3, "copying": True}
"""What suits a stream of sessions."""


def group(user, t_ms, items, weight=1.0):
    rows = np.array(items, np.int32)
    ones = np.ones(len(rows), np.float32)
    return Group(user, t_ms, rows, ones * np.float32(weight), ones, ones, np.ones(len(rows), bool))


def stream(n=60, users=5, catalogue=30, seed=0):
    random = np.random.default_rng(seed)
    t_ms = 1_260_000_000_000 + np.sort(random.integers(0, 90 * DAY_MS, n))
    return [
        group(f"u{random.integers(users)}", int(t), random.choice(catalogue, random.integers(1, 5), replace=False))
        for t in t_ms
    ]


def taught(settings=SETTINGS, groups=None, seed=0):
    learner = SequenceLearner(settings, seed)
    for one in groups if groups is not None else stream():
        learner.learn(one)
    return learner


@pytest.mark.parametrize("more", [PLAIN, SESSIONS], ids=["plain", "sessions"])
@pytest.mark.parametrize("backbone", ["hstu", "sasrec"])
def test_a_restored_learner_continues_bit_by_bit(backbone, more):
    settings = SETTINGS.model_copy(update={"backbone": backbone, "full_softmax": 4, "negatives": 7} | more)
    groups = stream(80)
    whole = taught(settings, groups)
    half = taught(settings, groups[:41])
    file = io.BytesIO()
    write_tree(file, half.state_dict())
    file.seek(0)
    restored = SequenceLearner(settings, seed=123)
    restored.load_state_dict(read_tree(file))
    for one in groups[41:]:
        restored.learn(one)
    for name, array in whole.arrays().items():
        assert np.array_equal(array, restored.arrays()[name]), name


def test_two_learners_with_one_seed_are_equal_and_another_seed_differs():
    first, second, third = taught(), taught(), taught(seed=1)
    assert np.array_equal(first.item_matrix(), second.item_matrix())
    assert not np.array_equal(first.item_matrix(), third.item_matrix())


def test_events_observed_one_by_one_encode_as_the_whole_history_does():
    learner = taught()
    for at, items in enumerate(([3, 4], [5], [6, 1, 2])):
        learner.observe(group("new", 1_270_000_000_000 + at * DAY_MS, items))
    items, t_ms = learner.log.history("new")
    assert items.tolist() == [3, 4, 5, 6, 1, 2]
    now_ms = 1_270_000_000_000 + 9 * DAY_MS
    whole = (np.array([3, 4, 5, 6, 1, 2]), 1_270_000_000_000 + DAY_MS * np.array([0, 0, 1, 2, 2, 2]))
    assert np.array_equal(learner.encode([(items, t_ms)], [now_ms]), learner.encode([whole], [now_ms]))


def test_a_training_row_and_a_request_give_the_same_vector():
    learner = taught(SETTINGS.model_copy(update={"average": 0.0}))
    for at, items in enumerate(([3, 4], [5], [6, 1, 2])):
        learner.observe(group("new", 1_270_000_000_000 + at * DAY_MS, items))
    window = learner.log.windows([learner.log.end - 1])[0]
    x = learner.items.vectors()[torch.from_numpy(window.items)][None]
    with torch.no_grad():
        y = learner.backbone(x, torch.from_numpy(window.t_ms)[None])[0, window.rows[-1]]
    request = learner.encode([(window.items, window.t_ms[:-1])], [int(window.t_ms[-1])])[0]
    np.testing.assert_allclose(y.numpy(), request, atol=1e-6)


def test_a_batch_of_users_encodes_as_each_user_alone():
    learner = taught()
    random = np.random.default_rng(4)
    histories = [
        (random.integers(0, 30, n).astype(np.int32), 1_260_000_000_000 + np.sort(random.integers(0, 90 * DAY_MS, n)))
        for n in (0, 3, 12, 40, 1, 7, 9, 2, 5, 12, 6)
    ]
    now_ms = [1_270_000_000_000 + i * DAY_MS for i in range(len(histories))]
    together = learner.encode(histories, now_ms)
    for row, history, now in zip(together, histories, now_ms, strict=True):
        np.testing.assert_allclose(row, learner.encode([history], [now])[0], atol=1e-6)
    assert not together[0].any()


def test_unknown_items_of_a_history_are_skipped():
    learner = taught()
    t_ms = 1_260_000_000_000 + np.arange(4) * DAY_MS
    with_unknown = learner.scores((np.array([1, -1, 2, -1]), t_ms), int(t_ms[-1]) + 1)
    without = learner.scores((np.array([1, 2]), t_ms[[0, 2]]), int(t_ms[-1]) + 1)
    assert np.array_equal(with_unknown, without)


def test_scoring_changes_nothing_that_is_learnt():
    groups = stream()
    silent, asked = SequenceLearner(SETTINGS), SequenceLearner(SETTINGS)
    for one in groups:
        silent.learn(one)
        if len(asked.items):
            asked.scores(asked.log.history(one.user_id), one.t_ms)
        asked.learn(one)
    assert np.array_equal(silent.item_matrix(), asked.item_matrix())


def test_negatives_come_only_from_items_that_were_seen():
    g = torch.Generator().manual_seed(0)
    seen = torch.tensor([9, 2, 5, 7, 11])
    for negatives in (0, 2, 3, 99):
        for _ in range(20):
            drawn = draw_candidates(torch.tensor([5, 2]), seen, negatives, g)
            assert set(drawn.rows_C[drawn.negative_C].tolist()) <= set(seen.tolist())
            assert int(drawn.negative_C.sum()) == (5 if negatives in (0, 99) else negatives)
            assert drawn.rows_C.tolist() == sorted(set(drawn.rows_C.tolist()))


@pytest.mark.parametrize("full_softmax", [0, 8192])
def test_an_item_of_the_table_that_nobody_touched_is_never_trained(full_softmax):
    settings = SETTINGS.model_copy(update={"full_softmax": full_softmax, "negatives": 8})
    learner = SequenceLearner(settings)
    learner.items.grow(40)
    before = learner.items.vectors()[30:].clone()
    for one in stream():
        learner.learn(one)
    assert torch.equal(learner.items.vectors()[30:], before)


def test_all_items_as_sampled_negatives_give_the_full_softmax():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, generator=g)
    row, column, weight = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 4, 0, 5]), torch.tensor([0.5, 0.5, 1.0, 1.0])
    full = draw_candidates(column, torch.arange(6), 0, g)
    expected = -(logits.log_softmax(1)[row, column] * weight).sum() / weight.sum()
    torch.testing.assert_close(sampled_softmax(logits, full, row, column, weight, log_q=True), expected)


def test_another_rows_positive_is_not_a_negative_unless_it_was_drawn():
    g = torch.Generator().manual_seed(0)
    drawn = draw_candidates(torch.tensor([0, 1]), torch.tensor([2, 3, 4, 5]), 2, g)
    logits = torch.zeros(2, len(drawn.rows_C))
    loss = sampled_softmax(logits, drawn, torch.tensor([0, 1]), torch.tensor([0, 1]), torch.ones(2), log_q=False)
    torch.testing.assert_close(loss, torch.tensor(3.0).log())  # two negatives and the row's own positive


def test_equal_times_keep_the_order_of_arrival():
    log = RehearsalLog(10, 20)
    for items in ([5, 1], [9], [2, 0]):
        log.add("u", np.array(items, np.int32), np.ones(len(items), bool), 1000)
    items, _ = log.history("u")
    assert items.tolist() == [5, 1, 9, 2, 0]


def test_a_window_holds_what_came_before_and_asks_at_the_end_of_each_group():
    log = RehearsalLog(10, 3)
    for t_ms, items in ((1, [7, 8]), (2, [8, 9]), (5, [7, 4, 9])):
        log.add("u", np.array(items, np.int32), np.ones(len(items), bool), t_ms)
    window = log.windows([2])[0]
    assert window.items.tolist() == [8, 8, 9]
    assert window.t_ms.tolist() == [1, 2, 2, 5]
    assert window.rows.tolist() == [0, 2]
    assert window.targets.tolist() == [8, 9, 7, 4, 9]
    assert window.counts.tolist() == [2, 3]
    assert window.repeated.tolist() == [True, False, False, False, True]


def test_a_window_of_a_late_group_holds_nothing_that_happened_later():
    log = RehearsalLog(10, 5)
    for t_ms, item in ((1, 7), (5, 8), (3, 9), (0, 4)):
        log.add("u", np.array([item], np.int32), np.ones(1, bool), t_ms)
    late, first = log.windows([2])[0], log.windows([3])[0]
    assert (late.items.tolist(), late.t_ms.tolist(), late.targets.tolist()) == ([7], [1, 3], [9])
    assert (first.items.tolist(), first.targets.tolist()) == ([], [])
    learner = SequenceLearner(SETTINGS)
    for t_ms, item in ((5000, 8), (3000, 9)):
        learner.learn(group("u", t_ms, [item]))
    assert learner.steps == 0  # nothing that a late first event could be predicted from


def test_a_full_log_forgets_the_oldest_groups_and_their_links():
    log = RehearsalLog(3, 20)
    for at in range(8):
        log.add(f"u{at % 2}", np.array([at], np.int32), np.ones(1, bool), at)
    assert log.start == 5
    assert log.history("u0")[0].tolist() == [6]
    assert log.history("u1")[0].tolist() == [5, 7]
    assert [log.has_past(n) for n in range(4, 8)] == [False, False, False, True]
    assert log.windows([7])[0].items.tolist() == [5]


def test_rows_that_undo_something_are_not_read():
    learner = SequenceLearner(SETTINGS)
    learner.observe(group("u", 1000, [1, 2]))
    learner.observe(group("u", 2000, [1], weight=-1.0))
    assert learner.log.history("u")[0].tolist() == [1, 2]


def test_growing_by_doubling_keeps_vectors_and_moments():
    learner = taught()
    before = learner.items.state_dict()
    learner.items.grow(5000)
    after = learner.items.state_dict()
    for name in ("id", "mean", "square", "steps"):
        assert torch.equal(after[name][: len(before[name])], before[name])
    assert len(learner.items) == 5000


def test_a_new_item_starts_near_items_with_the_same_text():
    learner = SequenceLearner(SETTINGS, text_dim=8)
    random = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(40, 8, generator=random), dim=1)
    for row in range(30):
        learner.set_text(row, texts[row].numpy())
    for one in stream(200):
        learner.learn(one)
    learner.set_text(30, texts[3].numpy())
    matrix = learner.item_matrix()
    learner.set_text(31, texts[35].numpy())
    assert float(matrix[30] @ matrix[3]) > float(learner.item_matrix()[31] @ matrix[3])


def test_a_text_vector_of_another_width_is_refused_in_words():
    learner = SequenceLearner(SETTINGS, text_dim=8)
    with pytest.raises(ValueError, match="width 8"):
        learner.set_text(0, np.zeros(9, np.float32))


@pytest.mark.parametrize("more", [PLAIN, SESSIONS], ids=["plain", "sessions"])
def test_a_published_scorer_answers_as_the_learner_did(more):
    learner = taught(SETTINGS.model_copy(update=more))
    arrays = learner.arrays()
    for array in arrays.values():
        array.flags.writeable = False  # as from a memory map
    scorer = SequenceScorer.from_arrays(learner.settings, arrays)
    history = (np.array([3, 4, -1, 5, 9999]), 1_260_000_000_000 + DAY_MS * np.arange(5))
    now_ms = stream()[-1].t_ms  # the popularity of a snapshot is that of its newest event
    known = (history[0][:4], history[1][:4])
    np.testing.assert_allclose(scorer.scores(history, now_ms), learner.scores(known, now_ms), rtol=1e-6, atol=1e-6)
    rows = np.array([5, 0, 3])
    assert np.array_equal(scorer.read(rows), learner.read(rows))
    assert np.array_equal(scorer.popular(), learner.popular())


def test_a_user_without_history_is_ranked_by_recent_popularity():
    learner = taught()
    now_ms = stream()[-1].t_ms
    nobody = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert np.array_equal(learner.scores(nobody, now_ms), learner.prior.logits_now(now_ms, len(learner.items)))


def test_the_prior_of_a_training_row_is_the_popularity_of_its_time():
    prior = PopularityPrior(1.0)
    early, late = 1_260_000_000_000, 1_260_000_000_000 + 30 * DAY_MS
    for at in range(20):
        prior.observe(np.array([0], np.int32), early + at * DAY_MS // 8)
    for at in range(20):
        prior.observe(np.array([1], np.int32), late + at * DAY_MS // 8)
    added = prior.at(np.array([early + 2 * DAY_MS, late + 2 * DAY_MS]), torch.arange(2))
    then, now = (added.shares_SC * added.coefficient)[added.place_R]
    assert then[0] > then[1]
    assert now[1] > now[0]
    np.testing.assert_allclose(now.detach().numpy(), prior.log_share(late + 2 * DAY_MS)[:2], atol=0.7)


def test_decayed_counts_survive_years_without_overflow():
    prior = PopularityPrior(0.5)
    for day in range(0, 2000, 5):
        prior.observe(np.array([day % 3], np.int32), 1_260_000_000_000 + day * DAY_MS)
    assert np.isfinite(prior.logits_now(1_260_000_000_000 + 2001 * DAY_MS, 3)).all()


def test_what_scores_is_the_mean_of_the_last_steps():
    newest, mean = taught(SETTINGS.model_copy(update={"average": 0.0})), taught()
    for name, weight in newest.backbone.state_dict().items():
        assert torch.equal(mean.backbone.state_dict()[name], weight), name  # averaging changes no training
    assert not np.allclose(newest.item_matrix(), mean.item_matrix(), atol=1e-4)
    cosine = (newest.item_matrix() * mean.item_matrix()).sum(1)
    assert cosine.min() > 0.5


def test_shuffling_a_window_keeps_each_group_together_and_its_times():
    log = RehearsalLog(10, 20)
    for t_ms, items in ((1, [7, 8, 3]), (1, [8, 9]), (5, [7, 4, 9])):
        log.add("u", np.array(items, np.int32), np.ones(len(items), bool), t_ms)
    window = log.windows([2])[0]
    batches = [build_batch([window], Model(), np.random.default_rng(seed)) for seed in range(40)]
    orders = {tuple(batch.items[0].tolist()) for batch in batches}
    assert len(orders) == 12
    assert all(set(order[:3]) == {7, 8, 3} and set(order[3:]) == {8, 9} for order in orders)


def test_rows_inside_a_group_are_asked_for_the_rest_of_it_at_its_own_time():
    log = RehearsalLog(10, 20)
    for t_ms, items in ((1000, [7, 8, 3]), (9000, [5])):
        log.add("u", np.array(items, np.int32), np.ones(len(items), bool), t_ms)
    settings = Model(inside_share=1.0, inside_weight=0.5)
    batch = build_batch([log.windows([1])[0]], settings, np.random.default_rng(0))
    (chunk,) = batch.chunks()
    items = chunk.items_BL[0].tolist()
    assert items == batch.items[0].tolist()
    assert chunk.asked.tolist() == batch.asked[0].tolist() == [2, 0, 1]
    assert batch.asked_ms_R.tolist() == [9000, 1000, 1000]
    assert batch.target_T.tolist() == [5, *items[1:], items[2]]
    assert batch.weight_T.tolist() == [1.0, 0.25, 0.25, 0.5]


def test_of_a_window_so_many_rows_are_asked_as_wanted_and_the_newest_is_among_them():
    log = RehearsalLog(20, 20)
    for at in range(12):
        log.add("u", np.array([at, at + 1], np.int32), np.ones(2, bool), 1000 * at)
    windows, asked = log.windows([5, 11, 7]), []
    for seed in range(60):
        random = np.random.default_rng(seed)
        batch = build_batch(windows, Model(asked_rows=3, inside_share=0.5), random)
        assert [len(rows) for rows in batch.asked] == [3, 3, 3]
        assert len(batch.asked_ms_R) == 9
        assert all(len(times) - 2 in rows for rows, times in zip(batch.asked, batch.t_ms, strict=True))
        starts, at = np.searchsorted(batch.row_T.numpy(), np.arange(10)), 0
        for rows, items, times in zip(batch.asked, batch.items, batch.t_ms, strict=True):
            for row in rows:
                targets = batch.target_T[starts[at] : starts[at + 1]].tolist()
                same = times[row] == times[row + 1] and row < len(items) - 1  # inside a group
                following = int(batch.asked_ms_R[at] // 1000)
                assert set(targets) <= ({*items.tolist()} if same else {following, following + 1})
                at += 1
        asked.append(tuple(sorted(batch.asked[-1].tolist())))
    assert len(set(asked)) > 20


@pytest.mark.parametrize("more", [PLAIN, SESSIONS], ids=["plain", "sessions"])
def test_the_loss_falls_on_a_stream_with_a_pattern(more):
    settings = SETTINGS.model_copy(update={"dropout": 0.0, "step_groups": 1} | more)
    learner = SequenceLearner(settings)
    losses = []
    for at in range(200):
        learner.observe(group(f"u{at % 4}", 1_260_000_000_000 + at * DAY_MS, [(at // 4) % 10]))
        losses.append(learner.step())
    assert np.nanmean(losses[-20:]) < 0.3 * np.nanmean(losses[20:40])


def test_a_step_waits_for_its_groups_and_for_its_events_also_over_a_checkpoint():
    settings = SETTINGS.model_copy(update={"step_groups": 2, "step_rows": 7})
    learner, other = SequenceLearner(settings), SequenceLearner(settings)
    sizes, steps = [1, 1, 3, 3, 7, 9, 1, 4, 2], []
    for number, size in enumerate(sizes):
        one = group("u", 1_270_000_000_000 + number * DAY_MS, list(range(size)))
        learner.learn(one)
        steps.append(learner.steps)
        if number == 4:
            other.load_state_dict(learner.state_dict())
        elif number > 4:
            other.learn(one)
    assert steps == [0, 0, 0, 1, 1, 2, 2, 2, 3]
    assert other.steps == learner.steps
