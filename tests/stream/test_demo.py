"""What people see of the demo, and what ends it."""

from __future__ import annotations

import fcntl
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
from rich.console import Console

from driftline.stream.demo import DemoError, run_demo
from driftline.stream.demo.probes import Probes, Sent
from driftline.stream.demo.show import Picture, show_purchase
from driftline.v1 import recommendation_pb2 as pb


def answer(*titles: str) -> pb.RecommendResponse:
    return pb.RecommendResponse(slate=pb.Slate(item_ids=[title[:2] for title in titles], titles=titles))


def test_a_purchase_names_customer_and_item_and_marks_what_is_new_in_the_list() -> None:
    customer = pb.UserState(user_id="13085", domain="EIRE", profile=pb.Profile(text="Likes [tea].", source="template"))
    seen = io.StringIO()
    before, after = answer("MUG", "CAKE STAND", "JAR"), answer("TEA [RED] POT", "MUG", "JAR")
    show_purchase(Console(file=seen, width=100), customer, "84991", "60 CAKE CASES", before, after)
    first, *lines = seen.getvalue().splitlines()
    assert first == "customer 13085 (EIRE) buys 60 Cake Cases (item 84991)"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [["1", "Mug", "Tea [Red] Pot (new)"], ["2", "Cake Stand", "Mug"], ["3", "Jar", "Jar"]]
    assert "Likes [tea]. (template)" in lines[-1]


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
    picture, seen = Picture(Shop({"b": "Likes tea.", "d": "Likes [jam]."}), 10), []  # type: ignore[arg-type]
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
            run_demo(False, 60)


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
