"""The commands that ask the service, with their options, against a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import grpc
import pytest
from tests.serving.conftest import Running, shop_events
from tests.serving.test_steering import kinds, settings, snapshot  # noqa: F401 - the shop whose items have attributes
from typer.testing import CliRunner

from driftline.graph.rows import Event
from driftline.serving.server import Server
from driftline.stream.cli import app
from driftline.v1 import recommendation_pb2 as pb

LAMPS = ("--category", "lamps", "--exclude-category", "bags", "--exclude", "item-3", "--max-price", "40", "-k", "4")


@pytest.fixture
def call(running):
    """Runs a command against the server; what it printed."""

    def run(*words, exit_code=0):
        result = CliRunner().invoke(app, [*words, "--address", f"127.0.0.1:{running.server.port}"])
        assert result.exit_code == exit_code, (result.output, result.exception)
        return result.stdout

    return run


@pytest.mark.parametrize(
    "command", [("recommend", "user-3"), ("recommend", "user-3", "user-4"), ("similar", "item-20")]
)
def test_lists_take_the_options_that_steer_them(call, command):
    answer = json.loads(call(*command, *LAMPS, "--diversity", "0.3", "--json"))
    slates = [one["slate"] for one in answer["user_slates"]] if "user_slates" in answer else [answer["slate"]]
    assert len(slates) == len(command) - 1
    for slate in slates:
        assert len(slate["item_ids"]) == 4
        assert all("lamps" in kinds(item) for item in slate["item_ids"])
        assert "item-3" not in slate["item_ids"]
    shown = call(*command, *LAMPS)
    assert all(item in shown for item in slates[0]["item_ids"][:1])
    assert "no item has that category" in " ".join(call(*command, "--category", "lampz").split())  # it wraps


def test_an_item_that_nobody_knows_is_answered_with_those_that_are_near(call, running):
    told = CliRunner().invoke(app, ["similar", "ITEM-200", "--address", f"127.0.0.1:{running.server.port}"])
    assert "did you mean 'item-20'" in str(told.exception)
    said = " ".join(call("recommend", "user-3", "--exclude", "item-3x").split())
    assert "unknown excluded items, did you mean 'item-3' or 'item-" in said
    reasons = json.loads(call("score", "user-3", "item-1", "Item-2", "--json"))["provenance"]["reasons"]
    assert reasons[:2] == ["unknown_items", "did_you_mean:item-2"]
    assert "unknown_excluded_items" not in call("recommend", "user-3", "--exclude", "item-3", "--json")


def test_scores_are_shown_with_the_items_that_have_none(call):
    shown = call("score", "user-3", "item-1", "no-such", "item-2")
    assert shown.index("item-1") < shown.index("not known to the model: no-such")
    data = json.loads(call("score", "user-3", "item-1", "no-such", "--list", "novel", "--json"))
    assert (data["unknown_item_ids"], data["scores"][1]) == (["no-such"], None)


def test_state_model_and_health_are_told_as_text_and_as_json(call):
    for words in (("query", "user", "user-3"), ("query", "model"), ("query", "health")):
        assert json.loads(call(*words, "--json"))
        assert call(*words)
    assert json.loads(call("query", "health", "--json")) == {"status": "SERVING"}


def test_health_of_a_service_that_has_nothing_to_answer_from_is_an_exit_code(tmp_path):
    from tests.serving.conftest import small_settings

    with Server(small_settings(tmp_path)) as server, grpc.insecure_channel("127.0.0.1:1") as channel:
        port = Running(server, channel).server.port
        result = CliRunner().invoke(app, ["query", "health", "--address", f"127.0.0.1:{port}"])
    assert (result.exit_code, result.stdout.strip()) == (76, "NOT_SERVING")


@pytest.mark.usefixtures("worker")
def test_before_the_first_model_lists_and_histories_have_the_titles_that_were_produced(request):
    with Server(request.getfixturevalue("settings")) as server:
        address = ("--address", f"127.0.0.1:{server.port}", "--json")

        def asked(*words):
            return json.loads(CliRunner().invoke(app, [*words, *address]).stdout)

        said = CliRunner().invoke(app, ["recommend", "user-3", *address[:2]], env={"COLUMNS": "200"}).stdout
        assert "none of them has a title" in said
        server.availability.begin({0: (0, 60)})
        for n in range(60):
            item = {"item_id": f"item-{n}", "title": f"Lamp {n}"}
            server.availability.take(item["item_id"].encode(), json.dumps(item).encode())
        server.availability.taken(at_end=True)
        answer = asked("recommend", "user-3")
        assert answer["provenance"]["served_from"] == "SERVED_FROM_FALLBACK"
        assert answer["slate"]["titles"] == [item.replace("item-", "Lamp ") for item in answer["slate"]["item_ids"]]
        history = asked("query", "user", "user-3")["user_state"]["history"]
        assert history["titles"] == [item.replace("item-", "Lamp ") for item in history["item_ids"]]


@contextmanager
def following(running, *command):
    """A command that follows a user, as its own process, for which Ctrl-C means what it means on a terminal."""
    words = [sys.executable, "-P", "-m", "driftline.stream.cli.command", *command, "--json"]
    address = ["--address", f"127.0.0.1:{running.server.port}"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        process = subprocess.Popen([*words, *address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_watch_in_the_background_of_a_script_ends_in_order_by_sigterm(running, worker):
    command, address = ["watch", "user-3", "--json"], f"127.0.0.1:{running.server.port}"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a shell does to a job in the background
    try:
        words = [sys.executable, "-P", "-m", "driftline.stream.cli.command", *command, "--address", address]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert json.loads(process.stdout.readline())["user_state"]["user_id"] == "user-3"
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.terminate()
            rest, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (rest, said, process.returncode) == ("", "", 0)


@pytest.mark.parametrize("command", [("watch", "user-3"), ("query", "user", "user-3", "--watch")])
def test_watch_prints_a_line_after_each_change_until_ctrl_c_ends_it_in_order(running, worker, command):
    with following(running, *command, "--history", "1") as process:
        first = json.loads(process.stdout.readline())
        worker.apply([Event("user-3", "item-1", shop_events()[-1].timestamp_ms + 1000, "purchase", offset=10_000)])
        second = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=20)
    assert (rest, said, process.returncode) == ("", "", 0)
    assert second["user_state"]["history"]["item_ids"] == ["item-1"]
    events = [one["user_state"]["counters"]["events"] for one in (first, second)]
    assert int(events[1]) == int(events[0]) + 1


RPCS = {
    "GetUserState": "query user", "WatchUserState": "watch", "Recommend": "recommend", "RecommendBatch": "recommend",
    "ScoreItems": "score", "SimilarItems": "similar", "ForgetUser": "query forget", "GetModelInfo": "query model",
}  # fmt: skip


def test_every_call_of_the_api_is_a_command():
    assert set(RPCS) == set(pb.DESCRIPTOR.services_by_name["RecommendationService"].methods_by_name)
    for command in RPCS.values():
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0


@pytest.mark.parametrize(
    "command",
    [
        ("query", "user", "user-3"),
        ("recommend", "user-3"),
        ("recommend", "user-3", "no-such"),
        ("score", "user-3", "item-1"),
    ],
)
def test_a_stream_that_ended_long_ago_is_asked_as_of_its_end(running, worker, command):
    def asked(*words):
        address = f"127.0.0.1:{running.server.port}"
        result = CliRunner().invoke(app, [*command, *words, "--address", address, "--json"])
        answer = json.loads(result.stdout)
        origin = answer.get("user_slates", [answer])[0]["provenance"]
        return answer["request_time"], origin["request_time_ms"], result.stderr

    newest_ms = shop_events()[-1].timestamp_ms
    how, at_ms, said = asked()
    assert (how, at_ms) == ("newest_event", newest_ms + 1)
    assert "note: the newest event is of 2023-11-21 " in said
    assert "--at TIME" in said
    assert asked("--at", str(newest_ms + 60_000)) == ("given", newest_ms + 60_000, "")
    now_ms = time.time_ns() // 1_000_000
    worker.apply([Event("user-3", "item-1", now_ms - 29 * 86_400_000, "purchase", offset=10_000)])
    wait_until = time.monotonic() + 20
    while asked()[0] != "now":
        assert time.monotonic() < wait_until
    how, at_ms, said = asked()
    assert at_ms >= now_ms
    assert said == ""


@pytest.mark.parametrize(
    "command", [("recommend",), ("similar",), ("score",), ("watch",), ("query", "forget"), ("query", "health")]
)
def test_every_help_has_an_example_and_the_options_of_a_connection(command):
    text = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).stdout
    assert f"driftline {' '.join(command)}" in text
    assert "Example" in text
    for option in ("--address", "--token", "--config", "--json"):
        assert option in text
    lists = ("--exclude ", "--category", "--brand", "--domain", "--min-price", "--max-price", "--diversity")
    assert all((option in text) == (command[0] in ("recommend", "similar")) for option in lists)
