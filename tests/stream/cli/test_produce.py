"""`driftline produce` and `driftline validate`: files of events and items, and what is wrong with them."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError
from tests.stream.cli.outcome import EVENT, Run, refused
from typer.testing import CliRunner

from driftline.configs.errors import InputError
from driftline.configs.settings import Settings
from driftline.serving.availability import Availability
from driftline.serving.follower import Follower
from driftline.serving.owner import partition_of
from driftline.stream.cli import app
from driftline.stream.events.files import validate
from driftline.stream.events.produce import INTERRUPTED_S, Sender, item_messages, send_files, sender
from driftline.stream.kafka.reading import newest, read_all


def test_an_empty_file_and_a_folder_are_refused(world: Any, driftline: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    refused(driftline("produce", "--events", str(path), "-c", str(world.config)), 65, "there is no row")
    folder = driftline("produce", "--events", str(tmp_path), "-c", str(world.config))
    refused(folder, 65, "got parts of several formats")


def test_a_time_in_microseconds_is_listed_by_validate(driftline: Run, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(EVENT + EVENT.replace("1600000000000", "1600000000000000000"))
    checked = driftline("validate", "--events", str(path))
    assert checked.returncode == 65, checked.stderr
    assert "looks like nanoseconds: got 1600000000000000000; expected unix milliseconds such as 17" in " ".join(
        checked.stdout.split()
    )


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


def test_items_are_sent_alone_withdrawn_and_offered_again_with_all_that_is_known_of_them(
    world: Any, tmp_path: Path
) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "-c", str(world.config)])

    items = tmp_path / "items.jsonl"
    items.write_text('{"item_id": "i1", "title": "Lamp", "price": 3.5}\n{"item_id": "i2", "title": "Rug"}\n')
    sent = run("produce", "--items", str(items))
    assert (sent.exit_code, sent.stdout) == (0, "sent 0 events and 2 items\n"), sent.output
    assert run("produce").exit_code == run("produce", "--items", str(items), "--rate", "5").exit_code == 2
    assert "--back i1" in run("withdraw", "i1").stdout
    assert isinstance(run("withdraw", "i2", "typo").exception, InputError)
    assert run("withdraw", "--back", "i1").exit_code == 0
    said = [orjson.loads(r.value) for r in read_all(world.settings.broker, world.bootstrap, "items") if r.key == b"i1"]
    lamp = {"item_id": "i1", "title": "Lamp", "price": 3.5}
    assert said[1:] == [lamp | {"available": False}, lamp | {"available": True}]
    assert {name: said[0][name] for name in lamp} == lamp


def test_an_item_is_withdrawn_in_the_partition_where_it_stands_and_stays_so(world: Any) -> None:
    """As where the catalogue comes from librdkafka, whose default partitioner is another one."""
    world.partitions = 2
    world.create_topics()
    ids = [f"i{n}" for n in range(6)]
    with closing(KafkaProducer(bootstrap_servers=world.bootstrap)) as producer:
        for partition in (0, 1):  # every item lies in both
            for item_id in ids[::-1] if partition else ids:
                value = orjson.dumps({"item_id": item_id, "title": f"of {partition}"})
                producer.send(world.prefix + "items", key=item_id.encode(), value=value, partition=partition).get(10)
    assert CliRunner().invoke(app, ["withdraw", *ids[:3], "-c", str(world.config)]).exit_code == 0
    found = [r for r in read_all(world.settings.broker, world.bootstrap, "items") if b'"available":false' in r.value]
    assert [(r.key.decode(), r.partition, orjson.loads(r.value)["title"]) for r in found] == [
        (item_id, 1, "of 1") for item_id in ids[:3]
    ]
    availability = Availability(world.prefix + "items")
    with closing(Follower(availability, world.settings.broker, world.bootstrap, "items")) as follower:
        assert follower.wait(10)
        assert availability.withdrawn == set(ids[:3])


def test_a_file_may_be_given_to_validate_without_its_option(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(EVENT)
    assert CliRunner().invoke(app, ["validate", str(path)]).exit_code == 0
    assert CliRunner().invoke(app, ["validate", str(path), "--events", str(path)]).exit_code == 2


def test_a_decimal_comma_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    for text in ("1014,6", "-3,5", "1.014,60", "1\u00a0014,6"):
        path.write_text(f"user_id;item_id;timestamp_ms;price\nu1;i1;1600000000000;{text}\n")
        (problem,) = validate(path).examples
        assert problem.kind == "decimal comma"
        assert "a decimal point" in problem.expected
    path.write_text("user_id;item_id;timestamp_ms;price\nu1;i1;1600000000000;1,2,3\n")
    assert validate(path).examples[0].kind == "not a number"


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
        self._sender = self  # kafka-python's thread

    def force_close(self) -> None:
        self.waited.append("no longer")

    def join(self, timeout: float) -> None:
        pass

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
    monkeypatch.setattr("driftline.stream.events.chunks.CHUNK_ROWS", 2)
    monkeypatch.setattr("driftline.stream.events.produce.check_reachable", lambda *_: None)
    monkeypatch.setattr("driftline.stream.events.produce.KafkaProducer", lambda **_: topic)
    path.write_text(EVENT * 6 + last)
    with pytest.raises(KeyboardInterrupt), sender(Settings().broker, "") as to_kafka:
        send_files(to_kafka, path, on_progress=lambda _, n: told.append(n))
    assert told[-1] == len(topic.values) == min(sent, 6 + (last == EVENT))
    assert topic.waited == [INTERRUPTED_S, "no longer"]


def test_produce_says_how_much_it_sent_before_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driftline.stream.events.chunks.CHUNK_ROWS", 2)
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


def test_validate_warns_of_actions_that_the_configuration_does_not_set(driftline: Run, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(EVENT + EVENT.replace('"colour": "red"', '"action": "play"') * 2)
    checked = driftline("validate", "--events", str(path), "-c", "ecommerce")
    assert checked.returncode == 0, checked.stderr
    assert "configuration 'ecommerce' does not set: 2 'play'. Each counts as wanted, with weight 1" in checked.stdout
    assert "warning" not in driftline("validate", "--events", str(path)).stdout


def test_produce_says_which_actions_are_not_set_and_what_comes_too_late_before_it_sends(
    world: Any, driftline: Run, tmp_path: Path
) -> None:
    path = tmp_path / "events.jsonl"
    hour_ms = 3_600_000
    rows = [(0, "stream"), (1, "purchase"), (9, "stream"), (8, "purchase"), (2, "strem"), (3, "purchase")]
    events = [{"user_id": "u", "item_id": "i", "timestamp_ms": 1_600_000_000_000 + h * hour_ms, "action": action}
              for h, action in rows]  # fmt: skip
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    given = ("produce", "--events", str(path), "-c", str(world.config))
    refused(driftline(*given), 65, "3 of 6 rows are earlier than a row above them; sent so, 2 (33.3%) would come")
    warning = (
        "does not set: 2 'stream', 1 'strem'. Each counts as wanted, with weight 1; say what it means, as actions: "
    )
    sent = driftline(*given, "--as-it-is", "--json")
    assert sent.returncode == 0, sent.stderr
    assert f"{warning}{{stream: {{weight: 1.0, positive: true}}}}" in sent.stderr
    assert "note: 3 of 6 rows are earlier than a row above them; sent so, 2 (33.3%) would come" in sent.stderr
    told = json.loads(sent.stdout)
    assert (told["events"], told["unknown_actions"], told["too_late"]) == (6, {"stream": 2, "strem": 1}, 2)
    part = driftline(*given, "--sort", "--since", str(1_600_000_000_000 + hour_ms), "--json")
    told = json.loads(part.stdout)
    assert (told["events"], told["unknown_actions"], told["too_late"]) == (5, {"stream": 1, "strem": 1}, 0)
    assert "does not set: 1 'stream', 1 'strem'" in part.stderr
    assert "behind" in told


@pytest.mark.parametrize("partitions", [1, 2])
def test_produce_says_how_many_events_are_too_old_for_what_the_topic_holds(
    world: Any, driftline: Run, tmp_path: Path, partitions: int
) -> None:
    world.partitions, alone = partitions, partition_of("u0", 2)

    def sent(*hours: int, users: int = 8, more: tuple[str, ...] = ("--as-it-is",)) -> Any:
        path = tmp_path / "events.jsonl"
        events = [{"user_id": f"u{n}", "item_id": "i", "timestamp_ms": 1_600_000_000_000 + h * 3_600_000}
                  for n in range(users) for h in hours]  # fmt: skip
        events.sort(key=lambda event: int(event["timestamp_ms"]))
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
        result = driftline("produce", "--events", str(path), "-c", str(world.config), "--json", *more)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)["behind"], result.stderr

    assert sent(4, users=1)[0] == 0
    assert sent(1, users=1)[0] == 1, "with one user alone all other partitions are empty"
    assert sent(0, 1, 10)[0] == 2 * (8 if partitions == 1 else sum(partition_of(f"u{n}", 2) == alone for n in range(8)))
    behind, said = sent(2, 5, 9, 11)
    assert behind == 16, "10 is the newest there, and 9 is an hour older, no more"
    assert "note: 16 events are more than state.late_ms, 60 min, older than those that their partition of" in said
    assert "the topic holds already, up to 2020-09-13 22:26:40 UTC" in said
    assert "(in its last 10,000 records and 16 spread over those before)" in said
    assert sent(2, 5, more=("--as-it-is", "--until", str(1_600_000_000_000 + 3 * 3_600_000)))[0] == 8
    assert sent(*[4] * 300, users=1)[0] == 300
    assert sent(9)[0] == 8, "an older file after it, of more than a few records, hides nothing of 11"


def test_a_file_that_was_sent_before_is_refused_unless_told_or_what_is_newer_of_it_is_asked_for(
    world: Any, driftline: Run, tmp_path: Path
) -> None:
    path, start_ms = tmp_path / "events.jsonl", 1_600_000_000_000
    rows = [{"user_id": "u", "item_id": "i", "timestamp_ms": start_ms + h * 3_600_000} for h in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("produce", "--events", str(path), "-c", str(world.config), "--json")
    assert json.loads(driftline(*given).stdout)["behind"] == 0
    refused(driftline(*given), 65, "8 of 10 events are more than state.late_ms, 60 min, older than those")
    assert len(list(read_all(world.settings.broker, world.bootstrap, "interactions"))) == 10
    newer = json.loads(driftline(*given, "--since", str(start_ms + 7 * 3_600_000)).stdout)
    assert (newer["events"], newer["behind"]) == (3, 1)
    told = json.loads(driftline(*given, "--as-it-is").stdout)
    assert (told["events"], told["behind"]) == (10, 8)


def test_a_topic_is_looked_at_in_its_last_records_and_in_some_spread_over_those_before(
    world: Any, driftline: Run, tmp_path: Path
) -> None:
    world.partitions = 1
    path = tmp_path / "events.jsonl"
    path.write_text(EVENT * 30)
    assert driftline("produce", "--events", str(path), "-c", str(world.config)).returncode == 0

    def offsets(n: int, spots: int) -> list[int]:
        held = newest(world.settings.broker, world.bootstrap, "interactions", n, spots)
        return [record.offset for record in held[0]]

    assert offsets(4, 0) == [26, 27, 28, 29]
    assert offsets(4, 3) == [7, 16, 25, 26, 27, 28, 29]
    assert offsets(28, 16) == offsets(99, 16) == list(range(30))


def test_produced_events_keep_key_and_unknown_fields(world: Any, driftline: Run, tmp_path: Path) -> None:
    events, items = tmp_path / "events.jsonl", tmp_path / "items.jsonl"
    events.write_text(EVENT * 3)
    items.write_text('{"item_id": "i1", "title": "Lamp", "categories": ["light"]}\n')
    result = driftline("produce", "--events", str(events), "--items", str(items), "--json", "-c", str(world.config))
    assert json.loads(result.stdout)["events"] == 3, result.stderr
    records = list(read_all(world.settings.broker, world.bootstrap, "interactions"))
    assert [r.key for r in records] == [b"u1"] * 3
    assert json.loads(records[0].value)["colour"] == "red"
    (item,) = read_all(world.settings.broker, world.bootstrap, "items")
    assert (item.key, json.loads(item.value)["title"]) == (b"i1", "Lamp")
    assert "seconds" not in result.stderr
    events.write_text(EVENT.replace("1600000000000", "1600000000"))
    result = driftline("produce", "--events", str(events), "-c", str(world.config))
    refused(result, 65, "row 1, column 'timestamp_ms': looks like seconds: got 1600000000; expected unix milliseconds")
    events.write_text(EVENT)
    result = driftline("produce", "--events", str(events), "--since", "2021-01-01", "-c", str(world.config))
    assert "no event of the file lies between --since and --until" in result.stderr
