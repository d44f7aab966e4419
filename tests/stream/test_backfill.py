"""`driftline backfill` on real brokers: the worker's state, whatever stops it, and never beside a worker."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kafka
import numpy as np
import pytest
from kafka import KafkaProducer
from tests.stream import forked
from tests.stream.conftest import ENVIRONMENT, World, wait_for
from tests.stream.forked import Forked
from tests.stream.test_app import POISON, adoptions, by_item, shop_records, with_poison
from typer.testing import CliRunner

from driftline.configs.faults import ARMED
from driftline.configs.load import load_settings
from driftline.graph.chunks import whole_users
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event
from driftline.serving.forget import encode_forget
from driftline.serving.owner import partition_of
from driftline.stream.backfill import run_backfill
from driftline.stream.chaos.oracle import item_counts
from driftline.stream.cli import app
from driftline.stream.events.dlq import read_dlq
from driftline.stream.events.records import record_of
from driftline.stream.events.schema import encode_event
from driftline.stream.kafka import direct
from driftline.stream.kafka.broker import admin
from driftline.stream.kafka.consumer import Fetched
from driftline.stream.kafka.direct import Buffer
from driftline.stream.owned.versions import adopted, encode_version
from driftline.stream.process.by_item import sources
from driftline.stream.process.processor import Processor
from driftline.stream.state.store import MemoryStore, RocksStore, partition_path


@contextmanager
def started(world: World, program: Callable[[Path], None] = forked.backfill, point: str = "") -> Iterator[Forked]:
    """A backfill in a process of its own; `answer` has what it wrote."""
    environment = ENVIRONMENT | {ARMED: point, "DRIFTLINE__METRICS__WORKER_PORT": "0"}
    out, err = world.root / "out", world.root / "err"
    for path in (out, err):
        path.unlink(missing_ok=True)
    process = Forked(program, world.config, environment, out, err)
    try:
        yield process
    finally:
        process.kill()


def answer(world: World, process: Forked, timeout_s: float = 120) -> tuple[int, str, str]:
    code = process.wait(timeout_s)
    return code, (world.root / "out").read_text(), (world.root / "err").read_text()


def backfill(world: World, point: str = "") -> tuple[int, str, str]:
    with started(world, point=point) as process:
        return answer(world, process)


def done(world: World) -> dict[str, Any]:
    """One that nobody disturbs, in the test's own process, whose start it spares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRIFTLINE__METRICS__WORKER_PORT", "0")
        patch.setattr(direct, "BLOCK_RECORDS", 400)
        patch.setattr(direct, "LEAST_RECORDS", 100)
        patch.setattr("driftline.stream.backfill.collect_rarely", lambda: None)
        told = run_backfill(load_settings(world.config), world.bootstrap)
    assert told["complete"]
    return told


