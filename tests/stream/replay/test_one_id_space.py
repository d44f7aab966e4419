"""Users and items with one space of ids: messages, follows, trades between people."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.stream.replay.test_sessions import SecondIsBest, columns

from driftline.configs.load import load_settings
from driftline.configs.settings import Action, Graph, Model, Ranker, Settings, Signals
from driftline.graph.view import ItemTable, UserView
from driftline.model.engine import Engine
from driftline.serving.scorer import PopularityScorer
from driftline.stream.convert.named import CONVERTERS, write_made
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.protocol import LISTS, questions, run
from driftline.stream.replay.registry import build_arm
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options

MINUTE = 60_000
ROWS = [
    ("a", "b", 0, None),
    ("c", "a", 1, None),
    ("b", "a", 2, None),
    ("d", "d", 3, None),
    ("a", "c", 4, None),
    ("a", "d", 5, None),
]


def log_of(some, shared=True):
    return EventLog(some, lambda name: Action(), one_id_space=shared)


def test_who_acts_is_a_candidate_from_the_next_group_on():
    log = log_of(columns(ROWS))
    assert log.item_ids == ["b", "a", "c", "d"]  # of a's first message b, who was written to, comes first
    assert log.pool.tolist() == [0, 2, 3, 3, 4, 4, 4]
    assert [log.item_ids[i] for i in log.own_item] == log.user_ids
    assert log_of(columns(ROWS), shared=False).own_item.tolist() == [-1] * 4


def test_nobody_is_a_candidate_of_oneself_nor_what_is_asked_for():
    log = log_of(columns(ROWS))
    facts = run(log, [SecondIsBest()], 0).facts
    relevant = dict(zip(LISTS, facts.relevant.T.tolist(), strict=True))
    assert relevant["overall"] == [1, 1, 1, 0, 1, 1]
    assert facts.reachable[:, 0].tolist() == [0, 1, 1, 0, 1, 1]


SMALL = Settings(
    graph=Graph(weights="off"),
    model=Model(backbone="off"),
    ranker=Ranker(hidden=16, members=1, text_dim=0, recall=10, plug_recall=10, newest=5),
    signals=Signals(one_id_space=True, pair_half_life_days=1.0, fresh_half_life_days=0.02),
)
ALONE = SMALL.model_copy(update={"signals": Signals(pair_half_life_days=1.0, fresh_half_life_days=0.02)})


def messages(people=40, n=1200, seed=0):
    """Half of the messages answer the last one that the sender got, the others go to anybody."""
    rng = np.random.default_rng(seed)
    inbox, rows = {}, []
    for number in range(n):
        sender = int(rng.integers(people))
        receiver = int(rng.integers(people))
        if rng.random() < 0.7 and inbox.get(sender):
            receiver = inbox[sender].pop()
        if receiver == sender:
            continue
        rows.append((f"p{sender}", f"p{receiver}", 1_600_000_000_000 + number * MINUTE))
        inbox.setdefault(receiver, []).append(sender)
    return rows


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    path = tmp_path_factory.mktemp("messages") / "events.parquet"
    names = ("user_id", "item_id", "timestamp_ms")
    pq.write_table(pa.table(dict(zip(names, zip(*messages(), strict=True), strict=True))), path)
    return path


def test_a_ranker_that_knows_who_wrote_finds_answers_and_passes_the_audit(events, tmp_path):
    def run_with(settings, audit_rows=0):
        given = Options(events, tmp_path / settings.name, arms=("ranker",), split=0.6, audit_rows=audit_rows)
        return replay(given, settings)

    shared = run_with(SMALL.model_copy(update={"name": "shared"}), 100)
    apart = run_with(ALONE.model_copy(update={"name": "apart"}))
    assert (shared["leak_audit"]["permutation"], shared["leak_audit"]["future_deletion"]) == ("pass", "pass")
    found = [one["arms"]["ranker"]["overall"]["mrr"] for one in (shared, apart)]
    assert found[0] > 1.5 * found[1]
    assert shared["state_sha256"] == apart["state_sha256"]


def learnt(settings=SMALL, rows=300):
    """An engine arm after some messages, and the log."""
    some = columns([(*row, None) for row in messages()[:rows]])
    log = EventLog(some, settings.action, one_id_space=settings.signals.one_id_space)
    arm = build_arm("ranker", Setup(log, settings))[0]
    for request, arrival, _ in questions(log):
        arm.learn(request, arrival)
    return arm.shared.learner, log


def test_those_who_wrote_are_recalled_with_columns_of_their_own_and_oneself_never():
    learner, log = learnt()
    engine, now_ms = learner.engine, int(log.t_ms[-1]) + 1
    assert engine.layout.blocks["reverse"].stop - engine.layout.blocks["reverse"].start == 4
    for user_id in log.user_ids[:20]:
        slate = learner.slate(learner.view(user_id, now_ms), now_ms)
        assert engine.table.find(user_id) not in slate.candidates
        mine = log.item == log.own_item[log.user_ids.index(user_id)]
        wrote = {log.own_item[user] for user in log.user[mine]}
        named, scores = engine.signals.reverse.sums(engine.node(user_id), engine.signals.n)["back"]
        assert set(named[scores > 0].tolist()) == wrote
        assert wrote <= set(slate.candidates.tolist())
    assert "reverse" not in learnt(ALONE)[0].engine.layout.blocks


def test_a_restored_engine_goes_on_to_the_bit():
    learner, log = learnt()
    engine, now_ms = learner.engine, int(log.t_ms[-1]) + 1
    kept = {name: array.copy() for name, array in engine.arrays().items()}
    table = ItemTable(engine.table.ids)
    other = Engine.from_arrays(SMALL, table, kept)
    served = Engine.from_arrays(SMALL, table, kept, read_only=True)
    view = learner.view("p3", now_ms)
    for one in (other, served):
        np.testing.assert_array_equal(one.slate(view, now_ms).scores, engine.slate(view, now_ms).scores)
    group = dataclasses.replace(log.group(log.groups - 1), t_ms=now_ms)
    for one in (engine, other):
        one.learn(group, view, one.slate(view, now_ms))
    now = engine.arrays()
    for name, array in other.arrays().items():
        np.testing.assert_array_equal(now[name], array, err_msg=name)


def test_a_user_who_is_no_item_yet_has_no_reverse_partners_and_is_answered():
    learner, log = learnt()
    view: UserView = learner.view("stranger", int(log.t_ms[-1]))
    slate = learner.slate(view, int(log.t_ms[-1]))
    assert len(slate.candidates)
    assert learner.engine.node("stranger") == -1


def test_popularity_offers_nobody_to_oneself_where_ids_are_shared():
    assert PopularityScorer([("a", 2.0), ("b", 1.0)], one_id_space=True).oneself("b") == 1
    assert PopularityScorer([("a", 2.0), ("b", 1.0)]).oneself("b") == -1


def test_the_converter_of_messages_says_that_ids_are_shared(tmp_path):
    (tmp_path / "CollegeMsg.txt").write_text("3 4 1082155839\n1 2 1082040961\n")
    write_made(CONVERTERS["messages"].read(tmp_path), tmp_path / "out")
    settings = load_settings(tmp_path / "out" / "driftline.yaml")
    assert settings.signals.one_id_space
    assert settings.ranker.text_dim == 0
    assert settings.action("message").positive
