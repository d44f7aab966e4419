"""`driftline doctor`, `config show`, `profile show`, `dlq`, `snapshot`: what is there, said as it is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tests.stream.cli.outcome import Run, refused
from typer.testing import CliRunner

from driftline.configs.settings import Settings, State
from driftline.graph.profile import Profile
from driftline.graph.rows import Event
from driftline.stream.cli import app
from driftline.stream.cli.common import with_bootstrap
from driftline.stream.cli.inspect import written_profiles
from driftline.stream.events.dlq import DeadLetter, due_ms
from driftline.stream.ops.doctor import _dead_letters, examine
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.layout import hold_to_layout
from driftline.stream.state.store import MemoryStore, RocksStore, partition_path


def test_a_snapshot_that_is_not_there_is_one_message(driftline: Run, tmp_path: Path) -> None:
    environment = {"DRIFTLINE__SERVING__SNAPSHOTS": str(tmp_path)}
    refused(driftline("snapshot", "rollback", "7", **environment), 74, "no snapshot '7'")


def test_versions_of_snapshots_are_whole_on_a_narrow_screen(driftline: Run, tmp_path: Path) -> None:
    from driftline.serving.publish import publish
    from driftline.serving.snapshot import Meta

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


def test_dead_letters_are_listed_shown_byte_for_byte_and_sent_again(world: Any, driftline: Run) -> None:
    from driftline.stream.app import WorkerApp  # noqa: F401 - the module must import without a broker
    from driftline.stream.kafka.reading import read_all
    from driftline.stream.process.processor import Processor

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
    settings = Settings(state=State(root=tmp_path, late_ms=1000, future_ms=100))

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


def test_a_record_of_profiles_log_that_is_no_profile_is_left_out() -> None:
    profile = Profile("u1", {"crowd": "gardener"}, "A gardener.", "template", {}, 1, 5, 5)
    (shown,), refused = written_profiles([b"junk", profile.to_json(), b"[]"])
    assert (shown.text, refused) == ("A gardener.", 2)


def test_letters_of_the_future_stay_until_they_are_due_and_doctor_counts_letters_by_topic(world: Any) -> None:
    from kafka import KafkaProducer

    from driftline.stream.kafka.reading import read_all

    now = time.time_ns() // 1_000_000
    values = [b'{"timestamp_ms": %d}' % t for t in (now - 1000, now + 3_600_000)]
    producer = KafkaProducer(bootstrap_servers=world.bootstrap)
    for value in values:
        headers = [("reason", b"from_the_future"), ("source", value)]
        producer.send(world.prefix + "interactions.dlq", key=b"u1", value=value, headers=headers)
    headers = [("reason", b"wrong_type"), ("topic", b"items"), ("detail", b"available is 'nein'")]
    producer.send(world.prefix + "interactions.dlq", key=b"i1", value=b"{}", headers=headers)
    producer.close()
    said = CliRunner().invoke(app, ["dlq", "replay", "--reason", "from_the_future", "-c", str(world.config)])
    assert "sent 1 records to interactions again\n1 of the future stay" in said.stdout, said.output
    assert [r.value for r in read_all(world.settings.broker, world.bootstrap, "interactions")] == values[:1]
    settings = with_bootstrap(world.settings, world.bootstrap)
    found = {finding.detail.split(" were")[0]: finding for finding in _dead_letters(settings)}
    assert set(found) == {"1 records of items", "2 records of interactions"}
    assert "available is 'nein'" in found["1 records of items"].detail


def test_an_event_of_the_future_is_due_once_the_clock_has_come_near_enough() -> None:
    def letter(reason: str, value: bytes | None) -> DeadLetter:
        return DeadLetter(0, reason, "", "0:0", b"u1", value, 0)

    assert due_ms(letter("from_the_future", b'{"timestamp_ms": 2000000}'), 300_000) == 1_700_000
    for other in (letter("not_json", b'{"timestamp_ms": 2000000}'), letter("from_the_future", b"[]")):
        assert due_ms(other, 300_000) == 0
    assert due_ms(letter("from_the_future", None), 300_000) == 0


def test_config_validate_says_all_mistakes_of_settings_prompts_and_files_and_what_can_hardly_be_meant(
    driftline: Run, tmp_path: Path
) -> None:
    good = json.loads(driftline("config", "validate", "-c", "media", "--json").stdout)
    assert (good["ok"], good["mistakes"], good["notes"]) == (True, [], [])
    assert good["prompts"].endswith("media.yaml")
    prompts, mine = tmp_path / "prompts.yaml", tmp_path / "mine.yaml"
    prompts.write_text("record: 'Bought {tiles}'\n")
    mine.write_text(
        f"extends: ecommerce\nprofiles: {{prompts: {prompts}}}\nserving: {{token_file: no.yaml}}\n"
        "state: {history: 50}\nmetrics: {worker_port: 9101, trainer_port: 9101}\n"
    )
    result = driftline("config", "validate", "-c", str(mine), "--json", DRIFTLINE_CONFG="x")
    found = json.loads(result.stdout)
    assert (result.returncode, found["ok"]) == (64, False)
    assert found["mistakes"][0] == f"{mine}:3: serving.token_file: got 'no.yaml', which is no file; check the path"
    assert any(f"{prompts}:1: record: {{tiles}} is no placeholder here" in one for one in found["mistakes"])
    assert any("instruction: is missing" in one for one in found["mistakes"])
    told = " | ".join(found["notes"])
    assert "model.max_len is 100 and state.history is 50" in told
    assert f"{mine}:5: metrics.trainer_port is 9101, as metrics.worker_port is" in told
    assert "did you mean 'DRIFTLINE_CONFIG'?" in told
    mine.write_text("serving: {prot: 1}\ngoals: {action_weights: {purchas: 1}}\n")
    result = driftline("config", "validate", "-c", str(mine))
    lines = result.stdout.splitlines()
    assert (result.returncode, lines[-1]) == (64, "2 mistakes")
    assert [line.split(": ")[0] for line in lines[:2]] == [f"{mine}:1", f"{mine}:2"]


def test_profile_try_shows_what_is_asked_and_what_stands_of_the_answer(driftline: Run, tmp_path: Path) -> None:
    events = [f"u{n % 2},i{n % 4},{1_600_000_000_000 + n}" for n in range(30)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp_ms", *events]))
    titles = ("herb pots", "tomato seeds", "garden lantern", "brass lantern")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},{t}\n" for n, t in enumerate(titles)))
    files = ("--events", str(tmp_path / "events.csv"), "--items", str(tmp_path / "items.csv"))
    made = json.loads(driftline("profile", "try", *files, "--json").stdout)
    assert (made["source"], made["users_due"]) == ("template", 2)
    of = {user["user_id"]: user for user in made["users"]}
    assert "herb pots" in of["u0"]["record"]
    assert "tomato seeds" not in of["u0"]["record"]
    assert of["u0"]["facets"]["categories"] in of["u0"]["answer"]
    assert "garden" in of["u0"]["may_be_answered"]["categories"]
    printed = driftline("profile", "try", "--users", "1", *files).stdout
    assert printed.count("profile: ") == 1
    refused(
        driftline("profile", "try", *files, DRIFTLINE__PROFILES__FIRST_EVENTS="99"), 65, "set profiles.first_events"
    )
