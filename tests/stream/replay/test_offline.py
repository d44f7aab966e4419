"""Training offline before each week: by epochs, validated on the past's own end, blind to what comes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from driftline.configs.settings import Settings
from driftline.model.copying import Copying
from driftline.model.engine import MAIN
from driftline.stream.bundled import EVENTS, ITEMS
from driftline.stream.events.files import read_columns
from driftline.stream.replay import frozen_arms
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.audit import AUDITS
from driftline.stream.replay.engine_pass import EnginePass, answer
from driftline.stream.replay.forecast import forecast
from driftline.stream.replay.frozen_arms import RetrainArm, WeeklyFrozenArm, weeks_from
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.offline import MOST_EPOCHS, PATIENCE, before_slice, fit, settings_of_pass, until_worse
from driftline.stream.replay.protocol import questions
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options, read

SETTINGS = Settings.model_validate(
    {"model": {"dim": 16, "max_len": 30}, "ranker": {"hidden": 8, "members": 1}, "graph": {"weights": "off"}}
)


@pytest.mark.parametrize(
    ("losses", "best"), [([3, 2, 1, 4, 5, 0], 3), ([1, 2, 3], 1), ([np.inf] * 9, 1), (range(99, 0, -1), MOST_EPOCHS)]
)
def test_training_ends_when_the_validation_stops_improving(losses: Sequence[float], best: int) -> None:
    left = iter(losses)
    epochs: list[int] = []
    assert until_worse(lambda: epochs.append(1), lambda: next(left)) == best
    assert len(epochs) == min(best + PATIENCE, MOST_EPOCHS)


def test_hstu_and_ranker_are_trained_on_all_of_the_past_for_the_epochs_that_its_end_asked_for() -> None:
    log = EventLog(read_columns(EVENTS, 2500), SETTINGS.action)
    past = [(request, arrival) for request, arrival, _ in questions(log)]
    made = EnginePass(Setup(log, SETTINGS), settings_of_pass(SETTINGS, len(past)))
    ranker = made.learner.engine.arms[MAIN].ranker
    epochs = fit(made.learner, made.learn, past)
    fitted = made.learner.engine.arms[MAIN].ranker
    per_step = 1 + SETTINGS.ranker.rehearsal_steps
    assert fitted.steps == epochs["ranker"] * -(-len(ranker.log) // per_step)
    assert made.learner.sequence is not None
    assert made.learner.sequence.steps >= epochs["hstu"]
    assert made.learner.sequence.log.end == sum((arrival.group.weight > 0).any() for _, arrival in past)
    assert made.learner.engine.plugs["hstu"].encoder is made.learner.sequence  # type: ignore[attr-defined]


def test_the_terms_of_items_had_lately_are_weighed_on_what_the_backbone_had_not_learnt() -> None:
    settings = SETTINGS.model_copy(update={"model": SETTINGS.model.model_copy(update={"copying": True})})
    log = EventLog(read_columns(EVENTS, 2500), settings.action)
    past = [(request, arrival) for request, arrival, _ in questions(log)]
    made = EnginePass(Setup(log, settings), settings_of_pass(settings, len(past)))
    fit(made.learner, made.learn, past)
    sequence = made.learner.sequence
    assert sequence is not None
    assert sequence.copying is not None
    asked = sequence.copying.state_dict()["steps"]
    assert 0 < asked <= len(past) - before_slice(len(past))
    assert np.abs(sequence.copying.weights - Copying().weights).max() > 0


@pytest.mark.parametrize("kind", [RetrainArm, WeeklyFrozenArm])
def test_a_pass_that_goes_on_from_week_to_week_equals_one_from_scratch_for_each(
    kind: type[WeeklyFrozenArm], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(read_columns(EVENTS, 2500), SETTINGS.action)
    asked = [(request, arrival) for request, arrival, _ in questions(log)]
    starts = [int(log.group_t_ms[100]), int(log.group_t_ms[125]), int(log.group_t_ms[150])]
    monkeypatch.setattr(frozen_arms, "WEEK_MS", starts[1] - starts[0])
    told: list[tuple[str, int, int]] = []
    setup = Setup(log, SETTINGS, say=lambda *step: told.append(step))
    arm = kind(EnginePass(setup, settings_of_pass(SETTINGS, log.groups), share=1.0))
    arm.start(starts[0])
    trained: list[object] = []
    for number, (request, arrival) in enumerate(asked):
        if request.t_ms >= starts[0]:
            slate = arm.score(request)
            if not trained or arm._current is not trained[-1]:
                trained.append(arm._current)
                past = asked[:number]
                fresh = EnginePass(Setup(log, SETTINGS), settings_of_pass(SETTINGS, len(past)), share=1.0)
                if kind is RetrainArm:
                    fit(fresh.learner, fresh.learn, past)
                else:
                    for earlier in past:
                        fresh.learn(*earlier)
                fresh.learner.freeze()
                np.testing.assert_array_equal(slate.overall.scores, answer(fresh, request, MAIN).overall.scores)
        arm.learn(request, arrival)
    assert len(trained) >= 3
    weeks = [(done, total) for what, done, total in told if what == f"{arm.name}: weeks"]
    assert weeks[0][0] == 0
    assert weeks == sorted(weeks)
    assert len(weeks) == 2 * len(trained)
    assert weeks[-1] == (weeks[0][1],) * 2


def test_copies_of_a_pass_share_what_items_say_and_the_examples_and_nothing_that_learns() -> None:
    settings = SETTINGS.model_copy(update={"systems": {"labels": "on"}})
    log = EventLog(read_columns(EVENTS, 2500), settings.action)
    one = EnginePass(Setup(log, settings), settings_of_pass(settings, log.groups))
    for request, arrival, _ in questions(log):
        one.learn(request, arrival)
    other = one.copied()
    assert other.setup is one.setup
    assert other.learner.texts is one.learner.texts
    assert other.learner.labels is one.learner.labels
    rankers = [each.learner.engine.arms[MAIN].ranker for each in (one, other)]
    assert rankers[0].log[0] is rankers[1].log[0]
    assert rankers[0].log is not rankers[1].log
    assert not np.shares_memory(rankers[0].theta, rankers[1].theta)
    assert other.learner.processor.store is not one.learner.processor.store


def test_retraining_knows_nothing_of_what_comes_is_charged_and_is_another_arm_than_a_weekly_freeze(
    tmp_path: Path,
) -> None:
    given = Options(EVENTS, tmp_path, ITEMS, ("weekly_frozen", "retrain"), 0.85, limit=700, audit_rows=500)
    metrics = replay(given, SETTINGS)
    assert {metrics["leak_audit"][name] for name in AUDITS} == {"pass"}
    weekly, offline = metrics["arms"]["weekly_frozen"], metrics["arms"]["retrain"]
    assert min(offline["train_cpu_s"], weekly["train_cpu_s"]) > 0
    assert offline["note"].startswith("HSTU and ranker trained 1 times from scratch; their epochs: ")
    assert offline["overall"]["mrr"] != weekly["overall"]["mrr"]


def test_what_is_said_before_the_first_group_counts_the_trainings_of_all_weeks(tmp_path: Path) -> None:
    options = Options(EVENTS, tmp_path, None, ("retrain",), 0.85)
    data = read(options, Settings())
    weeks = weeks_from(data.split_ms, data.log)
    assert weeks == 5
    early = int(data.log.group_t_ms[0])
    without = early - 10 * frozen_arms.WEEK_MS
    assert weeks_from(without, data.log) == weeks_from(early, data.log), "a week without groups is no training"
    assert "As a rule 4 min to 20 min in all" in forecast(data, {"incremental": True}, options, 0)
    assert "As a rule 20 min to 69 min in all" in forecast(data, {"incremental": True, "retrain": True}, options, 0)
    missed = data.log.group_of[~data.log.positive]
    idle = np.setdiff1d(missed, data.log.group_of[data.log.positive])
    after = int((data.log.group_t_ms[idle] >= data.split_ms).sum())
    assert after > 0
    said = forecast(data, {"popularity": False}, options, 0)
    assert f"are scored ({after:,} more after the split have no event that counts as wanted);" in said
    assert "As a rule 1 s to 23 s in all" in forecast(
        data, dict.fromkeys(("popularity", "transitions"), False), options, 0
    )
