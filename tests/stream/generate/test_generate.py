"""Synthetic streams: their bytes, their shape, and that the truth behind them is the best that can be reached."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from driftline.configs.errors import InputError
from driftline.configs.settings import Settings
from driftline.stream.cli import app
from driftline.stream.events.files import read_columns, validate, validate_items
from driftline.stream.generate.draw import days
from driftline.stream.generate.optimum import reachable
from driftline.stream.generate.plan import Plan
from driftline.stream.generate.words import THINGS, category_of
from driftline.stream.generate.world import World
from driftline.stream.generate.write import EVENTS, ITEMS, OPTIMUM, generate
from driftline.stream.replay.arms import Arrival, Ranking, Request, Slate
from driftline.stream.replay.baselines import Popularity
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.metrics import METRICS
from driftline.stream.replay.protocol import run

PLAN = Plan(users=150, items=400, events=8000, seed=7, titles=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("made")
    return out, generate(PLAN, out)


def drawn(plan: Plan) -> tuple[World, dict[str, np.ndarray]]:
    """A world and all of its events, columns by name."""
    world = World(plan)
    every = list(days(world))
    columns = {name: np.concatenate([getattr(d, name) for d in every]) for name in ("t_ms", "user", "place", "before")}
    columns["day"] = np.concatenate([np.full(len(d.t_ms), d.day) for d in every])
    return world, columns


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """Jensen-Shannon divergence of two counts, in bits."""
    p, q = a / a.sum(), b / b.sum()
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(sum(np.nansum(x * np.log2(x / m)) / 2 for x in (p, q)))


def test_one_seed_makes_the_same_bytes_and_another_others(made: tuple[Path, Any], tmp_path: Path) -> None:
    again = generate(PLAN, tmp_path / "again")
    other = generate(dataclasses.replace(PLAN, seed=8), tmp_path / "other")
    for name in (EVENTS, ITEMS, OPTIMUM):
        assert (made[0] / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert again["events_sha256"] == hashlib.sha256((made[0] / EVENTS).read_bytes()).hexdigest()
    assert other["events_sha256"] != again["events_sha256"]


def test_the_files_are_good_in_order_of_time_and_belong_together(made: tuple[Path, Any]) -> None:
    events, items = validate(made[0] / EVENTS, {"interact"}, True), validate_items(made[0] / ITEMS)
    assert (events.ok, items.ok, dict(events.counts), dict(items.counts)) == (True, True, {}, {})
    assert (events.rows, items.rows) == (PLAN.events, PLAN.items)
    assert set(events.item_rows) <= set(items.item_rows)
    t_ms = pq.read_table(made[0] / EVENTS)["timestamp_ms"].to_numpy()
    assert (np.diff(t_ms) > 0).all()


def test_no_item_is_taken_before_it_enters_and_the_catalogue_grows(made: tuple[Path, Any]) -> None:
    events, items = (pq.read_table(made[0] / name).to_pydict() for name in (EVENTS, ITEMS))
    since = dict(zip(items["item_id"], items["valid_from_ms"], strict=True))
    assert all(since[item] <= t for item, t in zip(events["item_id"], events["timestamp_ms"], strict=True))
    later = sum(t > PLAN.start_ms for t in since.values()) / PLAN.items
    assert abs(later - PLAN.growth) < 0.1
    quarters = [set(events["item_id"][n : n + 2000]) for n in range(0, 8000, 2000)]
    assert len(quarters[3] - quarters[0]) > len(quarters[0] - quarters[3])


def test_titles_say_what_belongs_together(made: tuple[Path, Any]) -> None:
    items = pq.read_table(made[0] / ITEMS).to_pydict()
    thing = {f"{name}s": name for name in THINGS}
    assert all(thing[c[0]] in title for title, c in zip(items["title"], items["categories"], strict=True))
    assert category_of(len(THINGS)) == f"{THINGS[0]}s 2"


def test_few_items_take_most_events_and_steeper_laws_make_larger_hubs() -> None:
    shares = []
    for zipf in (0.0, 1.1, 1.5):
        _, events = drawn(Plan(300, 1000, 20_000, zipf=zipf, fresh=0, growth=0))
        shares.append(np.sort(np.bincount(events["place"], minlength=1000))[-10:].sum() / 20_000)
    assert shares[0] < 0.03 < 0.2 < shares[1] < shares[2]


def test_tastes_drift_as_often_as_asked() -> None:
    moved = []
    for drift_days in (0.0, 30.0):
        plan = Plan(20, 200, 40_000, drift_days=drift_days, season=0, growth=0, stay=0, explore=0)
        world, events = drawn(plan)
        genre, early = world.genre[events["place"]], events["day"] < 100
        late = events["day"] > 265
        counts = [
            [np.bincount(genre[part & (events["user"] == u)], minlength=world.genres) for part in (early, late)]
            for u in range(20)
        ]
        moved.append(float(np.mean([divergence(a, b) for a, b in counts])))
    assert moved[0] < 0.05 < 0.5 < moved[1]


def test_seasons_come_back_after_a_year() -> None:
    plan = Plan(2000, 200, 60_000, days=730, season=1.5, drift_days=0, growth=0, explore=0.9)
    world, events = drawn(plan)
    genre = world.genre[events["place"]]

    def month(first: int) -> np.ndarray:
        return np.bincount(genre[(events["day"] >= first) & (events["day"] < first + 30)], minlength=world.genres)

    assert divergence(month(0), month(365)) < divergence(month(0), month(182)) / 4


def test_events_follow_the_probabilities_that_are_told() -> None:
    world, events = drawn(Plan(8, 60, 40_000, genres=6, days=60, stay=0.4, drift_days=20, fresh=0.4))
    want, got, spread = np.zeros(60), np.zeros(60), np.zeros(60)
    for day in range(60):
        rows = np.flatnonzero((events["day"] == day) & (events["user"] < 3))
        p = world.probabilities(events["user"][rows], events["t_ms"][rows], day, events["before"][rows])
        assert np.allclose(p.sum(1), 1)
        chosen = events["place"][rows]
        assert (p[np.arange(len(rows)), chosen] > 0).all()
        # by rank, so that a wrong user, genre before or day shows
        rank = np.argsort(np.argsort(-p, 1, kind="stable"), 1, kind="stable")
        got += np.bincount(rank[np.arange(len(rows)), chosen], minlength=60)
        ordered = -np.sort(-p, 1)
        want, spread = want + ordered.sum(0), spread + (ordered * (1 - ordered)).sum(0)
    assert (np.abs(got - want) < 4.5 * np.sqrt(spread) + 1).all()


class Truth:
    """An arm that knows the generator."""

    name, refresh_cpu_s, trained_share = "truth", 0.0, 1.0

    def __init__(self, world: World, log: EventLog) -> None:
        self.world = world
        place = {f"i{number:07d}": at for at, number in enumerate(world.number.tolist())}
        self.places = np.array([place[item_id] for item_id in log.item_ids])
        self.users = {f"u{number:07d}": user for user, number in enumerate(world.user_numbers.tolist())}

    def start(self, split_ms: int) -> None:
        """Nothing to do."""

    def score(self, request: Request) -> Slate:
        """The true probabilities."""
        user, t_ms = np.array([self.users[request.user_id]]), np.array([request.t_ms])
        last = self.places[request.log.item[request.history[-1]]] if len(request.history) else -1
        before = np.array([self.world.genre[last] if last >= 0 else -1])
        day = int((request.t_ms - self.world.plan.start_ms) // 86_400_000)
        p = self.world.probabilities(user, t_ms, day, before)[0]
        return Slate(Ranking(p[self.places[: request.pool]]))

    def learn(self, request: Request, arrival: Arrival) -> None:
        """Nothing to learn."""


def test_a_replay_of_the_truth_reaches_what_is_told_and_popularity_does_not(made: tuple[Path, Any]) -> None:
    log = EventLog(read_columns(made[0] / EVENTS), Settings().action)
    split_ms = log.split_ms(0.85)
    result = run(log, [Truth(World(PLAN), log), Popularity()], split_ms)
    told = made[1]["test"]
    for metric in ("hr@10", "ndcg@10", "hr@20", "ndcg@20"):
        truth, popular = (result.arms[name].values[:, 0, METRICS.index(metric)] for name in ("truth", "popularity"))
        error = truth.std() / np.sqrt(len(truth))
        assert abs(truth.mean() - told["optimum"][metric]) < 4 * error
        assert abs(told["realised"][metric] - truth.mean()) < 1e-6 or told["n"] < len(truth)
        assert popular.mean() < told["impersonal"][metric] + 4 * error < told["optimum"][metric]


def test_the_command_says_what_it_made_and_what_can_be_reached(tmp_path: Path) -> None:
    sizes = ("--users", "50", "--items", "40", "--events", "1000")
    given = ("generate", "--out", str(tmp_path / "made"), *sizes, "--seed", "3")
    told = CliRunner().invoke(app, [*given, "--json"])
    assert told.exit_code == 0, told.output
    saved = orjson.loads((tmp_path / "made" / OPTIMUM).read_bytes())
    assert orjson.loads(told.stdout).items() >= saved.items()
    assert saved["plan"]["seed"] == 3
    assert "who knows all probabilities reaches HR@10 0." in CliRunner().invoke(app, given).stdout


def test_a_replay_of_a_made_stream_says_how_far_each_arm_is_from_what_can_be_reached(
    made: tuple[Path, Any], tmp_path: Path
) -> None:
    given = ("--arms", "popularity,item_knn_recent", "--no-audit", "--out", str(tmp_path / "out"))

    def replayed(events: Path, *more: str) -> tuple[dict[str, Any], str]:
        told = CliRunner().invoke(app, ["replay", "--events", str(events), *given, *more])
        assert told.exit_code == 0, told.output
        return orjson.loads((tmp_path / "out" / "metrics.json").read_bytes()), told.stdout

    metrics, told = replayed(made[0] / EVENTS)
    assert metrics["reachable"] == made[1]["test"]
    share = metrics["arms"]["popularity"]["overall"]["ndcg@10"] / made[1]["test"]["optimum"]["ndcg@10"]
    assert f"of that NDCG have popularity {share:.0%}, item_knn_recent " in told
    page = (tmp_path / "out" / "report.html").read_text()
    assert "by who knows all probabilities" in page
    assert "reachable" not in replayed(made[0] / EVENTS, "--limit", "500")[0]
    sha256, half_ms = made[1]["events_sha256"], made[1]["slices"][10]["from_ms"]
    assert reachable(made[0] / EVENTS, sha256, half_ms)["n"] > metrics["reachable"]["n"]
    assert reachable(made[0] / EVENTS, "of other events", half_ms) is None
    for wrong in (None, b"", b"[]", b'{"events_sha256": "x"}', b'{"events_sha256": "x", "slices": 3}'):
        if wrong is not None:
            (tmp_path / OPTIMUM).write_bytes(wrong)
        assert reachable(tmp_path / EVENTS, "x", half_ms) is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"users": 0}, "got 0 users; expected 1"),
        ({"growth": 1.0}, "got growth 1.0; expected a share"),
        ({"zipf": -1.0}, "got zipf -1.0"),
        ({"zipf": 400.0}, "got zipf 400.0; expected a number from 0 to 10"),
        ({"days": 1, "events": 10_000_000}, "more than one in 20 ms"),
        ({"start_ms": 1_600_000_000}, "expected a time between 1973 and 2100"),
        ({"days": 60_000}, "expected a time between 1973 and 2100"),
    ],
)
def test_a_plan_that_can_not_be_made_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(PLAN, **wrong)


@pytest.mark.parametrize(
    "plan",
    [Plan(1, 1, 1), Plan(1, 3, 50, genres=40), Plan(5, 7, 9, days=3, growth=0.9), Plan(9, 9, 40, days=1, zipf=0)],
)
def test_the_smallest_streams_are_good_too(plan: Plan, tmp_path: Path) -> None:
    made = generate(plan, tmp_path)
    assert validate(tmp_path / EVENTS).ok
    assert validate(tmp_path / EVENTS).rows == made["events"] == plan.events
