"""What people see of the demo, and what ends it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
from rich.console import Console

from driftline.configs.errors import InputError
from driftline.stream.convert.named.repository import Change, Commit
from driftline.stream.demo import SCENES, DemoError, Moves, run_demo
from driftline.stream.demo.git import Known, Score, Scores, run_git_demo, show_next, show_scores
from driftline.stream.demo.newcomer import newcomers_of
from driftline.stream.demo.parts import demo_settings
from driftline.stream.demo.probes import Probes, Sent
from driftline.stream.demo.scene import Scene
from driftline.stream.demo.show import Picture, show_newcomer, show_purchase
from driftline.v1 import recommendation_pb2 as pb


def answer(*titles: str) -> pb.RecommendResponse:
    return pb.RecommendResponse(slate=pb.Slate(item_ids=[title[:2] for title in titles], titles=titles))


def test_a_purchase_names_customer_and_item_and_marks_what_is_new_in_the_list() -> None:
    customer = pb.UserState(user_id="13085", domain="EIRE", profile=pb.Profile(text="Likes [tea].", source="template"))
    seen = io.StringIO()
    before, after = answer("MUG", "CAKE STAND", "JAR"), answer("TEA [RED] POT", "MUG", "JAR")
    show_purchase(Console(file=seen, width=100), SCENES["shop"], customer, "84991", "60 CAKE CASES", before, after)
    first, *lines = seen.getvalue().splitlines()
    assert first == "customer 13085 (EIRE) buys 60 Cake Cases (item 84991)"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [["1", "Mug", "Tea [Red] Pot (new)"], ["2", "Cake Stand", "Mug"], ["3", "Jar", "Jar"]]
    assert "Likes [tea]. (template)" in lines[-1]


def test_the_demo_waits_as_long_as_a_count_grows_or_a_part_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driftline.stream.demo.STALLED_S", 0.2)
    parts: Any = SimpleNamespace(said_s=0.0)
    moves = Moves(parts)
    for count in range(5):
        time.sleep(0.1)
        assert not moves.stalled(count)
    parts.said_s = time.monotonic() + 0.2
    time.sleep(0.3)
    assert not moves.stalled(4)
    time.sleep(0.2)
    assert moves.stalled(4)
    assert not moves.stalled(5)


class Shop:
    """Answers of a serving part in which some customers have a profile."""

    def __init__(self, profiles: dict[str, str]) -> None:
        self.profiles = profiles

    def applied(self) -> int:
        return 7

    def model(self) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse()

    def state(self, user_id: str, now_ms: int) -> pb.GetUserStateResponse:
        profile = pb.Profile(text=self.profiles.get(user_id, ""), source="llm:test")
        return pb.GetUserStateResponse(user_state=pb.UserState(user_id=user_id, profile=profile))

    def recommend(self, user_id: str, now_ms: int) -> pb.RecommendResponse:
        return answer(f"FOR {user_id}")


def test_the_picture_stays_with_a_customer_who_has_a_profile_until_another_one_has() -> None:
    picture, seen = Picture(Shop({"b": "Likes tea.", "d": "Likes [jam]."}), 10, SCENES["shop"]), []  # type: ignore[arg-type]
    for user in "abcd":
        screen = io.StringIO()
        Console(file=screen, width=100).print(picture.table(Sent(user, 1, 9), 1))
        seen.append(screen.getvalue())
    for text, customer, profile in zip(seen, "abbd", ["none yet", *["Likes tea."] * 2, "Likes [jam]."], strict=True):
        assert f"customer {customer}" in text
        assert profile in text
        assert f"For {customer.title()}" in text
        assert "7, 3" in text


def test_a_demo_whose_folder_is_in_use_is_refused_and_the_folder_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    used = tmp_path / ".driftline" / "demo" / "broker" / "broker.json"
    used.parent.mkdir(parents=True)
    used.write_text(json.dumps({"pid": os.getpid(), "created": psutil.Process().create_time(), "port": 1}))
    monkeypatch.setattr("driftline.stream.demo.shutil.rmtree", lambda *_, **__: pytest.fail("the folder was removed"))
    with (used.parent / "users.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as whoever uses it does
        with pytest.raises(
            DemoError, match=rf"the broker of .driftline/demo runs, process {os.getpid()}: end the demo"
        ):
            run_demo(SCENES["shop"], False, 60)


def test_a_probe_that_fails_ends_the_demo_with_its_error() -> None:
    class Broken:
        def state(self, *_: Any, **__: Any) -> Any:
            raise grpc.RpcError("gone")

        def learnt(self) -> int:
            return 0

    serving: Any = Broken()
    sender: Any = SimpleNamespace(newest=Sent("u", 1, 0))
    with pytest.raises(DemoError, match=r"a probe failed: RpcError\('gone'\); see .*serve\.log"):  # noqa: SIM117
        with Probes(serving, sender) as probes:
            probes._threads[0].join(5)
    with pytest.raises(KeyError), Probes(serving, sender):
        raise KeyError


def test_every_scene_has_its_data_and_settings_and_something_to_stream() -> None:
    for name, preset in (("shop", "ecommerce"), ("games", "media")):
        scene = SCENES[name]
        settings = demo_settings(scene)
        assert settings.name == preset
        assert settings.action(scene.action).positive
        assert settings.state.root.is_relative_to(".driftline/demo")
    assert demo_settings(SCENES["games"]).trainer.catch_up_share == 0.1


def test_titles_are_written_as_the_scene_has_them_and_an_item_without_one_by_its_id() -> None:
    seen = io.StringIO()
    before = pb.RecommendResponse(slate=pb.Slate(item_ids=["a1", "b2"], titles=["MUG of tea", ""]))
    show_purchase(Console(file=seen, width=100), SCENES["games"], pb.UserState(user_id="u"), "b2", "", before, before)
    first, *lines = seen.getvalue().splitlines()
    assert first == "player u plays item b2"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [["1", "MUG of tea", "MUG of tea"], ["2", "b2", "b2"]]


def scene_of(folder: Path, rows: list[tuple[str, int]], titles: dict[str, str]) -> Scene:
    events = "".join(json.dumps({"user_id": "u", "item_id": item, "timestamp_ms": T_MS + t}) + "\n" for item, t in rows)
    (folder / "events.jsonl").write_text(events)
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({"item_id": i, "title": t}) + "\n" for i, t in titles.items())
    )
    return replace(SCENES["games"], events=folder / "events.jsonl", items=folder / "items.jsonl")


T_MS = 1_600_000_000_000


def test_the_newcomer_is_the_last_item_with_a_title_and_few_events(tmp_path: Path) -> None:
    rows = [("old", 0), ("a", 10), ("b", 20), ("b", 21), ("many", 30), *[("many", 31 + n) for n in range(5)]]
    rows += [("untitled", 40), ("old", 50)]
    scene = scene_of(tmp_path, rows, {"old": "Old", "a": "A", "b": "[B]", "many": "Many"})
    found, older = newcomers_of(scene, T_MS + 5)
    assert older.item_id == "a"
    assert (found.item_id, found.count, found.first_ms) == ("b", 2, T_MS + 20)
    assert newcomers_of(scene, T_MS + 45) == []
    seen = io.StringIO()
    show_newcomer(Console(file=seen, width=100), scene, found, answer("Old", "A"))
    assert seen.getvalue().splitlines() == [
        "new: [B] (item b), played 2 times, first on 13 September 2020", "  goes with Old, A",
    ]  # fmt: skip


def commit(author: str, *changes: str, sweeping: bool = False) -> Commit:
    """Files by name; `-a` deletes, `a>b` renames."""
    made = []
    for text in changes:
        item_id, _, path = text.lstrip("-").partition(">")
        made.append(Change(item_id, path or item_id, "delete" if text.startswith("-") else "edit"))
    return Commit("0", T_MS, author, tuple(made), sweeping)


def test_what_is_known_at_a_commit_is_what_came_before_it() -> None:
    known = Known()
    first = commit("ann", "a", "b", "c")
    assert not known.is_fair(first)  # nobody and nothing was seen before
    assert known.learn(first) == ["a", "b", "c"]
    assert known.learn(commit("ann", "x", sweeping=True)) == ["x"]
    assert not known.is_fair(commit("bob", "a"))
    assert not known.is_fair(commit("ann", "new"))
    assert not known.is_fair(commit("ann", "x"))  # no event has named it
    assert known.is_fair(commit("ann", "new", "a"))
    assert known.learn(commit("bob", "a", "-b", "c>d/c")) == ["b", "c"]
    assert known.recency("ann") == ["c", "a"]
    assert known.recency("bob") == ["c", "a"]
    assert known.learn(commit("ann", "a")) == []
    assert known.recency("ann") == ["a", "c"]
    assert known.recency("nobody") == ["a", "c"]
    assert (known.item("c").title, known.item("c").text, known.item("c").available) == ("d/c", "d c", True)
    assert not known.item("b").available
    assert known.learn(commit("ann", "b")) == ["b"]  # it is back
    bot = commit("helper[bot]", "a")
    known.learn(bot)
    assert not known.is_fair(bot)


def test_hits_and_shares_are_those_of_the_first_ten() -> None:
    scores = Scores()
    scores.add(["a", "b", *map(str, range(20))], ["y"], {"b", "z"})
    scores.add([*map(str, range(10)), "late"], ["late"], {"late"})
    scores.add(["both"], ["both"], {"both"})
    scores.add([], [], {"none"})
    assert scores.figures() == {
        "commits_predicted": 4,
        "hit_rate": {"driftline": 0.5, "recency": 0.5},
        "share_found": {"driftline": 0.375, "recency": 0.5},
        "hit_alone": {"driftline": 1, "recency": 1},
    }
    many = Score()
    many.add([str(n) for n in range(10)], {str(n) for n in range(40)})
    assert many.found == 1.0  # no list of ten holds more


def test_the_scores_say_so_where_plain_recency_does_as_well() -> None:
    for engine, said in ((0, True), (2, False)):
        seen = io.StringIO()
        scores = Scores(commits=4, engine=Score(engine, engine), recency=Score(1, 1.0))
        show_scores(Console(file=seen, width=100), scores, 9)
        assert "4 of the last 9 commits" in seen.getvalue()
        assert ("Plain recency does as well here" in seen.getvalue()) is said
        assert f"{engine / 4:.1%}" in seen.getvalue()


def test_files_of_odd_names_are_shown_on_one_line() -> None:
    seen = io.StringIO()
    show_next(Console(file=seen, width=100), {"An\nn": ["a [b].py", "tab\tnew\nline"], "Bob": []})
    lines = [line for line in seen.getvalue().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines] == [
        ["a [b].py", ""], ["tab\\tnew\\nline", ""],
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_repository_of_few_commits_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet", "."], check=True)
    (tmp_path / "a").write_text("a")
    subprocess.run(["git", "add", "a"], check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, "commit", "--quiet", "-m", "work"], check=True)
    with pytest.raises(InputError, match="got 1 commits that change files; expected at least 40 to learn from"):
        run_git_demo(tmp_path, 10, False, 60)
    assert not (tmp_path / ".driftline").exists()