def troubled(n: int, users: int = 25) -> list[tuple[bytes | None, bytes | None]]:
    """A shop with duplicates, poison, late events, and users who are forgotten, some of whom come back."""
    rng = np.random.default_rng(4)
    log = shop_records(n, users=users)
    for at in rng.integers(50, n, n // 20).tolist():
        log.insert(at + int(rng.integers(1, 40)), log[at])
    for at in rng.integers(n // 10, n, n // 20).tolist():
        log[at - 30], log[at] = log[at], log[at - 30]
    for k, at in enumerate(range(97, n, 97)):
        log.insert(at, (b"u1", POISON[k % len(POISON)]))
    log.insert(n // 2, encode_forget("u3"))
    log.insert(n - 20, encode_forget("u4"))
    return log


def produce(world: World, log: list[tuple[bytes | None, bytes | None]]) -> None:
    """One record in four lies in another partition than its user's."""
    world.create_topics()
    producer = KafkaProducer(bootstrap_servers=world.bootstrap, linger_ms=5)
    for n, (key, value) in enumerate(log):
        partition = partition_of((key or b"").decode(), world.partitions) if n % 4 else n // 4 % world.partitions
        producer.send(world.prefix + "interactions", key=key, value=value, partition=partition)
    producer.close()


def letters(world: World) -> list[str]:
    return sorted(letter.source for letter in read_dlq(world.settings.broker, world.bootstrap))


def poisoned(log: list[tuple[bytes | None, bytes | None]]) -> int:
    return sum(value in POISON for _, value in log)


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 4])
def test_a_backfill_ends_in_the_state_of_one_thread_and_a_worker_goes_on_after_it(
    kafka_world: Any, wait: Any, partitions: int
) -> None:
    kafka_world.partitions = partitions
    log = troubled(3000)
    produce(kafka_world, log)
    told = done(kafka_world)
    assert (
        told["records"] == sum(told["next_offset"].values()) == sum(len(kafka_world.log(n)) for n in range(partitions))
    )
    assert told["dead"] == poisoned(log) == len(letters(kafka_world)) == len(set(letters(kafka_world)))
    assert min(told[name] for name in ("duplicates", "late", "forgotten")) > 0
    assert (told["forwarded"] > 0) == (partitions > 1)
    assert kafka_world.stored_rows() == kafka_world.expected_rows()
    assert done(kafka_world)["records"] == 0
    if partitions > 1:
        assert sum(item_counts(kafka_world.settings, partitions).values()) == told["applied"]
    more = [(b"u%d" % n, encode_event(Event(f"u{n}", "i1", 1_700_000_000_000 + n, "view"))) for n in range(20)]
    kafka_world.produce(more)
    with kafka_world.worker() as worker:
        wait(lambda: worker.applied() == told["records"] + 20, 60, "the worker goes on")
        wait(lambda: worker.offsets("driftline_events_total").get("applied") == 20, 10, "they alone are counted")
        worker.stop()
    assert len(letters(kafka_world)) == poisoned(log)
    assert kafka_world.stored_rows() == kafka_world.expected_rows()


POINTS = ("opening:1", "recovery:1", "before-batch:3", "after-batch:3", "before-ack:3")


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 4])
def test_a_backfill_killed_at_any_step_loses_and_doubles_nothing(kafka_world: Any, partitions: int) -> None:
    kafka_world.partitions = partitions
    log = troubled(3500)
    points = POINTS[3:] if partitions == 1 else (*POINTS, "by-item-batch:1", "by-item-batch:2")
    for n, point in enumerate(points):
        part = len(log) // len(points) + 1
        produce(kafka_world, log[n * part : (n + 1) * part])
        code, _, err = backfill(kafka_world, point)
        assert code == -signal.SIGKILL, f"{point}: {err}"
    told = done(kafka_world)
    assert sum(told["next_offset"].values()) == sum(len(kafka_world.log(number)) for number in range(partitions))
    assert kafka_world.stored_rows() == kafka_world.expected_rows()
    assert len(set(letters(kafka_world))) == poisoned(log)
    if partitions > 1:
        frames = [record_of(one) for one in by_item(kafka_world) if "frame" in dict(one.headers)]
        once = {place for frame in frames for place in sources(frame)}
        assert sum(item_counts(kafka_world.settings, partitions).values()) == len(once)


@pytest.mark.slow
def test_a_backfill_adopts_the_newest_version_before_the_first_event_also_when_it_is_killed_there(world: Any) -> None:
    world.produce(shop_records(1000))
    model = GraphMemory(world.settings.graph.model_copy(update={"seed": 7}))
    world.send(encode_version(model, {}))
    assert backfill(world, "adoption:1")[0] == -signal.SIGKILL
    assert done(world)["records"] == 1000
    store = MemoryStore()
    processor = Processor(world.settings, store)
    processor.commit(processor.adopt(model))
    processor.commit(processor.apply(world.log()))
    assert world.stored_rows() == dict(whole_users(store)) | dict(store.scan(b"i:"))
    assert world.stored_rows() != world.expected_rows()
    (said,) = adoptions(world)
    assert (said["sha256"], said["offset"]) == (model.version(), 0)
    newer = GraphMemory(world.settings.graph.model_copy(update={"seed": 8}))
    world.send(encode_version(newer, {}))
    done(world)
    kept = RocksStore(partition_path(world.settings.state.root, 0))
    assert adopted(kept) == (newer.version(), 1000)
    kept.close()


def until_committed(world: World, process: Forked) -> None:
    err = world.root / "err"
    wait_for(lambda: (err.exists() and "committed" in err.read_text()) or process.poll() is not None)
    assert process.poll() is None, "it ended before it committed anything"


