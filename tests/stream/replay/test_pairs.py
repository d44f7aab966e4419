"""Arms that know pairs, which answers are to people never written to, and the graph's own ranking among messages."""

from __future__ import annotations

import numpy as np
from tests.stream.replay.test_protocol import MINUTE, log_of

from driftline.configs.settings import Settings
from driftline.stream.replay.answers import answering, answers
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.pairs import PAIRS
from driftline.stream.replay.protocol import questions, run
from driftline.stream.replay.registry import build_arm
from driftline.stream.replay.results import Saved
from driftline.stream.replay.summary import table

MESSAGES = [("a", "b", 1), ("c", "b", 2), ("b", "c", 3), ("b", "c", 4), ("b", "a", 5), ("d", "a", 6), ("a", "c", 7)]
"""Who wrote to whom and when: `b` answers `c`, writes to it again, answers `a`; `d` and then `a` write to new ones."""
SMALL = Settings.model_validate(
    {
        "graph": {"memory_dim": 8, "message_dim": 8, "embed_dim": 8, "time_dim": 4, "link_hidden": 8},
        "ranker": {"text_dim": 4},
        "model": {"dim": 8, "max_len": 8},
        "signals": {"one_id_space": True},
    }
)


def messages(rows):
    return log_of([(sender, receiver, t * MINUTE) for sender, receiver, t in rows])


def test_answers_are_groups_to_somebody_who_wrote_and_was_never_written_to():
    log = messages([*MESSAGES, ("c", "a", 8), ("c", "a", 9), ("a", "d", 10)])
    assert np.flatnonzero(answering(log)).tolist() == [2, 4, 7, 9]


def test_pairs_rank_those_of_the_last_event_first_and_all_others_alike():
    log = messages(MESSAGES)
    found = {name: [] for name in PAIRS}
    for name, make in PAIRS.items():
        arm = make()
        for request, arrival, _ in questions(log):
            found[name].append(arm.score(request).overall.scores.tolist())
            arm.learn(request, arrival)

    assert log.item_ids == ["b", "c", "a"]
    assert found["own_pairs"][4] == [-1, 4 * MINUTE]  # `a` is no candidate: nobody wrote to it yet
    assert found["reversed_pairs"][3] == [-1, 2 * MINUTE]
    assert found["reversed_pairs"][6] == [5 * MINUTE, -1, -1]  # `d`, who wrote last, can't be written to
    assert found["pairs"][6] == [5 * MINUTE, -1, -1]
    assert found["own_pairs"][6] == [1 * MINUTE, -1, -1]


def conversations(n=250, people=12, seed=0):
    """Somebody writes to somebody new to them; two times of three the answer comes before the next one."""
    rng, rows = np.random.default_rng(seed), []
    for k in range(n):
        a, b = rng.choice(people, 2, replace=False)
        rows.append((f"p{a}", f"p{b}", 60 * k))
        if rng.random() < 0.67:
            rows.append((f"p{b}", f"p{a}", 60 * k + 5))
    return messages(rows)


def ranked(log, names, split=0.5):
    setup = Setup(log, SMALL)
    arms = [build_arm(name, setup)[0] for name in names]
    return run(log, arms, int(log.group_t_ms[int(split * log.groups)]))


def saved(done, result):
    return Saved(done.facts, result, done.split_ms, done.events, done.seconds, (1.0, 1.0), "", None)


def test_the_graph_learns_that_people_answer_and_metrics_say_how_well():
    log = conversations()
    done = ranked(log, ("graph", "graph:random", "own_pairs", "popularity"))
    runs = {name: {0: saved(done, result)} for name, result in done.arms.items()}
    overall = {name: np.nanmean(result.values[:, 0, 3]) for name, result in done.arms.items()}

    assert min(overall["graph"], overall["graph:random"]) > overall["own_pairs"] + 0.1
    found = answers(log, table(runs, 0))
    assert set(found["arms"]) == set(done.arms)
    assert found["n"] == answering(log)[done.facts.number].sum()
    told = {(one["a"], one["b"]) for one in found["comparisons"]}
    assert told == {(arm, "own_pairs") for arm in ("graph", "graph:random", "popularity")} | {("graph", "graph:random")}


def test_a_ranking_of_the_graphs_own_changes_nothing_for_the_engine_and_not_what_the_state_is_said_to_be():
    log = conversations(60)

    def engine(names):
        setup = Setup(log, SMALL)
        arms = [build_arm(name, setup)[0] for name in names]
        done = run(log, arms, int(log.group_t_ms[log.groups // 2]))
        return done.arms["incremental"].values, setup.shared["state_sha256"]()

    alone, state = engine(["incremental"])
    beside, state_beside = engine(["graph", "incremental"])
    np.testing.assert_array_equal(alone, beside)
    assert state == state_beside
