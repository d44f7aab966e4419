"""An item that is withdrawn or deleted leaves every answer, without a trainer, and does not come back by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest
from kafka import KafkaProducer
from tests.stream.conftest import T0_MS, baskets, feed, flush, log_of, rows, start

from driftline.client import Client
from driftline.configs.addresses import free_port
from driftline.configs.settings import Settings
from driftline.serving.server import Server
from driftline.serving.snapshot import open_snapshot
from driftline.serving.withdrawn import WithdrawnFile

IDS = {f"i{n}" for n in range(9)}


def record(item_id: str, **fields: Any) -> tuple[bytes, bytes]:
    return item_id.encode(), orjson.dumps({"item_id": item_id, "title": f"Title {item_id}", **fields})


@pytest.fixture
def live(world: Any, settings: Settings) -> Settings:
    """Settings of small models, on topics of a broker that runs; a snapshot of a trainer that has ended."""
    world.create_topics()
    serving = {"port": free_port(), "state_poll_ms": 10, "poll_s": 0.05, "follow_profiles": False, "cache_ms": 60_000}
    made = settings.model_copy(
        update={
            "broker": world.settings.broker,
            "state": settings.state.model_copy(update={"root": world.root / "state"}),
            "serving": settings.serving.model_copy(update=serving),
        }
    )
    trainer = flush(feed(start(made), log_of(baskets(20))))
    for key, value in map(record, sorted(IDS)):
        trainer.take_item(value, key)
    trainer.publish()
    trainer.checkpoint()
    return made


def send(world: Any, *records: tuple[bytes, bytes | None]) -> float:
    """Sends records to `items`; the time at which the broker had them."""
    producer = KafkaProducer(bootstrap_servers=world.bootstrap)
    for key, value in records:
        producer.send(world.prefix + "items", key=key, value=value)
    producer.close()
    return time.monotonic()


@contextmanager
def served(settings: Settings) -> Iterator[Client]:
    with Server(settings) as server, Client(f"127.0.0.1:{server.port}") as client:
        yield client


def shown(client: Client) -> list[set[str]]:
    """The items of every list that the service gives."""
    slates = [client.recommend("nobody", k=50), client.recommend("nobody", k=50, which="novel")]
    slates += client.recommend_batch(["nobody", "u1"], k=50).user_slates
    slates += [client.similar("i4", k=50)]
    return [set(slate.slate.item_ids) for slate in slates]


def seconds_until(condition: Any, since: float) -> float:
    while not condition():
        assert time.monotonic() - since < 10
        time.sleep(0.02)
    return time.monotonic() - since


def test_a_withdrawn_and_a_deleted_item_leave_all_lists_in_2_s_without_a_trainer_and_return_when_offered(
    world: Any, live: Settings
) -> None:
    send(world, *map(record, sorted(IDS)))
    with served(live) as client:
        assert all({"i3", "i5"} <= items for items in shown(client)[:2])
        since = send(world, record("i3", available=False), (b"i5", None))
        gone_s = seconds_until(lambda: not any({"i3", "i5"} & items for items in shown(client)), since)
        assert gone_s < 2
        assert "withdrawn" in client.score("nobody", ["i5", "i4"]).provenance.reasons
        assert "withdrawn" in client.similar("i3").provenance.reasons
        assert client.similar("i3").slate.item_ids
        assert "withdrawn" not in client.score("nobody", ["i4"]).provenance.reasons
    with served(live) as client:
        assert not any({"i3", "i5"} & items for items in shown(client))
        since = send(world, record("i3", available=True), record("i5"))
        assert seconds_until(lambda: all({"i3", "i5"} <= items for items in shown(client)[:2]), since) < 2


def test_a_deleted_item_stays_away_where_the_topic_has_lost_its_tombstone(world: Any, live: Settings) -> None:
    send(world, record("i3"), (b"i3", None))
    with served(live) as client:
        assert not any("i3" in items for items in shown(client))
    emptied = live.model_copy(update={"broker": live.broker.model_copy(update={"prefix": world.prefix + "emptied."})})
    world.prefix += "emptied."
    world.create_topics()
    with served(emptied) as client:
        assert not any("i3" in items for items in shown(client))


def test_without_a_broker_what_was_withdrawn_stays_so_and_the_start_does_not_wait(live: Settings, caplog: Any) -> None:
    WithdrawnFile(live.serving.snapshots).merge({"i3"}, lambda item_id: False)
    nowhere = live.broker.model_copy(update={"bootstrap": f"127.0.0.1:{free_port()}"})
    started = time.monotonic()
    with served(live.model_copy(update={"broker": nowhere})) as client:
        assert time.monotonic() - started < live.serving.items_wait_s + 2
        assert not any("i3" in items for items in shown(client))
        assert "i5" in shown(client)[0]
    assert "the topic items is not read yet" in caplog.text


def test_popular_items_of_a_service_without_a_snapshot_hold_no_withdrawn_one(
    world: Any, live: Settings, tmp_path: Any
) -> None:
    from driftline.stream.process.processor import Processor
    from driftline.stream.state.store import RocksStore, partition_path

    store = RocksStore(partition_path(live.state.root, 0), sync=False)
    processor = Processor(live, store)
    processor.commit(processor.apply(log_of(baskets(20))))
    serving = live.serving.model_copy(update={"snapshots": tmp_path / "none"})
    send(world, (b"i3", None))
    with served(live.model_copy(update={"serving": serving})) as client:
        answer = client.recommend("nobody", k=50)
        assert "no_snapshot" in answer.provenance.reasons
        assert set(answer.slate.item_ids) == IDS - {"i3"}
    store.close()


def available(settings: Settings) -> dict[str, bool]:
    items = open_snapshot(settings.serving.snapshots).parts["items"]
    ids = items["id.utf8"].tobytes().decode()
    ends = items["id.ends"].tolist()
    return {ids[a:b]: bool(flag) for a, b, flag in zip(ends, ends[1:], items["available"], strict=False)}


def told(settings: Settings, *records: tuple[bytes, bytes | None], end: int | None = None) -> Any:
    """A trainer that starts on its checkpoint and reads the topic `items` from its beginning."""
    trainer = start(settings)
    for offset, (key, value) in enumerate(records):
        trainer.take_item(value, key, (0, offset))
    trainer.read_whole_catalogue({0: (0, len(records) if end is None else end)})
    trainer.encode_items()
    return trainer


def test_a_trainer_that_learns_nothing_more_publishes_that_an_item_was_deleted(settings: Settings) -> None:
    trainer = flush(feed(told(settings, record("i3"), record("i4")), log_of(baskets(20))))
    trainer.publish()
    trainer.checkpoint()
    assert all(available(settings).values())
    trainer.take_item(None, b"i3", (0, 2))
    assert trainer.publish_news() is not None
    assert [item_id for item_id, flag in available(settings).items() if not flag] == ["i3"]
    part = open_snapshot(settings.serving.snapshots).parts["items"]
    assert b"Title i3" not in part["title.utf8"].tobytes()
    assert trainer.publish_news() is None
    trainer.take_item(record("i3")[1], b"i3", (0, 3))
    assert trainer.publish_news() is not None
    assert all(available(settings).values())


@pytest.mark.parametrize("kept", ["checkpoint", "snapshots"])
def test_a_trainer_notices_a_deletion_of_which_compaction_left_nothing(
    settings: Settings, kept: str, tmp_path: Any
) -> None:
    trainer = flush(feed(told(settings, record("i3"), record("i4")), log_of(baskets(20))))
    trainer.publish()
    trainer.checkpoint()
    root, snapshots = settings.trainer.root, settings.serving.snapshots
    if kept == "checkpoint":
        snapshots = tmp_path / "others"
    else:
        root = tmp_path / "fresh"
    moved = settings.model_copy(
        update={
            "trainer": settings.trainer.model_copy(update={"root": root}),
            "serving": settings.serving.model_copy(update={"snapshots": snapshots}),
        }
    )
    again = told(moved, record("i4"), end=7)
    flush(feed(again, log_of(rows("u9", 99, T0_MS + 10**9)), partition=0))
    if kept == "snapshots":
        flush(feed(again, log_of(baskets(20))))
    again.publish()
    found = available(moved)
    assert [item_id for item_id, flag in found.items() if not flag] == ["i3"]
    assert WithdrawnFile(snapshots).read() == {"i3"}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_trainer_reads_the_newer_record_of_an_item_in_two_partitions_in_whatever_order(
    settings: Settings, order: tuple[int, int]
) -> None:
    said: list[list[tuple[tuple[bytes, bytes | None], int]]] = [
        [(record("i3"), 10), (record("i4"), 40)],
        [((b"i3", None), 20), (record("i4", available=False), 30)],
    ]
    trainer = feed(start(settings), log_of(baskets(20)))
    for partition in order:
        for offset, ((key, value), t_ms) in enumerate(said[partition]):
            trainer.take_item(value, key, (partition, offset), t_ms)
    trainer.read_whole_catalogue({0: (0, 2), 1: (0, 2)})
    flush(trainer).publish()
    assert [item_id for item_id, flag in available(settings).items() if not flag] == ["i3"]
    assert trainer.catalogue.state_dict()["listing"] == {"i4": (0, 1)}


@pytest.mark.parametrize("kept", ["checkpoint", "snapshots"])
def test_a_trainer_takes_an_older_record_in_another_partition_than_the_lost_tombstone_for_no_offer(
    settings: Settings, kept: str, tmp_path: Any
) -> None:
    def read(settings: Settings, *said: tuple[bytes | None, int, int]) -> Any:
        trainer = start(settings)
        for value, partition, t_ms in said:
            trainer.take_item(value, b"i3", (partition, 0), t_ms)
        trainer.read_whole_catalogue({0: (0, 1), 1: (0, 1)})
        trainer.encode_items()
        return trainer

    stale, tombstone = (record("i3")[1], 0, 10), (None, 1, 20)
    trainer = flush(feed(read(settings, stale, tombstone), log_of(baskets(20))))
    trainer.publish()
    trainer.checkpoint()
    snapshots, root = settings.serving.snapshots, settings.trainer.root
    moved = settings.model_copy(
        update={
            "trainer": settings.trainer.model_copy(update={"root": root if kept == "checkpoint" else tmp_path / "new"}),
            "serving": settings.serving.model_copy(
                update={"snapshots": snapshots if kept == "snapshots" else tmp_path / "others"}
            ),
        }
    )
    for said, gone in (([stale], ["i3"]), ([stale, (record("i3")[1], 0, 30)], [])):
        again = read(moved, *said)
        flush(feed(again, [replace(r, offset=r.offset + 100) for r in log_of(baskets(20))]))
        again.publish()
        assert [item_id for item_id, flag in available(moved).items() if not flag] == gone


def test_a_topic_that_was_made_anew_and_is_shorter_withdraws_nothing(settings: Settings) -> None:
    trainer = flush(feed(told(settings, record("i4"), record("i3")), log_of(baskets(20))))
    trainer.checkpoint()
    again = told(settings, record("i4"), end=1)
    again.publish()
    assert all(available(settings).values())


def test_a_fresh_trainer_knows_what_serving_saw_withdrawn(settings: Settings) -> None:
    WithdrawnFile(settings.serving.snapshots).merge({"i3"}, lambda item_id: False)
    trainer = flush(feed(told(settings, record("i4")), log_of(baskets(20))))
    trainer.publish()
    assert [item_id for item_id, flag in available(settings).items() if not flag] == ["i3"]
