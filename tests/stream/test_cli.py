"""The real command line in processes of its own: one clear message and an exit code, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from kafka.errors import KafkaTimeoutError
from typer.testing import CliRunner

from configs.errors import InputError
from configs.settings import Settings, State
from graph.rows import Event
from llm.profile import Profile
from stream.adoptions import write_adoptions
from stream.cli import app
from stream.cli.evaluate import topic_file
from stream.cli.inspect import profile_in
from stream.doctor import examine
from stream.layout import hold_to_layout
from stream.processor import Processor, Record
from stream.produce import INTERRUPTED_S, Sender, item_messages, send_files, sender
from stream.revision import ROOT
from stream.store import MemoryStore, RocksStore, partition_path

Run = Callable[..., subprocess.CompletedProcess[str]]

EVENT = '{"user_id": "u1", "item_id": "i1", "timestamp_ms": 1600000000000, "colour": "red"}\n'


def refused(result: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert result.returncode == code, result.stderr
    messages = [line for line in result.stderr.splitlines() if line.startswith("driftline: ")]
    assert len(messages) == 1, result.stderr
    assert words in messages[0]
    assert "Traceback" not in result.stderr + result.stdout


def test_every_command_has_help_with_an_example(driftline: Run) -> None:
    import typer.main

    from stream.cli import app

    def walk(command: Any, path: list[str]) -> None:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                walk(inner, [*path, name])
        else:
            assert "Example: `" in (command.help or ""), path

    walk(typer.main.get_command(app), [])
    assert driftline("--help").returncode == 0


def test_the_version_is_that_of_the_package(driftline: Run) -> None:
    result = driftline("--version")
    assert (result.returncode, result.stdout) == (0, f"driftline {version('driftline')}\n")


def test_an_unknown_setting_names_the_nearest_key(driftline: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("broker:\n  bootstrp: localhost:9092\n")
    result = driftline("produce", "--events", "x.csv", "--config", str(tmp_path / "mine.yaml"))
    refused(result, 64, "did you mean 'broker.bootstrap'?")


def test_a_missing_preset_is_one_message(driftline: Run) -> None:
    refused(driftline("worker", "--config", "ecomerce"), 64, "did you mean 'ecommerce'?")


def test_a_wrong_broker_address_is_one_message_from_the_supervised_worker_too(driftline: Run) -> None:
    environment = {"DRIFTLINE__BROKER__BOOTSTRAP": "127.0.0.1:9", "DRIFTLINE__BROKER__CONNECT_TIMEOUT_S": "0.5"}
    refused(driftline("worker", **environment), 69, "no Kafka broker answers at 127.0.0.1:9")


def test_a_taken_broker_port_is_one_message(driftline: Run, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        environment = {
            "DRIFTLINE__BROKER__EMBEDDED_PORT": str(other.getsockname()[1]),
            "DRIFTLINE__BROKER__EMBEDDED_DIR": str(tmp_path),
        }
        refused(driftline("dlq", "list", **environment), 64, "is taken, so the embedded broker of ")


def test_a_broker_address_without_a_port_is_one_message(driftline: Run) -> None:
    refused(driftline("dlq", "list", DRIFTLINE__BROKER__BOOTSTRAP="127.0.0.1"), 64, "expected host:port[,host:port]")


def test_ctrl_c_while_a_command_is_still_loading_is_quiet() -> None:
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may have it ignored
import stream.command
print(flush=True)
sys.argv[1:] = ["dlq", "list"]
stream.command.main()
"""
    waits = {"DRIFTLINE__BROKER__BOOTSTRAP": "127.0.0.1:9", "DRIFTLINE__BROKER__CONNECT_TIMEOUT_S": "60"}
    for pause_s in (0.02, 0.1, 0.3, 1.5):
        command = [sys.executable, "-c", code]
        with subprocess.Popen(
            command, env=os.environ | waits, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        ) as process:
            process.stdout.readline()  # type: ignore[union-attr]
            time.sleep(pause_s)
            process.send_signal(signal.SIGINT)
            _, words = process.communicate(timeout=100)
        assert (process.returncode, b"Traceback" in words) == (130, False), words.decode()


