"""The embedded broker: one for all processes of a directory, stopped by the last, clear when it can't start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaError
from tests.stream.conftest import wait_for

from driftline.configs.addresses import free_port
from driftline.configs.errors import BrokerError, ConfigError, LockedError
from driftline.configs.security import producer_options
from driftline.configs.settings import Broker, Settings
from driftline.stream.events.topics import TOPICS, create_topics, partitions_of
from driftline.stream.kafka import broker as module
from driftline.stream.kafka.broker import EmbeddedBroker, broker
from driftline.stream.kafka.identity import Identities
from driftline.stream.kafka.reading import consumer, places, polled, read_all
from driftline.stream.ops.doctor import examine
from driftline.stream.process.processor import Processor, Record
from driftline.stream.state.store import MemoryStore

HOLDER = """
import sys, time
from pathlib import Path
from driftline.configs.settings import Broker
from driftline.stream.kafka.broker import EmbeddedBroker
with EmbeddedBroker(Broker(embedded_dir=Path(sys.argv[1]), embedded_port=int(sys.argv[2]))):
    print("holds", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(embedded_dir=tmp_path / "broker", embedded_port=free_port(), connect_timeout_s=2)
    yield made
    EmbeddedBroker(made).stop()


def hold(settings: Broker) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(settings.embedded_dir), str(settings.embedded_port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_the_last_user_stops_the_broker_and_its_records_stay(settings: Broker) -> None:
    with broker(settings) as bootstrap:
        assert len(create_topics(settings, bootstrap)) == len(TOPICS)
        assert create_topics(settings, bootstrap) == []
        with broker(settings) as again:
            assert again == bootstrap
        assert EmbeddedBroker(settings).running() is not None
        producer = KafkaProducer(bootstrap_servers=bootstrap)
        producer.send("interactions", key=b"u1", value=b"{}", headers=[("trace", b"x")])
        producer.close()
    assert EmbeddedBroker(settings).running() is None
    with broker(settings) as bootstrap:
        records = list(read_all(settings, bootstrap, "interactions"))
    assert [(r.key, r.value, list(r.headers)) for r in records] == [(b"u1", b"{}", [("trace", b"x")])]


def test_a_user_that_is_killed_does_not_keep_the_broker_from_being_stopped(settings: Broker) -> None:
    other = hold(settings)
    running = EmbeddedBroker(settings).running()
    assert running is not None
    with EmbeddedBroker(settings):
        end(other)
        assert EmbeddedBroker(settings).running() == running
    assert EmbeddedBroker(settings).running() is None
    with pytest.raises(ProcessLookupError):
        os.kill(running.pid, 0)


def test_a_broker_whose_every_user_was_killed_is_found_and_shared(settings: Broker) -> None:
    end(hold(settings))
    orphan = EmbeddedBroker(settings).running()
    assert orphan is not None
    with EmbeddedBroker(settings):
        assert EmbeddedBroker(settings).running() == orphan
    assert EmbeddedBroker(settings).running() is None


def test_a_broker_whose_starter_was_killed_before_it_wrote_of_it_is_found_shared_and_stopped(settings: Broker) -> None:
    killed = "from driftline.stream.kafka import broker; import os; broker.write_durably = lambda *_: os.kill(0, 9)"
    command = [sys.executable, "-c", f"{killed}\n{HOLDER}", str(settings.embedded_dir), str(settings.embedded_port)]
    assert subprocess.run(command, start_new_session=True, check=False).returncode == -signal.SIGKILL
    assert not (settings.embedded_dir / "broker.json").exists()
    orphan = wait_for(EmbeddedBroker(settings).running, 10, "it is a broker's process by now")
    assert orphan.port == settings.embedded_port
    with (
        pytest.raises(LockedError, match=f"the embedded broker runs, process {orphan.pid}"),
        EmbeddedBroker(settings).unused(),
    ):
        pass
    with EmbeddedBroker(settings, keep=True):
        assert EmbeddedBroker(settings).running() == orphan
    assert EmbeddedBroker(settings).stop_unused()
    assert EmbeddedBroker(settings).running() is None
    with pytest.raises(ProcessLookupError):
        os.kill(orphan.pid, 0)


@pytest.mark.parametrize(
    ("step", "error"), [("write_durably", OSError(28, "No space left on device")), ("_listens", KeyboardInterrupt())]
)
def test_a_start_that_does_not_come_to_its_end_leaves_no_broker_behind(
    settings: Broker, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    called: list[Any] = []
    before = set(psutil.Process().children())

    def fails(*arguments: Any) -> bool:
        called.append(arguments)
        if started := [child.pid for child in psutil.Process().children() if child not in before]:
            called.append(started)
            raise error
        return False

    with monkeypatch.context() as broken:
        broken.setattr(module, step, fails)
        with pytest.raises(type(error)), EmbeddedBroker(settings):
            pass
    assert isinstance(called[-1], list)  # it ran
    assert not any(psutil.pid_exists(pid) for pid in called[-1])
    assert EmbeddedBroker(settings).running() is None
    with EmbeddedBroker(settings):
        assert EmbeddedBroker(settings).running() is not None


def test_a_broker_that_was_killed_is_started_again_with_what_it_had_written(settings: Broker, wait: Any) -> None:
    kept = settings.embedded_dir / "data" / "kafka.json"
    with EmbeddedBroker(settings) as bootstrap:
        create_topics(settings, bootstrap)
        running = EmbeddedBroker(settings).running()
        assert running is not None
        wait(lambda: kept.exists() and b"profiles.log" in kept.read_bytes(), 10, "the broker writes its file")
        os.kill(running.pid, signal.SIGKILL)
    with EmbeddedBroker(settings) as bootstrap:
        assert partitions_of(settings, bootstrap, "interactions") == 1
        assert partitions_of(settings, bootstrap, "no-such-topic") == 0


def test_a_taken_port_is_named_with_the_two_ways_out(settings: Broker) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.embedded_port))
        other.listen()
        with (
            pytest.raises(ConfigError, match=r"port \d+ is taken.*broker\.embedded_port.*broker\.bootstrap"),
            broker(settings),
        ):
            pass
    assert not settings.embedded_dir.exists(), "a command in the wrong folder leaves nothing there"
    with broker(settings):
        pass


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/x"])
def test_a_directory_that_can_not_be_made_is_named_with_the_two_ways_out(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BrokerError, match=r"broker\.embedded_dir .* can't be made or written: .*broker\.bootstrap"),
        broker(Broker(embedded_dir=tmp_path / place)),
    ):
        pass


