"""The reader beside a real writer: freshness, directories that come and go, several partitions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from kafka.partitioner.default import DefaultPartitioner
from tests.conftest import open_to_others

from driftline.configs.settings import Settings, State
from driftline.graph.chunks import chunk_keys
from driftline.graph.rows import Event, ItemRow, UserRow, encode_item, encode_user, key64
from driftline.serving import state_reader as module
from driftline.serving.errors import NotReady
from driftline.serving.owner import partition_of
from driftline.serving.rocks import open_beside
from driftline.serving.state_reader import COMPLETE, StateReader, StoredUser
from driftline.stream.events.schema import encode_event
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import RocksStore, partition_path


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
    assert stored.state_age_ms == -1
    store.close()


def test_a_state_is_as_old_as_the_last_time_that_it_was_complete_however_often_it_is_read(tmp_path, reader):
    store = RocksStore(partition_path(tmp_path / "state", 0))
    put(store, "a")
    wait_for(lambda: reader.user("a").row is not None)
    assert reader.user("a").state_age_ms == -1
    assert reader.age_ms() >= 0
    store.note(COMPLETE, b"%d" % (time.time_ns() // 1_000_000))
    wait_for(lambda: 0 <= reader.user("a").state_age_ms < 2000)
    store.close()  # the worker is gone
    before = reader.user("a").state_age_ms
    time.sleep(0.1)
    assert reader.user("a").state_age_ms >= before + 100
    assert reader.age_ms() >= before + 100


def test_the_partition_of_an_unknown_user_is_that_of_the_topic_whatever_the_settings_say(tmp_path):
    stores = [RocksStore(partition_path(tmp_path, number)) for number in range(3)]
    for number, store in enumerate(stores[1:], 1):
        put(store, f"someone-{number}")
        store.commit({f"m:offset:interactions:{number}".encode(): b"%d" % (100 * number)})
    unknown = next(f"u{n}" for n in range(100) if partition_of(f"u{n}", 3) == 2)
    elsewhere = next(f"u{n}" for n in range(100) if partition_of(f"u{n}", 3) == 0)
    with StateReader(tmp_path, partitions=1) as reader:
        (tmp_path / "layout.json").write_text('{"partitions": 3}')
        wait_for(lambda: reader.user(unknown).partition == 2)
        assert (reader.user(unknown).row, reader.user(unknown).store_offset) == (None, 200)
        assert (reader.user(elsewhere).partition, reader.user(elsewhere).store_offset) == (0, 0)
        stores[0].close()
        (tmp_path / "partition-0").rename(tmp_path / "another-host")
        wait_for(lambda: reader.user(elsewhere) == StoredUser(None, 0))
    for store in stores[1:]:
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


@pytest.mark.parametrize("sync", [True, False])
def test_each_commit_is_seen_by_the_size_of_the_logs_alone(tmp_path, monkeypatch, sync):
    monkeypatch.setattr(module, "_ANYWAY_S", 1e9)
    store = RocksStore(partition_path(tmp_path, 0), sync=sync)
    put(store, "a")
    with StateReader(tmp_path, poll_ms=5) as reader:
        for n in range(2, 60):
            put(store, "a", events=n)
            if n % 10 == 0:
                store.keep(tmp_path / f"kept-{n}")  # a flush: the next commit writes to a new log
            elif n % 19 == 0:
                store.scrub(["a"])  # compaction, and the database opened anew
            elif n % 3 == 0:
                store.note(COMPLETE, b"%d" % n)
            wait_for(lambda: reader.user("a").version == n, seconds=2)  # noqa: B023 - called in this round
    store.close()


def test_a_state_that_nobody_writes_to_is_asked_once_in_a_while(tmp_path, monkeypatch):
    store = RocksStore(partition_path(tmp_path, 0))
    put(store, "a")
    asked = []

    class Asked:
        def __init__(self, db):
            self.db = db

        def try_catch_up_with_primary(self):
            asked.append(time.monotonic())
            self.db.try_catch_up_with_primary()

        def __getattr__(self, name):
            return getattr(self.db, name)

    monkeypatch.setattr(module, "_ANYWAY_S", 0.2)
    monkeypatch.setattr(module, "open_beside", lambda *where: Asked(open_beside(*where)))
    with StateReader(tmp_path, poll_ms=2) as reader:
        wait_for(lambda: len(asked) >= 3)
        assert min(np.diff(asked)) >= 0.2
        put(store, "a", events=2)
        wait_for(lambda: reader.user("a").version == 2, seconds=2)
    store.close()


def overtake(store, reader, folder, events):
    """A commit that a flush moves to a table before the reader looks."""
    put(store, "a", events=events)
    store.keep(folder)
    reader.catch_up()


def test_a_state_that_is_opened_anew_is_as_old_as_it_was(tmp_path):
    store = RocksStore(partition_path(tmp_path, 0))
    put(store, "a")
    with StateReader(tmp_path, poll_ms=10**6) as reader:
        held = reader._open[0]
        time.sleep(0.2)
        overtake(store, reader, tmp_path / "kept", 2)
        assert reader.user("a").version == 1
        reader.catch_up()  # nothing has been written since
        assert reader._open[0] is not held
        assert reader.user("a").version == 2
        assert reader.age_ms() >= 200
        folders = list(reader._folder.path.iterdir())
        del held
        assert len(folders) - len(list(reader._folder.path.iterdir())) == 1
    store.close()


def test_a_state_that_cant_be_opened_anew_stays_and_is_tried_once_in_a_while(tmp_path, monkeypatch, caplog):
    store = RocksStore(partition_path(tmp_path, 0))
    put(store, "a")
    tried = []

    def refuse(path, scratch):
        tried.append(path)
        scratch.mkdir()
        raise module.StateError("no")

    with StateReader(tmp_path, poll_ms=10**6) as reader:
        monkeypatch.setattr(module, "open_beside", refuse)
        overtake(store, reader, tmp_path / "kept", 2)
        for _ in range(20):
            reader.catch_up()
        assert len(tried) == 1
        assert reader.user("a").version == 1
        assert caplog.text.count("can't be read: no") == 1
        assert len(list(reader._folder.path.glob("0-*"))) == 1
        reader._open[0]._again_s = 0.0  # a second later
        for _ in range(20):
            reader.catch_up()
        assert len(tried) == 2
        assert caplog.text.count("can't be read: no") == 1
        monkeypatch.undo()
        reader._open[0]._again_s = 0.0
        reader.catch_up()
        assert reader.user("a").version == 2
    store.close()


def test_other_files_in_a_directory_are_no_logs(tmp_path):
    store = RocksStore(partition_path(tmp_path, 0))
    put(store, "a")
    for name in ("worker.log", "x.log", ".log"):
        (partition_path(tmp_path, 0) / name).write_text("hello")
    with StateReader(tmp_path, poll_ms=5) as reader:
        assert reader.user("a").version == 1
        put(store, "a", events=2)
        wait_for(lambda: reader.user("a").version == 2)
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


def test_a_copy_from_before_that_takes_the_place_of_a_state_is_read_anew(tmp_path):
    """Its IDENTITY, and the number of the manifest that its opening makes, are those of the state that it replaces."""
    path = partition_path(tmp_path / "state", 0)
    store = RocksStore(path)
    put(store, "a", events=1)
    store.close()
    shutil.copytree(path, tmp_path / "copy")
    store = RocksStore(path)
    for n in range(2, 30):
        put(store, "a", events=n, offset=n)
    with StateReader(tmp_path / "state", poll_ms=10**7) as reader:
        assert reader.user("a").version == 29
        store.close()
        path.rename(tmp_path / "moved away")
        (tmp_path / "copy").rename(path)
        store = RocksStore(path)
        put(store, "a", events=2, offset=2)
        reader.catch_up()
        assert reader.user("a").version == 2
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
        "import sys; from pathlib import Path; from driftline.stream.state.store import RocksStore\n"
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


@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGTERM])
def test_a_reader_that_stands_still_while_the_writer_restarts_shows_what_came_meanwhile(tmp_path, ends):
    """A service that is suspended, or has no processor, for the seconds that a worker takes to come back."""
    path = partition_path(tmp_path, 0)
    code = (
        "import signal, sys; from pathlib import Path; from driftline.stream.state.store import RocksStore\n"
        "from tests.serving.test_state_reader import put\n"
        "signal.signal(signal.SIGTERM, lambda *_: (store.close(), sys.exit()))\n"
        "store = RocksStore(Path(sys.argv[1]))\n"
        "put(store, 'a', events=int(sys.argv[2]), offset=int(sys.argv[2]))\n"
        "print('there', flush=True)\n"
        "for line in sys.stdin:\n"
        "    put(store, *line.split()[:1], *map(int, line.split()[1:]))\n"
        "    print('there', flush=True)\n"
    )

    def begun(events):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(events)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "there\n"
        return process

    def tell(process, line):
        process.stdin.write(line + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "there\n"

    def ended(process):
        process.wait()
        process.stdin.close()
        process.stdout.close()

    def read():
        reader.catch_up()
        return [reader.user(name).version for name in "abc"], reader.user("a").store_offset

    writer = begun(1)
    with StateReader(tmp_path, poll_ms=10**7) as reader:
        tell(writer, "b 2 2")
        assert read() == ([1, 2, 0], 2)
        for name in "ab":
            tell(writer, f"{name} 3 3")
        writer.send_signal(ends)
        ended(writer)
        writer = begun(4)
        assert read() == ([4, 3, 0], 4)
        tell(writer, "c 5 5")
        assert read() == ([4, 3, 5], 5)
    writer.kill()
    ended(writer)


def test_a_history_in_chunks_is_whole_at_every_moment_while_late_events_change_it(tmp_path, reader):
    settings, start_ms = Settings(state=State(root=tmp_path / "state", history=70)), 1_600_000_000_000
    store = RocksStore(partition_path(settings.state.root, 0), sync=False)
    processor, rng, read, done = Processor(settings, store), np.random.default_rng(0), [], threading.Event()

    def read_all():
        while not done.is_set():
            read.append(reader.user("a").row)

    reading = threading.Thread(target=read_all)
    reading.start()
    offset = 0
    for _ in range(120):
        count = int(rng.integers(1, 6))
        times = (start_ms + 1000 * (offset + rng.integers(-8, 9, count))).tolist()
        log = [Record(offset + n, encode_event(Event("a", f"i{n}", t))) for n, t in enumerate(times)]
        processor.commit(processor.apply(log))
        offset += count
        time.sleep(0.002)
    wait_for(lambda: reader.user("a").version == offset)
    done.set()
    reading.join()
    assert encode_user(reader.user("a").row) == encode_user(processor.user("a"))
    store.close()
    rows = [row for row in read if row is not None]
    assert len({row.events for row in rows}) > 10
    for row in rows:
        t_ms = row.events_array()["t"]
        assert len(t_ms) == min(row.events, 70)
        assert (np.diff(t_ms) >= 0).all()


def test_a_row_that_lacks_a_chunk_is_not_served_as_a_shorter_one(tmp_path, reader):
    store, zeros = RocksStore(partition_path(tmp_path / "state", 0), sync=False), np.zeros(4, np.float32)
    head = UserRow("a", zeros, zeros, zeros, events=64, earlier=64, version=1)
    store.commit({b"u:a": encode_user(head), chunk_keys(head)[0]: bytes(32 * 40), b"m:offset:interactions:0": b"1"})

    def refused():
        try:
            assert reader.user("a").row is None  # it is not read yet
        except NotReady as error:
            return "32 of its events lie in chunks, expected 64" in str(error)
        return False

    wait_for(refused)
    store.close()


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


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_reads_the_state_without_writing_to_it(tmp_path, settings, worker):
    root = settings.state.root
    code = (
        "import os, sys\n"
        "from driftline.serving.state_reader import StateReader\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"root = __import__('pathlib').Path({str(root)!r})\n"
        "assert not os.access(root / 'partition-0', os.W_OK)\n"
        "reader = StateReader(root, 1, 'interactions', 10, 86400000.0)\n"
        "assert reader.user('user-1').row is not None\n"
        "reader.close()\n"
    )
    open_to_others(tmp_path)
    before = sorted(path.name for path in root.rglob("*"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in root.rglob("*")) == before
