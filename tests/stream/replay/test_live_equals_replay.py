"""The live run and the replay of its log end in the same state, also where trained graph versions were adopted."""

from __future__ import annotations

import base64
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from driftline.configs.errors import InputError, StateError
from driftline.configs.settings import Settings, State
from driftline.graph.memory import GraphMemory
from driftline.stream.bundled import EVENTS
from driftline.stream.cli import app
from driftline.stream.events.produce import event_messages
from driftline.stream.owned.versions import encode_version
from driftline.stream.process.processor import Processor, Record
from driftline.stream.replay import adoptions as module
from driftline.stream.replay.adoptions import announced, file_records, follow, read_adoptions, write_adoptions
from driftline.stream.replay.run import replay
from driftline.stream.replay.source import Options
from driftline.stream.state.layout import hold_to_layout
from driftline.stream.state.live import read_live_state
from driftline.stream.state.store import MemoryStore, RocksStore, partition_path, state_sha256

ROWS = 3000
SETTINGS = Settings()


def trained(seed: int, settings: Settings = SETTINGS) -> GraphMemory:
    """Weights that moved away from the seeded ones."""
    first = GraphMemory(settings.graph.model_copy(update={"seed": seed}))
    return GraphMemory(settings.graph, {name: weight * np.float32(1.1) for name, weight in first.arrays.items()})


def blob_of(model: GraphMemory) -> bytes:
    return b"".join(out.value for out in encode_version(model, {}))


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the bundled shop as a file of their own."""
    path = tmp_path_factory.mktemp("events") / "events.parquet"
    pq.write_table(pq.read_table(EVENTS).slice(0, ROWS), path)
    return path


@pytest.fixture
def replayed(events: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(settings: Settings = SETTINGS, **options: Any) -> dict[str, Any]:
        given: dict[str, Any] = {"arms": ("popularity",), "audit_rows": 0} | options
        return replay(Options(events, tmp_path / "out", **given), settings)

    return run


@pytest.mark.slow
def test_a_worker_that_adopts_versions_and_is_killed_ends_in_the_state_that_replay_reports(
    world: Any, wait: Any, events: Path, replayed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    messages = iter(list(event_messages(events)))

    def produce_until_adopted(worker: Any, versions: int) -> None:
        while len(announced(world.settings, world.bootstrap)) < versions:
            world.produce(list(islice(messages, 20)))
            worker.applied()

    world.produce(list(islice(messages, 800)))
    with world.worker() as worker:
        wait(lambda: worker.applied() >= 300, what="the first events are applied")
        world.send(encode_version(trained(7), {}))
        produce_until_adopted(worker, 1)
        world.produce(list(islice(messages, 500)))
        worker.kill()
    world.produce(list(islice(messages, 200)))
    with world.worker() as worker:
        wait(lambda: worker.applied() >= 1500, what="the restarted worker goes on")
        world.send(encode_version(trained(8), {}))
        produce_until_adopted(worker, 2)
        world.produce(list(messages))
        wait(lambda: worker.applied() == ROWS, what="the last part is applied")
        running = read_live_state(world.settings.state.root)
        worker.stop()
    live = command("state", "hash", "--json", "--config", str(world.config))
    assert live["state_sha256"] == running.state_sha256
    assert live["next_offset"] == {"0": ROWS}
    assert live["graph"] == {"0": trained(8).version()}
    path = tmp_path / "adoptions.jsonl"
    said = command("state", "adoptions", "--out", str(path), "--json", "--config", str(world.config))
    assert said == {"adoptions": 2, "versions": 2, "file": str(path)}

    metrics = replayed(world.settings, adoptions=path)
    assert metrics["state"] == {"source": "adoptions", "adoptions": 2}
    assert metrics["state_sha256"] == live["state_sha256"]
    assert metrics["data"]["users"] == live["users"]
    given = ("--config", str(world.config), "--from-kafka", "interactions", "--adoptions", str(path))
    of_topic = command("replay", *given, "--arms", "popularity", "--out", str(tmp_path / "topic"), "--json")
    assert of_topic["state_sha256"] == live["state_sha256"]
    assert follow(file_records(events), [], world.settings)[0] != live["state_sha256"]


def command(*arguments: str) -> Any:
    """What a command prints as JSON."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout)