def test_an_empty_file_and_a_folder_are_refused(world: Any, driftline: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    refused(driftline("produce", "--events", str(path), "-c", str(world.config)), 65, "there is no row")
    refused(driftline("produce", "--events", str(tmp_path), "-c", str(world.config)), 65, "got a folder")


def test_a_taken_metrics_port_is_one_message(world: Any, driftline: Run) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        environment = {"DRIFTLINE__METRICS__WORKER_PORT": str(other.getsockname()[1])}
        refused(driftline("worker", "-c", str(world.config), **environment), 64, "metrics.worker_port is")


def test_a_service_that_does_not_run_is_one_message(driftline: Run) -> None:
    refused(driftline("recommend", "u1", "--address", "127.0.0.1:9"), 76, "start it with 'driftline serve'")


def test_a_time_in_microseconds_is_listed_by_validate(driftline: Run, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(EVENT + EVENT.replace("1600000000000", "1600000000000000000"))
    checked = driftline("validate", "--events", str(path))
    assert checked.returncode == 65, checked.stderr
    assert "expected unix milliseconds (not micro- or nanoseconds)" in " ".join(checked.stdout.split())


def test_an_argument_that_is_no_text_is_one_message(driftline: Run) -> None:
    refused(driftline("query", "user", "\udcff\udcfe"), 65, "is not UTF-8; expected text")


def test_a_file_of_no_profiles_is_refused_before_the_replay(driftline: Run, tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item_id\na\n")
    given = ("--arms", "popularity", "--limit", "100", "--out", str(tmp_path / "out"))
    refused(driftline("replay", "--profiles", str(path), *given), 65, "expected a JSON object with format")


def test_a_bad_events_file_is_refused_with_row_and_column(world: Any, driftline: Run, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(EVENT + '{"user_id": "u1", "item_id": "", "timestamp_ms": 1}\n')
    refused(driftline("produce", "--events", str(path), "-c", str(world.config)), 65, "row 2, column 'item_id'")
    checked = driftline("validate", "--events", str(path), "--json")
    assert checked.returncode == 65
    assert json.loads(checked.stdout)["ok"] is False


def test_a_bad_items_file_is_refused_and_validate_lists_what_is_wrong(driftline: Run, tmp_path: Path) -> None:
    events, items = tmp_path / "events.jsonl", tmp_path / "items.jsonl"
    events.write_text(EVENT)
    items.write_text('{"item_id": "i1", "price": "dear"}\n{"item_id": "", "shelf": 3}\n')
    replay = driftline("replay", "--events", str(events), "--items", str(items), "--out", str(tmp_path / "out"))
    refused(replay, 65, "row 1, column 'price'")
    checked = driftline("validate", "--items", str(items))
    assert checked.returncode == 65, checked.stderr
    for part in ("items.jsonl: 2 rows", "left out: shelf", "row 1, column 'price'", "row 2, column 'item_id'"):
        assert part in checked.stdout.replace("\n", " ")
    both = driftline("validate", "--events", str(events), "--items", str(items), "--json")
    report = json.loads(both.stdout)
    assert (both.returncode, report["ok"], report["events"]["ok"], report["items"]["ok"]) == (65, False, True, False)
    assert driftline("validate").returncode == 2


def test_a_replay_of_a_few_rows_ends_well(driftline: Run, tmp_path: Path) -> None:
    result = driftline("replay", "--limit", "5", "--arms", "popularity", "--out", str(tmp_path / "out"), "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["leak_audit"]["permutation"].startswith(("pass", "not run: "))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--items", "items.csv"), "--items needs --events"),
        (("--events", "events.csv", "--from-kafka", "interactions"), "expected one of them"),
        (("--seed=-1",), "got '-1'; expected whole numbers from 0"),
        (("--seed", "18446744073709551616"), "got '18446744073709551616'"),
    ],
)
def test_options_of_replay_that_make_no_sense_are_refused(tmp_path: Path, given: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, ["replay", "--out", str(tmp_path / "out"), *given], terminal_width=200)
    assert result.exit_code == 2
    assert words in result.output


def test_replay_of_a_topic_takes_the_events_that_a_worker_takes(world: Any, tmp_path: Path) -> None:
    event = {"user_id": "u1", "item_id": "i1", "timestamp_ms": 1_600_000_000_000}
    good, ahead = orjson.dumps(event), orjson.dumps(event | {"timestamp_ms": 4_000_000_000_000})
    world.produce([(b"u1", good), (b"u2", good), (b"u1", ahead), (b"u1", b"{"), (None, good)])
    changes = Processor(world.settings, MemoryStore()).apply(world.log())
    assert (changes.applied, changes.dead) == (2, 3)
    path = topic_file(world.settings, "interactions", tmp_path / "events.jsonl")
    assert [orjson.loads(line)["timestamp_ms"] for line in path.read_bytes().splitlines()] == [1_600_000_000_000] * 2


def test_a_file_of_adoptions_that_can_not_be_written_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adoptions\.jsonl: can't be written: No such file.*choose another --out"):
        write_adoptions(tmp_path / "missing" / "adoptions.jsonl", [])


class SmallTopic:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def send(self, topic: str, value: bytes, **_: Any) -> Any:
        self.values.append(value)
        return SimpleNamespace(add_errback=lambda _: None)

    def flush(self, timeout: float | None = None) -> None:
        pass


class Interrupted(SmallTopic):
    """One whose user presses Ctrl-C: while a record is sent, or while the last ones are waited for."""

    def __init__(self, records: int) -> None:
        super().__init__()
        self.records, self.waited = records, []  # type: ignore[var-annotated]

    def send(self, topic: str, value: bytes, **_: Any) -> Any:
        sent = super().send(topic, value)
        if len(self.values) == self.records:
            raise KeyboardInterrupt
        return sent

    def flush(self, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    def close(self, timeout: float | None = None) -> None:
        self.waited.append(timeout)
        raise KafkaTimeoutError


@pytest.mark.parametrize(("sent", "last"), [(3, EVENT), (7, EVENT), (9, EVENT), (9, "{\n")])
def test_an_interrupted_produce_says_how_much_it_sent_and_waits_for_it_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: int, last: str
) -> None:
    path, topic, told = tmp_path / "events.jsonl", Interrupted(sent), []
    monkeypatch.setattr("stream.files.CHUNK_ROWS", 2)
    monkeypatch.setattr("stream.produce.check_reachable", lambda *_: None)
    monkeypatch.setattr("stream.produce.KafkaProducer", lambda **_: topic)
    path.write_text(EVENT * 6 + last)
    with pytest.raises(KeyboardInterrupt), sender(Settings().broker, "") as to_kafka:
        send_files(to_kafka, path, on_progress=lambda _, n: told.append(n))
    assert told[-1] == len(topic.values) == min(sent, 6 + (last == EVENT))
    assert topic.waited == [INTERRUPTED_S]


def test_produce_says_how_much_it_sent_before_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.files.CHUNK_ROWS", 2)
    path, topic = tmp_path / "events.jsonl", SmallTopic()
    path.write_text(EVENT * 4 + "{\n")
    with pytest.raises(InputError, match=r"row 5: not JSON.*\. 4 records were sent before it and stay in interactions"):
        send_files(Sender(Settings().broker, topic), path)
    assert len(topic.values) == 4
    path.write_text("{\n")
    with pytest.raises(InputError, match=r"lists everything that is wrong$"):
        send_files(Sender(Settings().broker, topic), path)


def test_produced_items_leave_out_what_is_not_given(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": "a", "title": "", "price": 0, "available": false}\n{"item_id": "b", "brand": "x"}\n')
    assert [(key, orjson.loads(value)) for key, value in item_messages(path)] == [
        (b"a", {"item_id": "a", "price": 0.0, "available": False}),
        (b"b", {"item_id": "b", "brand": "x", "available": True}),
    ]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/x"])
def test_a_folder_that_can_not_be_made_is_refused_before_the_work(driftline: Run, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    result = driftline("replay", "--events", "nowhere.csv", "--out", str(tmp_path / place))
    refused(result, 65, "choose another --out")


def test_validate_warns_of_actions_that_the_configuration_does_not_set(driftline: Run, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(EVENT + EVENT.replace('"colour": "red"', '"action": "play"') * 2)
    checked = driftline("validate", "--events", str(path), "-c", "ecommerce")
    assert checked.returncode == 0, checked.stderr
    assert "configuration 'ecommerce' does not set: 2 'play'. Each counts as wanted, with weight 1" in checked.stdout
    assert "warning" not in driftline("validate", "--events", str(path)).stdout


def test_a_snapshot_that_is_not_there_is_one_message(driftline: Run, tmp_path: Path) -> None:
    environment = {"DRIFTLINE__SERVING__SNAPSHOTS": str(tmp_path)}
    refused(driftline("snapshot", "rollback", "7", **environment), 74, "no snapshot '7'")


def test_versions_of_snapshots_are_whole_on_a_narrow_screen(driftline: Run, tmp_path: Path) -> None:
    from serving.publish import publish
    from serving.snapshot import Meta

    reason = "NDCG@10 fell from 0.2345 to 0.1234, which is more than trainer.gate_drop lets it"
    version = publish(tmp_path, {"engine": {"bias": np.zeros(3)}}, Meta(gate=reason))
    listed = driftline("snapshot", "list", DRIFTLINE__SERVING__SNAPSHOTS=str(tmp_path), COLUMNS="50")
    assert f" {version} " in listed.stdout, listed.stdout + listed.stderr
    assert f"{version} gated: {reason}\n" in listed.stdout


def test_settings_are_shown_with_their_origin(driftline: Run) -> None:
    result = driftline("config", "show", "--origin", "--json", DRIFTLINE__STATE__HISTORY="99")
    shown = json.loads(result.stdout)
    assert shown["state.history"] == {"value": 99, "origin": "DRIFTLINE__STATE__HISTORY"}
    assert shown["broker.partitions"]["value"] == 1


def test_settings_are_shown_as_they_are(driftline: Run, tmp_path: Path) -> None:
    mine = tmp_path / "[b]mine.yaml"
    mine.write_text('name: "[/b]x"\nactions:\n  "[/b]": {weight: 1}\n')
    result = driftline("config", "show", "--origin", "-c", str(mine))
    assert result.returncode == 0, result.stderr
    assert f"name = [/b]x    {mine}:1\n" in result.stdout
    assert "actions.[/b].weight = 1" in result.stdout


def test_produced_events_keep_key_type_header_and_unknown_fields(world: Any, driftline: Run, tmp_path: Path) -> None:
    from stream.reading import read_all

    events, items = tmp_path / "events.jsonl", tmp_path / "items.jsonl"
    events.write_text(EVENT * 3)
    items.write_text('{"item_id": "i1", "title": "Lamp", "categories": ["light"]}\n')
    result = driftline("produce", "--events", str(events), "--items", str(items), "--json", "-c", str(world.config))
    assert json.loads(result.stdout)["events"] == 3, result.stderr
    records = list(read_all(world.settings.broker, world.bootstrap, "interactions"))
    assert [r.key for r in records] == [b"u1"] * 3
    assert dict(records[0].headers) == {"ce_type": b"driftline.interaction.v1"}
    assert json.loads(records[0].value)["colour"] == "red"
    (item,) = read_all(world.settings.broker, world.bootstrap, "items")
    assert (item.key, json.loads(item.value)["title"]) == (b"i1", "Lamp")
    assert "seconds" not in result.stderr
    events.write_text(EVENT.replace("1600000000000", "1600000000"))
    result = driftline("produce", "--events", str(events), "-c", str(world.config))
    refused(result, 65, "the first timestamp_ms is 1600000000, which looks like seconds")
    events.write_text(EVENT)
    result = driftline("produce", "--events", str(events), "--since", "2021-01-01", "-c", str(world.config))
    assert "no event of the file lies between --since and --until" in result.stderr


def test_dead_letters_are_listed_shown_byte_for_byte_and_sent_again(world: Any, driftline: Run) -> None:
    from stream.app import WorkerApp  # noqa: F401 - the module must import without a broker
    from stream.processor import Processor
    from stream.reading import read_all
    from stream.store import MemoryStore

    broken = b'{"user_id": "u1", \xff}'
    world.produce([(b"u1", broken)])
    changes = Processor(world.settings, MemoryStore()).apply(world.log())
    (letter,) = changes.outgoing
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=world.bootstrap)
    for _ in range(2):  # as when a state is built again
        producer.send(world.prefix + letter.topic, key=letter.key, value=letter.value, headers=list(letter.headers))
    producer.close()
    config = ("-c", str(world.config))
    listed = json.loads(driftline("dlq", "list", "--json", *config).stdout)
    assert listed["by_reason"] == {"not_json": 1}
    assert listed["newest"][0]["source"] == "0:0"
    listed = driftline("dlq", "list", *config).stdout
    assert listed.startswith("dead letters: 1 (1 not_json); newest first, 1 shown\n")
    assert "interactions 0:0" in listed
    none = driftline("dlq", "list", "--reason", "[/x]", *config)
    assert none.stdout == "no dead letters of reason '[/x]'\n", none.stderr
    shown = json.loads(driftline("dlq", "show", "0", *config).stdout)
    assert shown["reason"] == "not_json"
    assert shown["value_base64"] == "eyJ1c2VyX2lkIjogInUxIiwg/30="
    refused(driftline("dlq", "show", "5", *config), 65, "no dead letter at offset 5")
    assert driftline("dlq", "replay", *config).returncode == 2
    none = driftline("dlq", "replay", "--reason", "typo", *config)
    refused(none, 65, "reason typo, offsets any; there are the reasons not_json and the offsets 0 to 1")
    assert driftline("dlq", "replay", "--reason", "not_json", *config).returncode == 0
    assert [r.value for r in read_all(world.settings.broker, world.bootstrap, "interactions")] == [broken, broken]


@pytest.mark.parametrize("text", ["2010-11-25", "2010-11-25T00:00:00+00:00", "1290643200000"])
def test_times_may_be_dates_or_milliseconds(text: str) -> None:
    from stream.cli.common import parse_time

    assert parse_time(text) == 1_290_643_200_000


@pytest.mark.parametrize(
    "call", [("recommend", "u", "--at"), ("query", "user", "u", "--at"), ("produce", "--events", "x.csv", "--since")]
)
def test_a_time_that_is_none_is_refused_by_the_name_of_its_option(driftline: Run, call: tuple[str, ...]) -> None:
    result = driftline(*call, "yesterday")
    assert result.returncode == 2, result.stderr
    assert f"Invalid value for '{call[-1]}': got 'yesterday'" in result.stderr
    assert "2010-11-25T08:00" in result.stderr


@pytest.mark.parametrize(("total", "count"), [(None, " 7 "), (9, " 7/9 ")])
def test_progress_shows_the_total_only_if_it_is_known(
    total: int | None, count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from stream.cli.common import progress

    with progress(total, "events") as update:
        update(7)
    assert count in capsys.readouterr().err


def test_doctor_says_how_to_mend_what_is_not_there(driftline: Run, tmp_path: Path) -> None:
    broker = {"DRIFTLINE__BROKER__BOOTSTRAP": "127.0.0.1:9", "DRIFTLINE__BROKER__CONNECT_TIMEOUT_S": "0.5"}
    llm = {"DRIFTLINE__LLM__CLIENT": "openai", "DRIFTLINE__LLM__BASE_URL": "http://127.0.0.1:9/v1"}
    result = driftline("doctor", "--json", DRIFTLINE__STATE__ROOT=str(tmp_path / "state"), **broker, **llm)
    findings = {finding["part"]: finding for finding in json.loads(result.stdout)}
    assert findings["broker"]["state"] == "bad"
    assert "no Kafka broker answers" in findings["broker"]["detail"]
    assert findings["state"]["state"] == "note"
    assert findings["llm"]["detail"].startswith("nothing answers at llm.base_url 'http://127.0.0.1:9/v1'")
    assert result.returncode == 1


def test_doctor_counts_the_events_that_came_too_late_even_while_a_worker_holds_the_state(tmp_path: Path) -> None:
    settings = Settings(state=State(root=tmp_path, late_ms=1000))

    def late_events() -> list[str]:
        return [finding.detail for finding in examine(settings) if finding.part == "late events"]

    assert late_events() == []
    hold_to_layout(settings, 1)
    store = RocksStore(partition_path(tmp_path, 0))
    for offset, t_ms in enumerate((5000, 4500, 3999, 10)):
        processor = Processor(settings, store)  # as after a restart: the count goes on
        processor.commit(processor.apply([Record(offset, Event("u", "i", t_ms))]))
        if offset == 1:
            assert late_events() == []
    assert late_events() == ["2 so far came too late: they are counted, but changed no state"]
    store.close()


def test_a_bench_prints_its_figures_as_json(driftline: Run) -> None:
    figures = json.loads(driftline("bench", "graph", "--events", "1000", "--json").stdout)
    assert figures["events"] == 1000
    assert figures["in_rocksdb"]["per_s"] > 0


def test_a_record_of_profiles_log_that_is_no_profile_is_left_out() -> None:
    profile = Profile("u1", {"crowd": "gardener"}, "A gardener.", "template", {}, 1, 5, 5)
    assert [profile_in(b"junk"), profile_in(b"[]")] == [None, None]
    shown = profile_in(profile.to_json())
    assert shown is not None
    assert shown["text"] == "A gardener."
