"""The worker process against the embedded broker: nothing lost, nothing doubled, nothing stepped over."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from aiokafka.errors import MessageSizeTooLargeError

from driftline.graph.chunks import whole_users
from driftline.graph.memory import GraphMemory
from driftline.graph.rows import Event
from driftline.serving.owner import partition_of
from driftline.stream.app import WorkerApp
from driftline.stream.chaos.oracle import item_counts
from driftline.stream.events.dlq import fitting, read_dlq
from driftline.stream.events.records import Outgoing, record_of
from driftline.stream.events.schema import encode_event
from driftline.stream.kafka.reading import read_all
from driftline.stream.owned.versions import encode_version
from driftline.stream.process.by_item import sent, sources
from driftline.stream.process.processor import Processor
from driftline.stream.state.store import MemoryStore

POISON = (
    b"not json at all \xff\xfe",
    b'{"user_id": "u1", "item_id": "i1"}',
    b'{"user_id": "u1", "item_id": "i1", "timestamp_ms": "yesterday"}',
    b'["a", "list"]',
    b'{"user_id": "' + b"x" * 300 + b'", "item_id": "i1", "timestamp_ms": 1}',
)


def shop_records(n: int, seed: int = 0, users: int = 25) -> list[tuple[bytes | None, bytes | None]]:
    """Events of a small shop in order of time, some in baskets."""
    rng = np.random.default_rng(seed)
    records: list[tuple[bytes | None, bytes | None]] = []
    now = 1_600_000_000_000
    while len(records) < n:
        now += int(rng.integers(1, 60_000))
        user, basket = f"u{rng.integers(users)}", f"g{len(records)}"
        for _ in range(int(rng.integers(1, 6))):
            event = Event(user, f"i{rng.integers(40)}", now, "purchase", f"e{len(records)}", 1.0, 2.5, basket)
            records.append((user.encode(), encode_event(event)))
    return records[:n]


def by_item(world: Any) -> list[Any]:
    return list(read_all(world.settings.broker, world.bootstrap, "interactions.by-item"))


def with_poison(
    records: list[tuple[bytes | None, bytes | None]], every: int = 97
) -> list[tuple[bytes | None, bytes | None]]:
    poisoned = list(records)
    for n, at in enumerate(range(every, len(records), every)):
        poisoned.insert(at, (b"u1", POISON[n % len(POISON)]))
    poisoned.insert(len(records) // 2, (b"u1", None))
    return poisoned


@pytest.mark.slow
@pytest.mark.parametrize("partitions", [1, 4])
def test_a_worker_killed_in_mid_stream_with_poison_around_ends_in_the_state_of_an_unbroken_run(
    world: Any, wait: Any, partitions: int
) -> None:
    world.partitions = partitions
    records = with_poison(shop_records(4000))
    world.produce(records)
    with world.worker() as worker:
        wait(lambda: worker.applied() > 1000, what="the first worker applies events")
        worker.kill()
        assert worker.offsets() == {}
    with world.worker() as worker:
        wait(lambda: worker.applied() == len(records), what="the second worker reaches the end")
        worker.stop()
    assert world.stored_rows() == world.expected_rows()
    dead = {letter.source: letter for letter in read_dlq(world.settings.broker, world.bootstrap)}
    refused = {
        f"{partition}:{record.offset}": record.value
        for partition in range(partitions)
        for record in world.log(partition)
        if record.value in (*POISON, None)
    }
    assert len(refused) == sum(value in POISON or value is None for _, value in records)
    assert {source: letter.value for source, letter in dead.items()} == refused
    for letter in dead.values():
        assert letter.reason in {
            "not_json",
            "missing_field",
            "wrong_type",
            "not_an_object",
            "out_of_range",
            "no_value",
        }
        assert letter.detail


FAILS_ONCE = """
import sys
from pathlib import Path
from driftline.stream.process.processor import Processor
apply, failed = Processor.apply, Path(sys.argv[1]).with_name("failed")
def fails_once(self, records):
    changes = apply(self, records)
    if self.next_offset > 300 and not failed.exists():
        failed.touch()
        raise RuntimeError("something nobody expected")
    return changes