def test_replay_follows_adoptions_as_a_processor_does_and_without_them_ends_elsewhere(
    events: Path, replayed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "adoptions.jsonl"
    models = {401: trained(7), 1777: trained(8), 2500: trained(7)}
    write_adoptions(path, lines_of(models))
    store = MemoryStore()
    processor = Processor(SETTINGS, store)
    records = list(file_records(events))
    for start, end in pairwise((0, *models, ROWS)):
        if start:
            processor.commit(processor.adopt(models[start]))
        processor.commit(processor.apply(records[start:end]))
    metrics = replayed(adoptions=path)
    assert metrics["state"] == {"source": "adoptions", "adoptions": 3}
    assert metrics["state_sha256"] == state_sha256([store])
    path.write_bytes(b"")
    none = replayed(adoptions=path)
    assert none["state"] == {"source": "adoptions", "adoptions": 0}
    assert none["state_sha256"] == replayed()["state_sha256"] != metrics["state_sha256"]


def test_offsets_of_a_topic_count_where_its_records_are_not_all_events(events: Path) -> None:
    records = list(file_records(events, 600))
    adoption = module.Adoption(0, 301, trained(7).version(), trained(7))
    plain, _ = follow(records, [module.Adoption(0, 300, adoption.sha256, adoption.model)], SETTINGS)
    poisoned = [*records[:100], Record(100, b"no event", b"u")]
    poisoned += [Record(record.offset + 1, record.value, record.key) for record in records[100:]]
    stores = [MemoryStore(), MemoryStore()]
    for store, log, at in zip(stores, (records, poisoned), (300, 301), strict=True):
        processor = Processor(SETTINGS, store)
        processor.commit(processor.apply(log[:at]))
        processor.commit(processor.adopt(adoption.model))
        processor.commit(processor.apply(log[at:]))
    assert plain == state_sha256(stores[:1])
    assert follow(poisoned, [adoption], SETTINGS) == (state_sha256(stores[1:]), 1)


def test_a_file_that_is_not_of_adoptions_is_an_input_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "adoptions.jsonl"
    good = next(iter(lines_of({5: trained(7)})))
    other = blob_of(trained(7, Settings.model_validate({"graph": {"memory_dim": 16}})))
    changed = {
        "expected a JSON object": b"weights",
        "expected a JSON object;": b"[1]",
        "as offset, expected int": orjson.dumps(good | {"offset": "5"}),
        "as sha256, expected str": orjson.dumps({"partition": 0, "offset": 5}),
        "got partition 3, expected 0": orjson.dumps(good | {"partition": 3}),
        "got offset 5 after 5": orjson.dumps(good),
        "no weights on the first line of version": orjson.dumps({"partition": 0, "offset": 6, "sha256": "ab"}),
        "not base64": orjson.dumps(good | {"offset": 6, "sha256": "ab", "weights": "?"}),
        "a graph version does not fit": orjson.dumps(good | {"offset": 6, "sha256": "ab", "weights": "AAAA"}),
        "expected those of ab": orjson.dumps(good | {"offset": 6, "sha256": "ab"}),
        "Trainer and workers need": orjson.dumps(
            good | {"offset": 6, "sha256": "ab", "weights": base64.b64encode(other).decode()}
        ),
    }
    for message, line in changed.items():
        path.write_bytes(orjson.dumps(good) + b"\n" + line + b"\n")
        with pytest.raises(InputError, match=rf"adoptions.jsonl, line 2: .*{message}.*`driftline state adoptions"):
            read_adoptions(path, SETTINGS)
    with pytest.raises(InputError, match="can't be read: No such file"):
        read_adoptions(tmp_path / "none", SETTINGS)


def test_an_adoption_past_the_end_of_the_events_is_an_input_error(
    replayed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "adoptions.jsonl"
    write_adoptions(path, lines_of({ROWS + 1: trained(7)}))
    with pytest.raises(InputError, match="an adoption at offset 3001, past the end of"):
        replayed(adoptions=path)


def test_an_adoption_that_was_committed_but_not_sent_is_sent_after_a_restart() -> None:
    store = MemoryStore()
    processor = Processor(SETTINGS, store)
    changes = processor.adopt(trained(7))
    processor.commit(changes)
    assert Processor(SETTINGS, store, model=trained(7)).unsent == changes.outgoing


def test_the_announced_adoptions_are_those_of_the_state_that_was_made_or_restored_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def record(sha256: str, value: bytes, *headers: tuple[str, bytes]) -> Any:
        return SimpleNamespace(offset=0, key=sha256.encode(), value=value, headers=headers)

    def weights(sha256: str) -> list[Any]:
        parts = enumerate((sha256.encode(), b"!"))
        return [record(sha256, part, ("kind", b"weights"), ("part", b"%d/2" % n)) for n, part in parts]

    def adopt(offset: int, sha256: str, *replaced: Any) -> Any:
        replaces = dict(zip(("offset", "sha256"), replaced, strict=True)) if replaced else None
        said = {"partition": 0, "offset": offset, "sha256": sha256, "replaces": replaces}
        return record(sha256, orjson.dumps(said), ("kind", b"adoption"))

    a, b, c = "a" * 64, "b" * 64, "c" * 64
    first_life = [adopt(10, a), adopt(10, a), adopt(20, b, 10, a)]
    log = [*weights(a), *weights(b), *first_life, *weights(c), *weights(c)]
    log += [adopt(32, b), adopt(64, c, 32, b)]
    monkeypatch.setattr(module, "read_all", lambda *_: iter(log))
    monkeypatch.setattr(module, "first_offsets", lambda *_: {0: 0})
    lines = announced(SETTINGS, "")
    assert [(line["offset"], line["sha256"]) for line in lines] == [(32, b), (64, c)]
    assert [base64.b64decode(line["weights"]) for line in lines] == [b.encode() + b"!", c.encode() + b"!"]
    log.append(adopt(50, c, 32, b))  # a backup from before offset 64 was restored
    assert [line["offset"] for line in announced(SETTINGS, "")] == [32, 50]
    elsewhere = {"sha256": c, "offset": 9}
    strangers: list[dict[str, Any]] = [{"partition": 0, "offset": 70, "replaces": elsewhere}]
    strangers.append({"partition": 7, "offset": 1, "replaces": None})
    log += [record(c, orjson.dumps({"sha256": c} | said), ("kind", b"adoption")) for said in strangers]
    log.append(adopt(60, a, 50, c))  # what a worker said goes on from before what others said
    assert [line["offset"] for line in announced(SETTINGS, "")] == [32, 50, 60]
    log.append(adopt(90, a, 64, c))
    foreign = ({"partition": "0"}, {"offset": -1}, {"sha256": "../../x"}, {"replaces": 7}, {"replaces": {"offset": 1}})
    said = orjson.loads(adopt(64, c, 32, b).value)
    nonsense = [b"{", b"[]", b"", None, *(orjson.dumps(said | wrong) for wrong in foreign)]
    log[-1:-1] = [record(c, value, ("kind", b"adoption")) for value in nonsense]
    log[-1:-1] = [
        record("../x", b"!", ("kind", b"weights"), ("part", b"0/1")),
        SimpleNamespace(**vars(log[0]) | {"key": None}),
    ]
    with pytest.raises(StateError, match=r"offset 90 of partition 0 replaces .*, which is not in the topic"):
        announced(SETTINGS, "")
    log[:] = [adopt(10, a)]
    with pytest.raises(StateError, match=r"weights of graph version a{12} are neither in the topic"):
        announced(SETTINGS, "")


def test_the_state_on_disk_is_read_while_its_writer_holds_it_and_after(tmp_path: Path, events: Path) -> None:
    hold_to_layout(SETTINGS.model_copy(update={"state": State(root=tmp_path)}), 1)
    store = RocksStore(partition_path(tmp_path, 0), sync=False)
    processor = Processor(SETTINGS, store)
    processor.commit(processor.apply(list(file_records(events, 500))))
    held = read_live_state(tmp_path)
    assert held.state_sha256 == state_sha256([store])
    assert (held.users, held.next_offset, held.graph) == (len(processor.nodes.indices), {0: 500}, {0: ""})
    store.close()
    assert read_live_state(tmp_path) == held
    with pytest.raises(StateError, match=r"no state in .*none; expected the partition-P folders"):
        read_live_state(tmp_path / "none")


def lines_of(models: dict[int, GraphMemory]) -> list[dict[str, Any]]:
    """Lines of an adoption file, by offset."""
    lines: list[dict[str, Any]] = []
    for offset, model in models.items():
        line: dict[str, Any] = {"partition": 0, "offset": offset, "sha256": model.version()}
        if all(before["sha256"] != line["sha256"] for before in lines):
            line["weights"] = base64.b64encode(blob_of(model)).decode()
        lines.append(line)
    return lines
