"""What a replay does not pay for, and that leaving it out changes nothing."""

from __future__ import annotations

import copy
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import scipy.sparse as sp
from tests.stream.replay.test_replay import without_clocks
from typer.testing import CliRunner

from driftline.configs.errors import InputError
from driftline.configs.settings import Settings
from driftline.graph.profile import Profile
from driftline.graph.view import FACETS
from driftline.llm.profile import FORMAT
from driftline.model.clocks import Clocks
from driftline.model.engine import Engine
from driftline.stream.bundled import EVENTS, ITEMS
from driftline.stream.cli import app
from driftline.stream.events.files import read_columns, read_items
from driftline.stream.ops.progress import ProgressLines
from driftline.stream.process.processor import Processor, Record
from driftline.stream.replay import aside, baselines, run
from driftline.stream.replay.arms import Setup
from driftline.stream.replay.audit import AUDITS
from driftline.stream.replay.counters import nearest
from driftline.stream.replay.inputs import ReplayProfiles, profile_sources, replay_profiles, replay_texts
from driftline.stream.replay.log import EventLog
from driftline.stream.replay.protocol import run as drive
from driftline.stream.replay.registry import build_arm
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options
from driftline.stream.state.store import MemoryStore

SETTINGS = Settings.model_validate(
    {"profiles": {"first_events": 3, "refresh_events": 10}, "graph": {"publish_groups": 15}}
)


class Encoder:
    """A vector for every text, and the texts that were asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors [n, 384] by text alone."""
        self.seen += texts
        rows = [np.random.default_rng(list(text.encode())).standard_normal(384) for text in texts]
        vectors = np.array(rows, np.float32).reshape(-1, 384)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def shop() -> tuple[EventLog, dict[str, Any]]:
    return EventLog(read_columns(EVENTS, 900), SETTINGS.action), dict(read_items(ITEMS))


def setup_of(shop: tuple[EventLog, Any], path: Path | None = None) -> tuple[Setup, Encoder]:
    encoder = Encoder()
    return Setup(shop[0], SETTINGS, items=shop[1], profiles=path, shared={"encoder": encoder}), encoder


def written(log: EventLog, path: Path) -> Path:
    """A file of profiles with a text of its own for each; half of the users have none."""
    lines = [orjson.dumps({"format": FORMAT})]
    for user_id in log.user_ids[::2]:
        for version in range(1, 30):
            facets = {facet: f"{facet} of {user_id} {version}" for facet in FACETS}
            lines.append(Profile(user_id, facets, "", "llm:x", {}, version, 0, 0).to_json())
    path.write_bytes(b"\n".join(lines))
    return path


def read_all(log: EventLog, profiles: ReplayProfiles) -> list[Any]:
    """What each group of a log reads, in order."""
    processor, found = Processor(SETTINGS, MemoryStore()), []
    for number in range(log.groups):
        found.append(profiles.at(log.user_ids[log.group_user[number]], int(log.group_t_ms[number])))
        changes = processor.apply([Record(e.offset, e) for e in map(log.event, log.rows_of(number).tolist())])
        processor.commit(changes)
        for out in changes.outgoing:
            if out.topic == "profile-requests":
                profiles.request(out.value or b"")
    return found


def test_only_texts_of_items_in_the_log_are_encoded_and_each_once(shop: tuple[EventLog, Any]) -> None:
    setup, encoder = setup_of(shop)
    texts = replay_texts(setup)
    assert set(texts) <= set(shop[0].item_ids)
    assert len(encoder.seen) == len(texts) > 0.9 * len(shop[0].item_ids)
    assert len(shop[1]) > 3 * len(texts)
    replay_texts(setup)
    assert len(encoder.seen) == len(texts)


