"""Partitions come and go while their state is being read, while others hold it, and while events flow."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from tests.stream.test_app import shop_records

from driftline.configs.errors import LockedError, StateError
from driftline.configs.settings import Broker, Settings, State
from driftline.stream.app import WorkerApp
from driftline.stream.owned.holding import REBALANCE_S
from driftline.stream.owned.opening import Opener
from driftline.stream.state.layout import hold_to_layout
from driftline.stream.state.store import Abandoned, RocksStore, partition_path

A, B, C = (TP("interactions", number) for number in range(3))


class House:
    """What an opener works on: partitions whose reading takes as long as the test wants."""

    def __init__(self) -> None:
        self.open: set[TP] = set()
        self.locked: set[TP] = set()
        self.slow: dict[TP, asyncio.Event] = {}
        self.said: list[str] = []
        self.opener = Opener(self.open_one, self.close, self.open.__contains__, self.begin, patience_s=0.0)

    async def open_one(self, tp: TP, abandoned: threading.Event) -> bool:
        self.said.append(f"open {tp.partition}")
        while tp in self.slow and not self.slow[tp].is_set():
            if abandoned.is_set():
                raise Abandoned(str(tp))
            await asyncio.sleep(0.001)
        if tp in self.locked:
            raise LockedError(f"{tp.partition} is locked by process 7 (stopped)")
        self.open.add(tp)
        return True

    def close(self, places: Iterable[TP]) -> None:
        for tp in places:
            self.said.append(f"close {tp.partition}")
            self.open.discard(tp)

    async def begin(self, tp: TP) -> None:
        self.said.append(f"read {tp.partition}")


def run(story: Callable[[House], Awaitable[None]]) -> House:
    async def told() -> House:
        house = House()
        task = asyncio.create_task(house.opener.run())
        await story(house)
        task.cancel()
        return house

    return asyncio.run(told())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_what_stays_assigned_stays_open_and_what_goes_is_closed_at_once() -> None:
    async def story(house: House) -> None:
        house.opener.assign([A, B])
        await until(lambda: house.open == {A, B})
        house.opener.assign([B, C])
        assert house.open == {B}
        await until(lambda: house.open == {B, C})

    assert run(story).said == ["open 0", "read 0", "open 1", "read 1", "close 0", "open 2", "read 2"]


def test_a_partition_that_goes_while_it_is_read_is_abandoned_and_the_others_follow() -> None:
    async def story(house: House) -> None:
        house.slow[A] = asyncio.Event()
        house.opener.assign([A, B])
        await until(lambda: "open 0" in house.said)
        assert house.opener.waiting == {A: "", B: ""}
        house.opener.assign([B])
        await until(lambda: house.open == {B})
        assert house.opener.waiting == {}

    assert "read 0" not in run(story).said


def test_one_that_is_opened_too_late_to_be_abandoned_is_closed_and_not_read() -> None:
    async def story(house: House) -> None:
        opened = house.open_one

        async def lost_as_it_opens(tp: TP, abandoned: threading.Event) -> bool:
            await opened(tp, abandoned)
            house.opener.assign([])
            return True

        house.opener._open_one = lost_as_it_opens
        house.opener.assign([A])
        await until(lambda: "close 0" in house.said)

    assert "read 0" not in run(story).said


@pytest.mark.parametrize("session_s", [10.0, 300.0])
def test_partitions_stay_open_for_as_long_as_a_rebalance_may_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session_s: float
) -> None:
    """A broker that goes in the middle of one for 40 s costs no worker what it holds."""
    settings = Settings(state=State(root=tmp_path), broker=Broker(session_timeout_s=session_s))
    ends: list[Exception] = []

    def damaged(assigned: Iterable[TP]) -> None:
        raise StateError("can't be closed")

    async def story() -> None:
        holding = WorkerApp(settings, "127.0.0.1:1", 2).holding
        holding.give_up()
        lingering = holding._lingering
        assert lingering is not None
        longest_s = max(session_s, REBALANCE_S)
        assert lingering.when() - asyncio.get_running_loop().time() > max(longest_s, 2 * session_s)
        monkeypatch.setattr(holding.opener, "assign", damaged)
        monkeypatch.setattr("driftline.stream.owned.holding.end_process", ends.append)
        lingering._run()  # as the loop does when its time has come

    asyncio.run(story())
    assert [str(error) for error in ends] == ["can't be closed"], "no error is lost in the timer"


def test_a_locked_partition_holds_up_no_other_and_is_opened_when_it_is_free(caplog: pytest.LogCaptureFixture) -> None:
    async def story(house: House) -> None:
        house.locked.add(A)
        house.opener.assign([A, B])
        await until(lambda: house.open == {B})
        await until(lambda: house.opener.waiting.get(A))
        assert "process 7 (stopped)" in house.opener.waiting[A]
        house.locked.clear()
        await until(lambda: house.open == {A, B})
        assert house.opener.waiting == {}

    run(story)
    (said,) = [record.getMessage() for record in caplog.records if "stands still" in record.getMessage()]
    assert "partition 0 of interactions" in said


def test_a_worker_goes_on_with_what_it_owns_and_says_which_partition_another_process_holds(
    world: Any, wait: Any
) -> None:
    world.partitions, world.state["lock_wait_s"] = 2, 0.2
    world.produce(shop_records(200))
    hold_to_layout(world.settings, 2)
    held = RocksStore(partition_path(world.settings.state.root, 0))
    with world.worker() as worker:
        wait(lambda: worker.offsets() == {"1": len(world.log(1))}, what="partition 1 is applied")
        wait(lambda: worker.offsets("driftline_partitions_waiting").get("locked") == 1, what="metrics say so")
        held.close()
        wait(lambda: worker.applied() == 200, what="partition 0 is applied, too")
        assert worker.offsets("driftline_partitions_waiting") == {"locked": 0, "opening": 0}
        worker.stop()
    assert "partition 0 of" in worker.log.read_text()
    assert "is locked by process" in worker.log.read_text()
    assert world.stored_rows() == world.expected_rows()


UNANSWERED = """
import sys
from pathlib import Path
from driftline.configs.errors import BrokerError
from driftline.stream.kafka.identity import Identities
of = Identities.of
def asked(self, places, marks):
    if not Path({answers!r}).exists():
        raise BrokerError("it is away")
    return of(self, places, marks)
