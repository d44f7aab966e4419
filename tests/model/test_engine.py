from dataclasses import replace

import numpy as np
import pytest

from driftline.configs.settings import Ranker, Settings, Signals
from driftline.graph.history import DAY_MS
from driftline.graph.view import Group, ItemTable, ProfileVectors, UserView
from driftline.model.engine import MAIN, Engine
from driftline.model.part import VectorPlug
from driftline.model.reasons import explain
from driftline.model.recall import plug_bit

DAY = int(DAY_MS)
DIM, ITEMS, USERS = 8, 60, 12
SETTINGS = Settings(
    ranker=Ranker(hidden=8, members=2, sampled=20, rehearsal_groups=50, recall=15, pool=40, newest=5, text_dim=DIM),
    signals=Signals(half_lives_days=(1.0, 7.0, 30.0), neighbors=8, top=20, users=10, recent=20),
)
TABLE = ItemTable(f"item {i}" for i in range(ITEMS))


class Plug(VectorPlug):
    """A model whose opinion is a fixed random space."""

    def __init__(self, seed: int) -> None:
        self.matrix = np.random.default_rng(seed).standard_normal((ITEMS, 4)).astype(np.float32)

    def user_vector(self, view: UserView, now_ms: int) -> np.ndarray:
        known = view.items[view.items >= 0]
        return self.matrix[known].sum(0) if len(known) else np.zeros(4, np.float32)

    def item_matrix(self) -> np.ndarray:
        return self.matrix


def view(user_id: str, rows: list[tuple[int, int]], profile=None) -> UserView:
    n = len(rows)
    return UserView(
        user_id,
        np.array([i for i, _ in rows], np.int32),
        np.array([t for _, t in rows], np.int64),
        np.ones(n, np.float32),
        np.full(n, 2, np.float32),
        np.full(n, 3, np.float32),
        np.zeros(n, np.uint64),
        np.zeros(n, np.uint32),
        events=n,
        first_ms=rows[0][1] if n else -1,
        domain="here" if n else "",
        profile=profile,
    )


def stream(groups=80, seed=0):
    random = np.random.default_rng(seed)
    past: dict[str, list[tuple[int, int]]] = {}
    t = 1000 * DAY
    for number in range(groups):
        t += int(random.integers(1, DAY))
        user = f"u{random.integers(USERS)}"
        size = min(ITEMS, 20 + number)
        items = np.sort(random.choice(size, random.integers(1, 6), replace=False)).astype(np.int32)
        rows = past.setdefault(user, [])
        one = np.ones(len(items), np.float32)
        yield Group(user, t, items, one, 2 * one, 3 * one, one > 0, "here"), view(user, rows)
        rows += [(int(item), t) for item in items]


def make(plugs=None, settings=SETTINGS) -> Engine:
    engine = Engine(settings, TABLE, plugs)
    for i, vector in enumerate(np.random.default_rng(5).standard_normal((ITEMS, DIM)).astype(np.float32)):
        engine.set_text(i, vector / np.linalg.norm(vector))
    return engine


def taught(groups=80, plugs=None) -> Engine:
    engine = make(plugs)
    for group, before in stream(groups):
        engine.learn(group, before, engine.slate(before, group.t_ms))
    return engine


def reasons(engine, slate, items):
    places = [slate.candidates.tolist().index(item) for item in items]
    return explain(slate.past, slate.now_ms, places, engine.signals, engine.table, slate.pool)