def test_only_profiles_that_a_group_reads_are_encoded_and_all_of_them_ahead(
    shop: tuple[EventLog, Any], tmp_path: Path
) -> None:
    setup, encoder = setup_of(shop, written(shop[0], tmp_path / "profiles.jsonl"))
    profiles = replay_profiles(setup)
    assert profiles is not None
    ahead = set(encoder.seen)
    encoder.seen.clear()
    found = [one for one in read_all(shop[0], profiles) if one is not None]
    assert {one.source for one in found} == {"llm:x", "template"}
    assert set(encoder.seen) == ahead
    assert len(ahead) < 29 * len(FACETS) * len(shop[0].user_ids[::2]) / 20
    sources = profile_sources(setup, np.arange(shop[0].groups))
    assert len(found) == sum(source != "none" for source in sources)


def test_a_copy_of_the_profiles_goes_on_with_requests_of_its_own(shop: tuple[EventLog, Any]) -> None:
    setup, _ = setup_of(shop)
    one = replay_profiles(setup)
    other = copy.deepcopy(one)
    assert one is not None
    assert other is not None
    assert any(profile is not None for profile in read_all(shop[0], one))
    assert all(other.at(user_id, 1 << 60) is None for user_id in shop[0].user_ids)


def test_a_profile_written_from_the_last_group_of_a_log_exists_and_a_later_one_does_not(
    shop: tuple[EventLog, Any], tmp_path: Path
) -> None:
    log, path, last_ms = shop[0], tmp_path / "profiles.jsonl", int(shop[0].t_ms[-1])
    user_id = log.user_ids[log.group_user[-1]]
    facets = dict.fromkeys(FACETS, "lights")
    profiles = [Profile(user_id, facets, "", "llm:x", {}, 1 + n, t, t) for n, t in enumerate((last_ms, last_ms + 1))]
    path.write_bytes(b"\n".join([orjson.dumps({"format": FORMAT}), *(one.to_json() for one in profiles)]))
    found = replay_profiles(setup_of(shop, path)[0])
    assert found is not None
    assert found._own.find(user_id, 1, last_ms) is not None
    assert found._own.find(user_id, 2, last_ms + 1) is None


def test_a_placebo_keeps_who_has_a_profile_and_when_and_a_template_takes_none_of_the_file(
    shop: tuple[EventLog, Any], tmp_path: Path
) -> None:
    setup, _ = setup_of(shop, written(shop[0], tmp_path / "profiles.jsonl"))
    own, placebo, template = (
        read_all(shop[0], made) for choice in ("on", "placebo", "template") if (made := replay_profiles(setup, choice))
    )
    both = [(a, b) for a, b in zip(own, placebo, strict=True) if a is not None and b is not None]
    assert both
    assert all(a.valid_from_ms == b.valid_from_ms for a, b in both)
    assert any((a.facets != b.facets).any() for a, b in both)  # templates may say the same
    assert all(a is not None for a, b in zip(own, placebo, strict=True) if b is not None)
    assert {one.source for one in template if one is not None} == {"template"}


@pytest.mark.parametrize("name", ["incremental:profiles=placebo", "ranker+hstu:text=placebo:profiles=template"])
def test_switches_are_composed_by_name_and_others_are_refused(shop: tuple[EventLog, Any], name: str) -> None:
    setup, _ = setup_of(shop)
    arm, _ = build_arm(name, setup)
    assert arm.shared.settings.systems == dict(part.split("=") for part in name.split(":")[1:])  # type: ignore[attr-defined]
    assert build_arm("incremental", setup)[0].shared is not arm.shared  # type: ignore[attr-defined]
    for wrong, said in (
        ("incremental:text=template", "systems.text: got 'template'; expected any of on, off, placebo"),
        ("incremental:hstv=placebo", "did you mean 'hstu'"),
        ("ranker+hstv", "expected any of"),
        ("incremental+hstu", "expected any of"),
        ("ranker-hstu", "expected any of"),
    ):
        with pytest.raises(InputError, match=said):
            build_arm(wrong, setup)


