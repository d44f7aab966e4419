"""The gate: bounds that hold at all times, parts that go off and come back, and what is left of one that is off."""

from dataclasses import replace

import numpy as np
import pytest

from driftline.configs.settings import Gate, Model, Ranker, Settings, Signals
from driftline.graph.history import DAY_MS
from driftline.graph.view import Group, ItemTable, UserView
from driftline.model import gate as gates
from driftline.model.betting import GAINS, Bets
from driftline.model.engine import Engine
from driftline.model.part import VectorPlug
from driftline.model.plugs import NoisePlug
from driftline.model.standing import Gain, Standing, sentence

DAY, ITEMS, USERS = int(DAY_MS), 40, 20
TABLE = ItemTable(f"item {i}" for i in range(ITEMS))
UNITS = {"teller": ("teller",), "noise": ("noise",)}
ACTS = Gate(mode="act", share=1.0, min_groups=50, worth=0.02)


def settings_of(gate):
    return Settings(
        model=Model(gate=gate),
        ranker=Ranker(hidden=8, members=1, sampled=20, rehearsal_groups=100, recall=20, pool=40, newest=5, text_dim=0),
        signals=Signals(half_lives_days=(1.0, 30.0), neighbors=8, top=20, users=10, recent=10),
    )


class Teller(VectorPlug):
    """Knows what a user will take next, as long as it tells; else it points at random."""

    def __init__(self):
        self.next, self.tells = {}, True

    def user_vector(self, view, now_ms):
        out = np.zeros(ITEMS, np.float32)
        out[self.next[view.user_id] if self.tells else int(now_ms // 1000) * 7 % ITEMS] = 1
        return out

    def item_matrix(self):
        return np.eye(ITEMS, dtype=np.float32)


def view(user, rows):
    one = np.ones(len(rows), np.float32)
    items, t_ms = (np.array([row[n] for row in rows], kind) for n, kind in ((0, np.int32), (1, np.int64)))
    codes = np.zeros(len(rows), np.uint64)
    return UserView(
        user, items, t_ms, one, one, one, codes, codes.astype(np.uint32),
        events=len(rows), first_ms=rows[0][1] if rows else -1,
    )  # fmt: skip


def stream(groups, seed=0):
    """A user takes one of the popular items or any other."""
    random, past, t = np.random.default_rng(seed), {}, 1000 * DAY
    for _ in range(groups):
        t += int(random.integers(1, DAY // 10))
        user = f"u{random.integers(USERS)}"
        item = int(random.integers(8) if random.random() < 0.7 else random.integers(ITEMS))
        rows, one = past.setdefault(user, []), np.ones(1, np.float32)
        yield Group(user, t, np.array([item], np.int32), one, one, one, one > 0, ""), view(user, rows)
        rows.append((item, t))
        del rows[:-10]


class Run:
    """An engine with a teller and noise, and what it answered."""

    def __init__(self, gate=ACTS, restore_every=0, units=UNITS):
        self.settings, self.units = settings_of(gate), units
        self.teller, self.ndcg, self.slates, self.off = Teller(), [], [], []
        self.plugs = {"teller": self.teller, "noise": NoisePlug(TABLE, 0)}
        self.engine = Engine(self.settings, TABLE, self.plugs, units=units)
        self.restore_every = restore_every

    def drive(self, groups, tells=lambda number: True):
        for number, (group, before) in enumerate(groups):
            if self.restore_every and number and number % self.restore_every == 0:
                arrays = {name: array.copy() for name, array in self.engine.arrays().items()}
                self.engine = Engine.from_arrays(self.settings, TABLE, arrays, self.plugs, units=self.units)
            self.teller.next[group.user_id], self.teller.tells = int(group.items[0]), tells(number)
            slate = self.engine.slate(before, group.t_ms)
            self.slates.append(slate)
            self.ndcg.append(gates.ndcg(slate.top(10)[0], group.items))
            self.engine.learn(group, before, slate)
            self.off.append(self.engine.gate.off)
        return self


@pytest.fixture(autouse=True)
def settles_soon(monkeypatch):
    monkeypatch.setattr(gates, "SETTLE", 20)


def test_an_interval_holds_at_every_moment_at_once():
    missed, random, means = 0, np.random.default_rng(3), (0.30, 0.33)
    for _ in range(60):
        bets, outside = Bets(1, 0.9), False
        b = random.random(250) < means[0]
        a = np.where(random.random(250) < 0.8, b, random.random(250) < 0.45)  # 0.8 * 0.30 + 0.2 * 0.45 = 0.33
        for x, y in zip(a, b, strict=True):
            bets.take(0, float(x), float(y))
            gain = bets.gain(0)
            outside |= not gain.low <= 0.1 <= gain.high
        missed += outside
        assert gain.gain == pytest.approx(a.mean() / b.mean() - 1)
    assert missed <= 12  # 6 are allowed in the mean, by Ville's inequality; three deviations above


def test_bounds_close_in_and_lie_on_their_side():
    bets = Bets(2, 0.95)
    for n in range(4000):
        bets.take(0, 0.4, 0.4)
        bets.take(1, 0.5 + 0.1 * (n % 2), 0.2)
    same, more = bets.gain(0), bets.gain(1)
    assert -0.01 < same.low < 0 < same.high < 0.01
    assert (more.low, more.high) == (GAINS[-1], np.inf)
    bets.begin(0)
    assert bets.gain(0).groups == 0
    assert (bets.gain(0).low, bets.gain(0).high) == (-np.inf, np.inf)


def test_noise_goes_off_and_the_part_that_knows_stays(caplog):
    with caplog.at_level("INFO", "driftline.model.gate"):
        run = Run().drive(stream(500))
    assert run.engine.gate.off == {"noise"}
    standing = run.engine.gate.standing()
    assert standing["noise"].since_ms > 0
    (said,) = caplog.messages
    assert said.startswith("part switched: noise: ")
    assert said.endswith(sentence("noise", standing["noise"].told()).split("], ")[1])
    assert standing["noise"].gain.high < ACTS.worth
    assert standing["teller"].on
    assert standing["teller"].gain.low > 0.2
    off = run.off.index({"noise"})
    noise = run.engine.layout.blocks["noise"]
    assert not any(slate.features[:, noise].any() for slate in run.slates[off + 1 :])
    assert all("noise" not in slate.pool.scored for slate in run.slates[off + 1 :])
    without = Run(replace_mode(ACTS, "off"), units={})
    without.plugs.pop("noise")
    without.engine = Engine(without.settings, TABLE, without.plugs)
    mine, theirs = np.mean(run.ndcg[off:]), np.mean(without.drive(stream(500)).ndcg[off:])
    assert abs(mine / theirs - 1) < 0.005


def test_of_two_parts_that_say_the_same_one_goes_and_the_other_is_then_worth_what_both_were():
    run = Run()
    run.units, run.plugs = {"teller": ("teller",), "again": ("again",)}, {"teller": run.teller, "again": Teller()}
    run.plugs["again"].next = run.teller.next
    run.settings = settings_of(ACTS.model_copy(update={"worth": 0.06, "window": 150}))
    run.engine = Engine(run.settings, TABLE, run.plugs, units=run.units)
    run.drive(stream(700))
    (gone,), standing = run.engine.gate.off, run.engine.gate.standing()
    left = "again" if gone == "teller" else "teller"
    assert not standing[gone].on
    assert standing[left].gain.low > 0.3


def replace_mode(gate, mode):
    return gate.model_copy(update={"mode": mode})


def test_a_part_comes_back_when_it_pays_again_and_only_a_share_asked_it_meanwhile():
    gate = ACTS.model_copy(update={"share": 0.5, "worth": 0.1})
    run = Run(gate, units={"teller": ("teller",)}).drive(stream(650), tells=lambda number: number >= 300)
    off = run.off.index({"teller"})
    back = off + run.off[off:].index(frozenset())
    assert off < 300 < back
    assert not run.engine.gate.off
    asked = [slate.whole is not None for slate in run.slates[off + 1 : back]]
    assert 0.4 < np.mean(asked) < 0.6
    assert np.mean(run.ndcg[-50:]) > 1.5 * np.mean(run.ndcg[off:300])


def test_observing_says_the_same_of_parts_and_changes_no_answer():
    seen, blind = (Run(replace_mode(ACTS, mode)).drive(stream(250)) for mode in ("observe", "off"))
    for a, b in zip(seen.slates, blind.slates, strict=True):
        assert a.scores.tobytes() == b.scores.tobytes()
        assert a.candidates.tobytes() == b.candidates.tobytes()
    assert blind.engine.gate.standing() == {}
    assert set(seen.engine.gate.standing()) == set(UNITS)
    assert not seen.engine.gate.off


def test_it_goes_on_to_the_bit_where_it_was_restored_before_and_after_switches():
    gate = ACTS.model_copy(update={"share": 0.7})
    whole, cut = (Run(gate, every).drive(stream(420), tells=lambda number: number >= 240) for every in (0, 29))
    assert len({*whole.off}) > 1
    assert whole.off == cut.off
    for a, b in zip(whole.slates, cut.slates, strict=True):
        assert a.scores.tobytes() == b.scores.tobytes()
    theirs = cut.engine.arrays()
    for name, array in whole.engine.arrays().items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)


def test_a_service_follows_the_snapshot_whatever_its_own_settings_say():
    run = Run().drive(stream(60))
    run.engine.switch("noise", 5)
    arrays = {name: array.copy() for name, array in run.engine.arrays(rehearsal=False).items()}
    for mode in ("off", "observe", "act"):
        served = Engine.from_arrays(
            settings_of(replace_mode(ACTS, mode)), TABLE, arrays, run.plugs, read_only=True, units=UNITS
        )
        assert served.gate.off == {"noise"}
        mine, theirs = (engine.slate(view("u1", []), 2000 * DAY) for engine in (run.engine, served))
        assert mine.scores.tobytes() == theirs.scores.tobytes()


@pytest.mark.parametrize("mode", ["off", "observe"])
def test_a_trainer_that_no_longer_acts_takes_all_parts_on_again(mode):
    run = Run().drive(stream(60))
    run.engine.switch("noise", 5)
    other = Engine.from_arrays(
        settings_of(replace_mode(ACTS, mode)), TABLE, run.engine.arrays(), run.plugs, units=UNITS
    )
    assert not other.gate.off


def test_a_comparison_that_is_full_begins_anew_and_keeps_its_word_until_the_next_has_one():
    gate = Gate(mode="observe", share=1.0, min_groups=50, window=60, worth=0.02)
    run = Run(gate).drive(stream(100))
    standing = run.engine.gate.standing()["noise"]
    assert standing.gain.groups == 60  # 80 were counted, 20 of them of the next comparison


def test_a_standing_is_told_in_one_line():
    gain = Gain(0.001, -0.003, 0.005, 900)
    assert sentence("profiles", Standing(gain, False, 1_299_024_000_000).told()) == (
        "profiles: +0.1% [-0.3, 0.5], off since 2011-03-02"
    )
    young = Standing(replace(gain, gain=float("nan"), low=float("-inf"), high=float("inf")), True, -1)
    assert sentence("hstu", young.told()) == "hstu: not known yet, on"
