import numpy as np
import orjson
import pytest

from driftline.configs.settings import Action, Settings
from driftline.graph.profile import Profile
from driftline.graph.view import FACETS
from driftline.llm.profile import FORMAT
from driftline.stream.events.columns import Columns
from driftline.stream.events.schema import Item
from driftline.stream.replay.arms import Ranking, Setup, Slate
from driftline.stream.replay.audit import audit
from driftline.stream.replay.baselines import SIMPLE_ARMS, Popularity, SimpleArm
from driftline.stream.replay.inputs import replay_profiles
from driftline.stream.replay.log import EventLog

DAY = 86_400_000


def columns(n=1500, users=20, items=40, seed=0):
    rng = np.random.default_rng(seed)
    t_ms = np.sort(rng.integers(0, 300, n)) * DAY // 4
    everyone = (rng.integers(0, users, n).astype(np.int32), [f"u{i}" for i in range(users)])
    things = (rng.integers(0, items, n).astype(np.int32), [f"i{i}" for i in range(items)])
    nothing = (np.full(n, -1, np.int32), [])
    purchase = (np.zeros(n, np.int32), ["purchase"])
    ones = np.ones(n, np.float32)
    return Columns(everyone, things, t_ms, purchase, ones, ones, nothing, nothing).take(np.arange(n))


def log_of(some):
    return EventLog(some, lambda name: Action())


def run_audit(*arms):
    return audit(columns(), log_of, lambda log: [make() for make in arms], samples=3)


class KnowsTheAnswer(SimpleArm):
    """Peeks at the group that it is asked for."""

    def score(self, request):
        scores = np.zeros(request.pool)
        answer = request.log.group(request.number).items
        scores[answer[answer < request.pool]] = 1.0
        return Slate(Ranking(scores))

    def learn(self, request, arrival):
        pass


class KnowsTheFuture(Popularity):
    """Counts rows of the whole log."""

    def score(self, request):
        future = np.bincount(request.log.item, minlength=request.pool)[: request.pool]
        return Slate(Ranking(future.astype(float)))


class KnowsTheLengthOfTheLog(Popularity):
    """Depends on something later than the request that is no item."""

    def score(self, request):
        return Slate(Ranking(np.full(request.pool, float(len(request.log)))))


def test_the_simple_arms_pass():
    result = run_audit(*SIMPLE_ARMS.values())
    assert (result.permutation, result.future_deletion) == ("pass", "pass")
    assert result.compared > 10


def test_an_arm_that_reads_the_answer_is_caught_by_permutation():
    result = run_audit(Popularity, lambda: KnowsTheAnswer("peeking"))
    assert result.permutation.startswith("fail: arm 'peeking'")
    assert not result.passed


def test_an_arm_that_counts_later_rows_is_caught_by_both():
    result = run_audit(lambda: KnowsTheFuture("prophet"))
    assert result.permutation.startswith("fail: arm 'prophet'")
    assert result.future_deletion.startswith("fail: arm 'prophet'")


def test_an_arm_that_knows_how_much_is_to_come_is_caught_by_deletion():
    result = run_audit(lambda: KnowsTheLengthOfTheLog("counting"))
    assert result.permutation == "pass"
    assert result.future_deletion.startswith("fail: arm 'counting'")


class FirstOfThePool(Popularity):
    """Ranks candidates by their place in the pool, which says when they entered it and nothing more."""

    def score(self, request):
        return Slate(Ranking(-np.arange(request.pool, dtype=float)))


def test_arms_pass_with_candidates_that_enter_by_time_too():
    rng = np.random.default_rng(1)
    items = [f"i{n}" for n in rng.permutation(60)]  # a third of them nobody takes
    valid_from = dict(zip(items, (rng.integers(0, 20, 60) * 4 * DAY).tolist(), strict=True))

    def by_time(some):
        return EventLog(some, lambda name: Action(), valid_from)

    arms = [*SIMPLE_ARMS.values(), lambda: FirstOfThePool("first")]
    result = audit(columns(), by_time, lambda log: [make() for make in arms], samples=6)
    assert (result.permutation, result.future_deletion) == ("pass", "pass")


def test_one_leaking_arm_among_honest_ones_is_named():
    result = run_audit(*SIMPLE_ARMS.values(), lambda: KnowsTheFuture("prophet"))
    assert "'prophet'" in result.future_deletion