def test_a_system_is_the_settings_of_its_overlay(shop: tuple[EventLog, Any]) -> None:
    setup, _ = setup_of(shop)
    off, placebo = (build_arm(f"incremental:dynllm={arm}", setup)[0].shared for arm in ("off", "placebo"))  # type: ignore[attr-defined]
    assert list(off.learner.parts) == ["hstu"]
    assert list(placebo.learner.parts) == ["hstu", "graph"]
    assert placebo.settings.systems == {"dynllm": "placebo", "profiles": "placebo"}


class Eager(ReplayProfiles):
    """Writes and encodes each profile when it is asked for, whether or not it is read."""

    def request(self, record: bytes) -> None:
        super().request(record)
        for user_id, (times, requests) in self._schedule._valid.items():
            for valid_ms, request in zip(times, requests, strict=True):
                self._made[user_id, request.version, valid_ms] = self._read(request, valid_ms)


def ranks(shop: tuple[EventLog, Any], path: Path, *names: str) -> dict[str, np.ndarray]:
    """All metrics of all scored groups by arm."""
    setup, _ = setup_of(shop, path)
    arms = [build_arm(name, setup)[0] for name in names]
    result = drive(shop[0], arms, shop[0].split_ms(0.6))
    return {name: result.arms[name].values for name in names}


