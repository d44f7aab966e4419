"""A share of the groups is learnt, the others are only counted, as by a trainer that lags."""

import numpy as np
import orjson
import pytest

from driftline.configs.settings import Graph, Model, Ranker, Settings
from driftline.graph.rows import Event
from driftline.stream.bundled import EVENTS
from driftline.stream.events.files import read_columns
from driftline.stream.learn.learner import NoProfiles, StreamLearner, group_of
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.protocol import questions
from driftline.stream.replay.registry import build_arm
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options

SETTINGS = Settings(
    graph=Graph(weights="off"),
    model=Model(dim=8, blocks=1, max_len=20, step_groups=4),
    ranker=Ranker(hidden=8, members=1),
)


def driven(share):
    log = EventLog(read_columns(EVENTS, 800), SETTINGS.action)
    setup = Setup(log, SETTINGS, learn_share=share)
    arms = [build_arm(name, setup)[0] for name in ("incremental", "hstu", "frozen")]
    for request, arrival, _ in questions(log):
        for arm in arms:
            arm.learn(request, arrival)
    return arms


def test_what_is_not_learnt_is_counted_and_in_every_history():
    (all_, *_), (some, hstu, _) = driven(1.0), driven(0.25)
    whole, part = all_.shared.learner, some.shared.learner
    part.apply_waiting()
    assert len(part.engine.arms["incremental"].ranker.log) == pytest.approx(
        len(whole.engine.arms["incremental"].ranker.log) / 4, abs=1
    )
    for name, array in whole.engine.signals.arrays().items():
        np.testing.assert_array_equal(part.engine.signals.arrays()[name], array, err_msg=name)
    users = [key for key in whole.processor.store.data if key.startswith(b"u:")]
    assert users
    assert all(part.processor.store.data[key] == whole.processor.store.data[key] for key in users)
    assert (all_.trained_share, some.trained_share, hstu.trained_share) == (1.0, 0.25, 0.25)


def test_a_replay_says_what_share_was_learnt_and_resumes_no_other(tmp_path):
    def run(share):
        given = Options(
            EVENTS, tmp_path, arms=("ranker",), limit=1500, split=0.7, audit_rows=0, learn_share=share, resume=True
        )
        return replay(given, SETTINGS)

    some, all_ = run(0.2), run(1.0)
    assert (some["protocol"]["learn_share"], all_["protocol"]["learn_share"]) == (0.2, 1.0)
    assert some["arms"]["ranker"]["trained_share"] == 0.2
    assert some["arms"]["ranker"]["overall"]["ndcg@10"] != all_["arms"]["ranker"]["overall"]["ndcg@10"]
    assert some["state_sha256"] == all_["state_sha256"]


def test_groups_that_wait_to_be_counted_change_no_figure(tmp_path, monkeypatch):
    """Nor a profile: they are asked for in the order of the log, and the budget is of one a minute."""
    budget = {"first_events": 5, "refresh_events": 5, "min_interval_ms": 0, "delay_ms": 0, "max_per_minute": 1}
    settings = SETTINGS.model_copy(
        update={
            "profiles": SETTINGS.profiles.model_copy(update=budget),
            "graph": SETTINGS.graph.model_copy(update={"publish_groups": 20, "weights": "trained"}),
        }
    )

    def run(name):
        arms = ("incremental", "frozen", "weekly_frozen", "ranker+profiles", "incremental+noise", "graph")
        given = Options(EVENTS, tmp_path / name, arms=arms, limit=1500, split=0.5, audit_rows=0, learn_share=0.2)
        return replay(given, settings)

    def figures(metrics):
        clocks = ("train_cpu_s", "score_cpu_s", "cost")
        arms = {name: {k: v for k, v in arm.items() if k not in clocks} for name, arm in metrics["arms"].items()}
        return arms, metrics["comparisons"], metrics["protocol"]["profiles"], metrics["state_sha256"]

    counted = StreamLearner._count
    waited = []
    monkeypatch.setattr(StreamLearner, "_count", lambda *given: (waited.append(1), counted(*given))[1])
    some = run("some")
    assert len(waited) > 50
    monkeypatch.setattr(StreamLearner, "_may_be_counted", lambda *_: False)
    each = run("each")
    assert figures(some) == figures(each)


def test_a_profile_that_falls_due_while_groups_wait_is_asked_for_in_its_place():
    budget = {"first_events": 1, "refresh_events": 1, "min_interval_ms": 0, "delay_ms": 0, "max_per_minute": 1}
    settings = SETTINGS.model_copy(update={"profiles": SETTINGS.profiles.model_copy(update=budget)})

    def versions(waits):
        asked = []

        class Noting(NoProfiles):
            made_on_request = True

            def request(self, record):
                asked.append(orjson.loads(record)["as_of_ms"])

            def at(self, user_id, now_ms):
                asked.append((user_id, now_ms))

        learner = StreamLearner(settings, profiles=Noting())
        learner.counted_wait = waits
        for n, (user, second) in enumerate([("C", 0), ("A", 1), ("A", 2), ("B", 70), ("A", 80)]):
            event = Event(user, f"i{n}", 1_600_000_000_000 + 1000 * second, offset=n)
            view = learner.view(user, event.timestamp_ms)
            learner.add_group([event])
            learner.learn(group_of([event], learner.table, settings), [event], view, None)
        return asked

    assert versions(waits=True) == versions(waits=False)
