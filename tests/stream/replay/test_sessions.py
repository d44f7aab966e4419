import dataclasses

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from driftline.configs.errors import InputError
from driftline.configs.settings import Action, Graph, Model, Settings, State
from driftline.graph.history import history_of
from driftline.graph.rows import Event, key64
from driftline.graph.view import UserView
from driftline.stream.events.columns import Columns
from driftline.stream.learn.groups import OpenGroups
from driftline.stream.process.processor import Processor, Record
from driftline.stream.replay.arms import Ranking, Slate
from driftline.stream.replay.audit import audit
from driftline.stream.replay.baselines import SIMPLE_ARMS, SimpleArm, Transitions
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.metrics import METRICS
from driftline.stream.replay.protocol import LISTS, Scope, questions, run, scored_groups
from driftline.stream.replay.run import replay
from driftline.stream.replay.sessions import HOUR_MS
from driftline.stream.replay.source import Options
from driftline.stream.state.store import MemoryStore, state_sha256

MINUTE = 60_000
SESSION = LISTS.index("session")


def coded(values):
    names = list(dict.fromkeys(value for value in values if value is not None))
    return np.array([-1 if value is None else names.index(value) for value in values], np.int32), names


def columns(rows):
    """Rows (user, item, t_ms, session[, action])."""
    rows = [(*row, *("play",)[len(row) - 4 :]) for row in rows]
    n = len(rows)
    empty = np.full(n, np.nan, np.float32)
    return Columns(
        coded([row[0] for row in rows]), coded([row[1] for row in rows]), np.array([row[2] for row in rows], np.int64),
        coded([row[4] for row in rows]), empty, empty, coded([row[3] for row in rows]), coded([None] * n),
    )  # fmt: skip


def log_of(some, ordered=False):
    return EventLog(some, lambda name: Action(positive=name != "skip"), ordered=ordered)


ROWS = [
    ("u", "a", 0, "1"),
    ("v", "b", 1, "2"),
    ("u", "b", MINUTE, "1"),
    ("u", "c", 2 * MINUTE, "1", "skip"),
    ("v", "c", 3 * MINUTE, None),
    ("u", "a", 4 * MINUTE, "3"),
    ("v", "a", 5 * MINUTE, "2"),
    ("u", "b", 6 * MINUTE, "1"),
    ("w", "a", 7 * MINUTE, "1"),
]


def test_sessions_are_told_by_user_and_group_id_and_may_be_interleaved():
    found = log_of(columns(ROWS)).sessions
    assert found.place.tolist() == [0, 0, 1, 2, 0, 0, 1, 3, 0]
    assert found.start_ms.tolist() == [0, 1, 0, 0, -1, 4 * MINUTE, 1, 0, 7 * MINUTE]
    numbers = found.number.tolist()
    assert numbers[0] == numbers[2] == numbers[3] == numbers[7] != numbers[8]
    assert numbers[4] == -1


def test_next_asks_for_every_wanted_event_but_the_first_and_last_for_the_last_one():
    log = log_of(columns(ROWS))
    assert scored_groups(log, 0, Scope(session="next")).tolist() == [2, 6, 7]
    assert scored_groups(log, 0, Scope(session="last")).tolist() == [6, 7]
    assert scored_groups(log, 1, Scope(session="last")).tolist() == [6]  # the other began before the split


def test_a_session_longer_than_twenty_events_has_no_last_one_to_ask_for():
    rows = [("u", str(i), i, "long") for i in range(21)] + [("v", str(i), 100 + i, "fits") for i in range(20)]
    assert scored_groups(log_of(columns(rows)), 0, Scope(session="last")).tolist() == [40]