def test_engine_and_graph_rank_alike_with_all_profiles_encoded_at_once_and_with_those_that_are_read(
    shop: tuple[EventLog, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(shop[0], tmp_path / "profiles.jsonl")
    together = ranks(shop, path, "graph", "frozen", "incremental")
    monkeypatch.setattr("driftline.stream.replay.inputs.ReplayProfiles", Eager)
    eager = ranks(shop, path, "frozen", "incremental")
    monkeypatch.undo()
    for name, values in eager.items():
        np.testing.assert_array_equal(together[name], values)

    def nobody_asked(*_: object) -> None:
        raise AssertionError("the graph alone needs no slate")

    monkeypatch.setattr(Engine, "slate", nobody_asked)
    monkeypatch.setattr(Engine, "learn", nobody_asked)
    alone = ranks(shop, path, "graph")  # which adopts versions on the way, as the whole engine does
    np.testing.assert_array_equal(alone["graph"], together["graph"])


def test_the_graph_beside_a_lone_backbone_still_pays_for_itself_only(shop: tuple[EventLog, Any]) -> None:
    setup, _ = setup_of(shop)
    graph, lone = (build_arm(name, setup)[0] for name in ("graph", "hstu"))
    assert graph.shared.learner.sequence is None
    assert lone.learner is not None
    assert build_arm("ranker", setup)[0].shared.learner.sequence is lone.learner
    assert graph.shared.learner.sequence is None


def test_neighbours_of_which_only_some_rows_were_made_anew_are_those_of_all_rows() -> None:
    rng = np.random.default_rng(0)
    items, pairs, similar = 3, sp.csr_matrix((3, 3), dtype=np.float32), sp.csr_matrix((3, 3), dtype=np.float32)
    earlier: list[Any] = []
    fewer = 0
    for day in range(60):
        items += int(rng.integers(0, 3))
        new = [(np.unique(rng.integers(0, items, rng.integers(1, 5))).astype(np.int32), 1.0) for _ in range(day % 4)]
        taken_back = [(basket, -1.0) for basket, _ in earlier[: day % 2]]  # counts fall to 0 again
        earlier = new + earlier[day % 2 :]
        arm = baselines.ItemKnn()
        arm.neighbors, arm._pairs, arm._similar, arm._pending = 4, pairs, similar, new + taken_back
        arm._refresh(items)
        pairs, similar = arm._pairs, arm._similar
        whole = nearest(pairs, 4)
        np.testing.assert_array_equal(similar.toarray(), whole.toarray())
        fewer += similar.nnz > 0 and not new
    assert similar.nnz > 40
    assert fewer > 5


def test_ease_refreshes_daily_as_long_as_its_rows_pay_for_it_and_says_so_where_they_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"arms": ("ease_recent",), "limit": 6000, "audit_rows": 0, "split": 0.2}
    daily = replay(Options(EVENTS, tmp_path / "daily", **given), Settings())["arms"]["ease_recent"]
    assert "note" not in daily
    monkeypatch.setattr(baselines, "EASE_PER_ROW", 1e6)
    seldom = replay(Options(EVENTS, tmp_path / "seldom", **given), Settings())["arms"]["ease_recent"]
    assert seldom["note"].startswith("refreshed on ")
    assert "days with requests: an inverse of" in seldom["note"]
    assert seldom["note"] in (tmp_path / "seldom" / "report.html").read_text()
    assert seldom["overall"]["ndcg@10"] != daily["overall"]["ndcg@10"]
    again = replay(Options(EVENTS, tmp_path / "seldom", resume=True, **given), Settings())["arms"]["ease_recent"]
    assert again["note"] == seldom["note"]


def test_the_audit_is_in_proportion_to_the_log_and_left_out_with_a_word(tmp_path: Path) -> None:
    assert [run.in_proportion(n) for n in (10, 20_000, 180_000, 10_000_000)] == [500, 556, 5000, 6000]
    given = {"arms": ("popularity",), "split": 0.7, "limit": 3000}
    short = replay(Options(EVENTS, tmp_path, **given), Settings())["leak_audit"]
    assert 300 <= short["rows"] <= run.AUDIT_LEAST
    call = ("replay", "--limit", "1500", "--arms", "popularity", "--no-audit", "--out", str(tmp_path / "none"))
    told = CliRunner().invoke(app, call)
    assert told.exit_code == 0, told.output
    assert "leak audit: not run: left out with --no-audit" in told.stdout
    page = (tmp_path / "none" / "report.html").read_text()
    assert ">not run</span>" in page
    assert "left out with --no-audit" in page


def test_the_state_alone_is_that_of_a_replay_with_arms(tmp_path: Path) -> None:
    call = ("replay", "--limit", "900", "--state-only", "--json", "--out", str(tmp_path / "state"))
    told = CliRunner().invoke(app, call)
    assert told.exit_code == 0, told.output
    metrics = orjson.loads(told.stdout)
    assert "arms" not in metrics
    whole = replay(Options(EVENTS, tmp_path / "arms", arms=("popularity",), limit=900, audit_rows=0), Settings())
    assert (metrics["state_sha256"], metrics["state"]) == (whole["state_sha256"], whole["state"])
    assert metrics["data"] == whole["data"]
    refused = CliRunner().invoke(app, [*call, "--arms", "popularity"], terminal_width=200)
    assert (refused.exit_code, "--state-only and --arms" in refused.output) == (2, True)


def test_a_log_gets_a_line_early_one_a_minute_and_one_at_the_end_of_a_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [0.0]
    show = ProgressLines(lambda: now[0])
    for done in range(1001):
        now[0] = done * 0.25
        show("arms", done, 1000)
    show("audit", 9, 9)
    show("rows", 0, None)
    now[0] += 600
    show("rows", 30, None)
    show.end()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "arms: 60 of 1,000, 4/s; 4 min left"
    assert lines[1] == "arms: 300 of 1,000, 4/s; 3 min left"
    assert lines[3] == "arms: 780 of 1,000, 4/s; 55 s left"
    assert lines[4:6] == ["arms: 1,000 of 1,000 in 4 min, 4/s", "audit: 9 of 9 in 0 s"]
    assert lines[6:] == ["rows: 30, 3.0/min", "rows: 30 in 10 min, 3.0/min"]


def test_what_is_left_goes_by_the_rate_of_late(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    show = ProgressLines(lambda: now[0])
    for seconds, done in ((0, 0), (15, 300), (75, 360), (135, 420)):
        now[0] = seconds
        show("arms", done, 600)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "arms: 300 of 600, 20/s; 15 s left", "arms: 360 of 600, 1/s; 4 min left", "arms: 420 of 600, 1/s; 3 min left"
    ]  # fmt: skip


def test_each_arm_is_charged_for_the_parts_that_it_needs_and_for_no_other(shop: tuple[EventLog, Any]) -> None:
    setup, _ = setup_of(shop)
    names = ("ranker", "ranker+hstu", "ranker+profiles", "incremental", "hstu", "graph", "popularity")
    arms = [build_arm(name, setup)[0] for name in names]
    before = time.process_time()
    found = drive(shop[0], arms, shop[0].split_ms(0.6)).arms
    whole = time.process_time() - before
    base = {"state", "signals", "text", "ranker"}
    parts = {name: set(found[name].cost) for name in names}
    assert parts == {
        "ranker": base,
        "ranker+hstu": base | {"hstu"},
        "ranker+profiles": base | {"profiles", "fused", "graph"},
        "incremental": base | {"hstu", "graph", "fused", "profiles", "gate"},
        "hstu": {"hstu"},
        "graph": {"state", "graph", "profiles"},
        "popularity": {"whole"},
    }
    cost = {name: found[name].cost for name in names}
    assert cost["ranker+hstu"]["hstu"] == cost["incremental"]["hstu"]
    assert cost["ranker"]["signals"] == cost["incremental"]["signals"]
    assert cost["ranker"]["ranker"] != cost["incremental"]["ranker"]
    assert 0 < cost["hstu"]["hstu"][0] < cost["incremental"]["hstu"][0]  # which also asks it for candidates
    total = found["incremental"].train_cpu_s + found["incremental"].score_cpu_s
    rankers = sum(sum(cost[name]["ranker"]) for name in names[:3])
    encoding = sum(setup.shared["encoding"].values())
    assert 0.6 * whole < total + rankers < whole + encoding


def test_a_part_within_another_is_charged_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    clocks = Clocks()
    with clocks.on("graph", "learn"):
        now[0] += 1
        with clocks.on("state", "learn"):
            now[0] += 10
        clocks.asked = True
        now[0] += 100
    now[0] += 1000  # nobody's
    with clocks.on("graph"):
        now[0] += 5
        with clocks.on("state", "learn"):  # the answer waits for what is to be learnt first
            now[0] += 20
    assert clocks.seconds == {
        ("graph", "learn"): [101.0, 0.0], ("graph", "predict"): [0.0, 5.0], ("state", "learn"): [30.0, 0.0]
    }  # fmt: skip


def test_simple_arms_and_audit_beside_the_engine_find_what_they_find_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said: set[str] = set()
    given = {"arms": ("popularity", "graph", "item_knn_recent"), "limit": 600, "audit_rows": 200}
    monkeypatch.setattr(run, "cores", lambda: 1)
    alone = replay(Options(EVENTS, tmp_path / "alone", **given), Settings())
    monkeypatch.setattr(run, "cores", lambda: 2)
    monkeypatch.setattr(run, "BESIDE_ROWS", 0)
    beside = replay(Options(EVENTS, tmp_path / "beside", **given), Settings(), lambda what, *_: said.add(what))
    assert without_clocks(beside) == without_clocks(alone)
    assert {beside["leak_audit"][name] for name in AUDITS} == {"pass"}
    assert {"seed 0: 2 simple arms", "seed 0: 1 arms", "leak audit"} <= said
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_part_beside_that_fails_or_dies_ends_the_replay_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(tmp_path / "nowhere.csv", tmp_path, arms=("popularity",))
    child = aside.Aside(options, Settings(), ["popularity"], ["popularity"], lambda *_: None)
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        child.result()
    child.stop()
    monkeypatch.setattr(aside, "MODULE", "driftline.stream.replay.nothing")
    dead = aside.Aside(options, Settings(), ["popularity"], ["popularity"], lambda *_: None)
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        dead.result()
    dead.stop()