def test_the_short_log_holds_whole_users_over_the_whole_time():
    seen = []

    def arms_of(log):
        seen.append(log)
        return [Popularity()]

    given = columns()
    result = audit(given, log_of, arms_of, rows=500)
    short = seen[0]
    assert (result.rows, result.users, result.groups) == (len(short), len(short.user_ids), 4)
    assert 350 < len(short) <= 500
    codes, ids = given.user_id
    for user, user_id in enumerate(short.user_ids):
        assert (short.user == user).sum() == (codes == ids.index(user_id)).sum()
    assert short.t_ms[-1] - short.t_ms[0] > 0.95 * (given.t_ms[-1] - given.t_ms[0])


def test_a_guest_account_does_not_make_the_short_log_as_long_as_the_log():
    given = columns()
    given.user_id[0][::2] = 7
    result = audit(given, log_of, lambda log: [Popularity()], rows=200)
    assert 100 < result.rows <= 200
    alone = audit(columns(users=1), log_of, lambda log: [Popularity()], rows=200)
    assert (alone.rows, alone.passed) == (1500, True)


def test_a_sample_that_asks_for_nothing_is_told_and_not_passed():
    nothing = Action(positive=False)
    result = audit(columns(), lambda some: EventLog(some, lambda name: nothing), lambda log: [Popularity()], rows=200)
    assert result.permutation.startswith("not run: in a sample of")
    assert not result.passed


def test_the_world_is_not_changed_at_a_group_without_candidates():
    first = columns(n=1)
    result = audit(first, log_of, lambda log: [Popularity()], split=0.01)
    assert result.permutation.startswith("not run: in a sample of 1 users no group")
    for seed in range(5):  # all groups are past the split, the first, which has no candidate, as well
        few = columns(n=4, seed=seed)
        assert audit(few, log_of, lambda log: [Popularity()], split=0.01, seed=seed).passed


def test_a_group_with_a_profile_of_the_file_is_among_the_audited_ones():
    def last(log, groups):
        return groups == groups[-1]

    result = audit(columns(), log_of, lambda log: [Popularity()], from_file=last)
    assert (result.groups, result.from_file) == (4, 1)


class ReadsEveryProfile(SimpleArm):
    """Ranks by how many profiles of the user the file holds, also those of later events."""

    def __init__(self, log, path):
        super().__init__("well-read")
        items = {name: Item(name) for name in log.item_ids}
        shared = {"encoder": Encoder(), "facets": 0}
        self.profiles = replay_profiles(Setup(log, Settings(), items=items, profiles=path, shared=shared))

    def score(self, request):
        known = sum(user_id == request.user_id for user_id, _ in self.profiles._own._from_file)
        return Slate(Ranking(np.full(request.pool, float(known))))

    def learn(self, request, arrival):
        pass


class Encoder:
    def encode(self, texts):
        return np.ones((len(texts), 4), np.float32)


def test_an_arm_that_reads_a_profile_before_it_is_valid_is_caught_by_deletion(tmp_path):
    log = EventLog(columns(), lambda name: Action())
    path = tmp_path / "profiles.jsonl"
    profiles = [
        Profile(user_id, dict.fromkeys(FACETS, "x"), "", "llm:x", {}, version, t_ms, t_ms)
        for user_id in log.user_ids
        for version, t_ms in enumerate(range(0, int(log.t_ms[-1]), DAY), 1)
    ]
    path.write_bytes(b"\n".join([orjson.dumps({"format": FORMAT}), *(one.to_json() for one in profiles)]))
    result = audit(columns(), log_of, lambda log: [ReadsEveryProfile(log, path)])
    assert result.permutation == "pass"
    assert result.future_deletion.startswith("fail: arm 'well-read'")


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_with_the_same_order_but_other_bits_are_told_apart(seed):
    class Jitter(Popularity):
        made = 0

        def __init__(self):
            super().__init__("jitter")
            Jitter.made += 1
            self.scale = 1.0 + 1e-12 * Jitter.made

        def score(self, request):
            return Slate(Ranking(super().score(request).overall.scores * self.scale))

    assert not audit(columns(seed=seed), log_of, lambda log: [Jitter()], seed=seed).passed


def test_the_short_log_has_late_groups_and_up_to_500_users():
    given = columns(n=6000, users=900)
    result = audit(given, log_of, lambda log: [make() for make in SIMPLE_ARMS.values()], rows=5900, samples=2)
    assert result.users == 500
    assert result.late > 20
    assert result.passed


class LooksAtThePast(Popularity):
    """Counts what happened before the request's time, also where it has not arrived yet."""

    def score(self, request):
        before = request.log.item[request.log.t_ms < request.t_ms]
        return Slate(Ranking(np.bincount(before, minlength=request.pool)[: request.pool].astype(float)))


def test_an_arm_that_knows_of_an_event_before_it_arrives_is_caught():
    assert not audit(columns(), log_of, lambda log: [LooksAtThePast("early")], samples=12).passed