Processor.apply = fails_once
from driftline.stream.worker import main
main(sys.argv[1])
"""


def test_an_unexpected_error_in_an_epoch_ends_the_worker_with_70_and_steps_over_nothing(world: Any, wait: Any) -> None:
    world.produce(shop_records(1000))
    with world.worker("-c", FAILS_ONCE) as worker:
        assert worker.process.wait(timeout=60) == 70
        assert "something nobody expected" in worker.log.read_text()
    with world.worker() as worker:
        wait(lambda: worker.applied() == 1000, what="the next worker reaches the end")
        worker.stop()
    assert world.stored_rows() == world.expected_rows()


@pytest.mark.slow
def test_an_orderly_end_leaves_nothing_to_send_again_and_a_kill_does(world: Any, wait: Any) -> None:
    def letters() -> int:
        return sum(1 for _ in read_all(world.settings.broker, world.bootstrap, "interactions.dlq"))

    world.produce([(b"u", b"{broken")])
    with world.worker("-m", "driftline.stream.worker") as worker:  # the end of the interpreter, too
        wait(lambda: worker.applied() == 1 and letters() == 1, what="one dead letter")
        worker.stop()
    with world.worker() as worker:
        wait(lambda: worker.applied() == 1, what="the partition is open, and what was unsent is sent")
        worker.stop()
    assert letters() == 1
    world.produce([(b"u", b"{broken again")])
    with world.worker() as worker:
        wait(lambda: worker.applied() == 2 and letters() == 2, what="the second one")
        worker.kill()  # whether it was told that the letter had arrived, nobody knows
    with world.worker() as worker:
        wait(lambda: letters() == 3, what="the second one again")
        worker.stop()


@pytest.mark.slow
def test_with_several_partitions_the_item_rows_follow_through_their_own_topic(world: Any, wait: Any) -> None:
    world.partitions = 2
    records = shop_records(600)
    world.produce(records)
    with world.worker() as worker:
        wait(lambda: worker.applied() == len(records), what="all user events applied")
        wait(lambda: worker.items_applied() == len(by_item(world)), what="all item events applied")
        worker.stop()
    assert world.stored_rows() == world.expected_rows()
    frames = by_item(world)
    for frame in frames:
        assert {partition_of(event.item_id, 2) for event in sent(record_of(frame)).events} == {frame.partition}
    assert sum(len(sources(record_of(frame))) for frame in frames) == len(records)
    assert len(frames) < len(records) / 2
    assert item_counts(world.settings, 2) == Counter(json.loads(value)["item_id"] for _, value in records)


@pytest.mark.slow
def test_a_record_larger_than_a_producer_takes_by_default_becomes_a_dead_letter_and_the_stream_goes_on(
    world: Any, wait: Any
) -> None:
    records = shop_records(40)
    large = b"x" * 1_040_000
    records.insert(20, (b"u1", large))
    world.produce(records)
    with world.worker() as worker:
        wait(lambda: worker.applied() == len(records), what="the worker goes past the large record")
        wait(lambda: list(read_dlq(world.settings.broker, world.bootstrap)), what="the dead letter is sent")
        worker.stop()
    (letter,) = read_dlq(world.settings.broker, world.bootstrap)
    assert (letter.reason, letter.key, letter.source) == ("too_large", b"u1", "0:20")
    assert letter.value == large
    assert letter.is_whole_event


@pytest.mark.slow
def test_a_foreign_record_among_the_item_events_does_not_stop_the_worker(world: Any, wait: Any) -> None:
    world.partitions = 2
    world.create_topics()
    world.send([SimpleNamespace(topic="interactions.by-item", key=b"i1", value=b"hello", headers=())])
    records = shop_records(60)
    world.produce(records)
    with world.worker() as worker:
        wait(lambda: worker.applied() == len(records), what="all user events applied")
        wait(lambda: worker.items_applied() == len(by_item(world)), what="all frames and the foreign record")
        worker.stop()
    assert sum(item_counts(world.settings, 2).values()) == len(records)
    (letter,) = read_dlq(world.settings.broker, world.bootstrap)
    assert (letter.reason, letter.topic, letter.value) == ("no_source", "interactions.by-item", b"hello")
    assert not letter.is_whole_event


@pytest.mark.slow
def test_a_trained_graph_is_adopted_at_a_recorded_offset_that_a_restart_and_a_replay_follow(
    world: Any, wait: Any
) -> None:
    records = shop_records(900)
    trained = GraphMemory(world.settings.graph.model_copy(update={"seed": 7}))
    world.produce(records[:300])
    with world.worker() as worker:
        wait(lambda: worker.applied() == 300, what="the first events are applied")
        world.send(encode_version(trained, {}))
        world.produce(records[300:600])
        wait(lambda: adoptions(world) and worker.applied() == 600, what="the version is adopted")
        worker.kill()
    world.produce(records[600:])
    with world.worker() as worker:
        wait(lambda: worker.applied() == 900, what="the restarted worker reaches the end")
        worker.stop()
    (adopted,) = {json.dumps(a, sort_keys=True): a for a in adoptions(world)}.values()
    assert adopted["sha256"] == trained.version()
    assert 300 < adopted["offset"] <= 600
    store, log = MemoryStore(), world.log()
    replayed = Processor(world.settings, store)
    replayed.commit(replayed.apply(log[: adopted["offset"]]))
    replayed.commit(replayed.adopt(trained))
    replayed.commit(replayed.apply(log[adopted["offset"] :]))
    assert world.stored_rows() == dict(whole_users(store)) | dict(store.scan(b"i:"))
    assert world.stored_rows() != world.expected_rows()


def adoptions(world: Any) -> list[dict[str, Any]]:
    records = read_all(world.settings.broker, world.bootstrap, "graph-versions")
    return [json.loads(r.value) for r in records if dict(r.headers)["kind"] == b"adoption"]


@pytest.mark.slow
def test_no_commit_holds_more_than_epoch_events_and_what_comes_past_them_is_in_the_next(world: Any, wait: Any) -> None:
    world.state["epoch_ms"] = 2000
    records = shop_records(53)
    world.produce(records[:1])
    with world.worker() as worker:
        wait(lambda: worker.applied() == 1, what="the first event is applied")
        world.produce(records[1:21])
        time.sleep(0.5)  # the worker has these and waits for more
        world.produce(records[21:])
        wait(lambda: worker.applied() == 53, what="all events are applied")
        assert worker.metric("driftline_epoch_seconds_count") >= 3  # 1, then 52 in blocks of 32 at most
        worker.stop()
    assert world.stored_rows() == world.expected_rows()


def test_a_worker_names_an_action_that_is_not_configured_once(world: Any, wait: Any) -> None:
    events = [Event("u", f"i{n}", 1_600_000_000_000 + n, "purchse") for n in range(3)]
    world.produce([(b"u", encode_event(event)) for event in events])
    with world.worker() as worker:
        wait(lambda: worker.applied() == 3, what="everything is applied")
        worker.stop()
    said = worker.log.read_text()
    assert said.count("action 'purchse' is not in the configuration") == 1
    assert said.count("partition 0 of ") == said.count(" is open") == 1


def test_a_worker_names_an_action_that_counts_as_wanted_with_a_value_below_0_once(world: Any, wait: Any) -> None:
    given = [("purchase", -2.0), ("purchase", -1.0), ("view", 1.0), ("return", -3.0), ("cart", None)]
    events = [
        Event("u", f"i{n}", 1_600_000_000_000 + n, action, None, value) for n, (action, value) in enumerate(given)
    ]
    world.produce([(b"u", encode_event(event)) for event in events])
    with world.worker() as worker:
        wait(lambda: worker.applied() == len(events), what="everything is applied")
        worker.stop()
    said = worker.log.read_text()
    assert said.count("with a value below 0") == said.count("action 'purchase' came with a value below 0") == 1


def test_a_worker_says_what_it_opened_and_that_a_history_came_too_late(world: Any, wait: Any) -> None:
    ahead = encode_event(Event("u", "i", 1_700_000_000_000, "purchase"))
    world.produce([(b"u", ahead), *shop_records(30), (b"u", b"no event")])
    with world.worker() as worker:
        wait(lambda: worker.applied() == 32, what="all events are taken")
        worker.stop()
    said = worker.log.read_text()
    assert "partition 0 of" in said
    assert "is open" in said
    assert "30 events so far came too late: more than state.late_ms, 60 min, older than the newest one" in said
    assert "1 records so far are no events and are kept as dead letters: `driftline dlq list` says why." in said


def test_a_worker_that_waits_leaves_the_core_alone(world: Any, wait: Any) -> None:
    world.produce(shop_records(30))
    with world.worker() as worker:
        wait(lambda: worker.applied() == 30, what="all events are applied")
        process = psutil.Process(worker.process.pid)
        before = sum(process.cpu_times()[:2])
        time.sleep(3)
        assert sum(process.cpu_times()[:2]) - before < 1.2  # fetching without a pause takes twice as much
        worker.stop()


def test_a_record_too_large_for_a_dead_letter_is_shortened_and_says_so() -> None:
    whole = Outgoing("interactions.dlq", b"k" * 5000, b"y" * 3_000_000, (("reason", b"too_large"),))
    short = fitting(whole)
    headers = dict(short.headers)
    assert len(short.key) + len(short.value) < 100_000
    assert whole.value.startswith(short.value)
    assert (headers["reason"], headers["length"], headers["truncated"]) == (b"too_large", b"3000000", b"65536")
    assert headers["sha256"] == hashlib.sha256(whole.value).hexdigest().encode()
    small = Outgoing("interactions.dlq", None, b"y" * 1_048_588, ())
    assert fitting(small) is small


def test_a_dead_letter_that_the_broker_finds_too_large_is_sent_shortened(world: Any) -> None:
    app = WorkerApp(world.settings, world.bootstrap, 1)
    taken: list[tuple[str, int]] = []

    async def answer(size: int) -> None:
        if size > 1_000_000:
            raise MessageSizeTooLargeError

    class Producer:
        async def send(self, topic: str, key: Any, value: bytes, *rest: Any) -> Any:
            taken.append((topic.removeprefix(world.prefix), len(value)))
            return asyncio.ensure_future(answer(len(value)))

    app._producer = Producer()
    letter = Outgoing("interactions.dlq", None, b"y" * 1_040_000, ())
    asyncio.run(app.send_all([letter, Outgoing("profile-requests", b"u", b"{}")]))
    assert taken == [("interactions.dlq", 1_040_000), ("profile-requests", 2), ("interactions.dlq", 65_536)]
    with pytest.raises(MessageSizeTooLargeError):
        asyncio.run(app.send_all([Outgoing("profile-requests", b"u", b"y" * 1_040_000)]))