def test_a_share_of_the_sessions_is_always_the_same_ones():
    rows = [("u", str(i % 7), 10 * s + i, f"s{s}") for s in range(400) for i in range(3)]
    log = log_of(columns(rows))
    some = scored_groups(log, 0, Scope(session="next", share=0.25))
    assert 0.15 < len(some) / 800 < 0.35
    shorter = log_of(columns(rows[:600]))
    assert scored_groups(shorter, 0, Scope(session="next", share=0.25)).tolist() == some[some < 600].tolist()


def test_a_share_draws_sessions_and_not_ids_that_each_user_counts_anew():
    rows = [(f"u{u}", str(i), 10 * u + 1000 * s + i, str(s)) for u in range(200) for s in range(3) for i in range(2)]
    log = log_of(columns(rows))
    for share in (0.1, 0.5, 0.9):
        some = scored_groups(log, 0, Scope(session="next", share=share))
        assert len(some) / 600 == pytest.approx(share, abs=0.05)
    with pytest.raises(
        InputError, match=r"of the share that is drawn; choose a smaller --split or a larger --session-"
    ):
        scored_groups(log, 0, Scope(session="next", share=1e-9))


def test_sessions_that_are_all_too_long_to_ask_for_their_last_event_are_said_to_be():
    log = log_of(columns([("u", str(i), i, "long") for i in range(25)]))
    with pytest.raises(InputError, match=r"has 2 to 20 wanted events.*--session next takes"):
        scored_groups(log, 0, Scope(session="last"))


def test_a_log_without_sessions_is_refused_with_a_sentence():
    log = log_of(columns([("u", "a", 0, None), ("u", "b", 1, "x")]))
    with pytest.raises(InputError, match=r"no session of the log has a second event.*groups: sessions"):
        scored_groups(log, 0, Scope(session="next"))


class SecondIsBest(SimpleArm):
    """Ranks items by number, and notes what each request holds of its session."""

    def __init__(self):
        super().__init__("second")
        self.sessions = {}

    def score(self, request):
        self.sessions[request.number] = request.in_session.tolist()
        return Slate(Ranking(-np.arange(request.pool, dtype=float)))

    def learn(self, request, arrival):
        pass


def test_the_list_of_a_session_leaves_out_what_is_in_it_and_nothing_that_comes_later():
    log, arm = log_of(columns(ROWS)), SecondIsBest()
    result = run(log, [arm], 0, scope=Scope(session="next"))
    a, b, c = (log.item_ids.index(item) for item in "abc")
    assert arm.sessions == {2: [a], 6: [b], 7: sorted([a, b, c])}
    assert result.facts.relevant[:, SESSION].tolist() == [1, 1, 0]  # b of the last one is in its session already
    assert result.facts.session_ms.tolist() == [0, 1, 0]
    mrr = result.arms["second"].values[:, SESSION, METRICS.index("mrr")]
    assert mrr[:2].tolist() == [1.0, 1.0]  # of b, c only b is left; of a, c a is first
    assert np.isnan(mrr[2])
    assert run(log, [arm], 0).facts.relevant[:, SESSION].tolist() == [0] * 8  # without the protocol there is no list


def test_rows_of_one_time_are_one_basket_or_one_after_the_other_as_the_setting_says():
    rows = [("u", item, 5, "s") for item in "abc"] + [("u", "d", 6, None)]
    assert log_of(columns(rows)).groups == 2
    log = log_of(columns(rows), ordered=True)
    assert [log.rows_of(number).tolist() for number in range(log.groups)] == [[0], [1], [2], [3]]
    requests = [request for request, _, _ in questions(log)]
    assert [request.in_session.tolist() for request in requests] == [[], [0], [0, 1], []]
    assert log.pool.tolist() == [0, 1, 2, 3, 4]
    assert scored_groups(log, 0, Scope(session="next")).tolist() == [1, 2]


def ordered(groups="sessions"):
    return Settings(state=State(groups=groups), graph=Graph(weights="random"))


def state_of(events, settings, cut=1):
    processor = Processor(settings, MemoryStore())
    for at in range(0, len(events), cut):
        processor.commit(processor.apply([Record(event.offset, event) for event in events[at : at + cut]]))
    return state_sha256([processor.store])


