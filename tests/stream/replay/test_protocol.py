import dataclasses

import numpy as np
import pytest

from driftline.configs.errors import InputError
from driftline.configs.settings import Action, Goal, Settings, State
from driftline.stream.events.columns import Columns, without_duplicates
from driftline.stream.process.processor import Processor, Record
from driftline.stream.replay.arms import Ranking, Slate
from driftline.stream.replay.baselines import SIMPLE_ARMS, SimpleArm
from driftline.stream.replay.goals import worth_function
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.metrics import METRICS
from driftline.stream.replay.protocol import LISTS, questions, run
from driftline.stream.state.store import MemoryStore, state_sha256

MINUTE, DAY = 60_000, 86_400_000
NONE = (np.zeros(0, np.int32), [])


def action_of(name):
    return Action(positive=name != "return")


def coded(values):
    names = list(dict.fromkeys(value for value in values if value is not None))
    return np.array([-1 if value is None else names.index(value) for value in values], np.int32), names


def columns(rows):
    """Rows (user, item, t_ms[, action[, group]])."""
    rows = [(*row, *("purchase", None)[len(row) - 3 :]) for row in rows]
    n = len(rows)
    return Columns(
        user_id=coded([row[0] for row in rows]),
        item_id=coded([row[1] for row in rows]),
        t_ms=np.array([row[2] for row in rows], np.int64),
        action=coded([row[3] for row in rows]),
        value=np.full(n, 2.0, np.float32),
        price=np.full(n, np.nan, np.float32),
        group_id=coded([row[4] for row in rows]),
        domain=coded([None] * n),
    )


def log_of(rows, **options):
    return EventLog(columns(rows), action_of, **options)


class Recorder(SimpleArm):
    """Notes the order of calls and what each request shows."""

    def __init__(self):
        super().__init__("recorder")
        self.calls = []

    def start(self, split_ms):
        self.calls.append(("start", split_ms))

    def score(self, request):
        self.calls.append(("score", request.number, request.pool, request.touched.tolist(), len(request.history)))
        return Slate(Ranking(np.arange(request.pool, dtype=float)))

    def learn(self, request, arrival):
        self.calls.append(("learn", request.number, arrival.group.items.tolist()))


ROWS = [
    ("u", "a", 0),
    ("u", "b", 0),
    ("v", "a", 1 * DAY),
    ("v", "c", 1 * DAY),
    ("u", "a", 2 * DAY),
    ("u", "c", 2 * DAY),
    ("u", "d", 2 * DAY),
]


def test_every_group_is_scored_before_any_of_its_rows_is_learnt():
    arm = Recorder()
    run(log_of(ROWS), [arm], split_ms=DAY)
    assert arm.calls == [
        ("learn", 0, [0, 1]),
        ("start", DAY),
        ("score", 1, 2, [], 0),
        ("learn", 1, [0, 2]),
        ("score", 2, 3, [0, 1], 2),
        ("learn", 2, [0, 2, 3]),
    ]


def test_novel_and_repeat_split_the_relevant_items_and_the_unseen_one_is_counted_as_missed():
    result = run(log_of(ROWS), [Recorder()], split_ms=DAY)
    relevant = dict(zip(LISTS, result.facts.relevant.T.tolist(), strict=True))
    assert relevant["overall"] == [2, 3]
    assert relevant["novel"] == [0, 2]  # v has no past; of u's basket c and d are novel
    assert relevant["repeat"] == [0, 1]
    reachable = dict(zip(LISTS, result.facts.reachable.T.tolist(), strict=True))
    assert reachable["novel"] == [0, 1]  # d was never seen by anyone
    values = result.arms["recorder"].values
    novel = values[1, LISTS.index("novel")]
    # the only novel candidate is c, so it is first; the ideal has two hits
    assert novel[METRICS.index("ndcg@10")] == pytest.approx(1 / (1 + 1 / np.log2(3)))
    repeat = values[1, LISTS.index("repeat")]
    assert repeat[METRICS.index("mrr")] == 0.5  # a scores below b among u's own items
    assert np.isnan(values[0, LISTS.index("novel")]).all()


def test_rows_of_two_users_in_one_minute_make_two_groups_that_are_never_cut():
    log = log_of([("u", "a", 0), ("v", "b", 0), ("u", "c", 0), ("v", "d", 0), ("w", "e", MINUTE)])
    assert log.groups == 3
    assert [log.rows_of(g).tolist() for g in range(3)] == [[0, 2], [1, 3], [4]]
    assert log.pool.tolist() == [0, 2, 4, 5]
    # dense indices follow the order of entry into the pool, so c comes before b
    assert log.item_ids == ["a", "c", "b", "d", "e"]


