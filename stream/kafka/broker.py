"""The broker: yours when `broker.bootstrap` names one, else an embedded one that driftline starts and stops.

The embedded broker is the `noida-db` binary from PyPI: it speaks Kafka on one port and keeps its data on disk. All
driftline processes of one directory share it. Who shares it is held in file locks, which the kernel drops when a
process dies, so that kill -9 leaves nothing to clean up:

    start.lock   exclusive while somebody starts, stops or deletes the broker
    users.lock   shared by every process that uses it; who gets it exclusively is the last one and stops the broker
    alive.lock   exclusive while the broker lives: it inherits the open file of who starts it
    broker.json  process id, its start time and port of the running broker; one whose starter was killed before it
                 wrote this is found by its lock and its command line

It rewrites its whole data file a moment after a change: right for demos and tests up to about a million events, not
for production. kill -9 of the broker itself may lose what came in that moment; an orderly stop loses nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil
from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from driftline.configs.addresses import Address, addresses
from driftline.configs.errors import BrokerError, ConfigError, LockedError
from driftline.configs.security import bootstrap_ms, client_options
from driftline.configs.settings import Broker
from driftline.serving.unclosed import close_what_is_dropped
from driftline.stream.durable import open_locked, try_lock, write_durably
from driftline.stream.exits import still_running
from driftline.stream.kafka.advertised import unreachable

HOST = "127.0.0.1"
STOP_S = 10.0
START_S = 60.0
FREE_S = 3.0
"""A broker that was killed a moment ago may hold its port for so long."""


_children: dict[int, subprocess.Popen[bytes]] = {}
"""Brokers that this process started, by process id: to be reaped by it."""


@dataclass(frozen=True, slots=True)
class Running:
    """A running embedded broker.

    Attributes:
        pid: its process.
        created: start time of that process, so that a reused process id is not taken for it.
        port: where it listens.
    """

    pid: int
    created: float
    port: int

    def process(self) -> psutil.Process | None:
        """The process, None when it is gone."""
        return still_running(self.pid, self.created)


class EmbeddedBroker:
    """One user's share in the embedded broker of a directory: a context manager that gives the bootstrap address.

    Args:
        settings: port and directory.
        keep: leave the broker running when the last user goes.

    Raises:
        ConfigError: the port is taken.
        BrokerError: the directory can't be written, the binary is missing or the broker does not come up.
    """

    def __init__(self, settings: Broker, keep: bool = False) -> None:
        self.directory, self.port, self.keep = settings.embedded_dir.absolute(), settings.embedded_port, keep
        self._users: IO[str] | None = None

    def __enter__(self) -> str:
        try:
            if not self.directory.exists():
                self._wait_for_port()  # a command in the wrong folder leaves nothing there
        except ConfigError:
            if not self.directory.exists():  # else another command has begun meanwhile, whose broker it may be
                raise
        with self._exclusive():
            self._users = (self.directory / "users.lock").open("a")
            fcntl.flock(self._users, fcntl.LOCK_SH)
            try:
                running = self.running() or self._start()
            except BaseException:
                self._users.close()
                raise
        if running.port != self.port:
            self.__exit__(None, None, None)
            raise BrokerError(
                f"the embedded broker of {self.directory} listens on port {running.port}, broker.embedded_port is "
                f"{self.port}; set it to {running.port} or stop the processes that use that broker"
            )
        return f"{HOST}:{running.port}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._users is None:
            return
        with self._exclusive():
            fcntl.flock(self._users, fcntl.LOCK_UN)
            last = try_lock(self._users)
            if last and not self.keep:
                self.stop()
            self._users.close()
            self._users = None

    def running(self) -> Running | None:
        """The running broker of this directory, None when there is none."""
        with suppress(OSError, ValueError, TypeError):
            running = Running(**json.loads((self.directory / "broker.json").read_text()))
            if running.process() is not None:
                return running
        return self._unnoted()

    def orphaned(self) -> bool:
        """Whether processes use the broker of this directory although it is gone."""
        path = self.directory / "users.lock"
        if path.exists():
            with suppress(OSError, BrokerError), self._exclusive(), path.open("r+") as users:
                return self.running() is None and not try_lock(users)
        return False

    def stop_unused(self) -> bool:
        """Stops a broker that no process uses: one that a killed process has left. Whether there was one."""
        if not self.directory.exists():
            return False
        with self._exclusive(), (self.directory / "users.lock").open("a") as users:
            if self.running() is not None and try_lock(users):
                self.stop()
                return True
        return False

    @contextmanager
    def unused(self) -> Iterator[None]:
        """Holds the directory, where there is one: nobody starts the broker meanwhile.

        Raises:
            LockedError: it runs.
        """
        with self._exclusive() if self.directory.exists() else nullcontext():
            if found := self.running():
                raise LockedError(
                    f"the embedded broker runs, process {found.pid}: end the commands that use it, or `driftline down`"
                )
            yield

    def stop(self) -> None:
        """Stops the running broker, whoever uses it; its data stays."""
        running = self.running()
        process = running.process() if running else None
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
                _wait_or_kill(process, _children.pop(process.pid, None))
        for pid in [pid for pid, child in _children.items() if child.poll() is not None]:
            del _children[pid]  # one that was killed
        (self.directory / "broker.json").unlink(missing_ok=True)

    def _wait_for_port(self) -> None:
        deadline = time.monotonic() + FREE_S
        while _listens(self.port) and time.monotonic() < deadline:
            time.sleep(0.05)
        if _listens(self.port):
            raise ConfigError(
                f"port {self.port} is taken, so the embedded broker of {self.directory.absolute()} can't start. Does "
                "one of another directory run? Then start this command there: paths are relative to the directory. "
                f"Else set broker.embedded_port to a free port, or broker.bootstrap to {HOST}:{self.port} if a Kafka "
                "broker listens there"
            )

    def _start(self) -> Running:
        binary = _binary()
        self._wait_for_port()
        if not os.access(binary, os.X_OK):
            binary.chmod(0o755)
        command = [str(binary), "start", "--only", "kafka", "--kafka-port", str(self.port), "--host", HOST]
        with (self.directory / "broker.log").open("ab") as log, self._alive() as alive:
            child = subprocess.Popen(
                [*command, "--data-dir", str(self.directory / "data")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[alive.fileno()],
            )
        try:
            running = self._started(child)
        except BaseException:  # a full disk, Ctrl-C: nobody would know of it
            _end(child)
            raise
        _children[child.pid] = child
        return running

    def _started(self, child: subprocess.Popen[bytes]) -> Running:
        """Notes a new broker and waits until it listens."""
        running = Running(child.pid, psutil.Process(child.pid).create_time(), self.port)
        noted = json.dumps({n: getattr(running, n) for n in Running.__slots__})
        write_durably(self.directory / "broker.json", noted.encode())
        deadline = time.monotonic() + START_S
        while not _listens(self.port):
            if child.poll() is not None or time.monotonic() > deadline:
                raise BrokerError(f"the embedded broker did not start on port {self.port}: {self._last_words(child)}")
            time.sleep(0.02)
        return running

    def _last_words(self, child: subprocess.Popen[bytes]) -> str:
        if child.poll() is None:
            return f"nothing listens after {START_S:g} s; see {self.directory / 'broker.log'}"
        lines = (self.directory / "broker.log").read_text(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.startswith("error")), f"exit code {child.returncode}")

    def _alive(self) -> IO[bytes]:
        """The file that the broker is to inherit, with its lock.

        Raises:
            BrokerError: a broker that could not be found holds it.
        """
        deadline = time.monotonic() + FREE_S
        while (file := open_locked(self.directory / "alive.lock")) is None:  # others look at it for a moment
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"a process that was not found holds {self.directory / 'alive.lock'}, as a running broker of this "
                    "directory does; expected none. End it: `fuser` names it"
                )
            time.sleep(0.02)
        return file

    def _unnoted(self) -> Running | None:
        """A broker of this directory of which nobody has written, as its starter was killed before."""
        with suppress(OSError), (self.directory / "alive.lock").open("r+") as alive:
            if try_lock(alive):
                return None
            data = os.path.realpath(self.directory / "data")
            for process in psutil.process_iter():
                with suppress(psutil.Error, ValueError, IndexError):
                    words = process.cmdline()
                    if os.path.realpath(words[words.index("--data-dir") + 1]) == data:
                        port = int(words[words.index("--kafka-port") + 1])
                        return Running(process.pid, process.create_time(), port)
        return None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        try:
            lock = open_locked(self.directory / "start.lock", wait=True)
        except OSError as error:
            raise BrokerError(
                f"broker.embedded_dir {self.directory} can't be made or written: {error.strerror}; set it to a folder "
                "for the data of the embedded broker, or set broker.bootstrap"
            ) from None
        assert lock is not None  # it was waited for
        with lock:
            yield


@contextmanager
def broker(settings: Broker, keep: bool = False) -> Iterator[str]:
    """The bootstrap address of a broker that answers; starts the embedded one when none is configured.

    Raises:
        ConfigError: its port is taken, or the address is malformed.
        BrokerError: it can't be started or reached.
    """
    if settings.bootstrap:
        check_reachable(settings, settings.bootstrap)
        yield settings.bootstrap
        return
    with EmbeddedBroker(settings, keep) as bootstrap:
        check_reachable(settings, bootstrap)
        yield bootstrap


def check_reachable(settings: Broker, bootstrap: str) -> None:
    """Returns when a broker answers, and can be reached where it says that it is.

    Raises:
        ConfigError: the address is malformed.
        BrokerError: nothing answers within `connect_timeout_s`, or only at the bootstrap address.
    """
    with admin(settings, bootstrap):
        pass


@contextmanager
def admin(settings: Broker, bootstrap: str) -> Iterator[Any]:
    """A kafka-python admin client.

    Raises:
        ConfigError, BrokerError: as `check_reachable`.
    """
    _wait_until_one_listens(settings, bootstrap)
    close_what_is_dropped()
    try:
        options = client_options(settings, bootstrap)
        client = KafkaAdminClient(**options, bootstrap_timeout_ms=bootstrap_ms(settings))
    except (KafkaError, OSError) as error:
        user = f" and lets broker.sasl_username {settings.sasl_username!r} in" if "SASL" in settings.security else ""
        raise BrokerError(
            f"what listens at {bootstrap} does not answer as a Kafka broker that speaks broker.security "
            f"{settings.security}{user} ({type(error).__name__}); correct these, or leave broker.bootstrap empty "
            "for the embedded broker"
        ) from None
    try:
        _check_advertised(settings, bootstrap, client)
        yield client
    except KafkaError as error:
        raise BrokerError(f"the broker at {bootstrap} failed: {error!r:.300}; check it and try again") from None
    finally:
        client.close()


def _check_advertised(settings: Broker, bootstrap: str, client: Any) -> None:
    places = [Address(broker.host, broker.port) for broker in client._manager.cluster.brokers()]
    why = unreachable(places, settings.connect_timeout_s)
    if why:
        named = ", ".join(map(str, places))
        raise BrokerError(
            f"the broker at {bootstrap} answers and says that it is found at {named}, which can't be reached from here "
            f"({why}); set the broker's advertised.listeners to an address that this machine reaches, or run driftline "
            "where that one can be reached"
        )


def _wait_until_one_listens(settings: Broker, bootstrap: str) -> None:
    deadline = time.monotonic() + settings.connect_timeout_s
    while True:
        for at in _addresses(bootstrap):
            with suppress(OSError), socket.create_connection((at.host, at.port), settings.connect_timeout_s):
                return
        if time.monotonic() > deadline:
            raise BrokerError(
                f"no Kafka broker answers at {bootstrap} within {settings.connect_timeout_s:g} s; start it, or correct "
                "broker.bootstrap, or leave that empty for the embedded one"
            )
        time.sleep(0.1)


def _addresses(bootstrap: str) -> list[Address]:
    try:
        return addresses(bootstrap)
    except ValueError as error:
        raise ConfigError(f"broker.bootstrap: {error}") from None


def _binary() -> Path:
    with suppress(ModuleNotFoundError):
        binary = Path(str(files("noida_db").joinpath("noida-db")))
        if binary.is_file():
            return binary
    raise BrokerError("the embedded broker is missing; install noida-db, or set broker.bootstrap to a broker of yours")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _wait_or_kill(process: psutil.Process, child: subprocess.Popen[bytes] | None) -> None:
    """Waits for a process that may be a child of ours or not."""
    try:
        process.wait(STOP_S)
    except psutil.TimeoutExpired:
        process.kill()
    if child is not None:
        child.wait()