def test_a_missing_binary_is_one_message(settings: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "noida_db", None)  # as if it were not installed
    with pytest.raises(BrokerError, match="the embedded broker is missing; install noida-db"), broker(settings):
        pass


def test_another_port_than_that_of_the_running_broker_is_refused(settings: Broker) -> None:
    with EmbeddedBroker(settings):
        other = settings.model_copy(update={"embedded_port": settings.embedded_port - 1})
        with pytest.raises(BrokerError, match=f"listens on port {settings.embedded_port}"), EmbeddedBroker(other):
            pass
        assert EmbeddedBroker(settings).running() is not None


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:port", ":9092", "127.0.0.1:99999"])
def test_a_malformed_address_is_refused_before_anything_is_tried(address: str) -> None:
    made = Broker().model_copy(update={"bootstrap": address})
    with pytest.raises(ConfigError, match=r"broker.bootstrap: got .*; expected"), broker(made):
        pass


def test_an_address_without_a_broker_is_given_up_after_the_timeout() -> None:
    settings = Broker(bootstrap="127.0.0.1:9", connect_timeout_s=0.5)
    with pytest.raises(BrokerError, match=r"no Kafka broker answers at 127\.0\.0\.1:9 within 0\.5 s"), broker(settings):
        pass


def test_waiting_for_records_leaves_the_core_alone(settings: Broker) -> None:
    with broker(settings) as bootstrap:
        create_topics(settings, bootstrap)
        with consumer(settings, bootstrap) as reader:
            everything = places(reader, settings, ["interactions"])
            reader.assign(everything)
            reader.seek_to_beginning(*everything)
            polled(reader, 200)
            started, spent = time.monotonic(), time.process_time()
            assert polled(reader, 2000) == {}
            assert time.monotonic() - started >= 2
            assert time.process_time() - spent < 0.4  # a poll with a time limit takes more than a second


def test_the_producer_of_the_readme_speaks_to_the_embedded_broker_and_sends_an_event(settings: Broker) -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    (snippet,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    address = f"127.0.0.1:{Broker().embedded_port}"
    assert address in snippet
    with broker(settings) as bootstrap:
        create_topics(settings, bootstrap)
        sent: dict[str, Any] = {}
        exec(compile(snippet.replace(address, bootstrap), "README.md", "exec"), sent)
        sent["producer"].close()
        (record,) = read_all(settings, bootstrap, "interactions")
    assert Processor(Settings(), MemoryStore()).validated(Record(record.offset, record.value, record.key)).value == 6


def test_doctor_tells_a_broker_that_is_gone_while_it_is_used_from_one_that_nobody_uses(settings: Broker) -> None:
    def found() -> list[str]:
        whole = Settings().model_copy(update={"broker": settings})
        return [finding.state for finding in examine(whole) if finding.part == "broker"]

    assert found() == ["note"]
    holder = hold(settings)
    try:
        assert found() == ["ok"]
        running = EmbeddedBroker(settings).running()
        assert running is not None
        os.kill(running.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while found() != ["bad"]:
            assert time.monotonic() < deadline
    finally:
        end(holder)
    assert found() == ["note"]


def test_every_client_of_kafka_gives_up_in_the_time_that_is_set() -> None:
    """kafka-python looks for a broker for 30 s where nothing else is said."""
    settings, nobody = Broker(connect_timeout_s=0.3), f"127.0.0.1:{free_port()}"
    begun_s = time.monotonic()
    with pytest.raises(KafkaError):
        KafkaProducer(**producer_options(settings, nobody))
    with pytest.raises(BrokerError):
        Identities(settings, nobody).of([("items", 0)], [None])
    assert time.monotonic() - begun_s < 15