Identities.of = asked
from driftline.stream.worker import main
main(sys.argv[1])
"""


def test_no_partition_of_several_is_read_before_the_broker_says_of_which_log_it_is(
    world: Any, wait: Any, tmp_path: Path
) -> None:
    world.partitions = 2
    world.produce(shop_records(200))
    answers = tmp_path / "answers"
    with world.worker("-c", UNANSWERED.format(answers=str(answers))) as worker:
        wait(lambda: "does not say which topics it has" in worker.log.read_text(), what="it waits")
        time.sleep(1)
        assert worker.applied() == 0
        answers.touch()
        wait(lambda: worker.applied() == 200, what="all events are applied")
        worker.stop()


@pytest.mark.kafka
@pytest.mark.slow
def test_a_hung_worker_stops_its_own_partitions_only_and_loses_nothing_when_it_wakes(
    kafka_world: Any, wait: Any
) -> None:
    kafka_world.state["lock_wait_s"] = 0.5
    records = shop_records(3000)
    kafka_world.produce(records[:1000])
    with kafka_world.worker() as hung, kafka_world.worker() as healthy:
        wait(lambda: hung.partitions() == healthy.partitions() == 2, 60, "both own two partitions")
        wait(lambda: hung.applied() + healthy.applied() == 1000, 60, "the first events are applied")
        wait(lambda: len(hung.offsets("driftline_item_next_offset")) == 2, 60, "it has opened its items, too")
        hung.process.send_signal(signal.SIGSTOP)
        kafka_world.produce(records[1000:])
        mine = set(healthy.offsets())
        wait(lambda: healthy.offsets("driftline_partitions_waiting").get("locked") == 4, 60, "it is told of all locks")
        ends = {number: len(kafka_world.log(int(number))) for number in mine}
        wait(lambda: {n: healthy.offsets()[n] for n in mine} == ends, 60, "its own partitions are applied to the end")
        assert "(stopped)" in healthy.log.read_text()
        hung.process.send_signal(signal.SIGCONT)
        wait(lambda: _all(kafka_world, hung, healthy) == 3000, 60, "everything is applied")
        healthy.stop()
        hung.stop()
    assert kafka_world.stored_rows() == kafka_world.expected_rows()


SLOW = """
import sys, time
from driftline.stream.state.store import RocksStore
scan = RocksStore.scan
def slow(self, prefix):
    items = sum(1 for _ in scan(self, prefix))
    for pair in scan(self, prefix):
        end = time.monotonic() + (12 / items if prefix == b"n:" else 0)
        while time.monotonic() < end:
            pass
        yield pair
RocksStore.scan = slow
from driftline.stream.worker import main
main(sys.argv[1])
"""
"""A worker that needs 12 s to read the names of its items, whichever partition it gets, and all of the interpreter."""


@pytest.mark.kafka
@pytest.mark.slow
def test_a_worker_that_opens_for_longer_than_a_session_is_not_put_out_and_its_peer_keeps_what_it_has(
    kafka_world: Any, wait: Any
) -> None:
    kafka_world.partitions = 2
    kafka_world.produce(shop_records(400, users=26))
    with kafka_world.worker() as first:
        wait(lambda: first.applied() == 400, 60, "the first worker has applied everything")
        with kafka_world.worker("-c", SLOW) as second:
            wait(lambda: second.offsets("driftline_partitions_waiting").get("opening"), 60, "the second one opens")
            begun = time.monotonic()
            kafka_world.send(_messages(shop_records(800, users=26)[400:]))
            mine = set(first.offsets())
            wait(
                lambda: len(first.offsets()) == 1 and first.applied() == len(kafka_world.log(int(next(iter(mine))))), 8
            )
            wait(lambda: second.partitions() == 1, 60, "the second one owns its partition")
            assert time.monotonic() - begun > kafka_world.settings.broker.session_timeout_s
            wait(lambda: _all(kafka_world, first, second) == 800, 60, "everything is applied")
            assert first.log.read_text().count("interactions is open") == 2  # each once: nothing was read in again
            second.stop()
        with kafka_world.worker("-c", SLOW) as third:
            wait(lambda: third.offsets("driftline_partitions_waiting").get("opening"), 60, "the third one opens")
            begun = time.monotonic()
            third.stop()
            assert time.monotonic() - begun < 6
        first.stop()
    assert kafka_world.stored_rows() == kafka_world.expected_rows()


def _messages(records: list[tuple[bytes | None, bytes | None]]) -> list[Any]:
    return [SimpleNamespace(topic="interactions", key=key, value=value, headers=()) for key, value in records]


def _all(world: Any, *workers: Any) -> int:
    reached: dict[str, int] = {}
    for worker in workers:
        worker.applied()
        for partition, offset in worker.offsets().items():
            reached[partition] = max(offset, reached.get(partition, 0))
    return sum(reached.values())