def test_a_backfill_says_at_its_end_how_many_events_were_too_late(
    world: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ahead = encode_event(Event("u", "i", 1_700_000_000_000, "purchase"))
    world.produce([(b"u", ahead), *shop_records(900)])
    monkeypatch.setenv("DRIFTLINE__METRICS__WORKER_PORT", "0")
    monkeypatch.setattr(direct, "BLOCK_RECORDS", 400)
    monkeypatch.setattr(direct, "LEAST_RECORDS", 100)
    monkeypatch.setattr("driftline.stream.backfill.collect_rarely", lambda: None)
    result = CliRunner().invoke(app, ["backfill", "-c", str(world.config)])
    assert result.exit_code == 0, result.output
    assert "1 events applied (900 too late)" in result.stdout
    said = [record.getMessage() for record in caplog.records if "state.late_ms" in record.getMessage()]
    assert said[0].startswith("partition 0 of ")
    assert "900" not in said[0]
    assert said[-1].startswith("in all: 900 events so far")


def test_a_signal_ends_a_backfill_in_order_and_nothing_comes_again(world: Any) -> None:
    log = with_poison(shop_records(2000), every=40)
    world.produce(log)
    for number in (signal.SIGTERM, signal.SIGINT):
        with started(world, forked.slow_backfill) as process:
            until_committed(world, process)
            process.send_signal(number)
            code, out, err = answer(world, process)
        assert code == 130, err
        told = json.loads(out)
        assert not told["complete"]
        assert 0 < told["records"] < 1000
    assert done(world)["next_offset"] == {0: len(log)}
    assert world.stored_rows() == world.expected_rows()
    assert len(letters(world)) == len(set(letters(world))) == sum(value in (*POISON, None) for _, value in log)


def test_a_backfill_refuses_beside_a_worker_and_a_worker_waits_for_a_backfill(world: Any, wait: Any) -> None:
    world.produce(shop_records(100))
    with world.worker() as worker:
        wait(lambda: worker.applied() == 100, 60, "the worker owns the partition")
        code, out, err = backfill(world)
        assert (code, out) == (75, "")
        assert f"the consumer group {world.prefix}worker has 1 member" in err
        worker.stop()
    held = RocksStore(partition_path(world.settings.state.root, 0))
    code, out, err = backfill(world)
    held.close()
    assert (code, out) == (75, "")
    assert "is locked by process" in err
    world.produce(shop_records(4100)[100:])
    with started(world, forked.slow_backfill) as process:
        until_committed(world, process)
        with world.worker() as worker:
            _, out, err = answer(world, process)
            assert json.loads(out)["records"] == 4000, err
            wait(lambda: worker.applied() == 4100, 60, "the worker opens the partition once it is free")
            worker.stop()
    assert world.stored_rows() == world.expected_rows()


@pytest.mark.kafka
def test_records_that_the_broker_deleted_before_they_were_applied_end_a_backfill_with_73(kafka_world: Any) -> None:
    kafka_world.partitions = 1
    kafka_world.produce(shop_records(50))
    assert done(kafka_world)["records"] == 50
    kafka_world.produce(shop_records(100))
    with admin(kafka_world.settings.broker, kafka_world.bootstrap) as client:
        client.delete_records({kafka.TopicPartition(kafka_world.prefix + "interactions", 0): 80})
    code, _, err = backfill(kafka_world)
    assert code == 73
    assert "30 records were deleted before they were applied" in err


@pytest.mark.kafka
def test_a_backfill_reads_what_was_committed_and_ends_at_an_open_transaction(kafka_world: Any) -> None:
    kafka_world.partitions = 1
    kafka_world.create_topics()
    names = [f"{kafka_world.prefix}{n}" for n in range(2)]
    producers = [KafkaProducer(bootstrap_servers=kafka_world.bootstrap, transactional_id=name) for name in names]
    for producer in producers:
        producer.init_transactions()
    for n, (key, value) in enumerate(shop_records(40)):
        producer = producers[n >= 30]
        if n % 10 == 0:
            producer.begin_transaction()
        producer.send(kafka_world.prefix + "interactions", key=key, value=value).get(10)
        if n in (9, 29):
            producer.commit_transaction()
        elif n == 19:
            producer.abort_transaction()
    told = done(kafka_world)
    assert (told["applied"], told["next_offset"]) == (20, {0: 32})
    producers[1].commit_transaction()
    assert done(kafka_world)["applied"] == 10
    for producer in producers:
        producer.close()


def test_a_block_is_closed_by_records_and_by_bytes_and_follows_on_as_its_reads_do() -> None:
    def read(first: int, n: int, size: int, follows: int | None) -> Fetched:
        return Fetched([SimpleNamespace(offset=first + k, key=None, value=b"x" * size) for k in range(n)], 0, follows)

    buffer = Buffer(records=10, size=1000)
    for first, n, size, follows in ((0, 4, 10, 0), (5, 4, 10, 4), (9, 4, 10, 9), (20, 2, 600, 20), (22, 1, 10, None)):
        buffer.join(read(first, n, size, follows))
    blocks = [buffer.take() for _ in range(4)]
    offsets = [[record.offset for record in block or ()] for block in blocks]
    assert offsets == [[0, 1, 2, 3, 5, 6, 7, 8], [9, 10, 11, 12], [20, 21], [22]]
    assert [block.follows for block in blocks if block is not None] == [0, 9, 20, None]
    assert buffer.take() is None
