"""The trainer between two polls: no event is lost or learnt twice, nothing is scored that can't be predicted."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from tests.stream.conftest import HOUR_MS, T0_MS, baskets, feed, flush, log_of, rows, start

from driftline.graph.chunks import whole_users
from driftline.graph.profile import Profile
from driftline.graph.rows import Event, decode_user
from driftline.graph.view import FACETS
from driftline.model.engine import MAIN
from driftline.serving.snapshot import open_snapshot
from driftline.stream.learn.groups import MOST_OPEN, SPAN_MS, OpenGroups
from driftline.stream.learn.loop import Backlog
from driftline.stream.learn.trainer import Trainer as TrainerLoop
from driftline.stream.process.intake import FORWARDED


def uses(trainer: TrainerLoop) -> dict[str, int]:
    samples = [s for m in trainer.metrics.groups.collect() for s in m.samples if s.name.endswith("_total")]
    return {sample.labels["use"]: int(sample.value) for sample in samples}


def histories(trainer: TrainerLoop) -> dict[str, list[int]]:
    stored = [decode_user(value) for _, value in whole_users(trainer.learner.processor.store)]
    return {row.user_id: row.events_array()["t"].tolist() for row in stored}


@pytest.mark.parametrize("behind", ["invalid", "duplicate", "nothing"])
def test_a_checkpoint_behind_an_open_group_keeps_the_group_and_a_restart_learns_it_once_and_whole(
    settings, tmp_path, behind
) -> None:
    events: list[Any] = baskets(12)
    extra = {"invalid": [b"\xff{"], "duplicate": [events[0]], "nothing": []}[behind]
    log = log_of([*events[:20], *extra, *events[20:]])  # the seventh basket is open after two of its rows
    cut = 20 + len(extra)
    whole = flush(feed(start(settings), log))
    first = feed(start(settings), log[:cut])
    assert first.open_groups == 1
    first.publish()
    assert open_snapshot(settings.serving.snapshots).meta.offsets == {"interactions:0": 18}
    first.checkpoint()
    second = start(settings)
    assert (second.offsets, second.open_groups) == ({0: cut}, 1)
    flush(feed(second, log))
    assert histories(second) == histories(whole)
    assert uses(first).get("learnt", 0) + uses(second)["learnt"] == 12
    theirs, ours = whole.learner.arrays(), second.learner.arrays()
    for part, arrays in theirs.items():
        for name, array in arrays.items():
            assert ours[part][name].tobytes() == array.tobytes(), (part, name)


def test_a_restart_while_it_lags_learns_the_groups_that_would_have_been_learnt(settings) -> None:
    learning = settings.trainer.model_copy(update={"catch_up_events": 10, "catch_up_share": 0.3})
    settings = settings.model_copy(update={"trainer": learning})
    log, cut = log_of(baskets(21)), 3 * 9 + 1  # two of eight are learnt by then, and .4 of a group is owed

    def behind() -> TrainerLoop:
        trainer = start(settings)
        trainer.behind(10**6, 0.0)
        return trainer

    whole = feed(behind(), log)
    first = feed(behind(), log[:cut])
    first.checkpoint()
    second = feed(behind(), log[cut:])
    assert uses(whole) == {"learnt": 6, "counted": 14}
    assert {use: uses(first)[use] + uses(second)[use] for use in uses(whole)} == uses(whole)
    ours, theirs = second.learner.engine.arms[MAIN].ranker, whole.learner.engine.arms[MAIN].ranker
    assert ours.theta.tobytes() == theirs.theta.tobytes()


def test_the_first_model_waits_until_it_is_of_use_or_there_is_no_more_to_learn_from(settings) -> None:
    soon = settings.trainer.model_copy(update={"publish_s": 1e-6})
    settings = settings.model_copy(update={"trainer": soon})
    log = log_of(baskets(70))
    trainer = start(settings)
    trainer.behind(len(log), 0.0)
    feed(trainer, log[:30])
    assert not trainer.snapshot_due, "it knows a few items"
    trainer.behind(0, 1.0)
    assert trainer.snapshot_due
    trainer.behind(len(log), 2.0)
    feed(trainer, log[30:])
    assert trainer.snapshot_due


def test_the_first_model_comes_also_where_hardly_a_group_is_scored(settings, monkeypatch) -> None:
    soon = settings.trainer.model_copy(update={"publish_s": 1e-6})
    trainer = start(settings.model_copy(update={"trainer": soon}))
    monkeypatch.setattr("driftline.stream.learn.trainer.ANYWAY_GROUPS", 20)
    trainer.behind(10**6, 0.0)
    views = [event for g in range(30) for event in rows(f"u{g % 4}", g, T0_MS + g * HOUR_MS, action="view")]
    feed(trainer, log_of(views[:30]))
    assert not trainer.snapshot_due
    feed(trainer, log_of(views))
    assert uses(trainer)["learnt"] < 5, "a share of them is scored, if any"
    assert trainer.snapshot_due


def test_a_trainer_whose_backlog_does_not_fall_learns_less(settings) -> None:
    trainer = start(settings)
    lag = settings.trainer.catch_up_events - 1
    for second in range(60):
        trainer.taken += 10
        trainer.behind(lag, float(second))
    assert trainer.pace.share(lag) == settings.trainer.catch_up_share
    assert trainer.metrics.registry.get_sample_value("driftline_trainer_lag") == lag


def test_an_event_and_its_copy_in_its_owners_partition_are_learnt_once(settings) -> None:
    events = [event.changed(event_id=None) for event in baskets(12)]
    once = flush(feed(start(settings), log_of(events)))
    copies = [replace(record, headers=((FORWARDED, b"0:%d:%d" % (record.offset, T0_MS)),)) for record in log_of(events)]
    trainer = start(settings, partitions=2)
    for record, copy in zip(log_of(events), copies, strict=True):
        feed(trainer, [record], 0)
        feed(trainer, [copy], 1)
    assert trainer.offsets == {0: len(events), 1: len(events)}
    assert histories(flush(trainer)) == histories(once)
    assert uses(trainer) == uses(once)


def test_rows_of_one_event_id_within_an_open_group_are_learnt_once(settings) -> None:
    basket = rows("u", 0, T0_MS)
    trainer = flush(feed(start(settings), log_of([*basket, basket[0], basket[2]])))
    assert histories(trainer) == {"u": [T0_MS] * 3}
    once = flush(feed(start(settings), log_of(basket))).learner.engine.signals.arrays()
    for name, array in trainer.learner.engine.signals.arrays().items():
        assert np.array_equal(array, once[name], equal_nan=array.dtype.kind == "f"), name


def test_a_group_from_before_the_users_newest_event_is_learnt_but_not_scored(settings) -> None:
    late = rows("u", 1, T0_MS - HOUR_MS, range(5, 8))
    trainer = flush(feed(start(settings), log_of([*rows("u", 0, T0_MS), *late, *rows("v", 2, T0_MS - HOUR_MS)])))
    assert uses(trainer) == {"learnt": 2, "late": 1}
    assert trainer.prequential()["groups"] == 2
    trainer.learner.apply_waiting()
    assert histories(trainer)["u"] == [T0_MS - HOUR_MS] * 3 + [T0_MS] * 3


def test_a_group_without_a_wanted_row_is_counted_but_not_scored_as_in_replay(settings) -> None:
    seen = []
    trainer = start(settings)
    learn = trainer.learner.engine.learn
    trainer.learner.engine.learn = lambda group, view, slate: (seen.append(slate), learn(group, view, slate))
    flush(feed(trainer, log_of([*rows("u", 0, T0_MS), *rows("u", 1, T0_MS + HOUR_MS, action="return")])))
    assert [slate is None for slate in seen] == [False, True]
    assert uses(trainer) == {"learnt": 1, "no_target": 1}
    assert trainer.trained_share == 1.0


def test_groups_of_interleaved_producers_are_learnt_whole(settings) -> None:
    one, two = rows("u", 0, T0_MS), rows("v", 1, T0_MS + 3)
    mixed = [event for pair in zip(one, two, strict=True) for event in pair]
    trainer = flush(feed(start(settings), log_of([*mixed, *rows("u", 2, T0_MS + 5)])))
    assert uses(trainer) == {"learnt": 3}
    assert histories(trainer) == {"u": [T0_MS] * 3 + [T0_MS + 5] * 3, "v": [T0_MS + 3] * 3}


def offset(events: list[Event]) -> list[Event]:
    return [event.changed(offset=n) for n, event in enumerate(events)]


def test_open_groups_close_on_the_users_next_on_event_time_on_number_and_on_silence() -> None:
    def closed(groups: OpenGroups, events: list[Event], now_s: float = 0.0) -> list[list[str]]:
        out = [rows for event in events for rows in groups.add(0, event, now_s)]
        return [[event.event_id or "" for event in rows] for _, rows in out]

    groups = OpenGroups()
    assert closed(groups, [*rows("u", 0, T0_MS, range(2)), *rows("v", 1, T0_MS + SPAN_MS, range(2))]) == []
    assert closed(groups, rows("u", 2, T0_MS + SPAN_MS, range(1))) == [["e0-0", "e0-1"]]
    assert closed(groups, rows("w", 3, T0_MS + 2 * SPAN_MS + 1, range(1))) == [["e1-0", "e1-1"], ["e2-0"]]
    alone = Event("w", "i", T0_MS + 2 * SPAN_MS + 1, event_id="alone")
    assert closed(groups, [alone]) == []
    assert closed(groups, rows("w", 4, T0_MS + 2 * SPAN_MS + 2, range(1))) == [["e3-0", "alone"]]
    many = [rows(f"u{n}", n, T0_MS, range(1))[0] for n in range(MOST_OPEN + 1)]
    assert closed(groups, many, 5.0) == [["e4-0"], ["e0-0"]]
    assert (groups.holds(many[0]), groups.holds(many[1])) == (False, True)
    assert (groups.idle([1], 100.0), groups.idle([0], 5.1), len(groups)) == ([], [], MOST_OPEN)
    assert len(groups.idle([0], 5.3)) == MOST_OPEN
    assert (len(groups), groups.holds(many[1]), groups.first_offset(0, 7)) == (0, False, 7)


def test_a_profile_of_another_width_or_with_a_number_that_is_none_is_counted_and_left_out(settings) -> None:
    def profile(vectors: np.ndarray | None) -> bytes:
        facets = dict.fromkeys(FACETS, "lamps")
        return Profile("u0", facets, "Lamps.", "template", {}, 1, T0_MS, T0_MS, vectors=vectors).to_json()

    trainer = start(settings.model_copy(update={"graph": settings.graph.model_copy(update={"weights": "trained"})}))
    for vectors in (np.eye(4, 8), np.full((4, 4), np.nan), np.ones((1, 4)), None):
        trainer.take_profile(profile(vectors))
    trainer.take_profile(profile(np.eye(4)).replace(b"[", b"") + b"x")
    assert (trainer.profiles.invalid, trainer.profiles.at("u0", 2 * T0_MS)) == (5, None)
    trainer.take_profile(profile(np.eye(4)))
    assert trainer.profiles.at("u0", 2 * T0_MS) is not None
    flush(feed(trainer, log_of(baskets(12))))
    slate = trainer.learner.slate(trainer.learner.view("u0", 2 * T0_MS), 2 * T0_MS)
    assert np.isfinite(slate.scores).all()


class Letters:
    """Encodes a text as the counts of four letters."""

    def encode(self, texts: list[str]) -> np.ndarray:
        self.asked = texts
        counts = np.array([[text.count(letter) for letter in "abcd"] for text in texts], np.float32).reshape(-1, 4)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_a_corrected_title_reaches_the_features_and_an_unchanged_one_is_not_encoded_again(settings) -> None:
    encoder = Letters()
    trainer = start(settings, encoder)

    def tell(item_id: str, title: str, price: float = 1.0) -> list[str]:
        trainer.take_item(orjson.dumps({"item_id": item_id, "title": title, "price": price}))
        encoder.asked = []
        trainer.encode_items()
        return encoder.asked

    assert tell("i1", "aa") == ["aa"]
    flush(feed(trainer, log_of(rows("u", 0, T0_MS))))
    index = trainer.learner.table.find("i1")
    assert trainer.learner.engine.text[index].tolist() == [1, 0, 0, 0]
    assert tell("i1", "aa", price=2.0) == []
    assert tell("i1", "bb") == ["bb"]
    assert trainer.learner.engine.text[index].tolist() == [0, 1, 0, 0]
    assert tell("i1", "") == []
    assert trainer.learner.engine.text[index].tolist() == [0, 0, 0, 0]


def test_a_trainer_says_how_long_its_groups_take_at_its_present_rate(settings, capsys) -> None:
    trainer = start(settings)
    backlog = Backlog(trainer, 1000.0)
    log = log_of(baskets(30))  # groups of three rows
    few = 3 * 18
    for n, record in enumerate(log):
        feed(trainer, [record])
        trainer.lag = 3000 - n - 1
        backlog.look(1000.0 + n + 1)
        if n == few:  # of some twenty groups a rate is not worth saying
            assert math.isnan(trainer.metrics.registry.get_sample_value("driftline_trainer_groups_left"))
            assert "left" not in capsys.readouterr().err

    def told(name: str) -> float:
        found = trainer.metrics.registry.get_sample_value(f"driftline_trainer_{name}")
        assert found is not None
        return found

    assert told("groups_per_second") == pytest.approx(1 / 3, rel=0.2)
    assert told("backlog_seconds") == pytest.approx(trainer.lag, rel=0.05)  # a record a second
    assert told("groups_left") == pytest.approx(trainer.lag / 3, rel=0.2)
    said = capsys.readouterr().err
    assert re.search(r"trainer: 0\.\d+ groups/s; [\d,]+ are left, about \d+ min \(2,\d+ records\)", said)
    trainer.lag = 0
    backlog.look(1100.0)
    assert told("backlog_seconds") == told("groups_left") == 0


def test_the_first_encoding_of_many_texts_says_how_far_it_is(settings, capsys, monkeypatch) -> None:
    monkeypatch.setattr("driftline.stream.headway.FIRST_S", 0.0)
    encoder = Letters()
    trainer = start(settings, encoder)
    for n in range(600):
        trainer.take_item(orjson.dumps({"item_id": f"i{n}", "title": "a" * (n + 1)}))
    trainer.encode_items()
    said = capsys.readouterr().err.splitlines()
    assert re.match(r"trainer: [\d,]+ item texts encoded/s; 344 are left, about 0 s", said[0])
    assert said[-1] == "trainer: nothing is left, 600 item texts encoded so far"
