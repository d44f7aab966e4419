"""Transactions: what was aborted, or is not decided yet, reaches nobody, and nobody waits for a marker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer

from driftline.graph.memory import GraphMemory
from driftline.graph.profile import Profile
from driftline.graph.rows import Event
from driftline.serving.profiles import ProfileFollower, ProfileStore
from driftline.stream.events.schema import encode_event
from driftline.stream.kafka.reading import consumer, places, read_all
from driftline.stream.learn import loop
from driftline.stream.learn.merge import Merge
from driftline.stream.ops.doctor import examine
from driftline.stream.owned.versions import GraphVersions, encode_version

T0_MS = 1_600_000_000_000


class Shop:
    """A transactional producer of another library."""

    def __init__(self, world: Any, name: str = "shop") -> None:
        self._prefix = world.prefix
        self._producer = Producer(
            {"bootstrap.servers": world.bootstrap, "transactional.id": world.prefix + name, "linger.ms": 0}
        )
        self._producer.init_transactions(30)

    def write(self, topic: str, *records: tuple[bytes | None, bytes], headers: Any = ()) -> None:
        """Opens a transaction and writes into it; the broker has the records on return."""
        self._producer.begin_transaction()
        for key, value in records:
            self._producer.produce(self._prefix + topic, key=key, value=value, headers=list(headers))
        assert self._producer.flush(30) == 0

    def commit(self) -> None:
        self._producer.commit_transaction(30)

    def abort(self) -> None:
        self._producer.abort_transaction(30)


def purchase(item: str, number: int = 0) -> tuple[bytes, bytes]:
    return b"ann", encode_event(Event("ann", item, T0_MS + number * 1000, "purchase", item))


def values(world: Any, topic: str) -> list[bytes | None]:
    return [record.value for record in read_all(world.settings.broker, world.bootstrap, topic)]


def test_readers_see_what_was_committed_and_end_at_a_marker_or_an_open_transaction(any_world: Any) -> None:
    shop, other = Shop(any_world), Shop(any_world, "other")
    shop.write("interactions", purchase("refused", 0), purchase("refused too", 1))
    shop.abort()
    assert values(any_world, "interactions") == []
    shop.write("interactions", purchase("paid", 2))
    other.write("interactions", purchase("interleaved", 3))
    other.abort()
    shop.commit()
    assert values(any_world, "interactions") == [purchase("paid", 2)[1]]
    other.write("interactions", purchase("undecided", 4))
    any_world.produce([purchase("behind it", 5)])
    assert values(any_world, "interactions") == [purchase("paid", 2)[1]]
    other.abort()
    assert values(any_world, "interactions") == [purchase("paid", 2)[1], purchase("behind it", 5)[1]]


def test_a_trainer_reads_items_to_their_end_over_what_was_aborted_and_waits_for_nothing_that_is_open(
    any_world: Any, settings: Any
) -> None:
    from tests.stream.conftest import start

    def item(name: str) -> tuple[bytes, bytes]:
        return name.encode(), orjson.dumps({"item_id": name, "title": name})

    shop, other, broker = Shop(any_world), Shop(any_world, "other"), any_world.settings.broker
    trainer = start(settings.model_copy(update={"broker": broker}))
    deadline = time.monotonic() + 20
    with consumer(broker, any_world.bootstrap) as side:
        side.assign(places(side, broker, ["items", "profiles"]))
        side.seek_to_beginning()
        for name, end in (("lamp", shop.commit), ("refused", shop.abort)):
            shop.write("items", item(name))
            end()
            loop._take_all_of_side(trainer, side, lambda: time.monotonic() > deadline)
        other.write("items", item("undecided"))
        while "lamp" not in trainer.catalogue.items and time.monotonic() < deadline:  # until the broker has its marker
            loop._take_all_of_side(trainer, side, lambda: time.monotonic() > deadline)
        loop._take_all_of_side(trainer, side, lambda: time.monotonic() > deadline)
    assert time.monotonic() < deadline
    assert set(trainer.catalogue.items) == {"lamp"}
    other.abort()


def test_the_trainer_learns_what_was_committed_and_lags_by_no_marker(any_world: Any, settings: Any) -> None:
    from tests.stream.conftest import start

    shop = Shop(any_world)
    for item, end in (("paid", shop.commit), ("refused", shop.abort)):
        shop.write("interactions", purchase(item))
        end()
    trainer = start(settings)
    merge = Merge(range(1), trainer.learner.processor.validated)
    broker = any_world.settings.broker
    taken = []
    with consumer(broker, any_world.bootstrap) as reader:
        main = places(reader, broker, ["interactions"])
        loop.seek(reader, main, trainer)
        trainer.lag = 1
        while trainer.lag:
            records = loop._polled(reader, main, trainer, merge)
            taken += [trainer.learner.processor.validated(record).item_id for _, record in records]
    assert taken == ["paid"]


def test_profiles_and_graph_versions_of_an_aborted_transaction_are_not_taken(any_world: Any, wait: Any) -> None:
    shop, settings = Shop(any_world), any_world.settings
    for end, seed in ((shop.commit, 1), (shop.abort, 2)):
        profile = Profile("ann", {"crowd": "gardener"}, "A gardener.", "template", {}, seed, 1, 1)
        shop.write("profiles", (b"ann", profile.to_json()))
        end()
        model = GraphMemory(settings.graph.model_copy(update={"seed": seed}))
        for out in encode_version(model, {}):
            shop.write(out.topic, (out.key, out.value), headers=out.headers)
            end()
    store = ProfileStore(10)
    follower = ProfileFollower(store, settings.broker, any_world.bootstrap)
    try:
        wait(lambda: store.get("ann", 2), what="the committed profile is there")
        stored = store.get("ann", 2)
        assert stored is not None
        assert stored.vectors.version == 1
    finally:
        follower.close()

    async def newest() -> str:
        versions = GraphVersions(settings, any_world.bootstrap, nothing)
        following = asyncio.ensure_future(versions.follow())
        while versions.newest is None:
            await asyncio.sleep(0.05)
        following.cancel()
        await asyncio.wait([following])
        return versions.newest.sha256

    expected = GraphMemory(settings.graph.model_copy(update={"seed": 1})).version()
    assert asyncio.run(asyncio.wait_for(newest(), 20)) == expected


async def nothing(_: Any) -> None:
    """Sends nothing."""


@pytest.mark.kafka
def test_the_worker_applies_what_was_committed_and_says_what_an_open_transaction_holds_back(
    kafka_world: Any, wait: Callable[..., Any]
) -> None:
    kafka_world.partitions = 1
    kafka_world.create_topics()
    shop = Shop(kafka_world)
    for number, (item, end) in enumerate((("paid", shop.commit), ("refused", shop.abort))):
        shop.write("interactions", purchase(item, number))
        end()

    def lag() -> dict[str, int]:
        return worker.offsets("driftline_lag")

    def held_back() -> str | None:
        found = [f for f in examine(kafka_world.settings) if f.part == "transactions"]
        return found[0].detail if found else None

    with kafka_world.worker() as worker:
        wait(lambda: worker.applied() == 1 and lag() == {"0": 0}, what="the first event is applied, lag 0 at a marker")
        assert held_back() is None
        shop.write("interactions", purchase("undecided", 2))
        kafka_world.send([SimpleNamespace(topic="interactions", key=b"ann", value=purchase("after")[1], headers=())])
        undecided = "driftline_undecided_records"
        wait(lambda: 2 in worker.labelled(undecided), what="the worker says that two records wait")
        assert worker.applied() == 1
        assert lag() == {"0": 0}
        assert "holds back 2 records from offset 4" in (held_back() or "")
        shop.abort()
        wait(lambda: worker.applied() == 6, what="the event behind the transaction is applied")
        wait(lambda: lag() == {"0": 0} and set(worker.labelled(undecided)) == {0}, what="nothing waits any more")
        worker.stop()
    assert kafka_world.stored_rows() == kafka_world.expected_rows()