def test_the_split_never_cuts_a_group():
    rows = [("u", str(i), 0) for i in range(10)]
    rows += [("v", "0", DAY), ("v", "1", DAY), ("v", "2", DAY)]
    log = log_of(rows)
    assert log.split_ms(0.85) == DAY
    assert run(log, [Recorder()], log.split_ms(0.85)).facts.number.tolist() == [1]


def test_a_return_is_learnt_but_never_asked_for():
    arm = Recorder()
    result = run(log_of([("u", "a", 0), ("u", "a", DAY, "return"), ("u", "b", 2 * DAY)]), [arm], split_ms=DAY)
    assert [call[:2] for call in arm.calls if call[0] == "score"] == [("score", 2)]
    assert ("learn", 1, [0]) in arm.calls
    assert result.facts.cold_user.tolist() == [True]


def test_a_view_touches_an_item_and_a_return_does_not():
    def meaning(name):
        return Action(weight={"view": 0.1, "return": -1.0}.get(name, 1.0), positive=name == "purchase")

    rows = [("u", "a", 0), ("u", "b", DAY, "view"), ("u", "c", DAY, "return"), ("u", "b", 2 * DAY), ("u", "c", 2 * DAY)]
    result = run(EventLog(columns(rows), meaning), [Recorder()], split_ms=2 * DAY)
    relevant = dict(zip(LISTS, result.facts.relevant.T.tolist(), strict=True))
    assert (relevant["novel"], relevant["repeat"]) == ([1], [1])  # c, which was only returned, and b


def test_the_view_of_a_request_holds_the_past_in_order():
    log = log_of([("u", "a", 0), ("v", "x", 5), ("u", "b", DAY), ("u", "c", 2 * DAY)])
    request = [question[0] for question in questions(log)][-1]
    view = request.view()
    assert [log.item_ids[i] for i in view.items] == ["a", "b"]
    assert view.t_ms.tolist() == [0, DAY]
    assert (view.events, view.first_ms) == (2, 0)


def test_all_listed_items_are_candidates_from_their_time_on():
    log = log_of(ROWS, valid_from_ms={"d": DAY, "z": 10 * DAY})
    # d is a candidate for the second group although nobody took it yet; z never is
    assert log.pool.tolist() == [0, 3, 4, 4]
    result = run(log, [Recorder()], split_ms=DAY)
    assert result.facts.reachable[1, LISTS.index("novel")] == 2


def test_listed_items_of_one_time_are_in_the_order_of_the_list_not_of_their_first_event():
    log = log_of([("u", "a", 0), ("u", "y", 2 * DAY), ("u", "x", 3 * DAY)], valid_from_ms={"x": DAY, "y": DAY})
    assert log.item_ids == ["a", "x", "y"]


@pytest.mark.parametrize(("value", "wanted"), [(0.9, True), (3.3, True), (0.89, False)])
def test_a_value_at_the_threshold_is_wanted_as_live(value, wanted):
    action = Action(positive_from=0.9 if value < 1 else 3.3)
    rated = dataclasses.replace(columns([("u", "a", 0)]), value=np.full(1, value, np.float32))
    assert EventLog(rated, lambda name: action).positive[0] == action.wanted(value) == wanted


def test_ease_takes_a_basket_that_grows_over_years():
    rows = [(f"u{n}", "a", n * MINUTE, "purchase", f"cart {n}") for n in range(300)]
    rows += [(f"u{n}", "b", 700 * DAY + n * MINUTE, "purchase", f"cart {n}") for n in range(300)]
    rows += [("u0", "a", 702 * DAY)]
    result = run(log_of(rows), [SIMPLE_ARMS["ease_recent"]()], split_ms=702 * DAY).arms["ease_recent"]
    assert np.isfinite(result.values[0, LISTS.index("overall"), METRICS.index("ndcg@10")])


def test_held_out_items_form_a_list_of_their_own():
    log = log_of(ROWS, valid_from_ms={"d": DAY}, held_out={"d"})
    facts = run(log, [Recorder()], split_ms=DAY).facts
    assert facts.relevant[:, LISTS.index("held_out_items")].tolist() == [0, 1]


def test_items_of_the_last_day_are_cold():
    log = log_of([("u", "a", 0), ("v", "b", 2 * DAY), ("u", "b", 2 * DAY + MINUTE), ("u", "a", 2 * DAY + MINUTE)])
    facts = run(log, [Recorder()], split_ms=2 * DAY + MINUTE).facts
    assert facts.relevant[0, LISTS.index("cold_items")] == 1


def test_items_of_few_earlier_events_are_rare():
    rows = [("u", "a", 0), *(("v", "b", n * MINUTE) for n in range(5)), ("w", "a", DAY), ("w", "b", DAY)]
    rows += [("u", "a", 2 * DAY), ("u", "c", 2 * DAY)]
    facts = run(log_of(rows), [Recorder()], split_ms=DAY).facts
    assert facts.relevant[:, LISTS.index("rare_items")].tolist() == [1, 1]  # a twice, b and the unseen c never
    rows = [*[("v", "b", 0)] * 5, ("w", "b", DAY)]
    facts = run(log_of(rows), [Recorder()], split_ms=DAY).facts
    assert facts.relevant[:, LISTS.index("rare_items")].tolist() == [0], "five events of one group are five"


