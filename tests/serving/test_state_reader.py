"""The reader beside a real writer: freshness, directories that come and go, several partitions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from kafka.partitioner.default import DefaultPartitioner

from graph.rows import ItemRow, UserRow, encode_item, encode_user, key64
from serving import state_reader as module
from serving.state_reader import StateReader, partition_of
from stream.store import RocksStore, partition_path


def row(user_id, events=1):
    zeros = np.zeros(4, np.float32)
    return encode_user(UserRow(user_id, zeros, zeros, zeros, events=events, version=events, last_update_ms=events))


def put(store, user_id, events=1, offset=1):
    store.commit(
        {
            b"u:" + user_id.encode(): row(user_id, events),
            b"m:offset:interactions:0": b"%d" % offset,
            b"m:watermark": b"%d" % (offset * 10),
        }
    )


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


@pytest.fixture
def reader(tmp_path):
    with StateReader(tmp_path / "state", poll_ms=5) as made:
        yield made


def test_a_user_goes_where_the_default_partitioner_sends_them():
    partitioner = DefaultPartitioner()
    for count in (1, 4, 7):
        cluster = SimpleNamespace(
            topics=lambda: {"t"},
            partitions_for_topic=lambda topic, count=count: set(range(count)),
            available_partitions_for_topic=lambda topic, count=count: set(range(count)),
        )
        for user_id in ("a", "user-17", "ünï", "x" * 256):
            key = user_id.encode()
            assert partition_of(user_id, count) == partitioner.partition("t", key, key, b"", b"", cluster)


def test_a_directory_that_is_not_there_yet_answers_nobody_until_it_appears(tmp_path, reader):
    assert not reader.ready
    assert reader.user("a").row is None
    store = RocksStore(partition_path(tmp_path / "state", 0))
    put(store, "a", offset=3)
    wait_for(lambda: reader.user("a").row is not None)
    stored = reader.user("a")
    assert (stored.partition, stored.store_offset, stored.watermark_ms, stored.version) == (0, 3, 30, 1)
    assert 0 <= stored.state_age_ms < 2000
    store.close()


def test_a_commit_is_readable_within_a_few_polls_and_wakes_waiters(tmp_path, reader):
    store = RocksStore(partition_path(tmp_path / "state", 0), sync=False)
    put(store, "a")
    wait_for(lambda: reader.ready)
    woken = threading.Event()

    def wait():
        with reader.changed:
            reader.changed.wait(10)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    for n in range(2, 12):
        put(store, "a", events=n)
        wait_for(lambda: reader.user("a").version == n, seconds=2)  # noqa: B023 - called in this round
    thread.join()
    assert woken.is_set()
    store.close()


def test_a_row_and_its_offset_are_always_of_one_commit(tmp_path, reader):
    store = RocksStore(partition_path(tmp_path / "state", 0), sync=False)
    stop = threading.Event()

    def write():
        n = 0
        while not stop.is_set():
            n += 1
            put(store, "a", events=n, offset=n)

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline:
        stored = reader.user("a")
        if stored.row is not None:
            assert stored.row.events == stored.store_offset == stored.watermark_ms // 10
            seen.add(stored.store_offset)
    stop.set()
    thread.join()
    assert len(seen) > 5
    store.close()


def test_a_directory_that_is_moved_away_and_made_again_is_read_anew(tmp_path, reader):
    path = partition_path(tmp_path / "state", 0)
    store = RocksStore(path)
    put(store, "old")
    wait_for(lambda: reader.user("old").row is not None)
    store.close()
    path.rename(tmp_path / "moved away")
    store = RocksStore(path)
    put(store, "new")
    wait_for(lambda: reader.user("new").row is not None)
    assert reader.user("old").row is None
    store.close()


def test_users_of_several_partitions_are_found_wherever_they_lie(tmp_path):
    stores = [RocksStore(partition_path(tmp_path, number)) for number in range(3)]
    for number in range(30):
        put(stores[number % 3], f"user-{number}")
    with StateReader(tmp_path, partitions=3) as reader:
        for number in range(30):
            assert reader.user(f"user-{number}").partition == number % 3
        assert reader.user("nobody").partition == partition_of("nobody", 3)
    for store in stores:
        store.close()


def test_items_are_named_and_ranked_by_decayed_popularity(tmp_path, worker, settings):
    with StateReader(settings.state.root) as reader:
        assert reader.item_id(key64("item-7")) == "item-7"
        assert reader.item_id(12345) == ""
        popular = reader.popular(limit=5)
    assert len(popular) == 5
    assert [score for _, score in popular] == sorted((score for _, score in popular), reverse=True)


def test_a_writer_that_is_killed_and_restarted_is_followed_on(tmp_path, reader):
    path = partition_path(tmp_path / "state", 0)
    code = (
        "import sys; from pathlib import Path; from stream.store import RocksStore\n"
        "from tests.serving.test_state_reader import put\n"
        "store = RocksStore(Path(sys.argv[1]))\n"
        "n = int(store.get([b'm:offset:interactions:0'])[0] or 0)\n"
        "while True:\n"
        "    n += 1\n"
        "    put(store, 'a', events=n, offset=n)\n"
    )
    last = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        wait_for(lambda: reader.user("a").version > last + 20, seconds=30)  # noqa: B023 - called in this round
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        last = reader.user("a").version


def test_popularity_of_several_partitions_is_that_of_their_item_stores(tmp_path):
    users = RocksStore(partition_path(tmp_path, 0), sync=False)
    put(users, "a")
    stores = [RocksStore(tmp_path / f"items-{number}", sync=False) for number in range(2)]

    def sell(number, item_id, popularity):
        row = ItemRow(item_id, np.zeros(4, np.float32), popularity=popularity, last_update_ms=10)
        stores[number].commit({b"i:" + item_id.encode(): encode_item(row)})

    sell(0, "one", 3.0)
    sell(1, "two", 5.0)
    with StateReader(tmp_path, partitions=2) as reader:
        assert reader.popular() == [("two", 5.0), ("one", 3.0)]
        sell(0, "one", 7.0)
        assert reader.popular() == [("one", 7.0), ("two", 5.0)]
    for store in (users, *stores):
        store.close()


def test_a_root_that_can_not_be_read_is_logged_once_and_what_was_read_stays(tmp_path, reader, monkeypatch, caplog):
    store = RocksStore(partition_path(tmp_path / "state", 0), sync=False)
    put(store, "a")
    wait_for(lambda: reader.user("a").row is not None)
    errors = [NotADirectoryError(20, "Not a directory")]

    def refuse(root, kind):
        raise errors[0]

    monkeypatch.setattr(module, "_directories", refuse)
    wait_for(lambda: "Not a directory" in caplog.text)
    errors[0] = RuntimeError("surprise")
    wait_for(lambda: "surprise" in caplog.text)
    time.sleep(0.05)
    assert caplog.text.count("surprise") == 1
    assert reader.user("a").row is not None
    monkeypatch.undo()
    put(store, "a", events=2, offset=2)
    wait_for(lambda: reader.user("a").version == 2)
    store.close()