def events_of(group, step=0):
    return [Event("u", f"i{n}", 1000 + step * n, group_id=group, offset=n) for n in range(6)]


def test_each_row_of_an_ordered_session_reads_the_state_that_the_row_before_it_left():
    basket = Processor(ordered("baskets"), MemoryStore())
    single = Processor(ordered(), MemoryStore())
    alone = Processor(ordered("baskets"), MemoryStore())
    for processor, group in ((basket, "s"), (single, "s"), (alone, None)):
        processor.commit(processor.apply([Record(event.offset, event) for event in events_of(group)]))
    memories = [processor.user("u").memory for processor in (basket, single, alone)]
    assert np.array_equal(memories[1], memories[2])  # as events of no group at all
    assert not np.array_equal(memories[0], memories[1])
    assert set(single.user("u").events_array()["group"].tolist()) == {key64("s")}  # the history keeps the session


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_where_a_log_of_ordered_sessions_is_cut_changes_nothing(cut):
    assert state_of(events_of("s"), ordered(), cut) == state_of(events_of("s"), ordered(), 6)


def test_the_trainer_takes_rows_of_an_ordered_session_one_by_one():
    groups = OpenGroups(ordered=True)
    first, second = events_of("s")[:2]
    assert [groups.add(0, event, 0.0) for event in (first, second)] == [[(0, [first])], [(0, [second])]]
    assert len(groups) == 0
    assert OpenGroups().add(0, first, 0.0) == []


def test_the_last_item_of_an_ordered_history_is_one_item():
    floats = np.ones(3, np.float32)
    view = UserView(
        "u", np.array([4, 2, 7], np.int32), np.full(3, 9), floats, floats, floats, np.zeros(3, np.uint64),
        np.zeros(3, np.uint32),
    )  # fmt: skip
    assert history_of(view).basket.tolist() == [2, 4, 7]
    assert history_of(view, ordered=True).basket.tolist() == [7]
    assert history_of(view, ordered=True).groups == 3


def made_sessions(sessions=220, users=25, items=30, seed=0, step=MINUTE):
    """Sessions of 2 to 6 events in which item n is mostly followed by item n + 1."""
    rng = np.random.default_rng(seed)
    rows, t_ms = [], 1_600_000_000_000
    for number in range(sessions):
        t_ms += int(rng.integers(5, 40)) * MINUTE
        user, item = f"u{rng.integers(users)}", int(rng.integers(items))
        for n in range(int(rng.integers(2, 7))):
            rows.append((user, f"i{item}", t_ms + n * step, f"s{number}"))
            item = (item + 1) % items if rng.random() < 0.8 else int(rng.integers(items))
    rows.sort(key=lambda row: row[2])
    return rows


class KnowsTheSession(Transitions):
    """Reads the whole session, also what is still to come in it."""

    def score(self, request):
        scores = np.zeros(request.pool)
        log = request.log
        rest = log.item[(log.group_key == np.uint64(request.session)) & (log.user == request.user)]
        scores[rest[rest < request.pool]] = 1.0
        return Slate(Ranking(scores))


@pytest.mark.parametrize("which", ["next", "last"])
def test_the_audit_asks_within_sessions_and_catches_who_reads_on(which):
    def audited(*arms):
        some = columns(made_sessions())
        return audit(some, log_of, lambda log: [make() for make in arms], samples=4, scope=Scope(session=which))

    assert audited(*SIMPLE_ARMS.values()).passed
    caught = audited(Transitions, lambda: KnowsTheSession("reads_on"))
    assert caught.permutation.startswith("fail: arm 'reads_on'")
    assert caught.future_deletion.startswith("fail: arm 'reads_on'")