def test_invoices_within_72_minutes_are_follow_ups():
    log = log_of([("u", "a", 0), ("u", "b", 72 * MINUTE), ("u", "c", 72 * MINUTE + 73 * MINUTE)])
    assert run(log, [Recorder()], split_ms=MINUTE).facts.follow_up.tolist() == [True, False]


def test_a_log_without_groups_to_score_is_an_error_in_words():
    with pytest.raises(InputError, match="no group of 3 is left to score"):
        run(log_of(ROWS), [Recorder()], split_ms=9 * DAY)


def test_a_value_below_its_threshold_is_not_wanted():
    log = EventLog(columns(ROWS), lambda name: Action(positive_from=3.0))
    assert not log.positive.any()
    with pytest.raises(InputError, match="counts as positive"):
        log.split_ms(0.85)


def test_worth_multiplies_action_and_value():
    log = log_of(ROWS)
    worth = worth_function(Goal(action_weights={"purchase": 0.5}, by="value"), log)
    *_, (_, arrival, _) = questions(log)
    assert worth(arrival).tolist() == [1.0, 0.0, 1.0, 1.0]
    assert worth_function(Goal(), log) is None


@pytest.mark.parametrize("name", list(SIMPLE_ARMS))
def test_a_simple_arm_scores_the_whole_pool_with_numbers(name):
    rng = np.random.default_rng(1)
    rows = sorted(
        ((f"u{rng.integers(6)}", f"i{rng.integers(12)}", int(t) * DAY // 4) for t in rng.integers(0, 80, 200)),
        key=lambda row: row[2],
    )
    arm = SIMPLE_ARMS[name]()
    result = run(log_of(rows), [arm], split_ms=10 * DAY)
    values = result.arms[name].values[:, 0, METRICS.index("ndcg@10")]
    assert np.isfinite(values).all()
    assert values.mean() > 0


def test_sessions_that_arrive_click_by_click_count_as_one_basket():
    clicks = [("u", "a", 0, "click", "s1"), ("u", "b", 1, "click", "s1"), ("u", "c", 2, "click", "s2")]
    clicks += [("v", "a", DAY, "click", "s3")]
    arm = SIMPLE_ARMS["item_knn"]()
    slates = {}
    for request, arrival, _ in questions(log_of([*clicks, ("v", "b", DAY + 1, "click", "s3")])):
        if request.number == 4:
            slates = arm.score(request)
        arm.learn(request, arrival)
    # v took a; b shared a session with a, c did not
    assert slates.overall.scores[1] > 0
    assert slates.overall.scores[2] == 0


def with_ids(rows, *event_ids):
    return dataclasses.replace(columns(rows), event_id=np.array(event_ids, object))


def test_an_event_id_is_known_as_long_as_a_processor_remembers_it():
    ids = ("a", "b", "a", None, "c", None, "d", "a", "d")
    rows = with_ids([("u", f"i{n}", n) for n in range(len(ids))], *ids)
    for remembered, dropped in ((0, []), (1, []), (2, [2, 8]), (100, [2, 7, 8])):
        settings = Settings(state=State(dedupe_ids=remembered))
        records = [Record(row, EventLog(rows, action_of).event(row)) for row in range(len(rows))]
        assert Processor(settings, MemoryStore()).apply(records).duplicates == len(dropped)
        kept, duplicates = without_duplicates(rows, remembered)
        assert duplicates == len(dropped)
        assert kept.item_id[1] == [f"i{n}" for n in range(len(ids)) if n not in dropped]


def test_the_state_of_a_log_without_its_duplicates_is_that_of_the_whole_log_read_as_rows_or_as_groups():
    ids = [f"e{n}" for n in np.random.default_rng(0).integers(25, size=40)]
    rows = with_ids([(f"u{n % 3}", f"i{n % 5}", n // 2) for n in range(40)], *ids)
    kept, duplicates = without_duplicates(rows, 10)
    assert duplicates > 5
    whole, log = EventLog(rows, action_of), EventLog(kept, action_of)
    in_order = [Record(row, whole.event(row)) for row in range(len(whole))]
    groups = [event for _, arrival, _ in questions(log) for event in arrival.events()]
    ways = (
        in_order,
        [Record(log.event(row).offset, log.event(row)) for row in range(len(log))],
        [Record(event.offset, event) for event in groups],
    )
    hashes = set()
    for records in ways:
        store = MemoryStore()
        processor = Processor(Settings(state=State(dedupe_ids=10)), store)
        processor.commit(processor.apply(records))
        hashes.add(state_sha256([store]))
    assert len(hashes) == 1
