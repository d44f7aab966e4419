"""The gate where it lives: in a trainer and its checkpoint, in snapshots, in a replay of the same log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.stream.conftest import feed, flush, log_of, start

from driftline.configs.load import MODEL_SECTIONS, sections_sha256
from driftline.configs.settings import Gate, Graph, Model, Ranker, Settings, Trainer
from driftline.model import gate as gates
from driftline.model.standing import sentence
from driftline.serving.snapshot import GATE, open_snapshot
from driftline.stream.events.files import read_columns
from driftline.stream.generate.plan import Plan
from driftline.stream.generate.write import EVENTS, generate
from driftline.stream.learn.learner import learning_sha256
from driftline.stream.ops.doctor import _snapshots
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.engine_pass import EnginePass
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.protocol import questions
from driftline.stream.replay.registry import build_arm
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options

ACTS = Gate(mode="act", share=1.0, min_groups=100, worth=0.05)


@pytest.fixture(autouse=True)
def settles_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "SETTLE", 20)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream that repeats itself enough for counters to answer well, in which noise is soon seen to say nothing."""
    out = tmp_path_factory.mktemp("made")
    generate(Plan(users=40, items=60, events=1500, seed=5, genres=5, days=60, drift_days=0, growth=0, explore=0), out)
    return out / EVENTS


def settings_of(gate: Gate, **more: Any) -> Settings:
    return Settings(
        model=Model(backbone="off", gate=gate),
        graph=Graph(weights="off"),
        ranker=Ranker(
            hidden=16, members=3, sampled=20, recall=20, pool=60, personal=20, rehearsal_groups=100, text_dim=0
        ),
        **more,
    )


def test_a_replay_says_when_noise_went_off_and_is_then_the_engine_without_it(made: Path, tmp_path: Path) -> None:
    options = Options(made, tmp_path / "out", arms=("incremental", "incremental:noise=on"), split=0.3, audit_rows=0)
    metrics = replay(options, settings_of(ACTS))
    without, gated = metrics["arms"]["incremental"], metrics["arms"]["incremental:noise=on"]
    assert "gate" not in without
    told = gated["gate"]["noise"]
    assert not told["on"]
    assert told["high"] < ACTS.worth
    assert metrics["data"]["first_ms"] < told["since_ms"] < metrics["protocol"]["split_ms"]
    assert gated["overall"]["ndcg@10"] == pytest.approx(without["overall"]["ndcg@10"], rel=0.005)
    assert gated["note"] == sentence("noise", told)
    assert sentence("noise", told) in (tmp_path / "out" / "report.html").read_text()
    assert gated["cost"]["gate"]["train_cpu_s"] > 0
    again = replay(
        Options(made, options.out, arms=options.arms, split=0.3, audit_rows=0, resume=True), settings_of(ACTS)
    )
    assert again["arms"]["incremental:noise=on"]["gate"] == {"noise": told}


def test_a_trainer_that_was_restarted_switches_as_a_replay_of_its_log_does(made: Path, tmp_path: Path) -> None:
    gate = ACTS.model_copy(update={"worth": 0.2, "share": 0.6})
    settings = settings_of(gate, systems={"noise": "on"}, trainer=Trainer(root=tmp_path / "trainer"))
    settings = settings.model_copy(
        update={"serving": settings.serving.model_copy(update={"snapshots": tmp_path / "snapshots"})}
    )
    log = EventLog(read_columns(made, 500), settings.action)
    records = log_of([log.event(row) for row in range(len(log))])
    replayed = EnginePass(Setup(log, settings), settings)
    for request, arrival, _ in questions(log):
        replayed.learn(request, arrival)
    first = feed(start(settings), records[:120])
    first.checkpoint()
    second = feed(start(settings), records[:330])
    second.checkpoint()
    third = flush(feed(start(settings), records))
    assert third.learner.engine.gate.off == {"noise"}
    theirs = replayed.learner.engine.arrays()
    for name, array in third.learner.engine.arrays().items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)

    third.publish()
    told = open_snapshot(settings.serving.snapshots).meta.extra[GATE]["noise"]
    assert told == third.learner.engine.gate.standing()["noise"].told()
    assert sentence("noise", told) in [finding.detail for finding in _snapshots(settings)]
    on = third.metrics.part_on.labels("noise")._value.get()
    assert (on, third.metrics.part_gain.labels("noise", "high")._value.get()) == (0, told["high"])


def test_what_the_gate_does_is_no_reason_to_learn_anew_or_to_refuse_a_snapshot() -> None:
    acting, silent = settings_of(ACTS), settings_of(Gate(mode="off"))
    assert learning_sha256(acting) == learning_sha256(silent)
    assert sections_sha256(acting, MODEL_SECTIONS) == sections_sha256(silent, MODEL_SECTIONS)


def test_arms_that_leave_parts_out_are_not_gated_and_do_not_change_what_is(made: Path) -> None:
    settings = settings_of(ACTS, systems={"noise": "on"})
    log = EventLog(read_columns(made, 300), settings.action)
    setup = Setup(log, settings)
    whole, without, alone = (build_arm(name, setup)[0] for name in ("incremental", "incremental-noise", "ranker+noise"))
    assert whole.shared is not without.shared
    assert without.shared is alone.shared
    assert without.shared.learner.engine.gate.settings.mode == "off"
    assert build_arm("frozen", setup)[0].shared is whole.shared