def same(a, b) -> None:
    for name in ("candidates", "recalled", "features", "scores", "own"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def continues_bit_identically(settings, groups) -> None:
    """One engine learns all groups, the other is restored on the way."""
    whole, half = make(settings=settings), make(settings=settings)
    for number, (group, before) in enumerate(groups):
        if number == 40:
            half = Engine.from_arrays(settings, TABLE, half.arrays())
        slates = [engine.slate(before, group.t_ms) for engine in (whole, half)]
        same(*slates)
        for engine, slate in zip((whole, half), slates, strict=True):
            engine.learn(group, before, slate)
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(half.arrays()[name], array, err_msg=name)


HISTORY = [(1, 1000 * DAY), (2, 1000 * DAY), (1, 1020 * DAY), (7, 1030 * DAY)]
NOW = 1050 * DAY


def test_an_empty_engine_gives_an_empty_slate():
    slate = make().slate(view("nobody", []), NOW)
    assert len(slate.candidates) == 0
    assert slate.top(5)[0].tolist() == []


def test_an_unknown_user_gets_a_cold_start_slate():
    engine = taught()
    slate = engine.slate(view("stranger", []), NOW)
    items, scores = slate.top(10)
    assert len(items) == 10
    assert np.all(np.diff(scores) <= 0)
    assert all(reason.text for reason in reasons(engine, slate, items))


def test_scoring_changes_nothing():
    engine = taught()
    before = {name: array.copy() for name, array in engine.arrays().items()}
    same(engine.slate(view("u", HISTORY), NOW), engine.slate(view("u", HISTORY), NOW))
    for name, array in engine.arrays().items():
        np.testing.assert_array_equal(before[name], array, err_msg=name)


def test_engines_agree_up_to_the_group_that_one_of_them_learnt_otherwise():
    engines = make(), make()
    for number, (group, before) in enumerate(stream(53)):
        one, other = (engine.slate(before, group.t_ms) for engine in engines)
        if number <= 50:
            same(one, other)
        changed = replace(group, items=(group.items + 7) % 20) if number == 50 else group
        engines[0].learn(group, before, one)
        engines[1].learn(changed, before, other)
    assert not np.array_equal(one.scores, other.scores)


def test_a_restored_engine_continues_bit_identically():
    continues_bit_identically(SETTINGS, stream())


def test_serving_from_a_snapshot_gives_the_training_slate():
    engine = taught()
    snapshot = {}
    for name, array in engine.arrays(rehearsal=False).items():
        snapshot[name] = array.copy()
        snapshot[name].flags.writeable = False
    served = Engine.from_arrays(SETTINGS, TABLE, snapshot, read_only=True)
    for history in (HISTORY, []):
        same(engine.slate(view("u1", history), NOW), served.slate(view("u1", history), NOW))
    with pytest.raises(ValueError, match="read-only"):
        served.learn(next(stream())[0], view("u", []))


def test_a_view_with_items_that_a_snapshot_does_not_know_is_served():
    engine = taught(30)
    unknown = view("u", [*HISTORY, (-1, 1040 * DAY), (59, 1041 * DAY)])
    assert len(engine.slate(unknown, NOW).top(5)[0]) == 5


def test_top_keeps_to_its_list_and_leaves_out_what_is_excluded():
    slate = taught().slate(view("u", HISTORY), NOW)
    assert set(slate.top(9, "repeat")[0].tolist()) == {1, 2, 7}
    novel, _ = slate.top(5, "novel")
    assert not {1, 2, 7} & set(novel.tolist())
    assert novel[0] not in slate.top(5, "novel", exclude=novel[:1])[0]


def test_an_arm_without_a_plug_is_an_engine_without_it():
    """But for rounding: BLAS may round a row by how many others are multiplied with it, and pools differ in size."""
    alone, joined = make(), make({"hstu": Plug(1), "graph": Plug(2)})
    alone.add_arm("ranker", ("base",), seed=3)
    joined.add_arm("ranker", ("base",), seed=3)
    for group, before in stream():
        slates = {engine: engine.slate(before, group.t_ms) for engine in (alone, joined)}
        (items_a, scores_a), (items_b, scores_b) = (engine.score(slates[engine], "ranker") for engine in slates)
        np.testing.assert_array_equal(items_a, items_b)
        np.testing.assert_allclose(scores_a, scores_b, rtol=1e-4, atol=1e-5)
        for engine, slate in slates.items():
            engine.learn(group, before, slate)


def test_a_plug_brings_candidates_and_columns():
    engine = taught(plugs={"hstu": Plug(1)})
    slate = engine.slate(view("u", HISTORY), NOW)
    brought = (slate.recalled & plug_bit(1)) != 0
    assert brought.sum() == SETTINGS.ranker.recall
    assert np.ptp(slate.features[:, engine.layout.blocks["hstu"]][:, 0]) > 0
    assert (engine.arms[MAIN].rows(slate)).all()


def test_a_profile_brings_candidates_near_its_facets():
    engine = taught()
    facets = np.tile(engine.text[11], (4, 1))
    slate = engine.slate(view("u", HISTORY, ProfileVectors(facets, 0)), NOW)
    assert slate.recalled[slate.candidates.tolist().index(11)] & plug_bit(0)
    plain = engine.slate(view("u", HISTORY), NOW)
    assert not np.any(plain.recalled & plug_bit(0))


def test_a_frozen_arm_keeps_its_weights():
    engine = taught(40)
    engine.arms[MAIN].learning = False
    theta = engine.arms[MAIN].ranker.mean.copy()
    for group, before in list(stream())[40:60]:
        engine.learn(group, before, engine.slate(before, group.t_ms))
    assert (engine.arms[MAIN].ranker.mean == theta).all()


def test_an_unknown_block_is_named():
    with pytest.raises(KeyError, match="no block 'hstuu'; there are base, profiles, hstu"):
        make({"hstu": Plug(1)}).add_arm("x", ("hstuu",))


def test_reasons_speak_of_rhythm_and_of_companions():
    engine = taught()
    slate = engine.slate(view("u", HISTORY), NOW)
    told = reasons(engine, slate, np.array([1, 7], np.int32))
    assert told[0].text == "you had this twice; the last time was 30 days ago"
    assert {reason.kind for reason in reasons(engine, slate, slate.top(10, "novel")[0])} <= {
        "bought_with",
        "next_after",
        "similar_users",
        "similar_text",
        "popular",
        "new",
    }


def test_no_reason_speaks_of_descriptions_where_items_have_none():
    engine = Engine(SETTINGS, TABLE)
    kinds = set()
    for group, before in stream(120):
        slate = engine.slate(before, group.t_ms)
        kinds |= {reason.kind for reason in reasons(engine, slate, slate.candidates.tolist())}
        engine.learn(group, before, slate)
    assert {"bought_with", "similar_users", "repeat"} <= kinds
    assert "similar_text" not in kinds


def test_personal_columns_tell_touched_items_and_are_zero_elsewhere():
    engine = taught()
    slate = engine.slate(view("u", HISTORY), NOW)
    names = engine.layout.names
    own = [i for i, name in enumerate(names) if name.startswith("own_")]
    assert np.all(slate.raw[own][:, ~slate.own] == 0)
    at = slate.candidates.tolist().index(1)
    column = dict(zip(names, slate.raw[:, at].tolist(), strict=True))
    assert column["own"] == 1
    assert column["own_times"] == pytest.approx(np.log1p(2))
    assert column["own_share"] == pytest.approx(2 / 3)
    assert column["own_interval"] == pytest.approx(np.log1p(20) + 0.01)
    assert column["own_in_last"] == 0
    assert column["user_items"] == pytest.approx(np.log1p(3))


def test_who_comes_back_after_a_lifetime_is_recalled_for_as_if_it_were_next_month():
    engine = taught()
    history = [(i, (900 + i) * DAY) for i in range(10)]
    soon, late = (engine.slate(view("u", history), NOW + days * DAY) for days in (60, 400 * 60))
    for name, one in soon.pool.scored.items():
        assert len(one.best), name
        np.testing.assert_array_equal(late.pool.scored[name].best, one.best, err_msg=name)
        np.testing.assert_allclose(late.pool.scored[name].best_scores, one.best_scores, rtol=2e-2, err_msg=name)
    columns = [i for i, name in enumerate(engine.layout.names) if name.startswith(("score_", "rank_"))]
    np.testing.assert_allclose(late.raw[columns], soon.raw[columns], atol=2e-2)


def test_features_are_finite_for_every_kind_of_user():
    engine = taught(plugs={"hstu": Plug(1)})
    for history in ([], HISTORY[:1], HISTORY, [(9, NOW)], [(i, (900 + i) * DAY) for i in range(50)]):
        assert np.isfinite(engine.slate(view("u", history), NOW).raw).all()