def test_the_audit_catches_a_session_that_holds_what_comes_later(monkeypatch):
    from driftline.stream.replay.arms import Request

    def all_of_it(self):
        return np.unique(self.log.item[self.log.group_key == np.uint64(self.session)][: self.pool])

    some = columns(made_sessions())
    with monkeypatch.context() as patch:
        patch.setattr(Request, "in_session", property(all_of_it))
        scope = Scope(session="next")
        assert not audit(some, log_of, lambda log: [SecondIsBest()], samples=4, scope=scope).passed


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sessions")
    rows = made_sessions()
    names = ("user_id", "item_id", "timestamp_ms", "group_id")
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), folder / "events.parquet")
    return folder


def test_a_replay_of_sessions_tells_hits_by_event_and_by_hour(files, tmp_path):
    settings = Settings(graph=Graph(weights="off"), model=Model(backbone="off"))
    given = Options(
        files / "events.parquet", tmp_path, arms=("popularity", "transitions", "ranker"), split=0.6, session="last",
        audit_rows=150,
    )  # fmt: skip
    metrics = replay(given, settings)
    assert (metrics["leak_audit"]["permutation"], metrics["leak_audit"]["future_deletion"]) == ("pass", "pass")
    asked = metrics["protocol"]["session"]
    assert asked["asked"] == "last"
    assert asked["targets"] == metrics["protocol"]["groups"] > 20
    sessions = {name: arm["session"] for name, arm in metrics["arms"].items()}
    assert sessions["transitions"]["ndcg@20"] > 2 * sessions["popularity"]["ndcg@20"]
    assert sessions["ranker"]["ndcg@20"] > sessions["popularity"]["ndcg@20"]
    for one in sessions.values():
        low, high = one["ndcg@20_ci"]
        assert low <= one["ndcg@20"] <= high
        assert 1 < one["hours"]["n"] <= asked["targets"]
    pairs = {(one["a"], one["b"], one["list"], one["metric"]) for one in metrics["comparisons"]}
    assert {("ranker", "transitions", "session", metric) for metric in ("ndcg@20", "hr@20")} <= pairs
    assert "Asked was the last event of each session" in (tmp_path / "report.html").read_text()
    without = replay(dataclasses.replace(given, session="", audit_rows=0, arms=("popularity",)), settings)
    assert "session" not in without["arms"]["popularity"]
    assert without["protocol"]["session"] is None
    assert orjson.loads((tmp_path / "metrics.json").read_bytes())["arms"].keys() == {"popularity"}


def test_the_mean_over_hours_weighs_each_hour_alike(files, tmp_path):
    given = Options(files / "events.parquet", tmp_path, arms=("popularity",), split=0.6, session="next", audit_rows=0)
    metrics = replay(given, Settings())
    saved = next((tmp_path / "arms").glob("popularity.*"))
    with np.load(saved) as file:
        hours, values = file["session_ms"] // HOUR_MS, file["values"][:, SESSION, METRICS.index("hr@20")]
    counts = ~np.isnan(values)
    expected = np.mean([values[counts & (hours == hour)].mean() for hour in np.unique(hours[counts])])
    assert metrics["arms"]["popularity"]["session"]["hours"]["hr@20"] == pytest.approx(expected, abs=1e-6)


def test_transitions_count_what_followed_the_last_item_and_fade():
    rows = [("u", "a", 0, None), ("u", "b", 1, None), ("v", "a", 2, None), ("v", "c", 3, None), ("w", "a", 4, None)]
    day = 86_400_000
    rows = [(user, item, t * 200 * day, group) for user, item, t, group in rows] + [("w", "x", 801 * day, None)]
    log, arm = log_of(columns(rows)), Transitions()
    for request, arrival, _ in questions(log):
        if request.number == 5:
            order = np.argsort(-arm.score(request).overall.scores).tolist()
            assert [log.item_ids[i] for i in order][:2] == ["c", "b"]  # both followed a, c lately
            assert len(order) == 3
        arm.learn(request, arrival)
